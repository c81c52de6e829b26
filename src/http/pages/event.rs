//! One event: what it says, what it changed, who said so and how that can be checked again.

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use milepost_projections::Job;
use milepost_schemas::{CallbackEvidence, JobId, Metadata, Position, SignatureForm};

use super::Frame;
use super::diff::{ChangedView, open};
use super::event_row::EventRow;
use super::format::{Moment, full, number};
use super::handlers::{Trouble, frame, html, rows};
use crate::app::App;
use crate::http::api::events::read_one;
use crate::http::auth::Visitor;
use crate::http::problem::Problem;
use crate::log::{Committed, ERASED, Escape, SEALED};
use crate::views::diff::{Thing, compare};
use crate::views::past::{job_at, touched_by};

/// `GET /events/{position}`.
#[derive(Clone, Debug, Template)]
#[template(path = "event.html")]
pub struct EventPage {
    frame: Frame,
    row: EventRow,
    at: Moment,
    facts: Vec<(&'static str, String)>,
    links: Vec<Link>,
    changed: Vec<ChangedView>,
    evidence: Option<Evidence>,
}

/// Where an event leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What is there.
    pub words: String,
    /// Its address; one of ours, or of the run that spoke.
    pub href: String,
}

/// What proves a signed callback.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Evidence {
    form: &'static str,
    key_id: String,
    signature: String,
    delivery_id: String,
    attempt: String,
    signed_at: String,
    /// The raw body, where it was kept and can be opened.
    body: Option<String>,
    /// What is kept in its place; empty where a body was kept that cannot be opened any more.
    body_sha256: String,
    /// How to check the signature with the secret and openssl.
    command: String,
}

impl EventPage {
    /// The page for an event, what it changed, and where it leads.
    pub fn new(
        frame: Frame,
        row: EventRow,
        metadata: &Metadata,
        changed: Vec<ChangedView>,
        links: Vec<Link>,
    ) -> Self {
        let facts = vec![
            ("Event", format!("{}-{}", row.epoch, row.position)),
            ("Stream", row.stream.to_string()),
            ("Version in the stream", row.version.to_string()),
            ("Recorded", full(row.recorded_at)),
            ("Caused by", metadata.actor.clone()),
            ("In answer to", metadata.causation_id.clone().unwrap_or_default()),
            ("Belongs to", metadata.correlation_id.to_string()),
        ];
        Self {
            at: Moment { text: full(row.recorded_at), ..Moment::of(row.recorded_at, frame.now) },
            evidence: metadata.callback.as_ref().map(Evidence::of),
            frame,
            row,
            facts,
            links,
            changed,
        }
    }

    fn position(&self) -> String {
        number(self.row.position)
    }

    fn is_last(&self) -> bool {
        self.row.position >= self.frame.position
    }
}

impl Evidence {
    fn of(callback: &CallbackEvidence) -> Self {
        let form = match callback.signature_form {
            SignatureForm::XSignature => "x-signature",
            SignatureForm::StandardWebhooks => "standard-webhooks",
        };
        // Neither of these words was signed: a callback is an object of JSON.
        let body = callback.body.clone().filter(|body| body != ERASED && body != SEALED);
        Self {
            form,
            key_id: callback.key_id.clone(),
            signature: callback.signature.clone(),
            delivery_id: callback.delivery_id.clone().unwrap_or_default(),
            attempt: callback.attempt.map(|attempt| attempt.to_string()).unwrap_or_default(),
            signed_at: callback.signed_at.map(|at| at.to_string()).unwrap_or_default(),
            command: body.as_ref().map(|body| command(callback, body)).unwrap_or_default(),
            body,
            body_sha256: callback.body_sha256.clone().unwrap_or_default(),
        }
    }
}

