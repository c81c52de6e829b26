//! The catch-up runner: folds the log into view rows, state and checkpoint in one transaction.
//!
//! One process at a time runs a version of a view and carries out what is ordered of it, held by
//! an advisory lock; should two ever try, the checkpoint's compare-and-set lets only one commit.
//! Each view is run by itself: what stops one is its own, and stops no order that would cure it.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use milepost_projections::Projection;
use milepost_projections::board::Boards;
use milepost_projections::compensation::Compensations;
use milepost_projections::job::Jobs;
use milepost_projections::node::Nodes;
use milepost_schemas::{Position, StreamId};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_postgres::{Client, Statement, Transaction};
use uuid::Uuid;

use super::Key;
use super::generation::Generation;
use super::orders;
use crate::app::App;
use crate::log::{Committed, DatabaseError, EventFilter, READ_EVENTS_MAX, Since};

/// The advisory lock of the process that runs a view: by name and version, so that a new version is
/// filled while code of before goes on with its own.
const LOCK: &str = "SELECT pg_try_advisory_lock(hashtext($1), $2)";

/// Events that are read from the log to be folded in one transaction.
pub const ROUND_EVENTS_MAX: usize = 5_000;

/// Events, and bytes of them, that are gathered from the feed while a view rests, and folded in one
/// transaction. The feed keeps fewer: a view that came for them after its rest would have to read
/// them again from a log that is busy.
const GATHERED_EVENTS_MAX: usize = 16_384;
const GATHERED_BYTES_MAX: usize = 32 << 20;

/// How often a resting view looks into the feed. At a hundred thousand events a second it misses none.
const GATHER_EVERY: Duration = Duration::from_millis(100);

/// From this many events a second on, the log is busy. Rests are longer then: one row is written
/// once for all its changes in between, and callbacks keep the processors and the disk. What a
/// view falls behind by all the same it makes up for afterwards, without a rest.
const BUSY_EVENTS_A_SECOND: f64 = 500.0;

/// How far back it is looked for that.
const ARRIVALS_SECONDS: f64 = 1.0;

/// The rest after a round on a busy log, and the one on a quiet log. Lists may be as old as this,
/// unless somebody asks for one; what pages show live comes from the log itself.
const BUSY_REST: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(100);

/// How long another process waits before it tries to run a view, and this one after an error.
const STANDBY: Duration = Duration::from_secs(2);

/// Rows kept in memory between rounds: at least as many as a round can change.
const ROWS_CACHED_MAX: NonZeroUsize =
    NonZeroUsize::new(GATHERED_EVENTS_MAX).expect("it is not zero");

/// Starts to run the views, or to stand by; until shutdown.
pub fn start(app: Arc<App>) {
    start_view::<Boards>(Arc::clone(&app));
    start_view::<Jobs>(Arc::clone(&app));
    start_view::<Nodes>(Arc::clone(&app));
    start_view::<Compensations>(app);
}

fn start_view<P: Projection>(app: Arc<App>) {
    tokio::spawn(async move {
        let shutdown = app.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = lead::<P>(&app) => {}
        }
    });
}

async fn lead<P: Projection>(app: &App) {
    loop {
        match Box::pin(lead_once::<P>(app)).await {
            Ok(()) => tokio::time::sleep(STANDBY).await,
            Err(error) => pause::<P>("a view stopped", &error).await,
        }
    }
}

/// Says what went wrong with a view, and waits before it is tried again.
pub(super) async fn pause<P: Projection>(what: &'static str, error: &DatabaseError) {
    tracing::warn!(view = P::NAME, error = error as &dyn std::error::Error, "{what}");
    tokio::time::sleep(STANDBY).await;
}

/// Runs a view as long as this process holds its lock, once it has got it.
async fn lead_once<P: Projection>(app: &App) -> Result<(), DatabaseError> {
    let (client, mut gone) = app.log.database().dedicated().await?;
    let (name, version) = (format!("view {}", P::NAME), i32::from(P::VERSION));
    while !client.query_one(LOCK, &[&name, &version]).await?.get::<_, bool>(0) {
        tokio::time::sleep(STANDBY).await;
    }
    tokio::select! {
        result = run::<P>(app) => result,
        () = async { while gone.recv().await.is_some() {} } => Ok(()),
    }
}

