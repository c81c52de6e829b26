//! Work: takes what is due from the queue, has it dispatched, and sees deadlines through.
//!
//! One loop looks at whatever row is due: a queued job is claimed and dispatched, unless somebody
//! has stopped the queue; for the others the job itself decides whether a lease, a deadline or a
//! retry is over. The claim is an event at the version that was read, so of two workers one is
//! refused by the log itself; its position is the fencing token of all that its worker says.

pub mod compensation;
pub mod dispatch;
mod lead;
pub mod lease;
pub mod processes;
pub mod reconcile;
pub mod runs;
pub mod servers;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use milepost_projections::{Job, JobStatus};
use milepost_schemas::{JobId, Metadata, Position};
use tokio::sync::Semaphore;
use tokio_postgres::types::ToSql;

use crate::app::App;
use crate::config::{DISPATCHES_AT_ONCE, Dispatcher, Dispatchers};
use crate::domain::job::{JobRefusal, deadline};
use crate::domain::{JobAnswer, JobCommand};
use crate::execute::{self, ExecuteError};
use crate::log::DatabaseError;

/// Rows looked at in one round.
const ROUND_ROWS_MAX: i64 = 256;

/// How often the queue is looked at when no event says that something was queued.
const POLL: Duration = Duration::from_millis(500);

/// How long to wait between two rounds, at the least.
const BREATH: Duration = Duration::from_millis(100);

/// How long to wait after a round that failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// A job whose deadline cannot be told yet is looked at again after this.
const LOOK_AGAIN: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// Starts the worker of this process; until shutdown.
pub fn start(app: Arc<App>, worker: String) {
    if app.config.dispatchers.include(Dispatcher::Github) {
        runs::start(Arc::clone(&app));
    }
    if let Some(cloud) = app.config.cloud.clone() {
        compensation::start(Arc::clone(&app), cloud);
    }
    if app.config.dispatchers.include(Dispatcher::Ansible) {
        tokio::spawn(dispatch::end_strays());
    }
    tokio::spawn(async move {
        let shutdown = app.shutdown.clone();
        let places = Arc::new(Semaphore::new(DISPATCHES_AT_ONCE));
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = run(app, worker, places) => {}
        }
    });
}

