//! The one appender of a process: group commit.
//!
//! It takes whatever has queued, sends it as one autocommit statement, and starts the next as
//! soon as that returns; while the database flushes, the next batch gathers by itself. The lock
//! on the head is held through the flush, so throughput is batch size times flush rate.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use lru::LruCache;
use milepost_schemas::{Event, EventType, Position, StreamId};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::privacy::Sealed;
use super::{
    Committed, Database, DatabaseError, Decision, Expected, Feed, KeyError, Log, QueueRow,
};
use crate::metrics::Metrics;

/// Decisions one batch holds at the most; beyond this a larger batch gains nothing.
pub const BATCH_ITEMS_MAX: usize = 512;

/// Bytes of events one batch holds at the most.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// Decisions that may wait; the next ones wait outside, which holds back their senders.
pub const QUEUE_ITEMS_MAX: usize = 4_096;

/// Streams whose version the appender remembers. A stream it has forgotten costs one look-up.
const KNOWN_STREAMS_MAX: usize = 65_536;

/// How often a batch is sent again because others got in between.
const ROUNDS_MAX: usize = 16;

/// How long the appender waits before it connects again.
const RECONNECT: Duration = Duration::from_millis(100);

/// The slowest batch that is not worth a line in the operator's log.
const SLOW_BATCH: Duration = Duration::from_secs(1);

/// What `append_batch` says of a log that is smaller than its caller knows it. Source:
/// `migrations/V17__set_back.sql`.
const SET_BACK: &str = "MP001";

/// Appends to a log that ends where this process left it, when no stream has to be looked at, no queue
/// row is written and nobody is told: a batch of callbacks on a process that is alone. Does nothing, and
/// gives no row, where somebody else has appended; `append_batch` then looks. It is its last statement
/// and takes the same lock, but a function's own cost is half of what a single event costs.
const EXTEND: &str = "WITH head AS ( \
         UPDATE log_head AS h \
         SET size = h.size + cardinality($2::uuid[]), \
             recorded_at = greatest(h.recorded_at, clock_timestamp()) \
         WHERE h.one_row AND h.size = $1 \
         RETURNING h.epoch, h.recorded_at \
     ), added AS ( \
         INSERT INTO event \
             (position, stream_id, version, type, schema_version, recorded_at, header, body) \
         SELECT \
             $1 + generate_subscripts($2::uuid[], 1), unnest($2::uuid[]), unnest($3::integer[]), \
             unnest($4::smallint[]), unnest($5::smallint[]), recorded_at, \
             unnest($6::bytea[]), unnest($7::bytea[]) \
         FROM head \
     ) \
     SELECT epoch, recorded_at FROM head";

/// Where a decision's events went.
#[derive(Debug)]
pub struct Appended {
    /// The events, in order; they are durable.
    pub events: Vec<Arc<Committed>>,
}

impl Appended {
    /// The position of the decision's first event.
    pub fn position(&self) -> Position {
        self.events.first().map_or(Position::START, |event| event.position)
    }
}

/// Why a decision is not in the log.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// A stream has another version than the decision was made on: decide again.
    #[error("stream {0} has moved on")]
    Conflict(StreamId),
    /// Another job that has not ended changes the same thing.
    #[error("another job is active")]
    Busy,
    /// The log cannot be written now; whether this decision is in it may be unknown.
    #[error("the log cannot be written")]
    Unavailable,
}

pub(super) type Sender = mpsc::Sender<Item>;