/// Keeps a view's rows up to the log, and carries out what is ordered of it. Either goes on
/// whatever becomes of the other; whoever holds `still` sees rows that nobody changes.
async fn run<P: Projection>(app: &App) -> Result<(), DatabaseError> {
    orders::begin::<P>(app).await?;
    let still = Mutex::new(());
    tokio::select! {
        () = follow::<P>(app, &still) => {}
        () = orders::carry_out::<P>(app, &still) => {}
    }
    Ok(())
}

/// Folds the log into the generation that is read; into the next one, once there has been a switch.
/// Ends where there is none.
async fn follow<P: Projection>(app: &App, still: &Mutex<()>) {
    loop {
        match follow_active::<P>(app, still).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => pause::<P>("a view does not follow the log", &error).await,
        }
    }
}

async fn follow_active<P: Projection>(app: &App, still: &Mutex<()>) -> Result<bool, DatabaseError> {
    let (client, _) = app.log.database().dedicated().await?;
    let Some(active) = Generation::active::<P>(&client).await? else { return Ok(false) };
    View::<P>::open(app, client, active).await?.follow(app, still).await?;
    Ok(true)
}

/// A generation of a view as it is brought up to the log.
pub(super) struct View<P: Projection> {
    pub(super) client: Client,
    pub(super) generation: Generation,
    rows: Rows<P>,
    rate: Rate,
}

/// The rows that change, in memory between rounds; and what they are read and written with.
struct Rows<P: Projection> {
    generation: i32,
    cached: LruCache<Key, P::State>,
    poisoned: HashSet<StreamId>,
    skipped: HashSet<Position>,
    load: Statement,
    write: Statement,
}

/// What a resting view has taken from the feed.
#[derive(Default)]
struct Gathered {
    events: Vec<Arc<Committed>>,
    bytes: usize,
}

impl Gathered {
    /// How far it goes, where it began behind what is folded.
    fn upto(&self, folded: Position) -> Position {
        self.events.last().map_or(folded, |event| event.position)
    }

    /// How many more events a round has room for.
    fn room(&self) -> usize {
        GATHERED_EVENTS_MAX - self.events.len()
    }

    fn add(&mut self, more: Vec<Arc<Committed>>) {
        self.bytes += more.iter().map(|event| event.header.len() + event.body.len()).sum::<usize>();
        self.events.extend(more);
    }

    fn is_full(&self) -> bool {
        self.room() == 0 || self.bytes >= GATHERED_BYTES_MAX
    }
}

/// Events a second, of late.
struct Rate {
    /// How far back it looks.
    seconds: f64,
    since: Instant,
    per_second: f64,
}

/// How far back the rate looks at which a view folds.
const FOLDED_SECONDS: f64 = 5.0;

impl Rate {
    fn over(seconds: f64) -> Self {
        Self { seconds, since: Instant::now(), per_second: 0.0 }
    }

    fn count(&mut self, events: usize) -> f64 {
        let seconds = self.since.elapsed().as_secs_f64().max(0.001);
        self.since = Instant::now();
        let weight = (-seconds / self.seconds).exp();
        self.per_second = self.per_second * weight + events as f64 / seconds * (1.0 - weight);
        self.per_second
    }
}

impl<P: Projection> View<P> {
    /// Opens a generation where its checkpoint says it is.
    pub(super) async fn open(
        app: &App,
        client: Client,
        generation: Generation,
    ) -> Result<Self, DatabaseError> {
        // What a crash takes from a view is folded again: state and checkpoint go together. Rows
        // are looked up by key; how is decided once, maybe while there are hardly any.
        client.batch_execute("SET synchronous_commit = off; SET enable_seqscan = off").await?;
        let poisoned = client
            .query(
                "SELECT stream_id FROM view_poison WHERE projection = $1 AND generation = $2",
                &[&P::NAME, &generation.number],
            )
            .await?;
        let table = generation.table();
        let load = format!("SELECT key, state FROM {table} WHERE key = ANY($1)");
        let write = format!(
            "INSERT INTO {table} (key, position, label, state) \
             SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bytea[]) \
             ON CONFLICT (key) DO UPDATE \
             SET position = excluded.position, label = excluded.label, state = excluded.state"
        );
        let rows = Rows {
            generation: generation.number,
            cached: LruCache::new(ROWS_CACHED_MAX),
            poisoned: poisoned.iter().map(|row| StreamId(row.get(0))).collect(),
            skipped: orders::skipped::<P>(app).await?,
            load: client.prepare(&load).await?,
            write: client.prepare(&write).await?,
        };
        Ok(Self { client, generation, rows, rate: Rate::over(FOLDED_SECONDS) })
    }

