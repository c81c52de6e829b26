//! `/api/queue`: how long it is, and whether anything is taken from it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use milepost_projections::{JobStatus, Pause};
use milepost_schemas::StreamId;
use serde::{Deserialize, Serialize};

use super::{json, metrics};
use crate::app::App;
use crate::domain::QueueCommand;
use crate::execute;
use crate::http::at::{At, Past};
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::log::DatabaseError;
use crate::views::past::queue_at;

/// The queue: `GET /api/queue`, and what it is after it was paused or resumed.
#[derive(Debug, Serialize)]
pub struct QueueAnswer {
    /// Who stopped it and why, while it is stopped.
    paused: Option<Pause>,
    /// Jobs that wait to be claimed.
    queued: i64,
    /// Jobs whose dispatcher has not answered.
    dispatching: i64,
    /// Jobs that run.
    running: i64,
    /// Jobs whose next attempt is to come.
    retry_scheduled: i64,
}

/// The body of `POST /api/queue/pause` and `/resume`.
#[derive(Debug, Default, Deserialize)]
pub struct Reason {
    reason: Option<String>,
}

/// `GET /api/queue?at=`.
///
/// # Errors
/// 400 for a place in the log that is none; 404 for one that is still to come; 422 where there
/// were too many jobs to count; 503 when the queue cannot be read.
pub async fn show(
    State(app): State<Arc<App>>,
    _: Actor,
    at: At,
) -> Result<Json<QueueAnswer>, Problem> {
    match at.0 {
        Some(past) => read_at(&app, past).await.map(Json),
        None => read(&app).await.map(Json),
    }
}

/// `POST /api/queue/pause`: nothing more is claimed; what runs goes on.
///
/// # Errors
/// 400 without a reason; 409 when it is paused.
pub async fn pause(
    State(app): State<Arc<App>>,
    actor: Actor,
    request: Request,
) -> Result<Json<QueueAnswer>, Problem> {
    let Reason { reason } = json(request).await?;
    stop(&app, &actor, reason.unwrap_or_default()).await?;
    read(&app).await.map(Json)
}

/// Pauses the queue.
///
/// # Errors
/// As [`pause`].
pub async fn stop(app: &App, actor: &Actor, reason: String) -> Result<(), Problem> {
    let reason = app.redactor.masked(&reason);
    give(app, actor, QueueCommand::Pause { by: actor.name.clone(), reason }).await
}

/// `POST /api/queue/resume`.
///
/// # Errors
/// 409 when it is not paused.
pub async fn resume(
    State(app): State<Arc<App>>,
    actor: Actor,
    request: Request,
) -> Result<Json<QueueAnswer>, Problem> {
    let Reason { reason } = json(request).await?;
    go_on(&app, &actor, reason).await?;
    read(&app).await.map(Json)
}

/// Resumes the queue.
///
/// # Errors
/// As [`resume`].
pub async fn go_on(app: &App, actor: &Actor, reason: Option<String>) -> Result<(), Problem> {
    let reason = reason.map(|reason| app.redactor.masked(&reason));
    give(app, actor, QueueCommand::Resume { by: actor.name.clone(), reason }).await
}

async fn give(app: &App, actor: &Actor, command: QueueCommand) -> Result<(), Problem> {
    execute::to_queue(app, command, actor.metadata(app, StreamId::QUEUE.0)).await?;
    Ok(())
}

async fn read_at(app: &App, past: Past) -> Result<QueueAnswer, Problem> {
    let queue = queue_at(&app.log, past.position).await?;
    let counts = metrics::counts_at(app, past).await?;
    let of = |status| counts.jobs.get(&status).copied().unwrap_or_default();
    Ok(QueueAnswer {
        paused: queue.paused,
        queued: of(JobStatus::Queued),
        dispatching: of(JobStatus::Dispatching),
        running: of(JobStatus::Running),
        retry_scheduled: of(JobStatus::RetryScheduled),
    })
}

async fn read(app: &App) -> Result<QueueAnswer, Problem> {
    let (_, queue) = execute::read_queue(&app.log).await?;
    let client = app.log.database().get().await?;
    let rows = client
        .query("SELECT state, count(*) FROM queue GROUP BY state", &[])
        .await
        .map_err(DatabaseError::from)?;
    let of = |state: &str| {
        rows.iter().find(|row| row.get::<_, &str>(0) == state).map_or(0, |row| row.get(1))
    };
    Ok(QueueAnswer {
        paused: queue.paused,
        queued: of("queued"),
        dispatching: of("dispatching"),
        running: of("running"),
        retry_scheduled: of("retry"),
    })
}