pub(super) struct Item {
    decision: Decision,
    header: Bytes,
    bodies: Vec<Bytes>,
    reply: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Item {
    fn bytes(&self) -> usize {
        self.bodies.iter().map(Bytes::len).sum::<usize>() + self.header.len() * self.bodies.len()
    }
}

impl Log {
    /// Appends one decision, its personal texts sealed; returns once it is durable, or at the
    /// deadline.
    ///
    /// # Errors
    /// [`AppendError`]; nothing of the decision is in the log then, unless it is `Unavailable`.
    pub async fn append(
        &self,
        mut decision: Decision,
        deadline: tokio::time::Instant,
    ) -> Result<Appended, AppendError> {
        let (reply, answer) = oneshot::channel();
        let appended = async {
            let Sealed { header, bodies } =
                self.keys.seal(&mut decision).await.map_err(|error| not_sealed(&error))?;
            let item = Item { decision, header, bodies, reply };
            self.appender.send(item).await.map_err(|_| AppendError::Unavailable)?;
            answer.await.unwrap_or(Err(AppendError::Unavailable))
        };
        let appended = tokio::time::timeout_at(deadline, appended).await;
        appended.unwrap_or(Err(AppendError::Unavailable))
    }
}

pub(super) async fn start(
    database: Database,
    feed: Arc<Feed>,
    metrics: Arc<Metrics>,
    writer: String,
    known_size: Position,
) -> Result<Sender, DatabaseError> {
    let (sender, receiver) = mpsc::channel(QUEUE_ITEMS_MAX);
    let link = connect(&database).await?;
    let known = LruCache::new(KNOWN_STREAMS_MAX.try_into().expect("the bound is not zero"));
    let known_size = known_size.0 as i64;
    let appender =
        Appender { database, feed, metrics, writer, known_size, known, told_set_back: false };
    tokio::spawn(appender.run(receiver, link));
    Ok(sender)
}

/// A connection with the statements on it.
struct Link {
    client: Client,
    append: Statement,
    extend: Statement,
    /// The first position of the last partition that is there for certain.
    last_partition: i64,
    /// Whether the partition behind the one that is written to could not be made when it was tried.
    partition_awaited: bool,
}

async fn connect(database: &Database) -> Result<Link, DatabaseError> {
    let (client, _) = database.dedicated().await?;
    let append = client
        .prepare(
            "SELECT epoch, base, recorded_at, stale_streams, stale_versions, refused_jobs \
             FROM append_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .await?;
    let extend = client.prepare(EXTEND).await?;
    Ok(Link { client, append, extend, last_partition: 0, partition_awaited: false })
}

/// As [`connect`], and waits until whoever appends now has committed: a torn connection's statement
/// goes on in the database. Fails where the log cannot be written, as on a standby.
async fn connect_behind(database: &Database) -> Result<Link, DatabaseError> {
    let link = connect(database).await?;
    link.client.execute("SELECT FROM log_head FOR UPDATE", &[]).await?;
    Ok(link)
}

struct Appender {
    database: Database,
    feed: Arc<Feed>,
    metrics: Arc<Metrics>,
    writer: String,
    /// The log's size when this appender last wrote, and before that what was known of it at the
    /// start: a smaller log was set back. What `known` says was true then.
    known_size: i64,
    known: LruCache<StreamId, u32>,
    /// Whether the operator was told so: each batch finds it anew.
    told_set_back: bool,
}

/// A batch laid out as the statement wants it.
#[derive(Default)]
struct Plan {
    items: Vec<Item>,
    heads: Vec<Uuid>,
    head_versions: Vec<i32>,
    uncertain: i32,
    streams: Vec<Uuid>,
    versions: Vec<i32>,
    types: Vec<i16>,
    schema_versions: Vec<i16>,
    queue: Vec<QueueRow>,
}

/// What became of a batch.
enum Outcome {
    Committed { epoch: i64, base: i64, recorded_at: Timestamp },
    Stale { base: i64, streams: Vec<Uuid>, versions: Vec<i32> },
    Refused { base: i64, jobs: Vec<Uuid> },
}

impl Appender {
    async fn run(mut self, mut receiver: mpsc::Receiver<Item>, link: Link) {
        let mut link = Some(link);
        let mut waiting = VecDeque::new();
        let mut received = Vec::new();
        while receiver.recv_many(&mut received, BATCH_ITEMS_MAX).await > 0 {
            waiting.extend(received.drain(..));
            while !waiting.is_empty() {
                self.metrics.append_queue_depth.set((waiting.len() + receiver.len()) as i64);
                self.append_some(&mut waiting, &mut link).await;
                while waiting.len() < BATCH_ITEMS_MAX
                    && let Ok(item) = receiver.try_recv()
                {
                    waiting.push_back(item);
                }
            }
            self.metrics.append_queue_depth.set(0);
        }
    }

    /// Takes one batch off the front of what waits, and sees it through.
    async fn append_some(&mut self, waiting: &mut VecDeque<Item>, link: &mut Option<Link>) {
        let mut items = take_batch(waiting);
        for _ in 0..ROUNDS_MAX {
            let plan = self.plan(items);
            if plan.items.is_empty() {
                return;
            }
            let connected = match link.take() {
                Some(link) => link,
                None => self.reconnect(&plan.items).await,
            };
            let started = Instant::now();
            match self.send(connected, &plan).await {
                (back, Ok(Outcome::Committed { epoch, base, recorded_at })) => {
                    *link = Some(back);
                    self.observe(&plan, started.elapsed());
                    return self.commit(plan, epoch, base, recorded_at);
                }
                (back, Ok(Outcome::Stale { base, streams, versions })) => {
                    *link = Some(back);
                    self.learn(base);
                    for (stream, version) in streams.into_iter().zip(versions) {
                        self.known.put(StreamId(stream), version as u32);
                    }
                    items = plan.items;
                }
                (back, Ok(Outcome::Refused { base, jobs })) => {
                    *link = Some(back);
                    self.learn(base);
                    items = refuse(plan.items, &jobs);
                }
                (back, Err(error)) if is_set_back(&error) => {
                    *link = Some(back);
                    self.metrics.append_errors.inc();
                    if !std::mem::replace(&mut self.told_set_back, true) {
                        set_back(&error);
                    }
                    items = plan.items;
                    break;
                }
                (_, Err(error)) => {
                    interrupted(&error, plan.streams.len());
                    self.metrics.append_errors.inc();
                    // What refused it once would refuse it again in the same instant.
                    tokio::time::sleep(RECONNECT).await;
                    let fresh = self.reconnect(&plan.items).await;
                    self.known.clear();
                    items = self.sort_out(&fresh, plan.items).await;
                    *link = Some(fresh);
                }
            }
        }
        for item in items {
            drop(item.reply.send(Err(AppendError::Unavailable)));
        }
    }

    /// Lays the batch out. An item whose expectation is known to be wrong is answered here.
    fn plan(&mut self, items: Vec<Item>) -> Plan {
        let mut plan = Plan::default();
        let mut certain: Vec<(Uuid, i32)> = Vec::with_capacity(items.len());
        let mut moved: HashMap<StreamId, u32> = HashMap::with_capacity(items.len());
        for item in items {
            if item.reply.is_closed() {
                continue;
            }
            let mut conflict = None;
            for (stream, expected) in &item.decision.expected {
                let Expected::Version(version) = expected else { continue };
                // Versions only grow: who expects a later one than is known here has read in the
                // log what another node appended, and this appender has not heard of it.
                if self.known.peek(stream).is_some_and(|known| known < version) {
                    self.known.pop(stream);
                }
                let current = moved.get(stream).or_else(|| self.known.peek(stream)).copied();
                if current.is_some_and(|current| current != *version) {
                    conflict = Some(*stream);
                }
            }
            if let Some(stream) = conflict {
                drop(item.reply.send(Err(AppendError::Conflict(stream))));
                continue;
            }
            for (stream, expected) in &item.decision.expected {
                if moved.contains_key(stream) {
                    continue;
                }
                let current = match (self.known.get(stream), expected) {
                    (Some(known), _) => {
                        certain.push((stream.0, *known as i32));
                        *known
                    }
                    (None, expected) => {
                        let believed = match expected {
                            Expected::Version(version) => *version,
                            Expected::Any => 0,
                        };
                        plan.heads.push(stream.0);
                        plan.head_versions.push(believed as i32);
                        plan.uncertain += 1;
                        believed
                    }
                };
                moved.insert(*stream, current);
            }
            let mut queue = item.decision.queue.clone();
            for (stream, event) in &item.decision.events {
                let version = moved.entry(*stream).or_default();
                *version += 1;
                plan.streams.push(stream.0);
                plan.versions.push(*version as i32);
                let kind = event.event_type();
                plan.types.push(kind.code());
                plan.schema_versions.push(kind.schema_version());
                if kind == EventType::WorkflowDispatchRequested
                    && let Some(row) = &mut queue
                {
                    row.claim_ordinal = Some(plan.streams.len() as i32);
                }
            }
            plan.queue.extend(queue);
            plan.items.push(item);
        }
        for (stream, version) in certain {
            plan.heads.push(stream);
            plan.head_versions.push(version);
        }
        plan
    }

    async fn send(&self, mut link: Link, plan: &Plan) -> (Link, Result<Outcome, DatabaseError>) {
        let outcome = self.try_send(&mut link, plan).await;
        (link, outcome)
    }

    async fn try_send(&self, link: &mut Link, plan: &Plan) -> Result<Outcome, DatabaseError> {
        self.prepare_partitions(link, plan.streams.len() as i64).await?;
        let mut headers: Vec<&[u8]> = Vec::with_capacity(plan.streams.len());
        let mut bodies: Vec<&[u8]> = Vec::with_capacity(plan.streams.len());
        for item in &plan.items {
            for body in &item.bodies {
                headers.push(&item.header);
                bodies.push(body);
            }
        }
        let writer = self.feed.others_follow().then_some(&self.writer);
        let queue = (!plan.queue.is_empty())
            .then(|| serde_json::to_value(&plan.queue).expect("a queue row is plain data"));
        if plan.uncertain == 0 && queue.is_none() && writer.is_none() {
            let events: [&(dyn ToSql + Sync); 7] = [
                &self.known_size,
                &plan.streams,
                &plan.versions,
                &plan.types,
                &plan.schema_versions,
                &headers,
                &bodies,
            ];
            if let Some(row) = link.client.query_opt(&link.extend, &events).await? {
                let (epoch, recorded_at) = (row.get(0), row.get(1));
                return Ok(Outcome::Committed { epoch, base: self.known_size, recorded_at });
            }
        }
        let row = link
            .client
            .query_one(
                &link.append,
                &[
                    &self.known_size,
                    &plan.heads,
                    &plan.head_versions,
                    &plan.uncertain,
                    &plan.streams,
                    &plan.versions,
                    &plan.types,
                    &plan.schema_versions,
                    &headers,
                    &bodies,
                    &queue,
                    &writer,
                ],
            )
            .await?;
        let base = row.get(1);
        if let Some(streams) = row.get(3) {
            return Ok(Outcome::Stale { base, streams, versions: row.get(4) });
        }
        if let Some(jobs) = row.get(5) {
            return Ok(Outcome::Refused { base, jobs });
        }
        Ok(Outcome::Committed { epoch: row.get(0), base, recorded_at: row.get(2) })
    }

    /// Makes the partitions that so many further events need, and the one behind them: long before
    /// it is needed, so that the log goes on while something holds it up.
    async fn prepare_partitions(&self, link: &mut Link, added: i64) -> Result<(), DatabaseError> {
        let reached = self.known_size.saturating_add(added);
        if reached < link.last_partition {
            return Ok(());
        }
        let row = link.client.query_one("SELECT prepare_partitions($1)", &[&added]).await?;
        link.last_partition = row.get(0);
        let awaited = reached >= link.last_partition;
        if awaited && !link.partition_awaited {
            tracing::warn!(after = link.last_partition, "the next partition cannot be made yet");
        }
        link.partition_awaited = awaited;
        Ok(())
    }

    /// What was known before somebody else appended is known no more.
    fn learn(&mut self, base: i64) {
        if base != self.known_size {
            self.known.clear();
            self.known_size = base;
        }
    }

    fn commit(&mut self, plan: Plan, epoch: i64, base: i64, recorded_at: Timestamp) {
        self.learn(base);
        for (stream, version) in plan.streams.iter().zip(&plan.versions) {
            self.known.put(StreamId(*stream), *version as u32);
        }
        self.known_size = base + plan.streams.len() as i64;
        let mut index = 0;
        let mut committed = Vec::with_capacity(plan.streams.len());
        let mut replies = Vec::with_capacity(plan.items.len());
        for item in plan.items {
            let first = index;
            let metadata = &item.decision.metadata;
            let delivery_id =
                metadata.callback.as_ref().and_then(|evidence| evidence.delivery_id.clone());
            for ((stream, event), body) in item.decision.events.into_iter().zip(item.bodies) {
                committed.push(Arc::new(Committed {
                    epoch,
                    position: Position((base + 1 + index as i64) as u64),
                    stream,
                    version: plan.versions[index] as u32,
                    code: plan.types[index],
                    schema_version: plan.schema_versions[index],
                    recorded_at,
                    header: item.header.clone(),
                    body,
                    event: OnceLock::from(Ok(event)),
                    delivery_id: OnceLock::from(delivery_id.clone()),
                    rendered: OnceLock::new(),
                    opened: Mutex::default(),
                }));
                index += 1;
            }
            replies.push((item.reply, committed[first..index].to_vec()));
        }
        self.feed.publish(committed);
        for (reply, events) in replies {
            // A sender that no longer waits repeats its callback and gets this one's position.
            drop(reply.send(Ok(Appended { events })));
        }
    }

    fn observe(&self, plan: &Plan, took: Duration) {
        self.metrics.append_batch_events.observe(plan.streams.len() as f64);
        self.metrics.append_seconds.observe(took.as_secs_f64());
        self.metrics.events_appended.inc_by(plan.streams.len() as u64);
        if took > SLOW_BATCH {
            tracing::warn!(seconds = took.as_secs_f64(), "the log is slow");
        }
    }

    /// Connects again, however long it takes; items whose senders gave up are dropped by `plan`.
    async fn reconnect(&self, waiting: &[Item]) -> Link {
        loop {
            match connect_behind(&self.database).await {
                Ok(link) => return link,
                Err(error) => {
                    unreachable_log(&error, waiting.len());
                    tokio::time::sleep(RECONNECT).await;
                }
            }
        }
    }

    /// After a torn connection nobody knows whether the batch was committed; the log does. Items
    /// that are in it are answered, the others are returned to be sent again. Should the torn
    /// statement get the lock on the head only now, the version checks refuse the second one.
    async fn sort_out(&self, link: &Link, items: Vec<Item>) -> Vec<Item> {
        let mut again = Vec::new();
        for item in items {
            match find(link, &item).await {
                Ok(Some(events)) => {
                    let epoch = self.feed.epoch();
                    let events = events.into_iter().map(|found| found.committed(epoch)).collect();
                    drop(item.reply.send(Ok(Appended { events })));
                }
                Ok(None) => again.push(item),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot look again");
                    drop(item.reply.send(Err(AppendError::Unavailable)));
                }
            }
        }
        again
    }
}

fn not_sealed(error: &KeyError) -> AppendError {
    tracing::error!(error = error as &dyn std::error::Error, "personal texts cannot be sealed");
    AppendError::Unavailable
}

/// Whether the log has lost events that were known to be in it.
fn is_set_back(error: &DatabaseError) -> bool {
    let DatabaseError::Postgres(error) = error else { return false };
    error.code().map(SqlState::code) == Some(SET_BACK)
}

fn set_back(error: &DatabaseError) {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "nothing is taken over a log that has lost events: end every server, and run \
         milepost log new-epoch --reason …"
    );
}

