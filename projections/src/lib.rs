//! What it means: pure folds from events to state.
//!
//! One fold a file; no clock, no I/O, no async. The same folds serve decisions, the catch-up
//! runner, a rebuild, time travel and an auditor's offline replay. No fold has a `_` arm over
//! events: a new event breaks each one until somebody has thought about it.

pub mod agent;
pub mod answers;
pub mod board;
pub mod compensation;
#[cfg(test)]
mod golden;
pub mod job;
pub mod job_log;
pub mod node;
pub mod queue;
pub mod steps;
pub mod subject;
#[cfg(test)]
mod tests;
pub mod upkeep;
pub mod usual;

use jiff::Timestamp;
use milepost_schemas::{Event, EventType, Position, StreamId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub use agent::Agent;
pub use board::Board;
pub use compensation::{Compensation, Compensations, OpenCompensations};
pub use job::{Job, JobStatus};
pub use job_log::JobLog;
pub use node::{Node, NodeRow, NodeStatus};
pub use queue::{Pause, Queue};
pub use steps::{Step, StepStatus};
pub use subject::Subject;
pub use upkeep::Upkeep;
pub use usual::{UsualDuration, usual};

/// An event with its place in the log.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    /// Its place in the whole log.
    pub position: Position,
    /// Its stream.
    pub stream: StreamId,
    /// Its place in that stream, from 1.
    pub version: u32,
    /// When the log took it; never earlier than the event before.
    pub recorded_at: Timestamp,
    /// The delivery id of the callback behind it, where it had one.
    pub delivery_id: Option<&'a str>,
    /// The fact.
    pub event: &'a Event,
}

/// Codes of event types are below this; a higher one that is passed over does not compile.
pub const CODES: usize = 256;

const fn by_code(kinds: &[EventType]) -> [bool; CODES] {
    let (mut codes, mut index) = ([false; CODES], 0);
    while index < kinds.len() {
        codes[kinds[index].code() as usize] = true;
        index += 1;
    }
    codes
}

/// A view: one row of state a key, folded from the whole log.
pub trait Projection: Send + Sync + 'static {
    /// Its name in the view table, in metrics and on pages.
    const NAME: &'static str;
    /// Raised whenever the fold or its row changes shape; a new version is filled from the log.
    const VERSION: i16;
    /// Events of these types belong to no row of it: they are not even decoded.
    const PASSES_OVER: &'static [EventType];
    /// The same by code, for it is looked up for every event of the log.
    const PASSES_OVER_CODE: &'static [bool; CODES] = &by_code(Self::PASSES_OVER);
    /// The row.
    type State: Serialize + DeserializeOwned + Default + Send + Sync + 'static;

    /// Whether events with this type code must be decoded; unknown ones must, and cannot.
    fn folds(code: i16) -> bool {
        usize::try_from(code).ok().and_then(|code| Self::PASSES_OVER_CODE.get(code)) != Some(&true)
    }

    /// What lists count and filter a row by: a status.
    fn label(state: &Self::State) -> &'static str;

    /// The row an event belongs to; `None` where this view has no use for it.
    fn key(event: &Event) -> Option<Uuid>;

    /// Folds one event into its row.
    fn apply(state: &mut Self::State, recorded: &Recorded<'_>);
}
