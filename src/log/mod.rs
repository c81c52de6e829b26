//! The event log: append with group commit, read in ranges, follow as it grows.
//!
//! [`append`] is the only way in, by one SQL function; [`follow`] gives every committed event, once and
//! in order, to this process; [`read`] answers from the tables, [`past`] from the tables as they were, or
//! in search of something; [`scan`] goes through all of it; [`mod@floor`] says from where on they are there.
//! [`privacy`] seals personal texts on their way in and opens them at the doors.

mod append;
mod connect;
mod floor;
mod follow;
mod past;
mod privacy;
mod read;
mod scan;

use std::io::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use milepost_projections::Recorded;
use milepost_schemas::{
    AgentId, DecodeError, Event, EventType, JobId, Metadata, NodeId, Position, StreamId,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use append::{AppendError, Appended, BATCH_BYTES_MAX, BATCH_ITEMS_MAX, QUEUE_ITEMS_MAX};
pub use connect::{Database, DatabaseError};
pub use floor::floor;
pub use follow::{Feed, RING_BYTES_MAX, RING_EVENTS_MAX, Since, others_follow};
pub use past::{Birth, Direction, Found, SCAN_EVENTS_MAX, Search};
pub use privacy::{
    ERASED, Escape, KeyError, Keys, MASTER_KEY_BYTES, MasterKey, MasterKeys, Opener, SEALED,
    has_token, rewrap, vacuum,
};
pub use read::{EventFilter, READ_EVENTS_MAX, read_in};
pub use scan::{
    CHUNK_BYTES_MAX, CHUNK_EVENTS_MAX, CHUNKS_AHEAD, Chunk, Parts, RANGE_EVENTS, Row,
    SCAN_CONNECTIONS_MAX, scan,
};

use crate::metrics::Metrics;

/// A handle on the log; cheap to clone.
#[derive(Clone)]
pub struct Log {
    appender: append::Sender,
    database: Database,
    feed: Arc<Feed>,
    keys: Arc<Keys>,
    /// The size below which the log was set back before this process has seen it.
    least: Position,
}

/// How far this machine has signed the log, which may have been set back since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The epoch it was signed in.
    pub epoch: i64,
    /// How many events.
    pub size: Position,
}

impl Signed {
    /// The size below which a log of an epoch was set back.
    fn least(self, epoch: i64) -> Position {
        match self.epoch.cmp(&epoch) {
            std::cmp::Ordering::Less => Position::START,
            std::cmp::Ordering::Equal => self.size,
            // Whatever its size, it is the log from before that epoch.
            std::cmp::Ordering::Greater => Position(i64::MAX as u64),
        }
    }
}

impl Log {
    /// Opens the log: starts the appender and the tailer of this process, and cancels `shutdown` should
    /// the log be set back beneath them. Over one that is behind what was `signed` nothing is appended.
    ///
    /// # Errors
    /// When the database cannot be reached, or has not been migrated, or when no master key given is
    /// the one its keys are under.
    pub async fn open(
        database: Database,
        metrics: Arc<Metrics>,
        writer: String,
        keys: Arc<Keys>,
        signed: Option<Signed>,
        shutdown: CancellationToken,
    ) -> Result<Self, DatabaseError> {
        let (epoch, size) = read::head(&database).await?;
        keys.check().await.map_err(KeyError::into_database)?;
        let feed = Arc::new(Feed::new(epoch, size, Arc::clone(&keys)));
        let least = signed.map_or(Position::START, |signed| signed.least(epoch));
        let appender =
            append::start(database.clone(), Arc::clone(&feed), metrics, writer.clone(), least);
        let appender = appender.await?;
        follow::start(database.clone(), Arc::clone(&feed), writer, shutdown);
        Ok(Self { appender, database, feed, keys, least })
    }

    /// The size below which the log was set back, as far as this process knows.
    pub fn least(&self) -> Position {
        self.least.max(self.feed.head())
    }

    /// Every committed event of the log as this process learns of it.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// The keys of personal texts.
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// Where the log is.
    pub fn database(&self) -> &Database {
        &self.database
    }
}

/// What a stream's version must be for an append to go in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Just this; 0 for a stream that must not exist yet.
    Version(u32),
    /// Whatever it is: the fact follows from another stream's decision.
    Any,
}

/// One decision: its events go into the log all together or not at all.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The events, in order, each with its stream.
    pub events: Vec<(StreamId, Event)>,
    /// What each of those streams must look like.
    pub expected: Vec<(StreamId, Expected)>,
    /// Who decided, in answer to what; the header of every event.
    pub metadata: Arc<Metadata>,
    /// The job's row in the queue, where the decision changes when to look at it.
    pub queue: Option<QueueRow>,
}

/// A job's row in the queue. Source: `migrations/V2__queue.sql`, `V7__nodes_and_priorities.sql`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueRow {
    /// The job.
    pub job_id: JobId,
    /// What it does.
    pub job_type: String,
    /// The agent it changes.
    pub agent_id: Option<AgentId>,
    /// The node it changes.
    pub node_id: Option<NodeId>,
    /// What the row waits for; `ended` removes it.
    pub state: &'static str,
    /// When to look at the job next.
    pub due_at: Timestamp,
    /// Which of those that wait is claimed first: the highest.
    pub priority: i16,
    /// For a claim: which event of the batch it is, from 1. The appender counts.
    pub claim_ordinal: Option<i32>,
}

