//! A change of accounts and its event are one transaction, the event last: the lock on the head
//! of the log is held for one round trip, and no longer than `idle_in_transaction_session_timeout`
//! should this process vanish in it.

use deadpool_postgres::Transaction;
use milepost_schemas::{Event, Metadata, Position, StreamId};

use crate::log::DatabaseError;

/// Appends an event to a stream and commits.
///
/// # Errors
/// [`DatabaseError`]: neither the change nor the event is there then, unless the connection broke
/// at the very end.
/// Source: `migrations/V12__accounts.sql`.
pub(super) async fn commit(
    tx: Transaction<'_>,
    stream: StreamId,
    event: impl Into<Event>,
    metadata: &Metadata,
) -> Result<Position, DatabaseError> {
    let event = event.into();
    let kind = event.event_type();
    let header = serde_json::to_vec(metadata).expect("metadata is plain data");
    let body = serde_json::to_vec(&event).expect("an event is plain data");
    let statement = tx.prepare_cached("SELECT append_event($1, $2, $3, $4, $5)").await?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&stream.0, &kind.code(), &kind.schema_version(), &header, &body];
    let row = tx.query_one(&statement, &values).await?;
    tx.commit().await?;
    Ok(Position(row.get::<_, i64>(0) as u64))
}

/// Takes the lock that orders changes of accounts among themselves. Whatever ends sessions takes it
/// before anything else: the triggers take it too, behind the rows.
pub(super) async fn in_order(tx: &Transaction<'_>) -> Result<(), DatabaseError> {
    tx.execute("SELECT FROM access_change WHERE one_row FOR UPDATE", &[]).await?;
    Ok(())
}