    pub(super) fn position(&self) -> Position {
        self.generation.position
    }

    /// Follows the log for as long as this generation is the one that is read.
    async fn follow(&mut self, app: &App, still: &Mutex<()>) -> Result<(), DatabaseError> {
        let mut head = app.log.feed().watch();
        let mut wanted = app.views.wanted.subscribe();
        let mut seen = app.log.feed().head();
        let mut arrivals = Rate::over(ARRIVALS_SECONDS);
        let mut events = Vec::new();
        loop {
            if events.is_empty() {
                events = self.next_events(app).await?;
            }
            if events.is_empty() {
                // A switch while the log is quiet is seen with the next event.
                if head.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            }
            let round = {
                let _turn = still.lock().await;
                self.round(&events, "active").await?
            };
            if !round {
                return Ok(());
            }
            let position = self.position();
            let before = std::mem::replace(&mut seen, app.log.feed().head());
            let busy = arrivals.count((seen.0 - before.0) as usize) >= BUSY_EVENTS_A_SECOND;
            let rest = match seen.0.saturating_sub(position.0) {
                _ if busy => BUSY_REST,
                // Far behind a quiet log there is no rest: whole rounds wait, and hold up nobody.
                left if left > ROUND_EVENTS_MAX as u64 => Duration::ZERO,
                _ => REST,
            };
            events = self.rest(app, rest, &mut wanted).await;
        }
    }

    /// Rests, and gathers from the feed what is appended meanwhile. Cut short when somebody wants a
    /// list that is further on, and when there is enough for a round.
    async fn rest(
        &self,
        app: &App,
        rest: Duration,
        wanted: &mut watch::Receiver<Position>,
    ) -> Vec<Arc<Committed>> {
        let (folded, until) = (self.position(), Instant::now() + rest);
        let mut gathered = Gathered::default();
        loop {
            let is_wanted = tokio::select! {
                () = tokio::time::sleep_until(until.min(Instant::now() + GATHER_EVERY)) => false,
                _ = wanted.wait_for(|wanted| *wanted > folded) => true,
            };
            // What the feed has no more is read from the log, with the next round.
            if let Since::Events(more) =
                app.log.feed().since(gathered.upto(folded), gathered.room())
            {
                gathered.add(more);
            }
            if is_wanted || gathered.is_full() || Instant::now() >= until {
                return gathered.events;
            }
        }
    }

    /// Folds what the log has up to a position, and no further.
    pub(super) async fn advance(
        &mut self,
        app: &App,
        upto: Position,
        state: &str,
    ) -> Result<(), DatabaseError> {
        while self.position() < upto {
            let mut events = self.next_events(app).await?;
            events.retain(|event| event.position <= upto);
            if events.is_empty() {
                // This process has not heard of them yet.
                let mut head = app.log.feed().watch();
                let position = self.position();
                drop(head.wait_for(|head| *head > position).await);
            } else if !self.round(&events, state).await? {
                return Err(self.taken());
            }
        }
        Ok(())
    }

    pub(super) async fn next_events(
        &self,
        app: &App,
    ) -> Result<Vec<Arc<Committed>>, DatabaseError> {
        let upto = match app.log.feed().since(self.position(), ROUND_EVENTS_MAX) {
            Since::Events(events) => return Ok(events),
            Since::Older(upto) => upto,
        };
        let all = EventFilter::default();
        let (mut after, mut events) = (self.position(), Vec::new());
        while events.len() < ROUND_EVENTS_MAX && after < upto {
            let some = app.log.read(&all, after, upto, READ_EVENTS_MAX).await?;
            let Some(last) = some.last() else { break };
            after = last.position;
            events.extend(some.into_iter().map(Arc::new));
        }
        Ok(events)
    }

