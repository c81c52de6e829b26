//! What stays of a partition that is archived: all events of the streams that are still needed, and
//! of every other stream the last one, which is how its version stays known.
//!
//! Needed is everything but what jobs left behind that are over: ended, with nothing of theirs left
//! to undo, and not the latest job of an agent or node, whose page shows it.

use futures_util::{StreamExt as _, TryStreamExt as _};
use milepost_projections::board::Boards;
use milepost_projections::compensation::OpenCompensations;
use milepost_projections::job::{JobStatus, Jobs};
use milepost_projections::node::Nodes;
use milepost_projections::{Compensations, Projection};
use milepost_schemas::{EventType, JobId};
use tokio_postgres::{Client, Row, Transaction};
use uuid::Uuid;

use super::Part;
use crate::ledger::hash::Hash;
use crate::ledger::leaf::{Leaf, microseconds};
use crate::ledger::tree::Tree;
use crate::log::DatabaseError;

/// Statuses of a job that has ended.
const ENDED: [JobStatus; 3] = [JobStatus::Succeeded, JobStatus::Failed, JobStatus::Cancelled];

/// Events that name the job which a subject's page shows.
const ORDERS: [EventType; 3] = [
    EventType::ProvisioningRequested,
    EventType::NodeProvisioningRequested,
    EventType::NodeDecommissionRequested,
];

/// Streams told to the database at once.
const STREAMS_AT_ONCE: usize = 10_000;

/// What stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// How many events.
    pub events: u64,
    /// The root over their leaves, by position.
    pub root: Hash,
}

/// The name of the table that is to take a partition's place.
pub(super) fn table(part: &Part) -> String {
    format!("{}_kept", part.table())
}

/// Makes the table that is to take a partition's place, anew where there is one; nobody sees it yet.
/// With what stays it returns the log's size when that was chosen.
pub(super) async fn build(client: &Client, part: &Part) -> Result<(Kept, i64), DatabaseError> {
    let size = client.query_one("SELECT size FROM log_head", &[]).await?.get(0);
    thin(client, part).await?;
    let (from, to) = (part.table(), table(part));
    create(client, &to, part).await?;
    client
        .batch_execute(&format!(
            "INSERT INTO {to} SELECT p.* FROM {from} AS p \
             WHERE NOT EXISTS (SELECT FROM thinned AS t WHERE t.stream_id = p.stream_id) \
             OR p.version = (SELECT max(l.version) FROM {from} AS l WHERE l.stream_id = p.stream_id) \
             ORDER BY p.position"
        ))
        .await?;
    finish(client, &to).await?;
    Ok((kept(client, &to, part.first().0, part.last().0).await?, size))
}

/// Whether one of the streams that [`build`] has thinned has gone on since the log had a size: who is
/// about to append to it needs it whole.
pub(super) async fn goes_on(
    transaction: &Transaction<'_>,
    size: i64,
) -> Result<bool, tokio_postgres::Error> {
    let sql = "SELECT EXISTS (SELECT FROM event AS e JOIN thinned AS t USING (stream_id) \
               WHERE e.position > $1)";
    transaction.query_one(sql, &[&size]).await?.try_get(0)
}

/// Makes a table that can become a partition; anew where there is one.
pub(super) async fn create(client: &Client, name: &str, part: &Part) -> Result<(), DatabaseError> {
    let (from, to) = part.bounds();
    // The constraint is what a partition promises: with it nothing is read when it becomes one.
    let sql = format!(
        "DROP TABLE IF EXISTS {name}; \
         CREATE TABLE {name} (LIKE event INCLUDING DEFAULTS INCLUDING STORAGE); \
         ALTER TABLE {name} ADD CONSTRAINT {name}_bounds \
         CHECK (position >= {from} AND position < {to})"
    );
    Ok(client.batch_execute(&sql).await?)
}

/// Gives it the indexes and the trigger of a partition: what is missing when it becomes one is made
/// with everybody waiting. The names are left to Postgres, for those of a table that was made so before
/// and renamed are taken. Source: `ensure_partitions`, and `event_births` of `V13__births.sql`.
pub(super) async fn finish(client: &Client, name: &str) -> Result<(), DatabaseError> {
    let sql = format!(
        "ALTER TABLE {name} ADD PRIMARY KEY (position); \
         CREATE UNIQUE INDEX ON {name} (stream_id, version); \
         CREATE INDEX ON {name} (type, stream_id, position) WHERE type IN (1, 10, 17, 50); \
         CREATE TRIGGER event_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {name} \
         FOR EACH STATEMENT EXECUTE FUNCTION refuse_change(); \
         ALTER TABLE {name} ENABLE ALWAYS TRIGGER event_is_append_only; \
         ANALYZE {name}"
    );
    Ok(client.batch_execute(&sql).await?)
}

