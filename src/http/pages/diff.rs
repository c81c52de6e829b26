//! What changed between two positions, by field; each difference has an address.

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde_json::Value;

use super::Frame;
use super::format::{full, number};
use super::handlers::{Trouble, frame, html};
use crate::app::App;
use crate::http::api::diff::{Between, DiffAnswer, Side, read};
use crate::http::auth::Visitor;
use crate::log::{DatabaseError, Escape};
use crate::views::diff::{Changed, Thing};

/// The longest value that is shown whole, in characters; the rest stands in the API's answer.
const VALUE_CHARS_MAX: usize = 200;

/// `GET /diff`.
#[derive(Clone, Debug, Template)]
#[template(path = "diff.html")]
pub struct DiffPage {
    frame: Frame,
    at: String,
    against: String,
    scope: Option<(&'static str, String)>,
    result: Option<Outcome>,
}

/// What was found between two places.
#[derive(Clone, Debug)]
struct Outcome {
    old: Side,
    new: Side,
    events: u64,
    looked_to: Option<u64>,
    things: Vec<ChangedView>,
}

/// One thing that changed, ready to be written.
#[derive(Clone, Debug, Template)]
#[template(path = "parts/changed.html")]
pub struct ChangedView {
    kind: &'static str,
    name: String,
    href: Option<String>,
    events: Option<String>,
    is_new: bool,
    fields: Vec<(String, String, String)>,
}

impl ChangedView {
    /// The view of what had changed at a position.
    pub fn new(changed: Changed, position: u64) -> Self {
        let Changed { kind, id, name, is_new, fields } = changed;
        let href = match kind {
            "agent" | "job" | "node" => Some(format!("/{kind}s/{id}?at={position}")),
            _ => None,
        };
        let fields = fields.into_iter().map(|it| (it.field, written(&it.old), written(&it.new)));
        Self { kind, name, href, events: None, is_new, fields: fields.collect() }
    }

    /// With a link to the events in between.
    fn between(changed: Changed, old: u64, new: u64) -> Self {
        let (kind, id) = (changed.kind, changed.id);
        let parameter = match kind {
            "agent" | "node" => kind,
            _ => "stream",
        };
        let events = format!("/events?{parameter}={id}&from={}&to={new}", old + 1);
        Self { events: Some(events), ..Self::new(changed, new) }
    }
}

/// Opens the sealed texts of what changed: one that is cut before opens nowhere.
pub(super) async fn open(app: &App, changed: &mut Changed) -> Result<(), DatabaseError> {
    let sealed = serde_json::to_vec(&changed.fields).expect("fields are plain data");
    let fields = app.log.keys().open(sealed.into(), Escape::Json).await?;
    changed.fields = serde_json::from_slice(&fields).expect("they were JSON just now");
    Ok(())
}

/// A value as a person reads it.
fn written(value: &Value) -> String {
    let text = match value {
        Value::Null => return "–".to_owned(),
        // A time as pages write it; its microseconds stand in the API's answer.
        Value::String(text) if text.ends_with('Z') => {
            text.parse().map_or_else(|_| text.clone(), full)
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.chars().count() <= VALUE_CHARS_MAX {
        return text;
    }
    let cut: String = text.chars().take(VALUE_CHARS_MAX).collect();
    format!("{cut}…")
}

impl DiffPage {
    /// The page for what was asked, and for what was found if it could be.
    pub fn new(
        frame: Frame,
        asked: &Between,
        scope: Option<Thing>,
        answer: Option<DiffAnswer>,
    ) -> Self {
        let result = answer.map(|answer| Outcome::of(answer, frame.reads_events()));
        let position = |side: fn(&Outcome) -> Side| {
            result.as_ref().map(|result| side(result).position.to_string())
        };
        Self {
            at: position(|it| it.old).or_else(|| asked.at.clone()).unwrap_or_default(),
            against: position(|it| it.new).unwrap_or_else(|| frame.position.to_string()),
            scope: scope.map(|thing| (parameter(thing), thing.id().to_string())),
            result,
            frame,
        }
    }

    /// The events between the two, of what is compared.
    fn events(&self, result: &Outcome) -> String {
        let scope = self.scope.as_ref();
        let scope = scope.map(|(name, id)| {
            let name = if *name == "job" { "stream" } else { name };
            format!("&{name}={id}")
        });
        let (from, to) = (result.old.position.0 + 1, result.new.position.0);
        format!("/events?from={from}&to={to}{}", scope.unwrap_or_default())
    }

    /// The way back, and on: this difference the other way round has the same answer.
    fn address(&self, result: &Outcome) -> String {
        let scope = self.scope.as_ref().map(|(name, id)| format!("&{name}={id}"));
        let (old, new) = (result.old.position, result.new.position);
        format!("/diff?at={old}&against={new}{}", scope.unwrap_or_default())
    }
}

/// The parameter that names a thing.
fn parameter(thing: Thing) -> &'static str {
    match thing {
        Thing::Agent(_) => "agent",
        Thing::Job(_) => "job",
        Thing::Node(_) => "node",
        Thing::Queue => "stream",
    }
}

impl Outcome {
    /// With links to events for who may read them.
    fn of(answer: DiffAnswer, reads_events: bool) -> Self {
        let DiffAnswer { old, new, events, looked_to, things, .. } = answer;
        let view = |it| {
            let (old, new) = (old.position.0, new.position.0);
            if reads_events {
                ChangedView::between(it, old, new)
            } else {
                ChangedView::new(it, new)
            }
        };
        Self {
            old,
            new,
            events,
            looked_to: (looked_to < new.position).then_some(looked_to.0),
            things: things.into_iter().map(view).collect(),
        }
    }

    fn words(&self) -> String {
        match self.events {
            0 => "no event".to_owned(),
            1 => "1 event".to_owned(),
            events => format!("{} events", number(events)),
        }
    }

    fn looked_to(&self) -> String {
        number(self.looked_to.unwrap_or_default())
    }
}

impl Side {
    /// Its position, in threes.
    pub fn text(&self) -> String {
        number(self.position.0)
    }

    /// Its time, in words.
    pub fn time(&self) -> String {
        full(self.recorded_at)
    }
}

/// `GET /diff?at=&against=&agent=|job=|node=|stream=`.
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    query: Result<Query<Between>, QueryRejection>,
) -> Result<Response, Trouble> {
    let Query(query) = query?;
    let (_, head) = app.log.head().await?;
    let frame = frame(&app, Some(&actor), "Differences".to_owned(), head);
    if query.at.as_deref().is_none_or(str::is_empty) {
        return Ok(html(&DiffPage::new(frame, &query, None, None)));
    }
    let (mut answer, scope) = read(&app, &query).await?;
    for thing in &mut answer.things {
        open(&app, thing).await?;
    }
    Ok(html(&DiffPage::new(frame, &query, scope, Some(answer))))
}
