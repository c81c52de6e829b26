//! Epochs: the log that a restore brings back is another one, and says so.

use std::sync::Arc;

use jiff::Timestamp;
use milepost_schemas::event::LogEpochBegun;
use milepost_schemas::{Event, Metadata, Position, StreamId};
use tokio::time::Instant;
use tokio_postgres::Transaction;

use super::key::{KeyFile, KeyFileError};
use super::note::Note;
use super::seal::LOCK;
use super::store;
use super::tree::{LEVELS_MAX, TILE_HEIGHT, Tile, TileId};
use crate::app::App;
use crate::log::{
    AppendError, Database, DatabaseError, Decision, Expected, Log, floor, others_follow,
};

/// Why no epoch is begun.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The database cannot be asked.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// What this machine has signed cannot be read.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The event cannot be recorded.
    #[error("the new epoch cannot be recorded")]
    Append(#[from] AppendError),
    /// A process of before would go on in the epoch of before.
    #[error("a Milepost is running on this database: end it first")]
    Running,
    /// Nobody would know why.
    #[error("say why a new epoch begins")]
    Reason,
}

impl From<tokio_postgres::Error> for EpochError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Whether an event of the log tells of the beginning of an epoch.
///
/// # Errors
/// [`DatabaseError`] when the log cannot be read.
pub async fn is_told(log: &Log, epoch: i64) -> Result<bool, DatabaseError> {
    let events = log.read_streams(&[StreamId::LEDGER]).await?;
    let tells = |event: &Event| matches!(event, Event::LogEpochBegun(it) if it.epoch == epoch);
    Ok(events.iter().any(|event| event.event().is_ok_and(tells)))
}

/// Raises the epoch of a database that nobody uses, and lets its tree be built anew, but for what is
/// archived; returns the epoch before. The checkpoints of before stay: what they signed is still checked.
///
/// # Errors
/// [`EpochError`]; nothing is changed then.
pub async fn raise(database: &Database, now: Timestamp) -> Result<i64, EpochError> {
    let mut client = database.owner().await?;
    let transaction = client.transaction().await?;
    let sql = "SELECT pg_try_advisory_xact_lock($1)";
    let locked: bool = transaction.query_one(sql, &[&LOCK]).await?.get(0);
    if !locked || others_follow(&transaction).await? {
        return Err(EpochError::Running);
    }
    let row = transaction
        .query_one(
            "UPDATE log_head AS h SET epoch = greatest(h.epoch + 1, $1) \
             FROM (SELECT epoch FROM log_head FOR UPDATE) AS former RETURNING former.epoch",
            &[&now.as_second()],
        )
        .await?;
    let floor = floor(&transaction).await?;
    cut_tiles(&transaction, floor.0).await?;
    transaction.commit().await?;
    Ok(row.get(0))
}

/// Takes the tree back to its first `size` leaves: those that are archived are not here to be hashed
/// again, and what was sealed of them stays.
async fn cut_tiles(transaction: &Transaction<'_>, size: u64) -> Result<(), DatabaseError> {
    let ids = TileId::open(size).collect();
    let open = store::tiles(transaction, &ids).await?;
    let cut = open.into_iter().map(|(id, mut hashes)| {
        hashes.truncate(id.width(size));
        Tile { id, hashes }
    });
    let cut: Vec<Tile> = cut.collect();
    if cut.is_empty() {
        transaction.batch_execute("TRUNCATE tree_tile").await?;
    }
    for level in 0..LEVELS_MAX as u8 {
        let full = size.checked_shr(TILE_HEIGHT * (u32::from(level) + 1)).unwrap_or(0);
        let sql = "DELETE FROM tree_tile WHERE level = $1 AND tile_index >= $2";
        transaction.execute(sql, &[&i16::from(level), &(full as i64)]).await?;
    }
    store::write_tiles(transaction, &cut).await
}

/// Records that the present epoch has begun; returns the event's position.
///
/// # Errors
/// [`EpochError`].
pub async fn record(
    app: &App,
    former_epoch: i64,
    begun_by: String,
    reason: &str,
    file: Option<&KeyFile>,
    deadline: Instant,
) -> Result<Position, EpochError> {
    let (epoch, size) = app.log.head().await?;
    let signed_size = file.map(|file| signed_size(file, former_epoch)).transpose()?.flatten();
    let event = LogEpochBegun {
        former_epoch,
        epoch,
        size: size.0,
        signed_size,
        begun_by,
        reason: reason.to_owned(),
    };
    let decision = Decision {
        events: vec![(StreamId::LEDGER, event.into())],
        expected: vec![(StreamId::LEDGER, Expected::Any)],
        metadata: Arc::new(Metadata {
            actor: "system:new-epoch".to_owned(),
            correlation_id: StreamId::LEDGER.0,
            causation_id: None,
            callback: None,
        }),
        queue: None,
    };
    Ok(app.log.append(decision, deadline).await?.position())
}

/// How many events of an epoch this machine has signed, if it has.
fn signed_size(file: &KeyFile, epoch: i64) -> Result<Option<u64>, KeyFileError> {
    let note = file.last_note()?;
    let checkpoint = note.as_deref().and_then(|note| Note::parse(note).ok()?.checkpoint().ok());
    Ok(checkpoint.filter(|it| it.epoch() == Some(epoch)).map(|it| it.size))
}
