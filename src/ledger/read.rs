//! Reads the log as leaves, in order.

use futures_util::Stream;
use milepost_schemas::Position;

use super::Leaf;
use crate::log::{Database, DatabaseError};

/// What `work` makes of every event after `after` and up to `upto`, in order, in pieces; read over
/// so many connections at once.
pub fn leaves<T: Send + 'static>(
    database: &Database,
    after: Position,
    upto: Position,
    _connections: usize,
    work: impl Fn(u64, &Leaf<'_>) -> T + Send + Sync + 'static,
) -> impl Stream<Item = Result<Vec<T>, DatabaseError>> {
    async_stream::try_stream! {
        let client = database.get().await?;
        let mut after = after.0 as i64;
        loop {
            let rows = client.query("SELECT position, stream_id, version, type, schema_version, recorded_at, header, body FROM event WHERE position > $1 AND position <= $2 ORDER BY position LIMIT 4096", &[&after, &(upto.0 as i64)]).await?;
            let Some(last) = rows.last() else { break };
            after = last.get(0);
            yield rows.iter().map(|row| {
                let leaf = Leaf {
                    stream: row.get(1),
                    version: row.get::<_, i32>(2) as u32,
                    code: row.get(3),
                    schema_version: row.get(4),
                    recorded_at_us: row.get::<_, jiff::Timestamp>(5).as_microsecond(),
                    header: row.get(6),
                    body: row.get(7),
                };
                work(row.get::<_, i64>(0) as u64, &leaf)
            }).collect();
        }
    }
}
