//! Following the log: each committed event reaches this process once and in order.
//!
//! What this process appends itself comes straight from the appender; what others append is read
//! by the tailer, woken by NOTIFY and, should a notification be lost, by a poll behind it. A
//! notification costs its sender a fifth of its throughput, so a process that is alone sends none:
//! each tailer holds a shared advisory lock, and sees with its poll whether another does too.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use milepost_schemas::{EventType, Position};
use tokio::sync::{Notify, mpsc, watch};
use tokio_postgres::{AsyncMessage, GenericClient};
use tokio_util::sync::CancellationToken;

use super::read::{READ_EVENTS_MAX, read_after};
use super::{Committed, Database, DatabaseError, Keys};

/// Events kept in memory for subscribers that are a little behind; the log serves the others.
pub const RING_EVENTS_MAX: usize = 16_384;

/// Bytes of events kept in memory: events may be 64 KiB each.
pub const RING_BYTES_MAX: usize = 32 << 20;

/// How often the tailer asks for the log's size when nobody notifies it.
const POLL: Duration = Duration::from_millis(250);

/// The advisory lock every tailer holds a share of: "tail" in ASCII.
const PRESENCE: i64 = 0x74_61_69_6c;

/// The log's size, whether another process follows it, and its epoch.
const LOOK: &str = "SELECT size, EXISTS ( \
         SELECT FROM pg_locks AS l WHERE l.locktype = 'advisory' \
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND l.classid = 0 AND l.objid = $1 AND l.objsubid = 1 AND l.pid <> pg_backend_pid() \
     ), epoch FROM log_head";

/// How long the tailer waits before it connects again.
const RECONNECT: Duration = Duration::from_millis(200);

/// The events of projections' own streams.
const PROJECTION_EVENTS: [EventType; 7] = [
    EventType::ProjectionRebuildRequested,
    EventType::ProjectionRollbackRequested,
    EventType::ProjectionVerifyRequested,
    EventType::ProjectionSwitchRequested,
    EventType::ProjectionOrderCancelled,
    EventType::ProjectionOrderEnded,
    EventType::ProjectionEventSkipped,
];

/// The newest events of the log, in order, without a gap.
pub struct Feed {
    ring: Mutex<Ring>,
    head: watch::Sender<Position>,
    /// The newest event of each kind that somebody waits for: the others wake none of them.
    ordered: watch::Sender<Position>,
    cancelled: watch::Sender<Position>,
    epoch: i64,
    behind: Notify,
    keys: Arc<Keys>,
    /// Whether another process follows the log, or may.
    others_follow: AtomicBool,
    /// Whether the log was set back to before what is in here.
    set_back: AtomicBool,
}

struct Ring {
    head: Position,
    events: VecDeque<Arc<Committed>>,
    bytes: usize,
}

/// What the feed has after a position.
pub enum Since {
    /// These, in order; empty at the head.
    Events(Vec<Arc<Committed>>),
    /// More than it keeps: the log has them, up to the position given.
    Older(Position),
}

impl Feed {
    pub(super) fn new(epoch: i64, head: Position, keys: Arc<Keys>) -> Self {
        Self {
            ring: Mutex::new(Ring { head, events: VecDeque::new(), bytes: 0 }),
            head: watch::Sender::new(head),
            ordered: watch::Sender::new(head),
            cancelled: watch::Sender::new(head),
            epoch,
            behind: Notify::new(),
            keys,
            others_follow: AtomicBool::new(true),
            set_back: AtomicBool::new(false),
        }
    }

    /// The log's epoch: seconds since 1970 at which it began.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Whether the log was set back beneath this process: what it holds in memory is of another one.
    pub fn is_set_back(&self) -> bool {
        self.set_back.load(Ordering::Relaxed)
    }

    /// The newest position this process has seen.
    pub fn head(&self) -> Position {
        *self.head.borrow()
    }

    /// Wakes with each advance of the head.
    pub fn watch(&self) -> watch::Receiver<Position> {
        self.head.subscribe()
    }

    /// Wakes when something is ordered of a view, and when that has ended.
    pub fn watch_orders(&self) -> watch::Receiver<Position> {
        self.ordered.subscribe()
    }

    /// Wakes when a job is cancelled.
    pub fn watch_cancellations(&self) -> watch::Receiver<Position> {
        self.cancelled.subscribe()
    }

    /// Up to `limit` events after `after`.
    pub fn since(&self, after: Position, limit: usize) -> Since {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let floor = ring.head.0 - ring.events.len() as u64;
        if after.0 < floor {
            return Since::Older(Position(floor));
        }
        let skip = (after.0 - floor) as usize;
        Since::Events(ring.events.iter().skip(skip).take(limit).cloned().collect())
    }

    /// Whether an append must be announced. One that begins to follow reads on by its poll until
    /// the others have seen it.
    pub(super) fn others_follow(&self) -> bool {
        self.others_follow.load(Ordering::Relaxed)
    }

