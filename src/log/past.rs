//! Reads of the log as it was: up to a position, by time, and in search of something.

use jiff::Timestamp;
use milepost_schemas::{EventType, Position, StreamId};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::floor::{floor, require_range, require_upto, require_versions};
use super::read::{COLUMNS, committed};
use super::{Committed, DatabaseError, Escape, EventFilter, Log, READ_EVENTS_MAX};

/// Events one search looks at: a fifth of a second on a small machine. It says how far it came.
pub const SCAN_EVENTS_MAX: u64 = 50_000;

/// Positions one statement of a search covers: no snapshot stays open for long.
const SCAN_RANGE: u64 = 5_000;

/// What a thing comes into the world by. Source: `migrations/V13__births.sql`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    /// An agent is made.
    Agent,
    /// A job is queued.
    Job,
    /// A job succeeds: as such it is born.
    SucceededJob,
    /// A node is made known.
    Node,
}

impl Birth {
    fn event_type(self) -> EventType {
        match self {
            Self::Agent => EventType::AgentCreated,
            Self::Job => EventType::JobQueued,
            Self::SucceededJob => EventType::JobSucceeded,
            Self::Node => EventType::NodeRegistered,
        }
    }
}

/// Which way a search goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// From the oldest on.
    #[default]
    Up,
    /// From the newest back.
    Down,
}

/// What is searched for; all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// Streams and types.
    pub filter: EventFilter,
    /// Who caused it, to the letter.
    pub actor: Option<String>,
    /// What its body says somewhere, in small or capital letters.
    pub text: Option<String>,
}

/// What a search has found.
#[derive(Debug)]
pub struct Found {
    /// The events, in the direction of the search.
    pub events: Vec<Committed>,
    /// Everything between where it began and here, this one too, has been looked at.
    pub looked_to: Position,
    /// Whether that is where it was to end.
    pub is_whole: bool,
}

impl Search {
    /// Whether nearly every event is one of those searched for.
    pub fn is_open(&self) -> bool {
        self == &Self::default()
    }
}

/// A text as it stands within JSON.
fn in_json(text: &str) -> String {
    let quoted = serde_json::to_string(text).expect("text is JSON");
    quoted[1..quoted.len() - 1].to_owned()
}

impl Log {
    /// Reads whole streams up to a position, by position.
    ///
    /// # Errors
    /// [`DatabaseError::Archived`] where not all of it is here.
    pub async fn read_streams_upto(
        &self,
        streams: &[StreamId],
        upto: Position,
    ) -> Result<Vec<Committed>, DatabaseError> {
        let ids: Vec<Uuid> = streams.iter().map(|stream| stream.0).collect();
        let sql = format!(
            "SELECT {COLUMNS} FROM event WHERE stream_id = ANY($1) AND position <= $2 \
             ORDER BY position"
        );
        let events = self.select(&sql, &[&ids, &signed(upto)]).await?;
        let client = self.database.get().await?;
        require_versions(&**client, &events, 1).await?;
        require_upto(&**client, streams, upto).await?;
        Ok(events)
    }

