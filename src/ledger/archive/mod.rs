//! The archive: the oldest partitions of the log as compressed files that prove themselves.
//!
//! | file | what |
//! | --- | --- |
//! | `<first>-<last>.jsonl.zst` | the events, a line of JSON each as an export has them, the hash of its leaf among it; Zstandard |
//! | `<first>-<last>.json` | the manifest: which log, the file's SHA-256, the signed checkpoint, and the hashes that lead from these events to its root |
//!
//! [`archive`] writes a file, reads it back against the tiles, and only then takes the partition out;
//! [`restore`] puts it back. What remains in its place is chosen by [`keep`]: no stream ever looks
//! empty. Both may be killed anywhere: to run them again is to finish.

mod files;
mod keep;
mod limits;
mod restore;
mod run;
mod swap;

use std::path::{Path, PathBuf};

use milepost_schemas::Position;
use tokio_postgres::GenericClient;

use super::hash::Hash;
use super::key::KeyFileError;
use super::note::NoteError;
use super::store::ProofError;
use crate::log::{AppendError, DatabaseError};

pub use files::{Lines, Manifest, Reader, Wrong, check, manifest};
pub use keep::leaf;
pub use limits::{Before, Limit};
pub use restore::{Restored, restore};
pub use run::{Archived, Order, Step, Watch, archive};

/// The advisory lock of whoever archives or restores: "archive" in ASCII.
const LOCK: i64 = 0x61_72_63_68_69_76_65;

/// A whole partition of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 0.
    pub number: u64,
    /// How many positions a partition has.
    pub width: u64,
}

impl Part {
    /// Its first position: there is none before 1.
    pub fn first(&self) -> Position {
        Position((self.number * self.width).max(1))
    }

    /// Its last position.
    pub fn last(&self) -> Position {
        Position((self.number + 1) * self.width - 1)
    }

    /// Its table. Source: `ensure_partitions` in `migrations/V18__partitions_attached.sql`.
    pub fn table(&self) -> String {
        format!("event_{:06}", self.number)
    }

    /// The bounds of its table: from the first to before the second.
    fn bounds(&self) -> (u64, u64) {
        (self.number * self.width, (self.number + 1) * self.width)
    }
}

/// A range whose events are archived. Source: `migrations/V16__retention.sql`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedRange {
    /// Its first position.
    pub first: u64,
    /// Its last position.
    pub last: u64,
    /// Where the archive was written, as the operator named it.
    pub location: String,
    /// Events of it that are still in the database.
    pub kept_events: u64,
    /// The Merkle root over the leaves of those.
    pub kept_root: Vec<u8>,
}

/// The ranges that are archived, by position.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn ranges<C: GenericClient>(client: &C) -> Result<Vec<ArchivedRange>, DatabaseError> {
    let sql = "SELECT first_position, last_position, location, kept_events, kept_root \
               FROM archived_range ORDER BY first_position";
    let range = |row: &tokio_postgres::Row| ArchivedRange {
        first: row.get::<_, i64>(0) as u64,
        last: row.get::<_, i64>(1) as u64,
        location: row.get(2),
        kept_events: row.get::<_, i64>(3) as u64,
        kept_root: row.get(4),
    };
    Ok(client.query(sql, &[]).await?.iter().map(range).collect())
}

/// Why nothing is archived, or brought back.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The database cannot be asked.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The tiles are not what they should be.
    #[error("the tree is damaged; find out where: milepost log verify")]
    Proof(#[from] ProofError),
    /// The event cannot be recorded.
    #[error("it cannot be recorded in the log")]
    Append(#[from] AppendError),
    /// A key cannot be read.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// A file cannot be read or written.
    #[error("{0} cannot be read or written")]
    Io(PathBuf, #[source] std::io::Error),
    /// A file is not what it should be.
    #[error("{0} is no archive: {1}")]
    File(PathBuf, String),
    /// The checkpoint in it is not signed.
    #[error("the checkpoint in {0} does not hold")]
    Note(PathBuf, #[source] NoteError),
    /// The file does not hold what was signed.
    #[error("{0}, position {position}: {why}", position = .1.position, why = .1.why)]
    Wrong(PathBuf, Wrong),
    /// The range is not in the directory.
    #[error("positions {first} to {last} are archived, and {directory} does not have them")]
    NotThere {
        /// Where it was looked for.
        directory: PathBuf,
        /// The first position of the range.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// Somebody else is at it.
    #[error("the log is being archived or restored already")]
    Busy,
    /// The moment without readers did not come.
    #[error("the log is read without a pause: its partition {0} cannot be exchanged; try again")]
    Locked(String),
    /// What was over is not.
    #[error("jobs of the log's partition {0} go on that were over, again and again; try again")]
    GoesOn(String),
    /// Whoever watches has said to stop here.
    #[error("stopped as told; run it again to finish")]
    Stopped,
}

impl From<tokio_postgres::Error> for ArchiveError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

impl ArchiveError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<'_> {
        |error| Self::Io(path.to_owned(), error)
    }
}

/// Takes the lock of whoever archives or restores; it goes with the connection at the latest.
async fn lock(client: &tokio_postgres::Client) -> Result<(), ArchiveError> {
    let row = client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?;
    if row.get(0) { Ok(()) } else { Err(ArchiveError::Busy) }
}

/// Gives it back.
async fn unlock(client: &tokio_postgres::Client) -> Result<(), ArchiveError> {
    client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await?;
    Ok(())
}

fn hexed(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(ToString::to_string).collect()
}
