//! How the views stand, for operators.

use jiff::Timestamp;
use milepost_projections::board::Boards;
use milepost_projections::compensation::Compensations;
use milepost_projections::job::Jobs;
use milepost_projections::node::Nodes;
use milepost_projections::upkeep::{Ended, Order, Skipped};
use milepost_projections::{Projection, Upkeep};
use milepost_schemas::{Event, Position, StreamId};
use serde::Serialize;
use tokio_postgres::Client;
use uuid::Uuid;

use super::generation::Progress;
use crate::app::App;
use crate::execute::{ExecuteError, read_upkeep};
use crate::log::{DatabaseError, EventFilter, floor};

/// Poison events an answer lists at the most; all are counted.
const POISON_LISTED_MAX: i64 = 100;

/// Every view, with the version of its fold.
pub const PROJECTIONS: [(&str, i16); 4] = [
    (Boards::NAME, Boards::VERSION),
    (Jobs::NAME, Jobs::VERSION),
    (Nodes::NAME, Nodes::VERSION),
    (Compensations::NAME, Compensations::VERSION),
];

/// How a view stands: `GET /api/projections/{name}`.
#[derive(Clone, Debug, Serialize)]
pub struct ProjectionStatus {
    /// Its name.
    pub name: &'static str,
    /// The version of its fold.
    pub version: i16,
    /// The generation of its rows that is read; absent until the first one is filled.
    pub generation: Option<i32>,
    /// The last event folded.
    pub position: Position,
    /// The log's size.
    pub head: Position,
    /// Events it is behind.
    pub lag_events: u64,
    /// For how long the first of these has been in the log, in seconds.
    pub lag_seconds: f64,
    /// Events folded a second, of late.
    pub events_per_second: f64,
    /// Streams it has stopped folding.
    pub poisoned: i64,
    /// Some of them, and the events it stopped at.
    pub poison: Vec<PoisonEvent>,
    /// Events it passes over.
    pub skipped: Vec<Skipped>,
    /// What is ordered of it.
    pub order: Option<Order>,
    /// What that has come to.
    pub progress: Option<RebuildStatus>,
    /// The generations there are, the newest first; but for former ones that the archive has
    /// overtaken: what comes after them is not here any more.
    pub generations: Vec<GenerationStatus>,
    /// What came of the latest rebuild or roll-back.
    pub ended: Option<Ended>,
    /// What came of the latest verification.
    pub verified: Option<Ended>,
}

impl ProjectionStatus {
    /// Calls those who ordered something by the names that people know them by.
    pub fn name_people(&mut self, name: impl Fn(&str) -> String) {
        let ordered = self.order.iter_mut().map(|order| &mut order.by);
        let ended = self.ended.iter_mut().chain(&mut self.verified).map(|ended| &mut ended.by);
        let skipped = self.skipped.iter_mut().map(|skipped| &mut skipped.by);
        ordered.chain(ended).chain(skipped).for_each(|by| *by = name(by));
    }
}

/// An event that a view stopped a stream at.
#[derive(Clone, Debug, Serialize)]
pub struct PoisonEvent {
    /// The event.
    pub position: Position,
    /// Its stream.
    pub stream: StreamId,
    /// Why.
    pub error: String,
    /// When.
    pub recorded_at: Timestamp,
}

/// A generation that is being filled.
#[derive(Clone, Debug, Serialize)]
pub struct RebuildStatus {
    /// Its number.
    pub generation: i32,
    /// How far it is.
    #[serde(flatten)]
    pub progress: Progress,
}

