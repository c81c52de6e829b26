//! What changed between two positions, by field.
//!
//! Both states are folded, written as the API writes them, and compared member by member. What only
//! says that something was heard of (`position`, `updated_at`) or that time passed (`uptime`) is
//! left out: it changes with every event and tells nothing.

use std::collections::BTreeMap;

use milepost_projections::answers::{InstanceAnswer, JobAnswer, NodeAnswer};
use milepost_schemas::{AgentId, EventType, JobId, NodeId, Position, StreamId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::past::{board_at, job_at, node_at, queue_at, touched_by};
use crate::execute::{ExecuteError, unreadable};
use crate::log::{EventFilter, Log, READ_EVENTS_MAX};

/// Events between two positions that are looked at for what they touched.
pub const EVENTS_MAX: usize = 20_000;

/// Things that are compared at once.
pub const THINGS_MAX: usize = 200;

/// Members that change with every event, or with time alone.
const LEFT_OUT: [&str; 3] = ["position", "updated_at", "uptime"];

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thing {
    /// An agent, with its current instance.
    Agent(AgentId),
    /// A job, with all its attempts.
    Job(JobId),
    /// A node.
    Node(NodeId),
    /// The queue: whether it is stopped.
    Queue,
}

/// What changed: `GET /api/diff`.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Everything that changed; agents first, then jobs, nodes and the queue.
    pub things: Vec<Changed>,
    /// Everything up to here has been looked at.
    pub looked_to: Position,
}

/// One thing that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// `agent`, `job`, `node` or `queue`.
    pub kind: &'static str,
    /// Which.
    pub id: Uuid,
    /// What people call it.
    pub name: String,
    /// Whether it came into being between the two.
    pub is_new: bool,
    /// Each field with another value than before.
    pub fields: Vec<Field>,
}

/// One field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Its path in the API's answer: `steps.installing.status`, `timeline.2.error_code`.
    pub field: String,
    /// What it was; `null` before there was any.
    pub old: Value,
    /// What it is.
    pub new: Value,
}

impl Thing {
    /// `agent`, `job`, `node` or `queue`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Job(_) => "job",
            Self::Node(_) => "node",
            Self::Queue => "queue",
        }
    }

    /// Its id; the queue's is that of its stream.
    pub fn id(self) -> Uuid {
        match self {
            Self::Agent(id) => id.0,
            Self::Job(id) => id.0,
            Self::Node(id) => id.0,
            Self::Queue => StreamId::QUEUE.0,
        }
    }
}

/// What changed of one thing, or of all that the events between two positions touched.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn between(
    log: &Log,
    old: Position,
    new: Position,
    only: Option<Thing>,
) -> Result<Difference, ExecuteError> {
    let (things, looked_to) = match only {
        Some(thing) => (vec![thing], new),
        None => touched(log, old, new).await?,
    };
    let mut changed = Vec::new();
    for thing in things {
        changed.extend(compare(log, thing, old, new).await?);
    }
    Ok(Difference { things: changed, looked_to })
}

/// What the events after one position and up to another touched, and how far that was looked at.
async fn touched(
    log: &Log,
    old: Position,
    new: Position,
) -> Result<(Vec<Thing>, Position), ExecuteError> {
    // What is printed changes no state.
    let printed = EventType::JobLogRecorded;
    let types = EventType::ALL.iter().copied().filter(|kind| *kind != printed).collect();
    let filter = EventFilter { streams: Vec::new(), types };
    let mut things = std::collections::BTreeSet::new();
    let (mut after, mut looked_at) = (old, 0);
    loop {
        let events = log.read(&filter, after, new, READ_EVENTS_MAX).await?;
        for event in &events {
            let (agent, job, node) =
                touched_by(event.event().map_err(|error| unreadable(event, error))?);
            let queue = (event.stream == StreamId::QUEUE).then_some(Thing::Queue);
            let some = [agent.map(Thing::Agent), job.map(Thing::Job), node.map(Thing::Node), queue];
            if things.len() + some.len() > THINGS_MAX {
                return Ok((things.into_iter().collect(), after));
            }
            things.extend(some.into_iter().flatten());
            after = event.position;
        }
        looked_at += events.len();
        if events.len() < READ_EVENTS_MAX {
            return Ok((things.into_iter().collect(), new));
        }
        if looked_at >= EVENTS_MAX {
            return Ok((things.into_iter().collect(), after));
        }
    }
}

