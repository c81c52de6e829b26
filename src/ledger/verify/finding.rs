//! What may be wrong with a log, in words.

use std::fmt;

use jiff::Timestamp;
use uuid::Uuid;

use crate::ledger::Hash;
use crate::ledger::tree::TileId;

/// Findings that are kept: the first ones tell, and of a log that is all wrong nobody reads more.
pub const FINDINGS_MAX: usize = 100;

/// Something that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The position; 0 where it is of no event.
    pub position: u64,
    /// What is wrong there.
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            0 => self.problem.fmt(f),
            position => write!(f, "position {position}: {}", self.problem),
        }
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is no event.
    #[error("the event is missing")]
    Missing,
    /// There are no events up to another position, or to where the log says that it ends.
    #[error("all events from here to {last} are missing")]
    MissingUpTo {
        /// The last of them.
        last: u64,
    },
    /// There are several events.
    #[error("several events stand at this position")]
    Twice,
    /// There is an event, and no Milepost wrote it.
    #[error(
        "the event is none that could have been recorded: a field is null, or out of its range"
    )]
    Torn,
    /// Too much is missing to go on.
    #[error("there are more than {gaps} gaps: the audit ends here")]
    GivenUp {
        /// How many.
        gaps: usize,
    },
    /// There is an event where there can be none.
    #[error("there is an event outside the log, which ends at {head}")]
    Outside {
        /// The log's last position.
        head: u64,
    },
    /// The event is not the one that was sealed.
    #[error(
        "the event is not the one that was sealed: its leaf is {found}, and {sealed} was signed"
    )]
    Changed {
        /// The leaf's hash as the event gives it.
        found: Hash,
        /// As it was sealed.
        sealed: Hash,
    },
    /// The tile is not what was signed.
    #[error(
        "hash {entry} of tile {index} of level {level} is wrong: {stored} instead of {expected}",
        index = .tile.index, level = .tile.level
    )]
    Tile {
        /// Which tile.
        tile: TileId,
        /// Which of its hashes, from 0.
        entry: usize,
        /// As stored.
        stored: Hash,
        /// As the events and the signed root have it.
        expected: Hash,
    },
    /// The tile is not there, or not all of it.
    #[error("tile {} of level {} has {stored} hashes of {expected}", .tile.index, .tile.level)]
    TileSize {
        /// Which tile.
        tile: TileId,
        /// Hashes that are there.
        stored: usize,
        /// Hashes that should be.
        expected: usize,
    },
    /// The event and the tile disagree, and no signed root agrees with either.
    #[error("the event gives the leaf {found}, its tile has {stored}, and neither was signed")]
    Disagree {
        /// The leaf's hash as the event gives it.
        found: Hash,
        /// As the tile has it.
        stored: Hash,
    },
    /// A stream has a gap or a fork.
    #[error("stream {stream} has version {found} where {expected} follows")]
    Version {
        /// The stream.
        stream: Uuid,
        /// The version that follows.
        expected: u32,
        /// The one that is there.
        found: u32,
    },
    /// Time went back.
    #[error("it was recorded before the event in front of it")]
    Time,
    /// A callback's signature does not fit its body.
    #[error("the callback's signature is not that of its body by the key {key_id}")]
    Callback {
        /// Which secret it says.
        key_id: String,
    },
    /// The header of a callback cannot be read.
    #[error("the header cannot be read")]
    Header,
    /// Events that were signed are another tree now, and the tiles with them.
    #[error(
        "one of the events from here to {size} was changed, and its tiles with it: their root is \
         {found}, and {signed} was signed"
    )]
    Root {
        /// The size of the checkpoint.
        size: u64,
        /// The root as the events give it.
        found: Hash,
        /// The root as it was signed.
        signed: Hash,
    },
    /// A checkpoint is not signed as it should be.
    #[error("the checkpoint of {size} events: {why}")]
    Checkpoint {
        /// Its size as stored beside it.
        size: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Events are gone that were signed.
    #[error("events up to {signed} were signed, and the log ends before")]
    Behind {
        /// The size that was signed.
        signed: u64,
    },
    /// Events that an old checkpoint covers were lost, and the log says so.
    #[error(
        "events up to {signed} were signed in epoch {epoch}; the restore that began the next epoch \
         has lost those from here on"
    )]
    Lost {
        /// The epoch.
        epoch: i64,
        /// The size that was signed.
        signed: u64,
    },
    /// A new epoch was begun and the log does not say why.
    #[error("the log is in epoch {epoch} after {former}, and no event says why")]
    Epoch {
        /// The epoch before.
        former: i64,
        /// The epoch.
        epoch: i64,
    },
    /// A key is listed that nothing vouches for.
    #[error("the key {key} is not vouched for: {why}")]
    Key {
        /// The key, as it is listed.
        key: String,
        /// Why not.
        why: &'static str,
    },
    /// An archive does not hold what it should.
    #[error("the archive cannot be read from here on: {0}")]
    Archive(String),
    /// Events are said to be archived, and nothing vouches for it.
    #[error("the events up to {last} are said to be archived, and nothing here bears that out")]
    Unarchived {
        /// The last position of the range.
        last: u64,
    },
    /// Events that stay of an archived range are others than those that stayed.
    #[error(
        "of the archived events up to {last}, {expected} stayed here; {found} are there now, or \
         they are others"
    )]
    Kept {
        /// The last position of the range.
        last: u64,
        /// Events that stayed.
        expected: u64,
        /// Events that are there.
        found: u64,
    },
    /// Nothing was signed.
    #[error("no trusted checkpoint covers any of the {head} events")]
    Unsealed {
        /// The log's last position.
        head: u64,
    },
    /// Nothing was signed for too long.
    #[error(
        "no trusted checkpoint covers the events from here to {head}, and this one was recorded at \
         {recorded_at}: what would prove them was taken away, or nobody has sealed them"
    )]
    UnsealedFrom {
        /// The log's last position.
        head: u64,
        /// When the first of them was recorded.
        recorded_at: Timestamp,
    },
    /// A line of an export cannot be read.
    #[error("the export cannot be read here: {0}")]
    Unreadable(String),
}