    /// Reads the latest event of a stream up to a position, if there is one.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn read_latest_upto(
        &self,
        stream: StreamId,
        upto: Position,
    ) -> Result<Option<Committed>, DatabaseError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM event WHERE stream_id = $1 AND position <= $2 \
             ORDER BY version DESC LIMIT 1"
        );
        let latest = self.select(&sql, &[&stream.0, &signed(upto)]).await?.pop();
        // Of an archived range the last event of a stream is still here, those before may not be.
        self.require_above_floor(upto.next()).await?;
        Ok(latest)
    }

    /// Makes sure that nothing from a position on is archived.
    async fn require_above_floor(&self, from: Position) -> Result<(), DatabaseError> {
        let floor = self.floor().await?;
        if floor == Position::START || from > floor {
            return Ok(());
        }
        Err(DatabaseError::Archived { floor })
    }

    /// Reads the event at a position, if there is one.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn read_event(&self, at: Position) -> Result<Option<Committed>, DatabaseError> {
        let sql = format!("SELECT {COLUMNS} FROM event WHERE position = $1");
        let event = self.select(&sql, &[&signed(at)]).await?.pop();
        if event.is_none() {
            self.require_above_floor(at).await?;
        }
        Ok(event)
    }

    /// The ids of what was born up to a position, the newest id first, below `before` if that is
    /// given.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn read_births(
        &self,
        birth: Birth,
        upto: Position,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<StreamId>, DatabaseError> {
        // The code stands in the text: with a parameter Postgres would not take the partial index.
        let sql = format!(
            "SELECT stream_id FROM event WHERE type = {} AND position <= $1 \
             AND ($2::uuid IS NULL OR stream_id < $2) ORDER BY stream_id DESC LIMIT $3",
            birth.event_type().code()
        );
        let client = self.database.get().await?;
        let statement = client.prepare_cached(&sql).await?;
        let rows = client.query(&statement, &[&signed(upto), &before, &(limit as i64)]).await?;
        // Agents and nodes stay from their beginning; of jobs that are over the birth is archived.
        if birth == Birth::Job
            && let floor @ Position(1..) = floor(&**client).await?
        {
            return Err(DatabaseError::Archived { floor });
        }
        Ok(rows.iter().map(|row| StreamId(row.get(0))).collect())
    }

    /// The last position that was recorded by a time, found by bisection: time never goes back in
    /// the log. Among archived events it is the last position before one that is here and is later.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn position_by(
        &self,
        time: Timestamp,
        head: Position,
    ) -> Result<Position, DatabaseError> {
        // Of everything up to `low` it is known that it was recorded by then, of `high` that not.
        let (mut low, mut high) = (0, head.0 + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.time_by(Position(middle)).await? {
                Some(recorded_at) if recorded_at > time => high = middle,
                _ => low = middle,
            }
        }
        Ok(Position(low))
    }

    /// When the event at a position was recorded; where that is archived, the last one before it
    /// that is here.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn time_by(&self, at: Position) -> Result<Option<Timestamp>, DatabaseError> {
        let client = self.database.get().await?;
        let sql = "SELECT recorded_at FROM event WHERE position <= $1 \
                   ORDER BY position DESC LIMIT 1";
        let statement = client.prepare_cached(sql).await?;
        let row = client.query_opt(&statement, &[&signed(at)]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Looks for up to `limit` events after `after` and up to `upto`. It looks at no more than
    /// [`SCAN_EVENTS_MAX`], and says how far it came.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn search(
        &self,
        search: &Search,
        after: Position,
        upto: Position,
        direction: Direction,
        limit: usize,
    ) -> Result<Found, DatabaseError> {
        let limit = limit.min(READ_EVENTS_MAX);
        // Streams are found by their index; what nearly all events are, at once.
        let range = if search.filter.streams.is_empty() && !search.is_open() {
            SCAN_RANGE
        } else {
            u64::MAX
        };
        let (mut low, mut high) = (after.0, upto.0.max(after.0));
        match direction {
            // A search back ends at the floor; one that begins below it would pass over a gap.
            Direction::Down if search.filter.streams.is_empty() => {
                let floor = self.floor().await?;
                if low < high && high <= floor.0 {
                    return Err(DatabaseError::Archived { floor });
                }
                low = low.max(floor.0).min(high);
            }
            Direction::Down | Direction::Up => {
                let range = (after, upto.max(after));
                let client = self.database.get().await?;
                require_range(&**client, &search.filter, range, limit, &[]).await?;
            }
        }
        let mut events = Vec::new();
        let mut left = SCAN_EVENTS_MAX;
        while low < high && left > 0 && events.len() < limit {
            let (from, to) = match direction {
                Direction::Up => (low, low.saturating_add(range).min(high)),
                Direction::Down => (high.saturating_sub(range).max(low), high),
            };
            let wanted = limit - events.len();
            let some = self.matching(search, from, to, direction, wanted).await?;
            let read = some.len();
            // A full answer may have left some of its range unread.
            let end = some.last().filter(|_| read == wanted).map(|last| last.position.0);
            match direction {
                Direction::Up => low = end.unwrap_or(to),
                Direction::Down => high = end.map_or(from, |end| end - 1),
            }
            left = left.saturating_sub(to - from);
            events.extend(self.saying(search, some).await?);
        }
        let looked_to = match direction {
            Direction::Up => Position(low),
            Direction::Down => Position(high + 1),
        };
        Ok(Found { events, looked_to, is_whole: low >= high })
    }

    /// Those that say what is searched for, once their personal texts are opened.
    async fn saying(
        &self,
        search: &Search,
        events: Vec<Committed>,
    ) -> Result<Vec<Committed>, DatabaseError> {
        let Some(text) = search.text.as_deref().map(in_json) else { return Ok(events) };
        let opener = self.keys().opener(events.iter().map(|event| &event.body[..])).await?;
        let says = |event: &Committed| {
            let body = opener.open(&event.body, Escape::Json);
            String::from_utf8_lossy(&body).to_lowercase().contains(&text.to_lowercase())
        };
        Ok(events.into_iter().filter(says).collect())
    }

    /// What matches by all but what is sealed: a body with a sealed text may say anything.
    async fn matching(
        &self,
        search: &Search,
        after: u64,
        upto: u64,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Committed>, DatabaseError> {
        let streams: Vec<Uuid> = search.filter.streams.iter().map(|stream| stream.0).collect();
        let codes: Vec<i16> = search.filter.types.iter().map(|kind| kind.code()).collect();
        let actor = search.actor.as_ref().map(|actor| {
            let actor = serde_json::to_string(actor).expect("text is JSON");
            format!("\"actor\":{actor}").into_bytes()
        });
        let text = search.text.as_deref().map(in_json);
        let by_stream =
            if streams.is_empty() { "cardinality($3::uuid[]) = 0" } else { "stream_id = ANY($3)" };
        let order = match direction {
            Direction::Up => "ASC",
            Direction::Down => "DESC",
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM event WHERE position > $1 AND position <= $2 AND {by_stream} \
             AND (cardinality($4::smallint[]) = 0 OR type = ANY($4)) \
             AND ($5::bytea IS NULL OR position($5 IN header) > 0) \
             AND ($6::text IS NULL OR position('mp1.'::bytea IN body) > 0 \
                 OR strpos(lower(convert_from(body, 'UTF8')), lower($6)) > 0) \
             ORDER BY position {order} LIMIT $7"
        );
        let (after, upto) = (signed(Position(after)), signed(Position(upto)));
        self.select(&sql, &[&after, &upto, &streams, &codes, &actor, &text, &(limit as i64)]).await
    }

    async fn select(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Committed>, DatabaseError> {
        let client = self.database.get().await?;
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, parameters).await?;
        let epoch = self.feed.epoch();
        Ok(rows.iter().map(|row| committed(epoch, row)).collect())
    }
}

/// As Postgres counts: beyond what it can count there is nothing.
fn signed(position: Position) -> i64 {
    i64::try_from(position.0).unwrap_or(i64::MAX)
}
