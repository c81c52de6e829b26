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
            data: String::new(),
            metadata: String::new(),
        }
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
}

/// The same, ready to be written.
#[derive(Clone, Debug, Template)]
#[template(path = "parts/events.html")]
pub struct EventsView {
    rows: Vec<EventView>,
    blank: EventView,
    older: bool,
    before: Option<u64>,
}

#[derive(Clone, Debug, Template)]
#[template(path = "parts/event.html")]
struct EventView {
    row: EventRow,
    at: Moment,
}

impl EventsView {
    /// The view of that list.
    pub fn new(list: EventList, now: Timestamp) -> Self {
        let view = |row: EventRow| EventView { at: Moment::of(row.recorded_at, now), row };
        Self {
            rows: list.rows.into_iter().map(view).collect(),
            blank: EventView { row: EventRow::blank(), at: Moment::default() },
            older: list.older,
            before: list.before,
        }
    }

    /// The position of the oldest event shown.
    fn oldest(&self) -> u64 {
        self.rows.last().map_or(0, |view| view.row.position)
    }
}

impl EventView {
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