/// The events that a table has of a range: how many, and the root over their leaves.
pub(super) async fn kept(
    client: &Client,
    table: &str,
    first: u64,
    last: u64,
) -> Result<Kept, tokio_postgres::Error> {
    let sql = format!(
        "SELECT position, stream_id, version, type, schema_version, recorded_at, header, body \
         FROM {table} WHERE position BETWEEN $1 AND $2 ORDER BY position"
    );
    let mut rows = std::pin::pin!(client.query_raw(&sql, [first as i64, last as i64]).await?);
    let mut tree = Tree::default();
    while let Some(row) = rows.next().await {
        tree.push(leaf(&row?)?.hash(), drop);
    }
    Ok(Kept { events: tree.size(), root: tree.root() })
}

/// The leaf of an event's row, which follows its position.
///
/// # Errors
/// Where a field is none that could have been recorded.
pub fn leaf(row: &Row) -> Result<Leaf<'_>, tokio_postgres::Error> {
    Ok(Leaf {
        stream: row.try_get(1)?,
        version: row.try_get::<_, i32>(2)?.cast_unsigned(),
        code: row.try_get(3)?,
        schema_version: row.try_get(4)?,
        recorded_at_us: microseconds(row.try_get(5)?),
        header: row.try_get(6)?,
        body: row.try_get(7)?,
    })
}

/// Puts into the temporary table `thinned` the streams of the partition of which only the last event
/// is to stay.
async fn thin(client: &Client, part: &Part) -> Result<(), DatabaseError> {
    client
        .batch_execute(
            "CREATE TEMPORARY TABLE IF NOT EXISTS thinned (stream_id uuid PRIMARY KEY); \
             TRUNCATE thinned",
        )
        .await?;
    for jobs in jobs_that_are_over(client).await?.chunks(STREAMS_AT_ONCE / 2) {
        let streams = jobs.iter().flat_map(|job| [job.stream().0, job.log_stream().0]);
        let streams: Vec<Uuid> = streams.collect();
        // A stream that goes on behind the partition may be written to again.
        let sql = format!(
            "INSERT INTO thinned SELECT s.stream_id FROM unnest($1::uuid[]) AS s (stream_id) \
             WHERE EXISTS (SELECT FROM {} AS p WHERE p.stream_id = s.stream_id) \
             AND NOT EXISTS ( \
                 SELECT FROM event AS e WHERE e.stream_id = s.stream_id AND e.position > $2 \
             ) ON CONFLICT DO NOTHING",
            part.table()
        );
        client.execute(&sql, &[&streams, &(part.last().0 as i64)]).await?;
    }
    client.batch_execute("ANALYZE thinned").await?;
    Ok(())
}

/// Every job that nobody needs any more, as its view and the queue agree. The views are known to be
/// beyond the partition.
async fn jobs_that_are_over(client: &Client) -> Result<Vec<JobId>, DatabaseError> {
    let ended: Vec<&str> = ENDED.iter().map(|status| status.as_str()).collect();
    let orders: Vec<i16> = ORDERS.iter().map(|kind| kind.code()).collect();
    let (jobs, boards) = (rows_of::<Jobs>(client).await?, rows_of::<Boards>(client).await?);
    let (nodes, compensations) =
        (rows_of::<Nodes>(client).await?, rows_of::<Compensations>(client).await?);
    let sql = format!(
        "WITH shown AS ( \
             SELECT latest.job_id FROM ( \
                 SELECT key FROM {boards} UNION SELECT key FROM {nodes} \
             ) AS subject CROSS JOIN LATERAL ( \
                 SELECT (convert_from(e.body, 'UTF8')::jsonb ->> 'job_id')::uuid AS job_id \
                 FROM event AS e WHERE e.stream_id = subject.key AND e.type = ANY($2) \
                 ORDER BY e.version DESC LIMIT 1 \
             ) AS latest \
         ) \
         SELECT j.key FROM {jobs} AS j \
         WHERE j.label = ANY($1) \
         AND NOT EXISTS (SELECT FROM queue AS q WHERE q.job_id = j.key) \
         AND NOT EXISTS (SELECT FROM shown AS s WHERE s.job_id = j.key) \
         AND NOT EXISTS (SELECT FROM {compensations} AS c WHERE c.label = $3 AND c.key = j.key)"
    );
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&ended, &orders, &OpenCompensations::OPEN];
    let rows = client.query_raw(&sql, parameters).await?;
    Ok(rows.map_ok(|row| JobId(row.get(0))).try_collect().await?)
}

/// The table of the rows of a view that are read now.
async fn rows_of<P: Projection>(client: &Client) -> Result<String, DatabaseError> {
    let sql = "SELECT quote_ident(view_table(projection, generation)) FROM view_generation \
               WHERE projection = $1 AND version = $2 AND state = 'active'";
    let row = client.query_opt(sql, &[&P::NAME, &P::VERSION]).await?;
    let row = row.ok_or_else(|| DatabaseError::Unexpected(format!("{} has no rows", P::NAME)))?;
    Ok(row.get(0))
}