    /// Folds some events and commits what came of them with the new checkpoint. False where the
    /// generation is not in that state any more: then nothing is committed, and this view is done
    /// with. So it is after an error, and when this is dropped half way: its rows in memory hold
    /// what was not committed, and would hold it twice.
    pub(super) async fn round(
        &mut self,
        events: &[Arc<Committed>],
        state: &str,
    ) -> Result<bool, DatabaseError> {
        let rate = self.rate.count(events.len());
        let Self { client, rows, generation, .. } = self;
        let tx = client.transaction().await?;
        rows.fold(&tx, events).await?;
        let upto = events.last().map_or(generation.position, |event| event.position);
        let moved = tx
            .execute(
                "UPDATE view_generation \
                 SET position = $3, events_per_second = $6, updated_at = now() \
                 WHERE projection = $1 AND generation = $2 AND position = $4 AND state = $5",
                &[
                    &P::NAME,
                    &generation.number,
                    &(upto.0 as i64),
                    &(generation.position.0 as i64),
                    &state,
                    &rate,
                ],
            )
            .await?;
        if moved != 1 {
            return Ok(false);
        }
        tx.commit().await?;
        generation.position = upto;
        Ok(true)
    }

    /// Makes this generation the one that is read. Under the lock on the head nothing can append:
    /// the rest of the log is folded and the pointer flipped in one transaction, so that nothing
    /// is missed or doubled. Gives back how long the log was held, in microseconds; `None`, with
    /// nothing done, where the rest was too much to hold it for.
    pub(super) async fn switch(
        &mut self,
        from: &str,
        order: Option<Position>,
    ) -> Result<Option<u64>, DatabaseError> {
        let Self { client, rows, generation, .. } = self;
        let tx = client.transaction().await?;
        tx.batch_execute("SET LOCAL synchronous_commit = on").await?;
        let head = tx.query_one("SELECT epoch, size FROM log_head FOR UPDATE", &[]).await?;
        let held_since = Instant::now();
        let (epoch, size) = (head.get(0), Position(head.get::<_, i64>(1) as u64));
        let events = crate::log::read_in(&tx, epoch, generation.position, ROUND_EVENTS_MAX).await?;
        let upto = events.last().map_or(generation.position, |event| event.position);
        if upto != size {
            return Ok(None);
        }
        rows.fold(&tx, &events).await?;
        tx.execute(
            "UPDATE view_generation SET state = 'former', updated_at = now() \
             WHERE projection = $1 AND version = $2 AND state = 'active'",
            &[&P::NAME, &P::VERSION],
        )
        .await?;
        let order = order.map(|position| position.0 as i64);
        let moved = tx
            .execute(
                "UPDATE view_generation SET state = 'active', position = $3, order_position = $6, \
                 progress = NULL, updated_at = now() \
                 WHERE projection = $1 AND generation = $2 AND position = $4 AND state = $5",
                &[
                    &P::NAME,
                    &generation.number,
                    &(size.0 as i64),
                    &(generation.position.0 as i64),
                    &from,
                    &order,
                ],
            )
            .await?;
        if moved != 1 {
            drop(tx);
            return Err(self.taken());
        }
        tx.commit().await?;
        generation.position = size;
        Ok(Some(held_since.elapsed().as_micros() as u64))
    }

    pub(super) fn taken(&self) -> DatabaseError {
        DatabaseError::Unexpected(format!("another process runs {}", self.generation.table()))
    }
}

