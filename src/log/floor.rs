//! The floor: up to there, events have left the database for an archive.
//!
//! A range of positions below it has gaps, so it is not read at all. A stream is: either all of it
//! is here, or its versions show that it is not. Source: `migrations/V16__retention.sql`.

use std::collections::{HashMap, HashSet};

use milepost_schemas::{Position, StreamId};
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::{Committed, DatabaseError, EventFilter, Log};

/// The last position that is archived; [`Position::START`] where none is.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn floor<C: GenericClient>(client: &C) -> Result<Position, DatabaseError> {
    let sql = "SELECT coalesce(max(last_position), 0) FROM archived_range";
    let floor: i64 = client.query_one(sql, &[]).await?.get(0);
    Ok(Position(floor as u64))
}

impl Log {
    /// The last position that is archived; [`Position::START`] where none is.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn floor(&self) -> Result<Position, DatabaseError> {
        floor(&**self.database().get().await?).await
    }
}

/// Makes sure that a read by positions was one of the whole log. To be asked behind the read: what
/// leaves the database in between is then noticed.
///
/// # Errors
/// [`DatabaseError::Archived`] where it was not.
pub(super) async fn require_range<C: GenericClient>(
    client: &C,
    filter: &EventFilter,
    (after, upto): (Position, Position),
    limit: usize,
    events: &[Committed],
) -> Result<(), DatabaseError> {
    let all = filter.streams.is_empty() && filter.types.is_empty();
    if all && is_gapless(events, after, upto, limit) {
        return Ok(());
    }
    let floor = floor(client).await?;
    if after >= floor || after >= upto {
        return Ok(());
    }
    // Streams that are still needed are here from their beginning.
    if !filter.streams.is_empty() && thinned(client, &filter.streams).await?.is_empty() {
        return Ok(());
    }
    Err(DatabaseError::Archived { floor })
}

fn is_gapless(events: &[Committed], after: Position, upto: Position, limit: usize) -> bool {
    let wanted = upto.0.saturating_sub(after.0).min(limit as u64);
    let follows = |(event, position): (&Committed, u64)| event.position.0 == position;
    events.len() as u64 == wanted && events.iter().zip(after.0 + 1..).all(follows)
}

/// Makes sure that streams were read whole, or from a version on.
///
/// # Errors
/// [`DatabaseError::Archived`] where they were not.
pub(super) async fn require_versions<C: GenericClient>(
    client: &C,
    events: &[Committed],
    from: u32,
) -> Result<(), DatabaseError> {
    let mut next: HashMap<StreamId, u32> = HashMap::new();
    let mut follows = |event: &Committed| {
        let next = next.entry(event.stream).or_insert(from);
        std::mem::replace(next, event.version + 1) == event.version
    };
    if events.iter().all(&mut follows) {
        return Ok(());
    }
    match floor(client).await? {
        // What else may be wrong with a stream, an audit says.
        Position::START => Ok(()),
        floor => Err(DatabaseError::Archived { floor }),
    }
}

/// Makes sure that nothing of streams that were read up to a position has left the database. Up to
/// the floor and beyond, [`require_versions`] sees that; below it, where the last event of a stream
/// may be all that is here and stands behind the position, the stream looks empty.
///
/// # Errors
/// [`DatabaseError::Archived`] where something has.
pub(super) async fn require_upto<C: GenericClient>(
    client: &C,
    streams: &[StreamId],
    upto: Position,
) -> Result<(), DatabaseError> {
    let floor = floor(client).await?;
    if upto == Position::START || upto >= floor || thinned(client, streams).await?.is_empty() {
        return Ok(());
    }
    Err(DatabaseError::Archived { floor })
}

/// Of newest events, in descending order, those behind which nothing has left the database.
pub(super) async fn until_archived<C: GenericClient>(
    client: &C,
    streams: &[StreamId],
    events: Vec<Committed>,
) -> Result<Vec<Committed>, DatabaseError> {
    let floor = floor(client).await?;
    if events.last().is_none_or(|oldest| oldest.position > floor) {
        return Ok(events);
    }
    let thinned = thinned(client, streams).await?;
    let whole = |event: &Committed| event.position > floor || !thinned.contains(&event.stream);
    Ok(events.into_iter().take_while(whole).collect())
}

/// Those of these streams of which events have left the database.
async fn thinned<C: GenericClient>(
    client: &C,
    streams: &[StreamId],
) -> Result<HashSet<StreamId>, DatabaseError> {
    let ids: Vec<Uuid> = streams.iter().map(|stream| stream.0).collect();
    let sql = "SELECT stream_id FROM event WHERE stream_id = ANY($1) \
               GROUP BY stream_id HAVING count(*) <> max(version)";
    let rows = client.query(sql, &[&ids]).await?;
    Ok(rows.iter().map(|row| StreamId(row.get(0))).collect())
}