async fn run(app: Arc<App>, worker: String, places: Arc<Semaphore>) {
    let mut head = app.log.feed().watch();
    loop {
        match round(&app, &worker, &places).await {
            Ok(active) => {
                app.metrics.jobs_active.set(active);
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the queue cannot be read"
                );
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
        // A busy log wakes this at each commit: look no more often than a person would notice.
        tokio::time::sleep(BREATH).await;
        drop(tokio::time::timeout(POLL, head.changed()).await);
    }
}

/// Looks at everything that is due; returns how many jobs have not ended.
async fn round(app: &Arc<App>, worker: &str, places: &Arc<Semaphore>) -> Result<i64, ExecuteError> {
    sweep(app).await?;
    claim_some(app, worker, places).await?;
    let client = app.log.database().get().await?;
    let active = client.query_one("SELECT count(*) FROM queue", &[]).await;
    Ok(active.map_err(DatabaseError::from)?.get(0))
}

/// Looks at the jobs that wait for no claim: leases, deadlines and retries. A pause holds none of
/// them up.
async fn sweep(app: &App) -> Result<(), ExecuteError> {
    let now = app.clock.now();
    let sql = "SELECT job_id FROM queue WHERE due_at <= $1 AND state <> 'queued' \
               ORDER BY due_at LIMIT $2";
    for job in due(app, sql, &[&now, &ROUND_ROWS_MAX]).await? {
        log(job, look(app, job, now).await);
    }
    Ok(())
}

/// Claims as many of the jobs that wait as there are places for.
async fn claim_some(
    app: &Arc<App>,
    worker: &str,
    places: &Arc<Semaphore>,
) -> Result<(), ExecuteError> {
    if app.config.dispatchers == Dispatchers::default() || places.available_permits() == 0 {
        return Ok(());
    }
    let (queue_version, queue) = execute::read_queue(&app.log).await?;
    if queue.paused.is_some() {
        return Ok(());
    }
    for job in claimable(app, places.available_permits()).await? {
        let Ok(place) = Arc::clone(places).try_acquire_owned() else { break };
        log(job, dispatch::claim(app, job, worker, queue_version, place).await);
    }
    Ok(())
}

/// Up to `limit` jobs that wait to be claimed and that this process can run: the highest priority
/// first, then the one that has been due for longest.
///
/// # Errors
/// [`DatabaseError`] when the queue cannot be read.
pub async fn claimable(app: &App, limit: usize) -> Result<Vec<JobId>, DatabaseError> {
    let sql = "SELECT job_id FROM queue WHERE state = 'queued' AND due_at <= $1 \
               AND CASE WHEN node_id IS NULL THEN $3::boolean ELSE $4::boolean END \
               ORDER BY priority DESC, due_at LIMIT $2";
    let Dispatchers { agents, nodes } = app.config.dispatchers;
    let (agents, nodes) = (agents.is_some(), nodes.is_some());
    due(app, sql, &[&app.clock.now(), &(limit as i64), &agents, &nodes]).await
}

/// The jobs of some rows of the queue.
async fn due(
    app: &App,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<JobId>, DatabaseError> {
    let client = app.log.database().get().await?;
    let statement = client.prepare_cached(sql).await?;
    let rows = client.query(&statement, parameters).await?;
    Ok(rows.iter().map(|row| JobId(row.get(0))).collect())
}

fn log(job: JobId, outcome: Result<(), ExecuteError>) {
    if let Err(error) = outcome {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(%job, error, "a job cannot be looked at");
    }
}

/// Looks whether a job's lease, deadline or pause is over; where not, says when it will be.
async fn look(app: &App, id: JobId, now: Timestamp) -> Result<(), ExecuteError> {
    let outcome = execute::to_job(app, id, JobCommand::Tick, system(app, id)).await;
    match outcome {
        Ok(outcome) if outcome.answer == JobAnswer::Nothing => {
            let Some(job) = execute::read_job(&app.log, id).await? else { return Ok(()) };
            if let Some(claim) = job.claim.filter(|_| job.attempt().held) {
                // Its row is due: the worker that runs it has not renewed its lease.
                return lapse(app, id, claim).await;
            }
            let due_at = match job.status {
                JobStatus::Running => deadline(job.attempt(), now, &app.config.limits),
                JobStatus::Dispatching => job
                    .lease_until
                    .unwrap_or_else(|| deadline(job.attempt(), now, &app.config.limits)),
                JobStatus::RetryScheduled => job.run_after.unwrap_or(now),
                JobStatus::Cancelled => job.ending.map_or(now + LOOK_AGAIN, |it| it.until),
                JobStatus::Queued | JobStatus::Succeeded | JobStatus::Failed => now + LOOK_AGAIN,
            };
            let client = app.log.database().get().await?;
            client
                .execute(
                    "UPDATE queue SET due_at = $2 WHERE job_id = $1 AND due_at <= $3",
                    &[&id.0, &due_at.max(now), &now],
                )
                .await
                .map_err(DatabaseError::from)?;
            Ok(())
        }
        Ok(_) | Err(ExecuteError::UnknownJob) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Ends the attempt of a worker that was lost. One that has said its last word meanwhile was not.
async fn lapse(app: &App, id: JobId, claim: Position) -> Result<(), ExecuteError> {
    let command = JobCommand::LeaseLapsed { claim };
    match execute::to_job(app, id, command, system(app, id)).await {
        Ok(_) | Err(ExecuteError::Job(JobRefusal::Fenced(_))) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Looks at a job that somebody reads: a deadline is over when it is over, not when the sweeper
/// comes by. Returns whether anything changed.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be written.
pub async fn tick(app: &App, job: &Job) -> Result<bool, ExecuteError> {
    let limits = &app.config.limits;
    let decision = crate::domain::job::decide(job, JobCommand::Tick, app.clock.now(), limits)?;
    if decision.events.is_empty() {
        return Ok(false);
    }
    let outcome = execute::to_job(app, job.id, JobCommand::Tick, system(app, job.id)).await?;
    Ok(outcome.answer == JobAnswer::Applied)
}

/// The header of events that Milepost itself causes.
fn system(app: &App, job: JobId) -> Metadata {
    Metadata {
        actor: "system:worker".to_owned(),
        correlation_id: job.0,
        causation_id: Some(format!("request:{}", app.clock.id())),
        callback: None,
    }
}
