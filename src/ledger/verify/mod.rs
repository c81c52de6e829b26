//! The auditor: reads every event, and takes nobody's word for any of it.
//!
//! Each event is hashed into a leaf again. The leaves give a tree; its root is compared with every
//! signed checkpoint, its hashes with every stored tile. Where an event and a tile disagree, the
//! signed root says which of them was changed.
//!
//! What this cannot find by itself: that the newest checkpoints were taken away together with all
//! that they covered. Whoever has kept one of them, and names it, finds that as well, as the machine
//! that seals does.

mod archived;
mod database;
mod events;
mod examine;
mod finding;
mod judge;
mod keys;

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use milepost_schemas::event::LogEpochBegun;

use super::archive::ArchivedRange;
use super::note::VerifierKey;
use super::store::{ListedKey, SignedCheckpoint};
use crate::intake::github::Secret;

pub use database::database;
pub use events::{Auditor, SealedHash};
pub use examine::{Examined, Examiner};
pub use finding::{FINDINGS_MAX, Finding, Problem};

/// How long an event may wait for a checkpoint: one is signed about once a second, and a server that
/// takes over the sealing needs some more.
pub const UNSEALED_MAX: SignedDuration = SignedDuration::from_mins(1);

/// What the auditor brings along.
#[derive(Clone, Default)]
pub struct Trust {
    /// The keys that are trusted. With none, those that the log itself lists are taken, which
    /// whoever has rewritten all of it could have listed.
    pub keys: Vec<VerifierKey>,
    /// Signed notes that the auditor has kept from elsewhere.
    pub notes: Vec<String>,
    /// The secrets of callbacks, to check their signatures again.
    pub secrets: Vec<Secret>,
    /// Where the oldest events are, where they are archived.
    pub archive: Option<PathBuf>,
}

/// What is told of a log beside its events.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The log's epoch.
    pub epoch: i64,
    /// Its last position.
    pub head: u64,
    /// The checkpoints, by epoch and size.
    pub checkpoints: Vec<SignedCheckpoint>,
    /// The public keys, by epoch and size.
    pub keys: Vec<ListedKey>,
    /// The ranges whose events are archived, by position.
    pub archived: Vec<ArchivedRange>,
    /// When that was; `None` where events that wait to be sealed are not told of.
    pub at: Option<Timestamp>,
}

/// An epoch that an event tells of. Nothing in the database can say whether it was meant: that is in
/// the hands of whoever runs the log (`.github/decisions/0023`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BegunEpoch {
    /// The position of the event.
    pub position: u64,
    /// What it says.
    pub event: LogEpochBegun,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Events read.
    pub events: u64,
    /// Events that are archived and were not read: what was sealed of them stands in for them.
    pub archived: u64,
    /// Where those are, as the operator named it.
    pub archives: Vec<String>,
    /// The position up to which a trusted checkpoint covers them.
    pub sealed: u64,
    /// The root over those, as the events give it; empty where nothing is sealed.
    pub root: Option<super::Hash>,
    /// Checkpoints whose signature and root were checked.
    pub checkpoints: u64,
    /// Tiles compared.
    pub tiles: u64,
    /// Streams, each with versions from 1 without a gap.
    pub streams: u64,
    /// Callbacks whose signature was checked again.
    pub callbacks: u64,
    /// Callbacks whose signature could not be: their body is sealed or kept as a hash, or their secret
    /// is not here.
    pub callbacks_unchecked: u64,
    /// When the last event was recorded.
    pub last_recorded_at: Option<Timestamp>,
    /// The epochs that the log says were begun, by position.
    pub epochs: Vec<BegunEpoch>,
    /// What is wrong, by position: the first [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// How much is wrong in all.
    pub found: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.found == 0
    }

    /// The first thing that is wrong.
    pub fn first(&self) -> Option<&Finding> {
        self.findings.first()
    }
}