/// A generation of a view's rows.
#[derive(Clone, Debug, Serialize)]
pub struct GenerationStatus {
    /// Its number.
    pub generation: i32,
    /// The version of the fold that made it.
    pub version: i16,
    /// `filling`, `active` or `former`.
    pub state: String,
    /// The last event folded.
    pub position: Position,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// How all views stand, or the one that is named.
///
/// # Errors
/// [`ExecuteError`] when the database cannot be asked.
pub async fn statuses(
    app: &App,
    name: Option<&str>,
) -> Result<Vec<ProjectionStatus>, ExecuteError> {
    let client = app.log.database().get().await?;
    let (_, head) = app.log.head().await?;
    let mut statuses = Vec::new();
    for (projection, version) in PROJECTIONS {
        if name.is_none_or(|name| name == projection) {
            let (_, upkeep) = read_upkeep(&app.log, projection).await?;
            let status = status(&client, projection, version, head, upkeep);
            let mut status = status.await?;
            status.lag_seconds = lag_seconds(app, status.position, head).await?;
            statuses.push(status);
        }
    }
    Ok(statuses)
}

async fn status(
    client: &Client,
    name: &'static str,
    version: i16,
    head: Position,
    upkeep: Upkeep,
) -> Result<ProjectionStatus, DatabaseError> {
    let rows = client
        .query(
            "SELECT generation, version, state, position, created_at, updated_at, \
             CASE WHEN updated_at > now() - interval '5 s' THEN events_per_second ELSE 0 END, \
             progress FROM view_generation \
             WHERE projection = $1 AND state <> 'dropped' \
             AND (state <> 'former' OR position >= $2) ORDER BY generation DESC",
            &[&name, &(floor(client).await?.0 as i64)],
        )
        .await?;
    let (mut active, mut progress, mut rate, mut generations) = (None, None, 0.0, Vec::new());
    for row in rows {
        let generation = GenerationStatus {
            generation: row.get(0),
            version: row.get(1),
            state: row.get(2),
            position: Position(row.get::<_, i64>(3) as u64),
            created_at: row.get(4),
            updated_at: row.get(5),
        };
        if generation.state == "active" && generation.version == version {
            active = Some(generation.clone());
            rate = row.get(6);
        }
        let at_work: Option<serde_json::Value> = row.get(7);
        if let Some(at_work) = at_work.and_then(|it| serde_json::from_value(it).ok())
            && generation.version == version
        {
            progress = Some(RebuildStatus { generation: generation.generation, progress: at_work });
        }
        generations.push(generation);
    }
    let number = active.as_ref().map(|active| active.generation);
    let (poisoned, poison) = poison(client, name, number).await?;
    let position = active.map_or(Position::START, |active| active.position);
    Ok(ProjectionStatus {
        name,
        version,
        generation: number,
        position,
        head: head.max(position),
        lag_events: head.0.saturating_sub(position.0),
        lag_seconds: 0.0,
        events_per_second: rate,
        poisoned,
        poison,
        skipped: upkeep.skipped,
        order: upkeep.order,
        progress,
        generations,
        ended: upkeep.ended,
        verified: upkeep.verified,
    })
}

async fn poison(
    client: &Client,
    name: &str,
    generation: Option<i32>,
) -> Result<(i64, Vec<PoisonEvent>), DatabaseError> {
    let rows = client
        .query(
            "SELECT position, stream_id, error, recorded_at, count(*) OVER () FROM view_poison \
             WHERE projection = $1 AND generation = $2 ORDER BY position LIMIT $3",
            &[&name, &generation, &POISON_LISTED_MAX],
        )
        .await?;
    let count = rows.first().map_or(0, |row| row.get(4));
    let poison = rows.iter().map(|row| PoisonEvent {
        position: Position(row.get::<_, i64>(0) as u64),
        stream: StreamId(row.get::<_, Uuid>(1)),
        error: row.get(2),
        recorded_at: row.get(3),
    });
    Ok((count, poison.collect()))
}

/// For how long the first event after a position has been in the log.
async fn lag_seconds(app: &App, position: Position, head: Position) -> Result<f64, DatabaseError> {
    if position >= head {
        return Ok(0.0);
    }
    let next = app.log.read(&EventFilter::default(), position, position.next(), 1).await?;
    let age = next.first().map(|next| app.clock.now().duration_since(next.recorded_at));
    Ok(age.map_or(0.0, |age| age.as_secs_f64().max(0.0)))
}

/// How far a view is behind the log, for Prometheus.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    /// Its name.
    pub view: &'static str,
    /// Events it is behind; the whole log, until its first rows are filled.
    pub events: u64,
    /// Streams it has stopped folding.
    pub poisoned: i64,
}

/// How far every view is behind the log, whichever process runs it and whether or not one does.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn lags(app: &App) -> Result<Vec<Lag>, DatabaseError> {
    let client = app.log.database().get().await?;
    let rows = client
        .query(
            "SELECT projection, version, position, (SELECT count(*) FROM view_poison poison \
             WHERE poison.projection = view.projection AND poison.generation = view.generation) \
             FROM view_generation view WHERE state = 'active'",
            &[],
        )
        .await?;
    let head = app.log.feed().head();
    let lag = |(view, version)| {
        let row = rows
            .iter()
            .find(|row| row.get::<_, &str>(0) == view && row.get::<_, i16>(1) == version);
        let position = row.map_or(0, |row| row.get::<_, i64>(2) as u64);
        let poisoned = row.map_or(0, |row| row.get(3));
        Lag { view, events: head.0.saturating_sub(position), poisoned }
    };
    Ok(PROJECTIONS.into_iter().map(lag).collect())
}

/// Whether a view has stopped at an event, and this version can read it by now: `Ok(true)` where
/// it can, `Ok(false)` where it cannot either, `None` where the view has not stopped there.
///
/// # Errors
/// [`ExecuteError`] when the database cannot be asked.
pub async fn may_try_again(
    app: &App,
    name: &str,
    position: Position,
) -> Result<Option<bool>, ExecuteError> {
    let version = PROJECTIONS.into_iter().find_map(|it| (it.0 == name).then_some(it.1));
    let client = app.log.database().get().await?;
    let known = client
        .query_one(
            "SELECT EXISTS (SELECT FROM view_poison poison JOIN view_generation view \
             USING (projection, generation) WHERE view.projection = $1 AND version = $2 \
             AND state = 'active' AND poison.position = $3)",
            &[&name, &version, &(position.0 as i64)],
        )
        .await
        .map_err(DatabaseError::from)?;
    if !known.get::<_, bool>(0) {
        return Ok(None);
    }
    let before = Position(position.0.saturating_sub(1));
    let events = app.log.read(&EventFilter::default(), before, position, 1).await?;
    Ok(events
        .first()
        .map(|event| Event::decode(event.code, event.schema_version, &event.body).is_ok()))
}

/// Whether there are former rows to go back to.
///
/// # Errors
/// [`ExecuteError`] when the database cannot be asked.
pub async fn may_roll_back(app: &App, name: &str) -> Result<bool, ExecuteError> {
    let statuses = statuses(app, Some(name)).await?;
    Ok(statuses.iter().any(|it| {
        it.generations
            .iter()
            .any(|generation| generation.state == "former" && generation.version == it.version)
    }))
}
