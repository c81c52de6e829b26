//! The table of wrapped keys. Source: `migrations/V15__data_keys.sql`.

use milepost_schemas::StreamId;
use uuid::Uuid;

use super::{KeyError, MasterKeys};
use crate::log::{Database, DatabaseError};

/// Keys wrapped anew between two looks at the table.
const REWRAP_KEYS: i64 = 1_000;

/// A subject's wrapped key; nothing where it is erased.
type Row = (StreamId, Option<Vec<u8>>);

/// The keys of some subjects, as far as they have one.
pub(super) async fn load(
    database: &Database,
    subjects: &[StreamId],
) -> Result<Vec<Row>, DatabaseError> {
    let subjects: Vec<Uuid> = subjects.iter().map(|subject| subject.0).collect();
    let client = database.get().await?;
    let statement = client
        .prepare_cached("SELECT stream_id, wrapped FROM data_key WHERE stream_id = ANY($1)")
        .await?;
    let rows = client.query(&statement, &[&subjects]).await?;
    Ok(rows.iter().map(|row| (StreamId(row.get(0)), row.get(1))).collect())
}

/// Any key that there is.
pub(super) async fn any(database: &Database) -> Result<Option<(StreamId, Vec<u8>)>, DatabaseError> {
    let client = database.get().await?;
    let sql = "SELECT stream_id, wrapped FROM data_key WHERE wrapped IS NOT NULL LIMIT 1";
    let row = client.query_opt(sql, &[]).await?;
    Ok(row.map(|row| (StreamId(row.get(0)), row.get(1))))
}

/// Gives a subject its key, unless it has one or had one.
pub(super) async fn insert(
    database: &Database,
    subject: StreamId,
    wrapped: &[u8],
) -> Result<(), DatabaseError> {
    let client = database.get().await?;
    let sql = "INSERT INTO data_key (stream_id, wrapped) VALUES ($1, $2) \
         ON CONFLICT (stream_id) DO NOTHING";
    client.execute(sql, &[&subject.0, &wrapped]).await?;
    Ok(())
}

/// Wraps every key under the first master key; how many that were. The old versions of their rows
/// stay in the table's file until [`vacuum`]. Servers may run: they need both master keys meanwhile.
///
/// # Errors
/// [`KeyError`]; those that were wrapped anew before stay so.
pub async fn rewrap(database: &Database, masters: &MasterKeys) -> Result<u64, KeyError> {
    let client = database.owner().await?;
    let (mut after, mut count) = (Uuid::nil(), 0);
    loop {
        let rows = client
            .query(
                "SELECT stream_id, wrapped FROM data_key \
                 WHERE wrapped IS NOT NULL AND stream_id > $1 ORDER BY stream_id LIMIT $2",
                &[&after, &REWRAP_KEYS],
            )
            .await
            .map_err(DatabaseError::from)?;
        let Some(last) = rows.last() else { break };
        after = last.get(0);
        for row in &rows {
            let (subject, old): (Uuid, Vec<u8>) = (row.get(0), row.get(1));
            let Some(new) = masters.rewrap(StreamId(subject), &old)? else { continue };
            // Not one that was erased meanwhile.
            count += client
                .execute(
                    "UPDATE data_key SET wrapped = $2 WHERE stream_id = $1 AND wrapped = $3",
                    &[&subject, &new, &old],
                )
                .await
                .map_err(DatabaseError::from)?;
        }
    }
    Ok(count)
}

/// Writes the table anew without the old versions of its rows; a plain VACUUM would leave their
/// bytes in the pages until something overwrites them. Where the role that connects does not own the
/// table nothing is done, and the role that does is said. Others wait for it: the table is small.
///
/// # Errors
/// [`DatabaseError`] when it cannot be done within 5 s.
pub async fn vacuum(database: &Database) -> Result<Result<(), String>, DatabaseError> {
    let client = database.owner().await?;
    let owned = "SELECT pg_has_role(current_user, relowner, 'USAGE'), relowner::regrole::text \
         FROM pg_class WHERE oid = 'data_key'::regclass";
    let owned = client.query_one(owned, &[]).await?;
    if !owned.get::<_, bool>(0) {
        return Ok(Err(owned.get(1)));
    }
    client.batch_execute("SET lock_timeout = '5s'").await?;
    client.batch_execute("VACUUM (FULL) data_key").await?;
    // The file it was in goes with the next checkpoint.
    drop(client.batch_execute("CHECKPOINT").await);
    Ok(Ok(()))
}