impl<P: Projection> Rows<P> {
    /// Folds events into rows, and writes these.
    async fn fold(
        &mut self,
        tx: &Transaction<'_>,
        events: &[Arc<Committed>],
    ) -> Result<(), DatabaseError> {
        let folded: Vec<&Arc<Committed>> = events
            .iter()
            .filter(|event| P::folds(event.code) && !self.skipped.contains(&event.position))
            .collect();
        self.load(tx, &folded).await?;
        let mut changed: HashMap<Key, Position> = HashMap::new();
        for event in folded {
            if self.poisoned.contains(&event.stream) {
                continue;
            }
            // Callbacks take their turn on this thread.
            tokio::task::consume_budget().await;
            match event.recorded() {
                Ok(recorded) => {
                    let Some(key) = P::key(recorded.event) else { continue };
                    P::apply(self.cached.get_or_insert_mut(key, P::State::default), &recorded);
                    changed.insert(key, event.position);
                }
                Err(error) => {
                    self.poisoned.insert(event.stream);
                    self.halt(tx, event, &error.to_string()).await?;
                }
            }
        }
        self.write(tx, &changed).await
    }

    /// Brings the rows these events change into memory.
    async fn load(
        &mut self,
        tx: &Transaction<'_>,
        events: &[&Arc<Committed>],
    ) -> Result<(), DatabaseError> {
        let keys = events.iter().filter_map(|event| P::key(event.event().ok()?));
        let mut missing: HashSet<Key> =
            keys.clone().filter(|key| !self.cached.contains(key)).collect();
        if self.cached.len() + missing.len() > ROWS_CACHED_MAX.get() {
            // A round must find all its rows: make room by forgetting, then load what it needs.
            self.cached.clear();
            missing = keys.collect();
        }
        if missing.is_empty() {
            return Ok(());
        }
        let keys: Vec<Uuid> = missing.into_iter().collect();
        for row in tx.query(&self.load, &[&keys]).await? {
            self.cached.put(row.get(0), super::stored_state::<P>(row.get(1))?);
        }
        Ok(())
    }

    async fn write(
        &self,
        tx: &Transaction<'_>,
        changed: &HashMap<Key, Position>,
    ) -> Result<(), DatabaseError> {
        if changed.is_empty() {
            return Ok(());
        }
        let (mut keys, mut positions) = (Vec::new(), Vec::new());
        let (mut labels, mut states) = (Vec::new(), Vec::new());
        for (key, position) in changed {
            let Some(state) = self.cached.peek(key) else { continue };
            tokio::task::consume_budget().await;
            keys.push(*key);
            positions.push(position.0 as i64);
            labels.push(P::label(state));
            states.push(serde_json::to_vec(state).expect("a row is plain data"));
        }
        tx.execute(&self.write, &[&keys, &positions, &labels, &states]).await?;
        Ok(())
    }

    /// The stream stops here; the view goes on with the others.
    async fn halt(
        &self,
        tx: &Transaction<'_>,
        event: &Committed,
        error: &str,
    ) -> Result<(), DatabaseError> {
        tracing::error!(view = P::NAME, position = event.position.0, error, "a poison event");
        tx.execute(
            "INSERT INTO view_poison (projection, generation, position, stream_id, error) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            &[&P::NAME, &self.generation, &(event.position.0 as i64), &event.stream.0, &error],
        )
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(first: u64, count: u64, body: &'static [u8]) -> Vec<Arc<Committed>> {
        let event = |position| Arc::new(Committed::stored(1, Position(position), body));
        (first..first + count).map(event).collect()
    }

    #[test]
    fn a_round_is_full_by_its_events() {
        let mut gathered = Gathered::default();
        assert_eq!(gathered.upto(Position(7)), Position(7));
        let all_but_one = GATHERED_EVENTS_MAX as u64 - 1;
        gathered.add(events(8, all_but_one, b"{}"));
        assert!(!gathered.is_full());
        assert_eq!(gathered.room(), 1);
        gathered.add(events(8 + all_but_one, 1, b"{}"));
        assert!(gathered.is_full());
        assert_eq!(gathered.upto(Position(7)), Position(8 + all_but_one));
    }

    #[test]
    fn a_round_is_full_by_its_bytes() {
        const LARGE: &[u8] = &[b' '; 64 << 10];
        let mut gathered = Gathered::default();
        gathered.add(events(1, GATHERED_BYTES_MAX as u64 / LARGE.len() as u64 - 1, LARGE));
        assert!(!gathered.is_full());
        gathered.add(events(1_000, 1, LARGE));
        assert!(gathered.is_full());
        assert!(gathered.room() > 0);
    }
}