/// An event in the log, in the bytes it is stored in; what is made of them is made once.
#[derive(Debug)]
pub struct Committed {
    /// The log it is in.
    pub epoch: i64,
    /// Its place there.
    pub position: Position,
    /// Its stream.
    pub stream: StreamId,
    /// Its place there, from 1.
    pub version: u32,
    /// Its type's code.
    pub code: i16,
    /// The version of its type.
    pub schema_version: i16,
    /// When the log took it.
    pub recorded_at: Timestamp,
    /// The metadata as JSON.
    pub header: Bytes,
    /// The fact as JSON.
    pub body: Bytes,
    event: OnceLock<Result<Event, DecodeError>>,
    delivery_id: OnceLock<Option<String>>,
    rendered: OnceLock<Bytes>,
    /// The same where personal texts were opened in it, and the generation of keys that opened them.
    opened: Mutex<Option<(u64, Bytes)>>,
}

/// The part of a header that folds need.
#[derive(Deserialize)]
struct HeaderDelivery {
    #[serde(default)]
    delivery_id: Option<String>,
}

impl Committed {
    /// An event as a test says it is stored.
    #[cfg(test)]
    pub fn stored(epoch: i64, position: Position, body: &'static [u8]) -> Self {
        Self {
            epoch,
            position,
            stream: StreamId(uuid::Uuid::nil()),
            version: 1,
            code: 1,
            schema_version: 1,
            recorded_at: Timestamp::UNIX_EPOCH,
            header: Bytes::from_static(b"{}"),
            body: Bytes::from_static(body),
            event: OnceLock::new(),
            delivery_id: OnceLock::new(),
            rendered: OnceLock::new(),
            opened: Mutex::default(),
        }
    }

    /// The fact.
    ///
    /// # Errors
    /// [`DecodeError`] where this version of Milepost cannot read it.
    pub fn event(&self) -> Result<&Event, &DecodeError> {
        self.event
            .get_or_init(|| Event::decode(self.code, self.schema_version, &self.body))
            .as_ref()
    }

    /// The event with its place, for folds.
    ///
    /// # Errors
    /// [`DecodeError`] where this version of Milepost cannot read it.
    pub fn recorded(&self) -> Result<Recorded<'_>, &DecodeError> {
        Ok(Recorded {
            position: self.position,
            stream: self.stream,
            version: self.version,
            recorded_at: self.recorded_at,
            delivery_id: self.delivery_id.get_or_init(|| self.read_delivery_id()).as_deref(),
            event: self.event()?,
        })
    }

    /// The type's name; `Unknown` for one this version of Milepost does not know.
    pub fn type_name(&self) -> &'static str {
        EventType::from_code(self.code).map_or("Unknown", EventType::name)
    }

    /// Writes the event as every interface shows it. The stored bytes go in as they are: they
    /// are JSON without line breaks, for Milepost wrote them.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let Self { epoch, position, stream, version, schema_version, recorded_at, .. } = self;
        let kind = self.type_name();
        write!(
            out,
            "{{\"position\":{position},\"epoch\":{epoch},\"stream\":\"{stream}\",\
             \"version\":{version},\"type\":\"{kind}\",\"schema_version\":{schema_version},\
             \"event_id\":\"{epoch}-{position}\",\"recorded_at\":\"{recorded_at}\",\"data\":"
        )
        .expect("a vector takes every write");
        out.extend_from_slice(&self.body);
        out.extend_from_slice(b",\"metadata\":");
        out.extend_from_slice(&self.header);
        out.push(b'}');
    }

    /// The event as its subscribers get it: rendered by whoever asks first, shared by all. Where
    /// personal texts are opened in it, it is rendered again once a key has been erased.
    ///
    /// # Errors
    /// [`DatabaseError`] when a key cannot be read.
    pub async fn rendered(
        &self,
        keys: &Keys,
        render: impl FnOnce(&Self, &Opener) -> Bytes,
    ) -> Result<Bytes, DatabaseError> {
        if let Some(rendered) = self.rendered.get() {
            return Ok(rendered.clone());
        }
        if !self.is_sealed() {
            return Ok(self.rendered.get_or_init(|| render(self, &Opener::default())).clone());
        }
        let generation = keys.generation();
        if let Some((of, opened)) = &*self.opened()
            && *of == generation
        {
            return Ok(opened.clone());
        }
        let opener = keys.opener(self.texts()).await?;
        let rendered = render(self, &opener);
        *self.opened() = Some((generation, rendered.clone()));
        Ok(rendered)
    }

    /// Lets go of what was opened for subscribers.
    fn forget_opened(&self) {
        *self.opened() = None;
    }

    /// Whether personal texts of it are sealed.
    fn is_sealed(&self) -> bool {
        self.texts().into_iter().any(has_token)
    }

    /// All of it that may hold sealed texts.
    pub fn texts(&self) -> [&[u8]; 2] {
        [&self.header, &self.body]
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, Option<(u64, Bytes)>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_delivery_id(&self) -> Option<String> {
        serde_json::from_slice(&self.header).ok().and_then(|it: HeaderDelivery| it.delivery_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_before_what_was_signed_is_never_large_enough() {
        let signed = Signed { epoch: 7, size: Position(90) };
        assert_eq!(signed.least(8), Position::START);
        assert_eq!(signed.least(7), Position(90));
        assert!(signed.least(6) > Position(1 << 62));
    }
}
