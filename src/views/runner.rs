//! The catch-up runner: folds the log into view rows, state and checkpoint in one transaction.
//!
//! One process at a time runs the views, held by an advisory lock; should two ever try, the
//! checkpoint's compare-and-set lets only one commit.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use milepost_projections::board::Boards;
use milepost_projections::job::Jobs;
use milepost_projections::node::Nodes;
use milepost_projections::{Compensations, Projection};
use milepost_schemas::{Position, StreamId};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::Key;
use crate::app::App;
use crate::log::{Committed, DatabaseError, EventFilter, READ_EVENTS_MAX, Since};
use crate::metrics::ViewLabels;

/// The advisory lock of the process that runs the views: "views" in ASCII.
const LOCK: i64 = 0x76_69_65_77_73;

/// Events folded in one transaction.
const ROUND_EVENTS_MAX: usize = 5_000;

/// From this many events on, a round is followed by a rest: on a busy log one row is then written
/// once for all its changes in between, and the log keeps the disk to itself.
const BUSY_EVENTS: usize = 500;

/// That rest, and the one on a quiet log. Lists may be as old as this, unless somebody asks for
/// one; what pages show live comes from the log itself.
const BUSY_REST: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(100);

/// How long another process waits before it tries to run the views.
const STANDBY: Duration = Duration::from_secs(2);

/// Rows kept in memory between rounds.
const ROWS_CACHED_MAX: NonZeroUsize = NonZeroUsize::new(8_192).expect("it is not zero");

/// Starts to run the views, or to stand by; until shutdown.
pub fn start(app: Arc<App>) {
    tokio::spawn(async move {
        let shutdown = app.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = lead(app) => {}
        }
    });
}

async fn lead(app: Arc<App>) {
    loop {
        if let Err(error) = lead_once(&app).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the views stopped");
        }
        tokio::time::sleep(STANDBY).await;
    }
}

/// Runs the views as long as this process holds the lock.
async fn lead_once(app: &App) -> Result<(), DatabaseError> {
    let (client, mut gone) = app.log.database().dedicated().await?;
    let locked = client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?;
    if !locked.get::<_, bool>(0) {
        return Ok(());
    }
    tokio::select! {
        result = View::<Boards>::run(app) => result,
        result = View::<Jobs>::run(app) => result,
        result = View::<Nodes>::run(app) => result,
        result = View::<Compensations>::run(app) => result,
        () = async { while gone.recv().await.is_some() {} } => Ok(()),
    }
}

struct View<P: Projection> {
    client: Client,
    position: Position,
    rows: LruCache<Key, P::State>,
    poisoned: HashSet<StreamId>,
}

impl<P: Projection> View<P> {
    async fn run(app: &App) -> Result<(), DatabaseError> {
        let mut view = Self::open(app).await?;
        let mut head = app.log.feed().watch();
        let mut wanted = app.views.wanted.subscribe();
        loop {
            let events = view.next_events(app).await?;
            let lag = app.log.feed().head().0.saturating_sub(view.position.0);
            let labels = ViewLabels { view: P::NAME };
            app.metrics.view_lag_events.get_or_create(&labels).set(lag as i64);
            app.metrics
                .view_poisoned_streams
                .get_or_create(&labels)
                .set(view.poisoned.len() as i64);
            if events.is_empty() {
                if head.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            }
            view.round(&events).await?;
            let rest = if events.len() >= BUSY_EVENTS { BUSY_REST } else { REST };
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                _ = wanted.wait_for(|wanted| *wanted > view.position) => {}
            }
        }
    }

    async fn open(app: &App) -> Result<Self, DatabaseError> {
        let (client, _) = app.log.database().dedicated().await?;
        // What a crash takes from a view is folded again: state and checkpoint go together.
        client.batch_execute("SET synchronous_commit = off").await?;
        let row = client
            .query_one(
                "INSERT INTO projection (name, version) VALUES ($1, $2) \
                 ON CONFLICT (name, version) DO UPDATE SET name = excluded.name RETURNING position",
                &[&P::NAME, &P::VERSION],
            )
            .await?;
        let poisoned = client
            .query(
                "SELECT stream_id FROM poison_event WHERE projection = $1 AND version = $2",
                &[&P::NAME, &P::VERSION],
            )
            .await?;
        Ok(Self {
            client,
            position: Position(row.get::<_, i64>(0) as u64),
            rows: LruCache::new(ROWS_CACHED_MAX),
            poisoned: poisoned.iter().map(|row| StreamId(row.get(0))).collect(),
        })
    }

    async fn next_events(&self, app: &App) -> Result<Vec<Arc<Committed>>, DatabaseError> {
        match app.log.feed().since(self.position, ROUND_EVENTS_MAX) {
            Since::Events(events) => Ok(events),
            Since::Older(upto) => {
                let all = EventFilter::default();
                let events = app.log.read(&all, self.position, upto, READ_EVENTS_MAX).await?;
                Ok(events.into_iter().map(Arc::new).collect())
            }
        }
    }

    /// Folds some events and commits what came of them with the new checkpoint.
    async fn round(&mut self, events: &[Arc<Committed>]) -> Result<(), DatabaseError> {
        let Self { client, rows, poisoned, position } = self;
        let tx = client.transaction().await?;
        load::<P>(&tx, rows, events).await?;
        let mut changed: HashMap<Key, Position> = HashMap::new();
        let mut poison = Vec::new();
        for event in events.iter().filter(|event| !poisoned.contains(&event.stream)) {
            match event.recorded() {
                Ok(recorded) => {
                    let Some(key) = P::key(recorded.event) else { continue };
                    P::apply(rows.get_or_insert_mut(key, P::State::default), &recorded);
                    changed.insert(key, event.position);
                }
                Err(error) => poison.push((event, error.to_string())),
            }
        }
        for (event, error) in poison {
            poisoned.insert(event.stream);
            halt::<P>(&tx, event, &error).await?;
        }
        write::<P>(&tx, rows, &changed).await?;
        let upto = events.last().map_or(*position, |event| event.position);
        let moved = tx
            .execute(
                "UPDATE projection SET position = $3, updated_at = now() \
                 WHERE name = $1 AND version = $2 AND position = $4",
                &[&P::NAME, &P::VERSION, &(upto.0 as i64), &(position.0 as i64)],
            )
            .await?;
        if moved != 1 {
            return Err(DatabaseError::Unexpected(format!("another process runs {}", P::NAME)));
        }
        tx.commit().await?;
        *position = upto;
        Ok(())
    }
}