fn interrupted(error: &DatabaseError, events: usize) {
    tracing::warn!(error = error as &dyn std::error::Error, events, "a batch was interrupted");
}

fn unreachable_log(error: &DatabaseError, waiting: usize) {
    tracing::warn!(error = error as &dyn std::error::Error, waiting, "the log is out of reach");
}

fn take_batch(waiting: &mut VecDeque<Item>) -> Vec<Item> {
    let mut items = Vec::with_capacity(waiting.len().min(BATCH_ITEMS_MAX));
    let mut bytes = 0;
    while items.len() < BATCH_ITEMS_MAX
        && let Some(item) = waiting.pop_front()
    {
        bytes += item.bytes();
        if bytes > BATCH_BYTES_MAX && !items.is_empty() {
            waiting.push_front(item);
            break;
        }
        items.push(item);
    }
    items
}

fn refuse(items: Vec<Item>, jobs: &[Uuid]) -> Vec<Item> {
    let refused =
        |item: &Item| item.decision.queue.as_ref().is_some_and(|row| jobs.contains(&row.job_id.0));
    let (refused, others): (Vec<_>, Vec<_>) = items.into_iter().partition(refused);
    for item in refused {
        drop(item.reply.send(Err(AppendError::Busy)));
    }
    others
}

/// An event of an interrupted batch that turned out to be in the log.
struct Found {
    position: i64,
    version: i32,
    recorded_at: Timestamp,
    stream: StreamId,
    event: Event,
    header: Bytes,
    body: Bytes,
    delivery_id: Option<String>,
}

