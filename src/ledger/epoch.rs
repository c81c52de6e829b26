//! Epochs: the log that a restore brings back is another one, and says so.
//!
//! Who begins an epoch agrees to it beside the key as well: whoever can change the database may write
//! there that one began, and take the tree away, and still nothing is signed over what they wrote.

use jiff::Timestamp;
use milepost_schemas::event::LogEpochBegun;
use milepost_schemas::{Event, Metadata, Position, StreamId};
use tokio_postgres::Transaction;
use tokio_postgres::types::ToSql;

use super::key::{KeyFile, KeyFileError};
use super::seal::LOCK;
use super::store;
use super::tree::{LEVELS_MAX, TILE_HEIGHT, Tile, TileId};
use crate::log::{Database, DatabaseError, Log, floor, others_follow};

/// Why no epoch is begun.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The database cannot be asked.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// What this machine has signed cannot be read, or what it agrees to not written.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The tree of what is archived is not whole, and cannot be built again.
    #[error("tiles of the first {0} events are missing; find out which: milepost log verify")]
    Tiles(u64),
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

/// An epoch that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The epoch before.
    pub former_epoch: i64,
    /// This one.
    pub epoch: i64,
    /// The event that says so.
    pub position: Position,
    /// Whether this machine has what it takes to seal, and agrees.
    pub is_agreed: bool,
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

/// Begins an epoch in a database that nobody uses: raises its number, lets its tree be built anew but for
/// what is archived, and records all that. The checkpoints of before stay: what they signed is still
/// checked.
///
/// # Errors
/// [`EpochError`]; nothing is changed then.
pub async fn begin(
    database: &Database,
    now: Timestamp,
    begun_by: String,
    reason: &str,
    file: &KeyFile,
) -> Result<Begun, EpochError> {
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
             FROM (SELECT epoch FROM log_head FOR UPDATE) AS former \
             RETURNING former.epoch, h.epoch, h.size",
            &[&now.as_second()],
        )
        .await?;
    let (former_epoch, epoch, size) = (row.get(0), row.get(1), row.get::<_, i64>(2) as u64);
    let floor = floor(&transaction).await?;
    cut_tiles(&transaction, floor.0).await?;
    let signed = file.signed()?;
    let signed_size = signed.filter(|it| it.epoch == former_epoch).map(|it| it.size.0);
    let reason = reason.to_owned();
    let event = LogEpochBegun { former_epoch, epoch, size, signed_size, begun_by, reason };
    let position = record(&transaction, event.into()).await?;
    // Before it begins: a machine that agrees to an epoch that never was agrees to nothing.
    let is_agreed = signed.is_some() || !file.read()?.is_empty();
    if is_agreed {
        file.agree(epoch)?;
    }
    transaction.commit().await?;
    Ok(Begun { former_epoch, epoch, position, is_agreed })
}

/// Source: `append_event` in `migrations/V12__accounts.sql`.
async fn record(transaction: &Transaction<'_>, event: Event) -> Result<Position, EpochError> {
    let metadata = Metadata {
        actor: "system:new-epoch".to_owned(),
        correlation_id: StreamId::LEDGER.0,
        causation_id: None,
        callback: None,
    };
    let header = serde_json::to_vec(&metadata).expect("metadata is plain data");
    let body = serde_json::to_vec(&event).expect("an event is plain data");
    let kind = event.event_type();
    let values: [&(dyn ToSql + Sync); 5] =
        [&StreamId::LEDGER.0, &kind.code(), &kind.schema_version(), &header, &body];
    transaction.execute("SELECT prepare_partitions(1)", &[]).await?;
    let row = transaction.query_one("SELECT append_event($1, $2, $3, $4, $5)", &values).await?;
    Ok(Position(row.get::<_, i64>(0) as u64))
}

/// Takes the tree back to its first `size` leaves: those that are archived are not here to be hashed
/// again, and what was sealed of them stays.
async fn cut_tiles(transaction: &Transaction<'_>, size: u64) -> Result<(), EpochError> {
    if size == 0 {
        return Ok(transaction.batch_execute("TRUNCATE tree_tile").await?);
    }
    let ids = TileId::open(size).collect();
    let open = store::tiles(transaction, &ids).await?;
    let cut = open.into_iter().map(|(id, mut hashes)| {
        hashes.truncate(id.width(size));
        Tile { id, hashes }
    });
    let cut: Vec<Tile> = cut.collect();
    let is_whole = |tile: &Tile| tile.hashes.len() == tile.id.width(size);
    if cut.len() != ids.len() || !cut.iter().all(is_whole) {
        return Err(EpochError::Tiles(size));
    }
    for level in 0..LEVELS_MAX as u8 {
        let full = size.checked_shr(TILE_HEIGHT * (u32::from(level) + 1)).unwrap_or(0);
        let sql = "DELETE FROM tree_tile WHERE level = $1 AND tile_index >= $2";
        transaction.execute(sql, &[&i16::from(level), &(full as i64)]).await?;
    }
    Ok(store::write_tiles(transaction, &cut).await?)
}
