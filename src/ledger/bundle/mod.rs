//! An export of the log: a directory that proves itself, with no database and no server.
//!
//! | file | what |
//! | --- | --- |
//! | `bundle.json` | which log, how far, in which format |
//! | `checkpoint` | the latest signed note, as it was given out |
//! | `checkpoints.jsonl` | every checkpoint that is kept |
//! | `keys.json` | the public keys, each with the size from which on it signed |
//! | `proofs.jsonl` | for the first and last event of each part that they are in the tree, and from each checkpoint to the next that the log only grew |
//! | `events/<first position>.jsonl` | 16,384 events each, a line of JSON an event |
//! | `events/<first position>.json` | or the same as a `CloudEvents` 1.0 batch |
//!
//! The bytes of header and body are in it exactly: as the text of a string, or where they are no
//! text as base64. A part is there whole or not at all, so an export that broke off goes on where it
//! was.

mod line;
mod read;
mod write;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use line::Line;
pub use read::{manifest, parts, read_part, verify};
pub use write::{Exported, export};

use super::hash::Hash;
use super::store::{ListedKey, SignedCheckpoint};
use crate::log::DatabaseError;

/// Events of a part.
pub const PART_EVENTS: u64 = 16_384;

/// What this version of Milepost writes.
pub const BUNDLE_VERSION: u32 = 1;

/// How the events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A line of JSON an event.
    Jsonl,
    /// Batches of `CloudEvents` 1.0 in JSON.
    Cloudevents,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Cloudevents => "json",
        }
    }
}

/// `bundle.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`BUNDLE_VERSION`].
    pub version: u32,
    /// How the events are written.
    pub format: Format,
    /// Which log, in which epoch.
    pub origin: String,
    /// The epoch.
    pub epoch: i64,
    /// The size of the tree, and the position of the last event.
    pub size: u64,
    /// The root, in hex.
    pub root: String,
}

/// A line of `checkpoints.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct KeptCheckpoint {
    epoch: i64,
    size: u64,
    root: String,
    sealed_at: jiff::Timestamp,
    note: String,
}

/// A member of `keys.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct KeptKey {
    epoch: i64,
    from_size: u64,
    verifier_key: String,
}

/// A line of `proofs.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "proves")]
enum KeptProof {
    /// That an event is in the tree.
    Inclusion {
        position: u64,
        leaf_index: u64,
        tree_size: u64,
        leaf_hash: String,
        root_hash: String,
        hashes: Vec<String>,
    },
    /// That one tree begins another.
    Consistency { from: u64, to: u64, from_root: String, to_root: String, hashes: Vec<String> },
}

/// An export cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The database cannot be asked.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A proof cannot be made.
    #[error("the tree is damaged; find out where: milepost log verify")]
    Proof(#[from] super::store::ProofError),
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] super::archive::ArchiveError),
    /// A file cannot be read or written.
    #[error("{0} cannot be read or written")]
    Io(PathBuf, #[source] std::io::Error),
    /// A file is not what it should be.
    #[error("{0} is no part of an export: {1}")]
    File(PathBuf, String),
    /// Nothing was sealed, so there is nothing that would prove an export.
    #[error("no checkpoint was signed yet: there is nothing to export")]
    Unsealed,
    /// The directory holds something else.
    #[error("{0} holds an export of {1}, which this does not continue")]
    Other(PathBuf, String),
    /// Events are missing.
    #[error("events from position {0} on are missing; find out more: milepost log verify")]
    Missing(u64),
}

impl BundleError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<'_> {
        |error| Self::Io(path.to_owned(), error)
    }

    fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self + use<'_> {
        |error| Self::File(path.to_owned(), error.to_string())
    }
}

impl From<&SignedCheckpoint> for KeptCheckpoint {
    fn from(checkpoint: &SignedCheckpoint) -> Self {
        Self {
            epoch: checkpoint.epoch,
            size: checkpoint.size,
            root: hex::encode(&checkpoint.root),
            sealed_at: checkpoint.sealed_at,
            note: checkpoint.note.clone(),
        }
    }
}

impl From<KeptCheckpoint> for SignedCheckpoint {
    fn from(kept: KeptCheckpoint) -> Self {
        Self {
            epoch: kept.epoch,
            size: kept.size,
            root: hex::decode(&kept.root).unwrap_or_default(),
            note: kept.note,
            sealed_at: kept.sealed_at,
            kept: true,
        }
    }
}

impl From<&ListedKey> for KeptKey {
    fn from(key: &ListedKey) -> Self {
        let ListedKey { epoch, from_size, verifier_key } = key.clone();
        Self { epoch, from_size, verifier_key }
    }
}

impl From<KeptKey> for ListedKey {
    fn from(key: KeptKey) -> Self {
        let KeptKey { epoch, from_size, verifier_key } = key;
        Self { epoch, from_size, verifier_key }
    }
}

fn part_path(directory: &Path, first: u64, format: Format) -> PathBuf {
    directory.join("events").join(format!("{first:020}.{}", format.extension()))
}

fn hexed(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(ToString::to_string).collect()
}