impl Found {
    fn committed(self, epoch: i64) -> Arc<Committed> {
        let kind = self.event.event_type();
        Arc::new(Committed {
            epoch,
            position: Position(self.position as u64),
            stream: self.stream,
            version: self.version as u32,
            code: kind.code(),
            schema_version: kind.schema_version(),
            recorded_at: self.recorded_at,
            header: self.header,
            body: self.body,
            event: OnceLock::from(Ok(self.event)),
            delivery_id: OnceLock::from(self.delivery_id),
            rendered: OnceLock::new(),
            opened: Mutex::default(),
        })
    }
}

/// An item's events, if its first one is in the log with the same bytes: all of them are then,
/// one behind the other.
async fn find(link: &Link, item: &Item) -> Result<Option<Vec<Found>>, tokio_postgres::Error> {
    let stream = item.decision.events[0].0;
    let row = link
        .client
        .query_opt(
            "SELECT position FROM event WHERE stream_id = $1 AND header = $2 AND body = $3 \
             ORDER BY version DESC LIMIT 1",
            &[&stream.0, &item.header.as_ref(), &item.bodies[0].as_ref()],
        )
        .await?;
    let Some(first) = row.map(|row| row.get::<_, i64>(0)) else { return Ok(None) };
    let last = first + item.bodies.len() as i64 - 1;
    let rows = link
        .client
        .query(
            "SELECT position, version, recorded_at FROM event WHERE position BETWEEN $1 AND $2 \
             ORDER BY position",
            &[&first, &last],
        )
        .await?;
    let evidence = item.decision.metadata.callback.as_ref();
    let delivery_id = evidence.and_then(|evidence| evidence.delivery_id.clone());
    let events = item.decision.events.iter().zip(&item.bodies);
    Ok(Some(
        rows.iter()
            .zip(events)
            .map(|(row, ((stream, event), body))| Found {
                position: row.get(0),
                version: row.get(1),
                recorded_at: row.get(2),
                stream: *stream,
                event: event.clone(),
                header: item.header.clone(),
                body: body.clone(),
                delivery_id: delivery_id.clone(),
            })
            .collect(),
    ))
}
