//! One table takes the place of another as a partition, in one short transaction.
//!
//! Not by `DETACH PARTITION … CONCURRENTLY`: that leaves a moment in which neither of them is there,
//! and a stream of theirs would look empty (`.github/decisions/0070`).

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{ArchiveError, Part};
use crate::log::DatabaseError;

/// How long appends and reads may queue behind the wait for a moment without any.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '500ms'";

/// How often that moment is waited for.
const TRIES_MAX: usize = 60;

/// How long they have the log to themselves in between.
const REST: Duration = Duration::from_millis(500);

/// Puts the table `new` in the place of a partition, which gets the name `old`, and runs `and` with
/// it: all or nothing, and nothing where that says no. Whether it was done.
pub(super) async fn swap(
    client: &mut Client,
    part: &Part,
    new: &str,
    old: &str,
    and: impl AsyncFn(&tokio_postgres::Transaction<'_>) -> Result<bool, tokio_postgres::Error>,
) -> Result<bool, ArchiveError> {
    for _ in 0..TRIES_MAX {
        match try_swap(client, part, new, old, &and).await {
            Ok(done) => return Ok(done),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                tokio::time::sleep(REST).await;
            }
            Err(error) => return Err(DatabaseError::from(error).into()),
        }
    }
    Err(ArchiveError::Locked(part.table()))
}

async fn try_swap(
    client: &mut Client,
    part: &Part,
    new: &str,
    old: &str,
    and: &impl AsyncFn(&tokio_postgres::Transaction<'_>) -> Result<bool, tokio_postgres::Error>,
) -> Result<bool, tokio_postgres::Error> {
    let (table, (from, to)) = (part.table(), part.bounds());
    let transaction = client.transaction().await?;
    transaction.batch_execute(LOCK_TIMEOUT).await?;
    transaction.batch_execute("LOCK TABLE event IN ACCESS EXCLUSIVE MODE").await?;
    transaction
        .batch_execute(&format!(
            "ALTER TABLE event DETACH PARTITION {table}; \
             ALTER TABLE {table} RENAME TO {old}; \
             ALTER TABLE {new} RENAME TO {table}; \
             ALTER TABLE event ATTACH PARTITION {table} FOR VALUES FROM ({from}) TO ({to})"
        ))
        .await?;
    let done = and(&transaction).await?;
    if done {
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok(done)
}

/// Removes a table that is no partition; whether there was one.
pub(super) async fn remove(client: &Client, table: &str) -> Result<bool, tokio_postgres::Error> {
    let sql = "SELECT to_regclass($1::text) IS NOT NULL";
    let there: bool = client.query_one(sql, &[&table]).await?.get(0);
    if there {
        client.batch_execute(&format!("DROP TABLE {table}")).await?;
    }
    Ok(there)
}

/// Removes what a run that was killed has left: tables that were to become partitions, or were one
/// before a range came back.
pub(super) async fn sweep(client: &Client) -> Result<(), tokio_postgres::Error> {
    let sql = "SELECT c.relname::text FROM pg_class AS c \
               WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'event'::regclass) \
               AND c.relkind = 'r' AND NOT c.relispartition \
               AND c.relname ~ '^event_[0-9]{6,}_(kept|restored|before)$'";
    for row in client.query(sql, &[]).await? {
        remove(client, row.get(0)).await?;
    }
    Ok(())
}