    /// Takes events that were committed. Those it has are passed over; after a gap it takes none
    /// and sends the tailer to read what is missing. Before anybody sees that a key was erased, it is
    /// forgotten, with all that it has opened.
    pub(super) fn publish(&self, events: Vec<Arc<Committed>>) {
        let head = {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                if event.position <= ring.head {
                    continue;
                }
                if event.position != ring.head.next() {
                    self.behind.notify_one();
                    break;
                }
                if event.code == EventType::PersonalDataErased.code() {
                    self.keys.forget(event.stream);
                    ring.events.iter().for_each(|event| event.forget_opened());
                }
                self.wake_for(&event);
                ring.push(event);
            }
            ring.head
        };
        // Whoever took the ring after this one may have told of more by now.
        self.head.send_if_modified(|seen| {
            let further = head > *seen;
            *seen = head.max(*seen);
            further
        });
    }
}

impl Feed {
    fn wake_for(&self, event: &Committed) {
        if PROJECTION_EVENTS.iter().any(|kind| kind.code() == event.code) {
            self.ordered.send_replace(event.position);
        } else if event.code == EventType::JobCancelled.code() {
            self.cancelled.send_replace(event.position);
        }
    }
}

impl Ring {
    fn push(&mut self, event: Arc<Committed>) {
        self.head = event.position;
        self.bytes += size(&event);
        self.events.push_back(event);
        while self.events.len() > RING_EVENTS_MAX || self.bytes > RING_BYTES_MAX {
            let oldest = self.events.pop_front().expect("a ring over its bounds holds events");
            self.bytes -= size(&oldest);
        }
    }
}

/// Twice the payload, for a subscriber's frame repeats it.
fn size(event: &Committed) -> usize {
    2 * (event.header.len() + event.body.len()) + 512
}

/// Whether any process follows the log of this database.
///
/// # Errors
/// [`DatabaseError`] when it cannot be asked.
pub async fn others_follow<C: GenericClient>(client: &C) -> Result<bool, DatabaseError> {
    Ok(client.query_one(LOOK, &[&(PRESENCE as u32)]).await?.get(1))
}

/// Why the tailer stops.
enum End {
    /// Its connection is gone.
    Disconnected,
    /// The log is not the one it followed.
    SetBack,
}

/// Starts the tailer of this process; it runs as long as the process. One beneath which the log was set
/// back is told to end: its feed, and all that was made of it, is of another log.
pub(super) fn start(
    database: Database,
    feed: Arc<Feed>,
    writer: String,
    shutdown: CancellationToken,
) {
    tokio::spawn(async move {
        loop {
            let outcome = tail(&database, &feed, &writer).await;
            feed.others_follow.store(true, Ordering::Relaxed);
            match outcome {
                Ok(End::Disconnected) => {}
                Ok(End::SetBack) => {
                    feed.set_back.store(true, Ordering::Relaxed);
                    tracing::error!("the log was set back beneath this process, which ends");
                    return shutdown.cancel();
                }
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the tailer lost its connection"
                ),
            }
            tokio::time::sleep(RECONNECT).await;
        }
    });
}

async fn tail(database: &Database, feed: &Feed, writer: &str) -> Result<End, DatabaseError> {
    let (client, mut messages) = database.dedicated().await?;
    client.batch_execute("LISTEN milepost_log").await?;
    client.execute("SELECT pg_advisory_lock_shared($1)", &[&PRESENCE]).await?;
    let look = client.prepare(LOOK).await?;
    loop {
        // Before the question: what is committed meanwhile is not missing from its answer.
        let seen = feed.head();
        let row = client.query_one(&look, &[&(PRESENCE as u32)]).await?;
        let size = Position(row.get::<_, i64>(0) as u64);
        if row.get::<_, i64>(2) != feed.epoch() || size < seen {
            return Ok(End::SetBack);
        }
        feed.others_follow.store(row.get(1), Ordering::Relaxed);
        while feed.head() < size {
            let events = read_after(&client, feed.epoch(), feed.head(), READ_EVENTS_MAX).await?;
            feed.publish(events.into_iter().map(Arc::new).collect());
        }
        tokio::select! {
            news = wait_for_news(&mut messages, feed, writer) => {
                if !news {
                    return Ok(End::Disconnected);
                }
            }
            () = feed.behind.notified() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// Waits for somebody else's append that is not in the feed; false when the connection is gone.
async fn wait_for_news(
    messages: &mut mpsc::Receiver<AsyncMessage>,
    feed: &Feed,
    writer: &str,
) -> bool {
    while let Some(message) = messages.recv().await {
        let AsyncMessage::Notification(note) = message else { continue };
        let Some((size, by)) = note.payload().split_once(' ') else { return true };
        if by != writer && size.parse().is_ok_and(|size| Position(size) > feed.head()) {
            return true;
        }
    }
    false
}
