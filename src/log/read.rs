//! Reads of the log, in short ranges: a long snapshot would stop the pruning of the head row.

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use milepost_schemas::{EventType, Position, StreamId};
use tokio_postgres::{Client, Row, Transaction};
use uuid::Uuid;

use super::floor::{require_range, require_versions, until_archived};
use super::{Committed, Database, DatabaseError, Log};

/// Events one read returns at the most.
pub const READ_EVENTS_MAX: usize = 1_000;

pub(super) const COLUMNS: &str =
    "position, stream_id, version, type, schema_version, recorded_at, header, body";

/// Which events a reader wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only those of these streams; all where there are none.
    pub streams: Vec<StreamId>,
    /// Only those of these types; all where there are none.
    pub types: Vec<EventType>,
}

impl EventFilter {
    /// Whether an event passes.
    pub fn accepts(&self, event: &Committed) -> bool {
        (self.streams.is_empty() || self.streams.contains(&event.stream))
            && (self.types.is_empty() || self.types.iter().any(|kind| kind.code() == event.code))
    }
}

/// Up to `limit` events after `after`, on a connection of the caller's own.
pub(super) async fn read_after(
    client: &Client,
    epoch: i64,
    after: Position,
    limit: usize,
) -> Result<Vec<Committed>, tokio_postgres::Error> {
    let sql = format!("SELECT {COLUMNS} FROM event WHERE position > $1 ORDER BY position LIMIT $2");
    let rows = client.query(&sql, &[&(after.0 as i64), &(limit as i64)]).await?;
    Ok(rows.iter().map(|row| committed(epoch, row)).collect())
}

/// Up to `limit` events after `after`, as a transaction of the caller's sees them.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn read_in(
    tx: &Transaction<'_>,
    epoch: i64,
    after: Position,
    limit: usize,
) -> Result<Vec<Arc<Committed>>, DatabaseError> {
    let sql = format!("SELECT {COLUMNS} FROM event WHERE position > $1 ORDER BY position LIMIT $2");
    let rows = tx.query(&sql, &[&(after.0 as i64), &(limit as i64)]).await?;
    Ok(rows.iter().map(|row| Arc::new(committed(epoch, row))).collect())
}

/// The epoch and size of the log.
pub(super) async fn head(database: &Database) -> Result<(i64, Position), DatabaseError> {
    let row = database.get().await?.query_one("SELECT epoch, size FROM log_head", &[]).await?;
    Ok((row.get(0), Position(row.get::<_, i64>(1) as u64)))
}

impl Log {
    /// The epoch and size of the log, as the database has them now.
    ///
    /// # Errors
    /// [`DatabaseError`] when it cannot be asked.
    pub async fn head(&self) -> Result<(i64, Position), DatabaseError> {
        head(&self.database).await
    }

