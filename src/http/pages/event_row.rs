//! One event of the log on a page, with what proves it.

use askama::Template;
use jiff::Timestamp;
use milepost_schemas::Metadata;
use serde_json::Value;
use uuid::Uuid;

use super::format::{Moment, number};

/// The fields of an event that say most about it, in the order they are said.
pub const SUMMARY_FIELDS: [&str; 11] = [
    "name",
    "kind",
    "step",
    "task",
    "error_code",
    "outcome",
    "dispatcher",
    "workflow_run_id",
    "cancelled_by",
    "reason",
    "region",
];

/// What stands between the parts of a summary.
pub const PART: &str = " · ";

/// The longest summary; the rest stands in the event itself.
pub const SUMMARY_CHARS_MAX: usize = 120;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// Its place in the log.
    pub position: u64,
    /// The log's epoch.
    pub epoch: i64,
    /// Its stream.
    pub stream: Uuid,
    /// Its place in that stream.
    pub version: u32,
    /// Its type.
    pub kind: String,
    /// When the log took it.
    pub recorded_at: Timestamp,
    /// Who caused it.
    pub actor: String,
    /// What it says, in short.
    pub summary: String,
    /// `x-signature` or `standard-webhooks`, where it came as a signed callback.
    pub signature_form: Option<String>,
    /// Which secret verified it.
    pub key_id: Option<String>,
    /// The callback's delivery id.
    pub delivery_id: Option<String>,
    /// The attempt the callback named.
    pub attempt: Option<u32>,
    /// The page of what it is about: an agent's, a node's, else the overview.
    pub subject: String,
    /// Its body, as indented JSON.
    pub data: String,
    /// Its header, as indented JSON.
    pub metadata: String,
}

/// Where an event stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its place in the log.
    pub position: u64,
    /// The log's epoch.
    pub epoch: i64,
    /// Its stream.
    pub stream: Uuid,
    /// Its place in that stream.
    pub version: u32,
    /// When the log took it.
    pub recorded_at: Timestamp,
}

impl EventRow {
    /// The row for an event.
    pub fn new(place: Place, kind: &str, data: &Value, metadata: &Metadata) -> Self {
        let header = serde_json::to_value(metadata).expect("a header has only text keys");
        let text = |field: &str| header.get(field).and_then(Value::as_str).map(str::to_owned);
        let callback = metadata.callback.as_ref();
        Self {
            position: place.position,
            epoch: place.epoch,
            stream: place.stream,
            version: place.version,
            kind: kind.to_owned(),
            recorded_at: place.recorded_at,
            actor: metadata.actor.clone(),
            summary: summary(data),
            signature_form: text("signature_form"),
            key_id: text("key_id"),
            delivery_id: text("delivery_id"),
            attempt: callback.and_then(|callback| callback.attempt),
            subject: subject(data),
            data: format!("{data:#}"),
            metadata: format!("{header:#}"),
        }
    }

    /// The markup scripts copy for an event that has not been rendered.
    pub fn blank() -> Self {
        Self {
            position: 0,
            epoch: 0,
            stream: Uuid::nil(),
            version: 0,
            kind: String::new(),
            recorded_at: Timestamp::UNIX_EPOCH,
            actor: String::new(),
            summary: String::new(),
            signature_form: None,
            key_id: None,
            delivery_id: None,
            attempt: None,
            subject: "/".to_owned(),
            data: String::new(),
            metadata: String::new(),
        }
    }
}

/// The page of the agent or the node that an event's body names.
pub fn subject(data: &Value) -> String {
    let id = |name: &str| data.get(name).and_then(Value::as_str).filter(|id| !id.is_empty());
    match (id("agent_id"), id("node_id")) {
        (Some(agent), _) => format!("/agents/{agent}"),
        (None, Some(node)) => format!("/nodes/{node}"),
        (None, None) => "/".to_owned(),
    }
}

/// The telling fields of an event's body, in a line.
pub fn summary(data: &Value) -> String {
    let said: Vec<String> = SUMMARY_FIELDS
        .iter()
        .filter_map(|field| match data.get(field)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
        .collect();
    said.join(PART).chars().take(SUMMARY_CHARS_MAX).collect()
}

/// A page of events, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventList {
    /// The events.
    pub rows: Vec<EventRow>,
    /// Whether older ones exist.
    pub older: bool,
    /// The page shows events before this position only (`?before=`); it does not follow the log.
    pub before: Option<u64>,
    /// What a link carries along on a page of the past: `&at=…`.
    pub and_at: String,
}

/// The same, ready to be written.
#[derive(Clone, Debug, Template)]
#[template(path = "parts/events.html")]
pub struct EventsView {
    rows: Vec<EventView>,
    blank: EventView,
    older: bool,
    before: Option<u64>,
    and_at: String,
}

/// One event, ready to be written.
#[derive(Clone, Debug, Template)]
#[template(path = "parts/event.html")]
pub struct EventView {
    row: EventRow,
    at: Moment,
}

impl EventsView {
    /// The view of that list.
    pub fn new(list: EventList, now: Timestamp) -> Self {
        Self {
            rows: list.rows.into_iter().map(|row| EventView::new(row, now)).collect(),
            blank: EventView::blank(),
            older: list.older,
            before: list.before,
            and_at: list.and_at,
        }
    }

    /// Whether new events come in by themselves.
    fn is_live(&self) -> bool {
        self.before.is_none() && self.and_at.is_empty()
    }

    /// The position of the oldest event shown.
    fn oldest(&self) -> u64 {
        self.rows.last().map_or(0, |view| view.row.position)
    }
}

impl EventView {
    /// The view of an event, as seen on the day of `now`.
    pub fn new(row: EventRow, now: Timestamp) -> Self {
        Self { at: Moment::of(row.recorded_at, now), row }
    }

    /// The markup scripts copy for an event that has not been rendered.
    pub fn blank() -> Self {
        Self { row: EventRow::blank(), at: Moment::default() }
    }

    /// Its place in the log.
    pub fn place(&self) -> u64 {
        self.row.position
    }

    fn anchor(&self) -> String {
        format!("e{}", self.row.position)
    }

    fn position(&self) -> String {
        number(self.row.position)
    }

    fn id(&self) -> String {
        format!("{}-{}", self.row.epoch, self.row.position)
    }

    fn signed(&self) -> bool {
        self.row.key_id.is_some()
    }

    fn attempt(&self) -> String {
        self.row.attempt.map(|attempt| attempt.to_string()).unwrap_or_default()
    }
}
