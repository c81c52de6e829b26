//! Reads the log as leaves, in order, and goes on behind what is not there, or is there twice.

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use milepost_schemas::Position;

use super::Leaf;
use super::leaf::microseconds;
use crate::log::{Chunk, Database, DatabaseError, Parts, RANGE_EVENTS, Row, scan};

/// Gaps, torn and doubled events after which reading is given up: each takes a new start, and of a log with so many nobody
/// needs the rest to know that it was changed.
pub const GAPS_MAX: usize = 1_000;

/// What was read.
#[derive(Debug)]
pub enum Piece<T> {
    /// What was made of successive events.
    Events(Vec<T>),
    /// There is no event at the positions from the first to the second.
    Missing(u64, u64),
    /// There is an event at this position, and it is none that Milepost could have written.
    Torn(u64),
    /// There are several events at this position; one of them may have been read.
    Twice(u64),
    /// There are too many gaps: nothing is read from this position on.
    GivenUp(u64),
}

/// What is wrong at a position.
enum Trouble {
    Missing,
    Torn,
    Twice,
}

/// What `work` makes of every event after `after` and up to `upto`, in order; read over so many
/// connections at once, and made on as many threads.
pub fn leaves<T: Send + 'static>(
    database: &Database,
    after: Position,
    upto: Position,
    connections: usize,
    work: impl Fn(u64, &Leaf<'_>) -> T + Send + Sync + 'static,
) -> impl Stream<Item = Result<Piece<T>, DatabaseError>> {
    let database = database.clone();
    let work = Arc::new(work);
    let each = move |chunk: Chunk| -> (u64, Vec<T>) {
        let last = chunk.rows.last().map_or(0, |row| row.position.0);
        (last, chunk.rows.iter().map(|row| work(row.position.0, &leaf(row))).collect())
    };
    async_stream::try_stream! {
        let mut after = after;
        let mut gaps = 0;
        // A range that is to be read up to what is wrong, then the rest.
        let mut before_gap: Option<Position> = None;
        while after < upto {
            let end = before_gap.unwrap_or(upto);
            let wanted = (end.0 - after.0).div_ceil(RANGE_EVENTS) as usize;
            let mut chunks =
                std::pin::pin!(scan(&database, after, end, connections.min(wanted), Parts::All, each.clone()));
            let mut trouble = None;
            while let Some(chunk) = chunks.next().await {
                match chunk {
                    Ok((last, events)) => {
                        after = Position(last);
                        yield Piece::Events(events);
                    }
                    Err(DatabaseError::Missing(at)) => trouble = Some((at, Trouble::Missing)),
                    Err(DatabaseError::Torn(at)) => trouble = Some((at, Trouble::Torn)),
                    Err(DatabaseError::Twice(at)) => trouble = Some((at, Trouble::Twice)),
                    Err(error) => Err(error)?,
                }
            }
            before_gap = None;
            let Some((at, trouble)) = trouble else { continue };
            if after.next() < at {
                // What was read in front of it was not handed over.
                before_gap = Some(Position(at.0 - 1));
                continue;
            }
            gaps += 1;
            if gaps > GAPS_MAX {
                yield Piece::GivenUp(at.0);
                return;
            }
            match trouble {
                Trouble::Missing => {
                    let last = next_there(&database, at, upto).await?.0 - 1;
                    after = Position(last);
                    yield Piece::Missing(at.0, last);
                }
                Trouble::Torn => {
                    after = at;
                    yield Piece::Torn(at.0);
                }
                Trouble::Twice => {
                    // One of them may have ended the chunk before.
                    after = after.max(at);
                    yield Piece::Twice(at.0);
                }
            }
        }
    }
}

/// The first position behind a missing one that has an event; behind the end where none has.
async fn next_there(
    database: &Database,
    missing: Position,
    upto: Position,
) -> Result<Position, DatabaseError> {
    let sql = "SELECT min(position) FROM event WHERE position >= $1 AND position <= $2";
    let client = database.get().await?;
    let row = client.query_one(sql, &[&(missing.0 as i64), &(upto.0 as i64)]).await?;
    let found: Option<i64> = row.get(0);
    match found.map_or(upto.next(), |found| Position(found as u64)) {
        found if found == missing => {
            Err(DatabaseError::Unexpected(format!("event {missing} was missing, and is there")))
        }
        found => Ok(found),
    }
}

fn leaf(row: &Row) -> Leaf<'_> {
    Leaf {
        stream: row.stream.0,
        version: row.version,
        code: row.code,
        schema_version: row.schema_version,
        recorded_at_us: microseconds(row.recorded_at),
        header: row.header(),
        body: row.body(),
    }
}