/// Brings the rows these events change into memory.
async fn load<P: Projection>(
    tx: &Transaction<'_>,
    rows: &mut LruCache<Key, P::State>,
    events: &[Arc<Committed>],
) -> Result<(), DatabaseError> {
    let mut missing: HashSet<Key> = HashSet::new();
    for event in events {
        if let Some(key) = event.event().ok().and_then(P::key)
            && !rows.contains(&key)
        {
            missing.insert(key);
        }
    }
    if rows.len() + missing.len() > ROWS_CACHED_MAX.get() {
        // A round must find all its rows: make room by forgetting, then load what it needs.
        rows.clear();
        missing = events.iter().filter_map(|event| P::key(event.event().ok()?)).collect();
    }
    if missing.is_empty() {
        return Ok(());
    }
    let keys: Vec<Uuid> = missing.into_iter().collect();
    let stored = tx
        .query(
            "SELECT key, state FROM view_row \
                 WHERE projection = $1 AND version = $2 AND key = ANY($3)",
            &[&P::NAME, &P::VERSION, &keys],
        )
        .await?;
    for row in stored {
        let state = serde_json::from_slice(row.get(1)).map_err(|error| {
            DatabaseError::Unexpected(format!("a row of {} cannot be read: {error}", P::NAME))
        })?;
        rows.put(row.get(0), state);
    }
    Ok(())
}

async fn write<P: Projection>(
    tx: &Transaction<'_>,
    rows: &LruCache<Key, P::State>,
    changed: &HashMap<Key, Position>,
) -> Result<(), DatabaseError> {
    let (mut keys, mut positions) = (Vec::new(), Vec::new());
    let (mut labels, mut states) = (Vec::new(), Vec::new());
    for (key, position) in changed {
        let Some(state) = rows.peek(key) else { continue };
        keys.push(*key);
        positions.push(position.0 as i64);
        labels.push(P::label(state));
        states.push(serde_json::to_vec(state).expect("a row is plain data"));
    }
    tx.execute(
        "INSERT INTO view_row (projection, version, key, position, label, state) \
             SELECT $1, $2, * FROM unnest($3::uuid[], $4::bigint[], $5::text[], $6::bytea[]) \
             ON CONFLICT (projection, version, key) DO UPDATE \
             SET position = excluded.position, label = excluded.label, state = excluded.state",
        &[&P::NAME, &P::VERSION, &keys, &positions, &labels, &states],
    )
    .await?;
    Ok(())
}

/// The stream stops here; the view goes on with the others.
async fn halt<P: Projection>(
    tx: &Transaction<'_>,
    event: &Committed,
    error: &str,
) -> Result<(), DatabaseError> {
    tracing::error!(view = P::NAME, position = event.position.0, error, "a poison event");
    tx.execute(
        "INSERT INTO poison_event (projection, version, position, stream_id, error) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        &[&P::NAME, &P::VERSION, &(event.position.0 as i64), &event.stream.0, &error],
    )
    .await?;
    Ok(())
}
