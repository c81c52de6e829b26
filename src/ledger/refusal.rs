//! Why the log is not sealed.

use super::hash::Hash;
use super::key::KeyFileError;
use super::store::ProofError;
use crate::log::{AppendError, DatabaseError};

/// Why nothing is sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The database cannot be asked.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The key cannot be had.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The event of a rotation cannot be recorded.
    #[error("the rotation of the key cannot be recorded")]
    Append(#[from] AppendError),
    /// What is there contradicts what was signed.
    #[error("nothing is sealed: {0}")]
    Refused(#[from] Refusal),
}

/// What is there contradicts what was signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Events are gone that were signed.
    #[error(
        "the log ends at position {head}, and a checkpoint of {signed} events was signed: events are \
         lost. If a restore lost them, begin a new epoch: milepost log new-epoch --reason …"
    )]
    Behind {
        /// The log's last position.
        head: u64,
        /// The size that was signed.
        signed: u64,
    },
    /// The log is another one than was signed.
    #[error(
        "the tree of the first {size} events has the root {found}, and {signed} was signed: the log \
         was changed. Find out where: milepost log verify"
    )]
    Fork {
        /// Of how many events.
        size: u64,
        /// The root as it was signed.
        signed: Hash,
        /// The root as it is.
        found: Hash,
    },
    /// The tiles are not those of the checkpoint.
    #[error("the tiles of the first {0} events are damaged; find out which: milepost log verify")]
    Tiles(u64),
    /// The stored checkpoint is not one of this log.
    #[error("the stored checkpoint is wrong: {0}")]
    Checkpoint(String),
    /// The log is set back to before an epoch that this machine knows.
    #[error(
        "the log is in epoch {found}, this machine has signed in epoch {known}, and no event of the \
         log says why. After a restore: milepost log new-epoch --reason …"
    )]
    Epoch {
        /// The database's epoch.
        found: i64,
        /// The epoch that was signed in.
        known: i64,
    },
    /// The log is in a later epoch, and nobody has said on this machine that it may be.
    #[error(
        "the log says that epoch {found} has begun, after epoch {known}, which was signed here. Where \
         milepost log new-epoch was run on another machine, agree to it: write {found} into {path}. \
         Where nobody ran it, the log was changed"
    )]
    NotAgreed {
        /// The database's epoch.
        found: i64,
        /// The epoch that was signed in.
        known: i64,
        /// The file that would say so.
        path: String,
    },
    /// Another key signs, and this machine does not have it.
    #[error(
        "the log is signed with the key {listed}, which is not in {path}. Bring that file here; with \
         the key lost, begin a new epoch: milepost log new-epoch --reason …"
    )]
    ForeignKey {
        /// The key in force.
        listed: String,
        /// The file of this machine's keys.
        path: String,
    },
    /// The key of this machine was replaced.
    #[error("the last key in {path} was replaced by {listed} before: put that one last")]
    OldKey {
        /// The key in force.
        listed: String,
        /// The file of this machine's keys.
        path: String,
    },
}

impl From<tokio_postgres::Error> for SealError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

impl From<ProofError> for SealError {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Database(error) => Self::Database(error),
            ProofError::Tile(tile) => Self::Refused(Refusal::Tiles(tile.0.first_leaf(0))),
        }
    }
}