    /// Reads up to `limit` events after `after` and up to `upto`, ascending.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked, and [`DatabaseError::Archived`] where
    /// some of these events have left it. Source: `migrations/V1__log.sql`.
    pub async fn read(
        &self,
        filter: &EventFilter,
        after: Position,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<Committed>, DatabaseError> {
        let streams: Vec<Uuid> = filter.streams.iter().map(|stream| stream.0).collect();
        let codes: Vec<i16> = filter.types.iter().map(|kind| kind.code()).collect();
        let (range, limit_events) = ((after, upto), limit.min(READ_EVENTS_MAX));
        let limit = limit_events as i64;
        let (after, upto) = (after.0 as i64, upto.0 as i64);
        let client = self.database.get().await?;
        let rows = match (streams.is_empty(), codes.is_empty()) {
            (true, true) => {
                let statement = client
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS} FROM event WHERE position > $1 AND position <= $2 \
                         ORDER BY position LIMIT $3"
                    ))
                    .await?;
                client.query(&statement, &[&after, &upto, &limit]).await?
            }
            (true, false) => {
                let statement = client
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS} FROM event WHERE position > $1 AND position <= $2 \
                         AND type = ANY($4) ORDER BY position LIMIT $3"
                    ))
                    .await?;
                client.query(&statement, &[&after, &upto, &limit, &codes]).await?
            }
            (false, _) => {
                // Found by the index on streams, then sorted: a stream has few events.
                let statement = client
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS} FROM event WHERE stream_id = ANY($4) \
                         AND position > $1 AND position <= $2 \
                         AND (cardinality($5::smallint[]) = 0 OR type = ANY($5)) \
                         ORDER BY position LIMIT $3"
                    ))
                    .await?;
                client.query(&statement, &[&after, &upto, &limit, &streams, &codes]).await?
            }
        };
        let events = self.committed(&rows);
        require_range(&**client, filter, range, limit_events, &events).await?;
        Ok(events)
    }

    /// Reads the newest `limit` events of some streams up to `upto`, descending; fewer where those
    /// before them are archived.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn read_newest(
        &self,
        filter: &EventFilter,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<Committed>, DatabaseError> {
        let streams: Vec<Uuid> = filter.streams.iter().map(|stream| stream.0).collect();
        let client = self.database.get().await?;
        let statement = client
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM event WHERE stream_id = ANY($1) AND position <= $2 \
                 ORDER BY position DESC LIMIT $3"
            ))
            .await?;
        let rows = client.query(&statement, &[&streams, &(upto.0 as i64), &(limit as i64)]).await?;
        until_archived(&**client, &filter.streams, self.committed(&rows)).await
    }

    /// Reads up to `limit` events of one stream from a version on, ascending.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked, and [`DatabaseError::Archived`] where
    /// some of these versions have left it.
    pub async fn read_versions(
        &self,
        stream: StreamId,
        from: u32,
        limit: usize,
    ) -> Result<Vec<Committed>, DatabaseError> {
        let client = self.database.get().await?;
        let statement = client
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM event WHERE stream_id = $1 AND version >= $2 \
                 ORDER BY version LIMIT $3"
            ))
            .await?;
        let rows =
            client.query(&statement, &[&stream.0, &from.cast_signed(), &(limit as i64)]).await?;
        let events = self.committed(&rows);
        require_versions(&**client, &events, from).await?;
        Ok(events)
    }

    /// Reads the latest event of a stream, if there is one.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn read_latest(&self, stream: StreamId) -> Result<Option<Committed>, DatabaseError> {
        let client = self.database.get().await?;
        let statement = client
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM event WHERE stream_id = $1 ORDER BY version DESC LIMIT 1"
            ))
            .await?;
        let row = client.query_opt(&statement, &[&stream.0]).await?;
        Ok(row.map(|row| committed(self.feed.epoch(), &row)))
    }

    /// Reads whole streams, by position.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked, and [`DatabaseError::Archived`] where
    /// a part of one has left it: half a stream decides nothing.
    pub async fn read_streams(
        &self,
        streams: &[StreamId],
    ) -> Result<Vec<Committed>, DatabaseError> {
        let ids: Vec<Uuid> = streams.iter().map(|stream| stream.0).collect();
        let client = self.database.get().await?;
        let statement = client
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM event WHERE stream_id = ANY($1) ORDER BY position"
            ))
            .await?;
        let rows = client.query(&statement, &[&ids]).await?;
        let events = self.committed(&rows);
        require_versions(&**client, &events, 1).await?;
        Ok(events)
    }

    fn committed(&self, rows: &[Row]) -> Vec<Committed> {
        let epoch = self.feed.epoch();
        rows.iter().map(|row| committed(epoch, row)).collect()
    }
}

pub(super) fn committed(epoch: i64, row: &Row) -> Committed {
    Committed {
        epoch,
        position: Position(row.get::<_, i64>(0) as u64),
        stream: StreamId(row.get(1)),
        version: row.get::<_, i32>(2) as u32,
        code: row.get(3),
        schema_version: row.get(4),
        recorded_at: row.get(5),
        header: Bytes::copy_from_slice(row.get(6)),
        body: Bytes::copy_from_slice(row.get(7)),
        event: OnceLock::new(),
        delivery_id: OnceLock::new(),
        rendered: OnceLock::new(),
        opened: Mutex::default(),
    }
}