/// What changed of one thing; `None` where nothing did.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn compare(
    log: &Log,
    thing: Thing,
    old: Position,
    new: Position,
) -> Result<Option<Changed>, ExecuteError> {
    let before = state(log, thing, old).await?;
    let Some((name, after)) = state(log, thing, new).await? else { return Ok(None) };
    let is_new = before.is_none();
    let fields = fields(before.map_or(Value::Null, |(_, value)| value), after);
    let changed = Changed { kind: thing.kind(), id: thing.id(), name, is_new, fields };
    Ok(Some(changed).filter(|changed| changed.is_new || !changed.fields.is_empty()))
}

/// What people call a thing, and its answer, as they were.
async fn state(
    log: &Log,
    thing: Thing,
    at: Position,
) -> Result<Option<(String, Value)>, ExecuteError> {
    Ok(match thing {
        Thing::Agent(id) => board_at(log, id, at).await?.and_then(|board| {
            // Of what depends on the time only the uptime is there, and that is left out.
            let answer = InstanceAnswer::of(&board, jiff::Timestamp::UNIX_EPOCH)?;
            Some((answer.agent.name.clone(), to_json(&answer)))
        }),
        Thing::Job(id) => job_at(log, id, at).await?.map(|job| {
            let answer = JobAnswer::of(&job);
            (answer.job_type.clone(), to_json(&answer))
        }),
        Thing::Node(id) => node_at(log, id, at).await?.and_then(|row| {
            let answer = NodeAnswer::of(&row)?;
            Some((answer.hostname.clone(), to_json(&answer)))
        }),
        Thing::Queue => {
            let queue = queue_at(log, at).await?;
            Some(("Queue".to_owned(), json!({"paused": queue.paused})))
        }
    })
}

fn to_json(answer: &impl Serialize) -> Value {
    serde_json::to_value(answer).expect("an answer is plain data")
}

/// Every path whose value differs, in the order of the paths.
fn fields(old: Value, new: Value) -> Vec<Field> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    flatten(String::new(), old, &mut before);
    flatten(String::new(), new, &mut after);
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort_unstable();
    paths.dedup();
    let value = |values: &BTreeMap<String, Value>, path: &String| {
        values.get(path).cloned().unwrap_or(Value::Null)
    };
    let pairs = paths.into_iter().map(|path| Field {
        field: path.clone(),
        old: value(&before, path),
        new: value(&after, path),
    });
    pairs.filter(|field| field.old != field.new).collect()
}

/// Writes every scalar under the path that leads to it.
fn flatten(path: String, value: Value, values: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members.into_iter().filter(|it| !LEFT_OUT.contains(&&*it.0)) {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                flatten(path, value, values);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.into_iter().enumerate() {
                flatten(format!("{path}.{}", key_of(&value, index)), value, values);
            }
        }
        scalar => {
            values.insert(path, scalar);
        }
    }
}

/// What tells an item of a list from the others: its id or its attempt, else its place, from 1.
fn key_of(item: &Value, index: usize) -> String {
    let id = item.get("id").and_then(Value::as_str).map(str::to_owned);
    let attempt = || item.get("attempt").and_then(Value::as_u64).map(|number| number.to_string());
    id.or_else(attempt).unwrap_or_else(|| (index + 1).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_that_differs_is_told_with_its_path() {
        let old = json!({
            "status": "running", "position": 4, "updated_at": "a", "uptime": 3,
            "steps": [{"id": "queued", "status": "completed"}, {"id": "creating", "status": "active"}],
            "timeline": [{"attempt": 1, "error_code": null}],
        });
        let new = json!({
            "status": "failed", "position": 5, "updated_at": "b", "uptime": 4,
            "steps": [{"id": "queued", "status": "completed"}, {"id": "creating", "status": "error"}],
            "timeline": [{"attempt": 1, "error_code": "X"}, {"attempt": 2, "error_code": null}],
        });
        let told: Vec<String> = fields(old.clone(), new)
            .iter()
            .map(|field| format!("{}: {} → {}", field.field, field.old, field.new))
            .collect();
        assert_eq!(
            told,
            [
                "status: \"running\" → \"failed\"",
                "steps.creating.status: \"active\" → \"error\"",
                "timeline.1.error_code: null → \"X\"",
                "timeline.2.attempt: null → 2",
            ]
        );
        assert_eq!(fields(old.clone(), old), []);
    }

    #[test]
    fn what_was_not_there_has_only_new_values() {
        let new = json!({"id": "x", "name": "mari", "region": null});
        let told = fields(Value::Null, new);
        let told: Vec<_> = told.iter().map(|field| (field.field.as_str(), &field.old)).collect();
        assert_eq!(told, [("id", &Value::Null), ("name", &Value::Null)]);
    }
}
