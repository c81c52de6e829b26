//! `POST /api/webhooks/github`: the callbacks of workflows.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use milepost_schemas::event::{CallbackRejected, NotApplied};
use milepost_schemas::{Callback, CallbackKind, JobId, Metadata, Position, StreamId};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::receipt::{self, Receipt};
use super::workflow_runs;
use crate::app::App;
use crate::domain::{JobAnswer, JobCommand};
use crate::execute::{self, ExecuteError, command_deadline};
use crate::http::problem::Problem;
use crate::http::read_body;
use crate::intake::Verified;
use crate::intake::github::{BODY_BYTES_MAX, IntakeError, verify};
use crate::intake::workflow_run::EVENT_HEADER;
use crate::log::{AppendError, DatabaseError, Decision, Expected};
use crate::metrics::CallbackLabels;

/// Characters of an unknown job's id that are kept.
pub const JOB_ID_CHARS_MAX: usize = 200;

/// The answer once the event is durable.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the name on the wire")]
pub struct Received {
    received: bool,
    applied: bool,
    position: Position,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<Receipt>,
}

/// Takes one callback.
///
/// # Errors
/// 400, 401, 413, 415: nothing is recorded. 409: the gate for a *started* of an attempt that is
/// over; it is recorded. 503: the log cannot be written; send it again.
pub async fn github(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    if request.headers().contains_key(EVENT_HEADER) {
        return workflow_runs::take(&app, request).await;
    }
    let (Parts { headers, .. }, body) = request.into_parts();
    let body = read_body(&headers, body, BODY_BYTES_MAX).await?;
    let now = app.clock.now();
    let verified = verify(&app.config.rules, &app.redactor, &headers, &body, now)
        .map_err(|error| refuse(&app, &error))?;
    let started = matches!(verified.value.kind, CallbackKind::Started);
    let kind = verified.value.kind.name();
    let (position, reason, repeated) = record(&app, verified).await?;
    let outcome = if repeated { "repeated" } else { reason.map_or("applied", NotApplied::as_str) };
    app.metrics.callbacks.get_or_create(&CallbackLabels { kind, outcome }).inc();
    if let (true, Some(over @ (NotApplied::JobEnded | NotApplied::AttemptSuperseded))) =
        (started, reason)
    {
        let detail = "This attempt is over: stop here and create nothing";
        return Err(Problem::conflict("attempt-over", detail)
            .with("reason", over.as_str())
            .with("position", position.0));
    }
    let mut received = Received::new(position, reason.map(NotApplied::as_str));
    if receipt::is_preferred(&headers) {
        received.receipt = receipt::of(&app, position).await;
    }
    Ok(Json(received).into_response())
}

impl Received {
    /// The answer for an event at a place of the log; with a reason it changed nothing.
    pub(super) fn new(position: Position, reason: Option<&'static str>) -> Self {
        Self { received: true, applied: reason.is_none(), position, reason, receipt: None }
    }
}

pub(super) fn refuse(app: &App, error: &IntakeError) -> Problem {
    match error {
        IntakeError::NotJson => Problem::not_json(),
        IntakeError::Unauthorised(why) => {
            app.metrics.callbacks_unauthorised.inc();
            Problem::unauthorised(*why)
        }
        IntakeError::Body(_) | IntakeError::Webhook(_) | IntakeError::DeliveryId => {
            Problem::bad_request(error.to_string())
        }
    }
}

/// Records a callback: where, why it was not applied if it was not, and whether it was a repeat.
async fn record(
    app: &App,
    verified: Verified<Callback>,
) -> Result<(Position, Option<NotApplied>, bool), ExecuteError> {
    let callback = Arc::new(verified.value);
    let job_id: Option<JobId> = callback.job_id.parse().ok();
    let metadata = Arc::new(Metadata {
        actor: format!("workflow:{}", verified.evidence.key_id),
        correlation_id: job_id.map_or(Uuid::nil(), |job| job.0),
        causation_id: Some(format!("request:{}", app.clock.id())),
        callback: Some(verified.evidence),
    });
    let mut reason = NotApplied::UnknownJob;
    if let Some(job_id) = job_id {
        let executed = if matches!(callback.kind, CallbackKind::Log { .. }) {
            execute::to_job_log(app, job_id, Arc::clone(&callback), Arc::clone(&metadata)).await
        } else {
            let command = JobCommand::Record(Arc::clone(&callback));
            execute::to_job(app, job_id, command, Arc::clone(&metadata)).await
        };
        match executed {
            Err(ExecuteError::UnknownJob) => {}
            // Only jobs that have ended are: what comes now is kept, and changes nothing.
            Err(ExecuteError::Database(DatabaseError::Archived { .. })) => {
                reason = NotApplied::JobEnded;
            }
            outcome => {
                let outcome = outcome?;
                return Ok(match outcome.answer {
                    JobAnswer::Applied | JobAnswer::Nothing => (outcome.position, None, false),
                    JobAnswer::Kept(reason) => (outcome.position, Some(reason), false),
                    JobAnswer::Repeated(position, reason) => (position, reason, true),
                });
            }
        }
    }
    let metadata = Arc::unwrap_or_clone(metadata);
    let (position, repeated) = reject(app, &callback, reason, metadata).await?;
    Ok((position, Some(reason), repeated))
}

/// Keeps a callback of a job nobody knows any more, or ever did, once: in a stream of its own, whose id is derived
/// from what makes it the same delivery.
async fn reject(
    app: &App,
    callback: &Callback,
    reason: NotApplied,
    mut metadata: Metadata,
) -> Result<(Position, bool), ExecuteError> {
    let (stream, expected) = stream_of(callback);
    metadata.correlation_id = stream.0;
    // Of a job that was known the body may be personal, and nobody would erase it in this stream.
    if reason == NotApplied::JobEnded
        && let Some(evidence) = &mut metadata.callback
        && let Some(body) = evidence.body.take()
    {
        evidence.body_sha256 = Some(hex::encode(Sha256::digest(body)));
    }
    let event = CallbackRejected {
        job_id: callback.job_id.chars().take(JOB_ID_CHARS_MAX).collect(),
        kind: callback.kind.name().to_owned(),
        reason,
    };
    let decision = Decision {
        events: vec![(stream, event.into())],
        expected: vec![(stream, expected)],
        metadata: Arc::new(metadata),
        queue: None,
    };
    match app.log.append(decision, command_deadline()).await {
        Ok(appended) => Ok((appended.position(), false)),
        Err(AppendError::Conflict(_)) => {
            let first = app.log.read_streams(&[stream]).await?;
            let first = first.first().ok_or(ExecuteError::Unavailable)?;
            Ok((first.position, true))
        }
        Err(AppendError::Busy | AppendError::Unavailable) => Err(ExecuteError::Unavailable),
    }
}

fn stream_of(callback: &Callback) -> (StreamId, Expected) {
    let job = &callback.job_id;
    let (name, expected) = match (&callback.delivery_id, &callback.kind) {
        (Some(delivery), _) => (format!("{job}\0{delivery}"), Expected::Version(0)),
        (None, CallbackKind::Heartbeat) => (job.clone(), Expected::Any),
        (None, kind) => {
            let attempt = callback.attempt.map_or(0, |attempt| attempt.0);
            let step = kind.step().unwrap_or_default();
            (format!("{job}\0{attempt}\0{}\0{step}", kind.name()), Expected::Version(0))
        }
    };
    (StreamId(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())), expected)
}