/// The signature once more, from what is kept and the secret.
fn command(callback: &CallbackEvidence, body: &str) -> String {
    match callback.signature_form {
        SignatureForm::XSignature => format!(
            "printf %s {} | openssl dgst -sha256 -hmac \"$MILEPOST_CALLBACK_SECRET\"",
            quoted(body)
        ),
        SignatureForm::StandardWebhooks => {
            let id = callback.delivery_id.as_deref().unwrap_or_default();
            let signed = format!("{id}.{}.{body}", callback.signed_at.unwrap_or_default());
            format!(
                "key=$(printf %s \"${{MILEPOST_CALLBACK_SECRET#whsec_}}\" | base64 -d | xxd -p -c 256)\n\
                 printf %s {} | openssl dgst -sha256 -mac HMAC -macopt \"hexkey:$key\" -binary | base64",
                quoted(&signed)
            )
        }
    }
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// `GET /events/{position}`.
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    position: Result<Path<u64>, PathRejection>,
) -> Result<Response, Trouble> {
    let (_, head) = app.log.head().await?;
    let event = read_one(&app, position.ok().map(|Path(position)| position)).await?;
    let row = rows(&app, std::slice::from_ref(&event)).await?.remove(0);
    // The body is opened before it becomes a word of a command: whatever it says stays within it.
    let header = app.log.keys().open(event.header.clone(), Escape::Json).await?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| {
        tracing::error!(position = row.position, %error, "an event has no header");
        Problem::damaged(format!("event {} has no header", row.position))
    })?;
    let changed = changed(&app, &event).await?;
    let links = links(&app, &event, &row).await?;
    let title = format!("#{} {}", number(row.position), row.kind);
    let frame = frame(&app, Some(&actor), title, head);
    Ok(html(&EventPage::new(frame, row, &metadata, changed, links)))
}

/// What the event changed of whatever it is about.
async fn changed(app: &App, event: &Committed) -> Result<Vec<ChangedView>, Problem> {
    // One this version cannot read changes nothing that it could show.
    let Ok(fact) = event.event() else { return Ok(Vec::new()) };
    let (agent, job, node) = touched_by(fact);
    let queue = (event.stream == milepost_schemas::StreamId::QUEUE).then_some(Thing::Queue);
    let things = [agent.map(Thing::Agent), job.map(Thing::Job), node.map(Thing::Node), queue];
    let before = Position(event.position.0.saturating_sub(1));
    let mut changed = Vec::new();
    for thing in things.into_iter().flatten() {
        if let Some(mut difference) = compare(&app.log, thing, before, event.position).await? {
            open(app, &mut difference).await?;
            changed.push(ChangedView::new(difference, event.position.0));
        }
    }
    Ok(changed)
}

async fn links(app: &App, event: &Committed, row: &EventRow) -> Result<Vec<Link>, Problem> {
    let then = format!("?at={}", row.position);
    let mut links = vec![Link {
        words: "As it was at this event".into(),
        href: format!("{}{then}", row.subject),
    }];
    let data: serde_json::Value = serde_json::from_slice(&event.body).unwrap_or_default();
    let job = data.get("job_id").and_then(|id| id.as_str()).and_then(|id| id.parse::<JobId>().ok());
    if let Some(job) = job
        && let Some(state) = job_at(&app.log, job, event.position).await?
    {
        links.push(Link { words: "Its job then".into(), href: format!("/jobs/{job}{then}") });
        links.extend(run(&state, data.get("attempt").and_then(serde_json::Value::as_u64)));
    }
    let stream = format!("/events?stream={}", row.stream);
    links.push(Link { words: "All of its stream".into(), href: stream });
    let proof = format!("/integrity?position={}", row.position);
    links.push(Link { words: "Check that it is in the sealed log".into(), href: proof });
    let raw = format!("/api/events/{}", row.position);
    links.push(Link { words: "As JSON".into(), href: raw });
    Ok(links)
}

/// The run of the attempt that an event names, where a person can look at it.
fn run(job: &Job, attempt: Option<u64>) -> Option<Link> {
    let named = |number: u64| job.attempts.iter().find(|it| u64::from(it.number.0) == number);
    let attempt = attempt.and_then(named)?;
    let href = attempt
        .run_url
        .clone()
        .filter(|url| url.starts_with("https://") || url.starts_with("http://"))?;
    let id = attempt.workflow_run_id.clone().unwrap_or_default();
    Some(Link { words: format!("Run {id} of attempt {}", attempt.number), href })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_one_word_of_the_command() {
        assert_eq!(quoted("it's $x"), "'it'\\''s $x'");
    }
}
