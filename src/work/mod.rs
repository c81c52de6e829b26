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
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::{AGENT_DISPATCHES_AT_ONCE, Dispatcher, NODE_DISPATCHES_AT_ONCE};
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

/// How long to wait before what has panicked begins again: a person sees it in the log by then.
const AFTER_PANIC: Duration = Duration::from_secs(1);

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
    let (places, shutdown) = (Places::new(), app.shutdown.clone());
    tokio::spawn(again("the queue's loop", shutdown, move || {
        let (app, worker, places) = (Arc::clone(&app), worker.clone(), places.clone());
        async move { run(&app, &worker, &places).await }
    }));
}

/// Runs something until shutdown, and from its beginning again should it panic: what it does for
/// all jobs must not end with one.
async fn again<F: Future<Output = ()> + Send + 'static>(
    what: &'static str,
    shutdown: CancellationToken,
    run: impl Fn() -> F,
) {
    while let Err(error) = tokio::spawn(shutdown.clone().run_until_cancelled_owned(run())).await {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "{what} broke off; it begins again"
        );
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(AFTER_PANIC) => {}
        }
    }
}

/// Whose job it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An agent's.
    Agent,
    /// A node's.
    Node,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Agent, Self::Node];

    /// Who runs such jobs in this process.
    fn dispatcher(self, app: &App) -> Option<Dispatcher> {
        match self {
            Self::Agent => app.config.dispatchers.agents,
            Self::Node => app.config.dispatchers.nodes,
        }
    }
}

/// Room for what is dispatched at once, for each kind of its own: playbooks that take long hold up
/// no agent.
#[derive(Clone)]
struct Places {
    agents: Arc<Semaphore>,
    nodes: Arc<Semaphore>,
}

impl Places {
    fn new() -> Self {
        Self {
            agents: Arc::new(Semaphore::new(AGENT_DISPATCHES_AT_ONCE)),
            nodes: Arc::new(Semaphore::new(NODE_DISPATCHES_AT_ONCE)),
        }
    }

    fn of(&self, kind: Kind) -> &Arc<Semaphore> {
        match kind {
            Kind::Agent => &self.agents,
            Kind::Node => &self.nodes,
        }
    }
}

async fn run(app: &Arc<App>, worker: &str, places: &Places) {
    let mut head = app.log.feed().watch();
    loop {
        match round(app, worker, places).await {
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
async fn round(app: &Arc<App>, worker: &str, places: &Places) -> Result<i64, ExecuteError> {
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
    for row in due(app, now).await? {
        log(row.job_id, look(app, &row, now).await);
    }
    Ok(())
}

/// Claims as many of the jobs that wait as there are places for.
async fn claim_some(app: &Arc<App>, worker: &str, places: &Places) -> Result<(), ExecuteError> {
    let free = |kind: Kind| places.of(kind).available_permits();
    let runs = |kind: &Kind| kind.dispatcher(app).is_some() && free(*kind) > 0;
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(runs).collect();
    if kinds.is_empty() {
        return Ok(());
    }
    let (queue_version, queue) = execute::read_queue(&app.log).await?;
    if queue.paused.is_some() {
        return Ok(());
    }
    for kind in kinds {
        for job in claimable(app, kind, free(kind)).await? {
            let Ok(place) = Arc::clone(places.of(kind)).try_acquire_owned() else { break };
            let (shared, worker) = (Arc::clone(app), worker.to_owned());
            // By itself: a claim that is cut off at the end of this process may be in the log.
            let claim = app.attempts.spawn(async move {
                dispatch::claim(&shared, job, &worker, queue_version, place).await
            });
            match claim.await {
                Ok(outcome) => log(job, outcome),
                Err(error) => tracing::error!(%job, %error, "a claim has panicked"),
            }
        }
    }
    Ok(())
}

/// Up to `limit` jobs of a kind that wait to be claimed: the highest priority first, then the one
/// that has been due for longest.
///
/// # Errors
/// [`DatabaseError`] when the queue cannot be read.
pub async fn claimable(app: &App, kind: Kind, limit: usize) -> Result<Vec<JobId>, DatabaseError> {
    let sql = "SELECT job_id FROM queue WHERE state = 'queued' AND due_at <= $1 \
               AND (node_id IS NOT NULL) = $3 ORDER BY priority DESC, due_at LIMIT $2";
    let client = app.log.database().get().await?;
    let statement = client.prepare_cached(sql).await?;
    let (now, limit, of_node) = (app.clock.now(), limit as i64, kind == Kind::Node);
    let rows = client.query(&statement, &[&now, &limit, &of_node]).await?;
    Ok(rows.iter().map(|row| JobId(row.get(0))).collect())
}

/// A row of the queue as it was when it was found due. Another process may have moved its job on
/// since.
#[derive(Clone, Debug)]
pub struct Due {
    /// The job.
    pub job_id: JobId,
    state: String,
    claim: Option<i64>,
}

/// What is due and waits for no claim.
///
/// # Errors
/// [`DatabaseError`] when the queue cannot be read.
pub async fn due(app: &App, now: Timestamp) -> Result<Vec<Due>, DatabaseError> {
    let sql = "SELECT job_id, state, claim FROM queue WHERE due_at <= $1 AND state <> 'queued' \
               ORDER BY due_at LIMIT $2";
    let client = app.log.database().get().await?;
    let statement = client.prepare_cached(sql).await?;
    let rows = client.query(&statement, &[&now, &ROUND_ROWS_MAX]).await?;
    let due = |row: &Row| Due { job_id: JobId(row.get(0)), state: row.get(1), claim: row.get(2) };
    Ok(rows.iter().map(due).collect())
}

fn log(job: JobId, outcome: Result<(), ExecuteError>) {
    if let Err(error) = outcome {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(%job, error, "a job cannot be looked at");
    }
}

/// Looks whether a job's lease, deadline or pause is over; where not, says when it will be, unless
/// the row has changed since it was found due.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read or written.
pub async fn look(app: &App, row: &Due, now: Timestamp) -> Result<(), ExecuteError> {
    let id = row.job_id;
    match execute::to_job(app, id, JobCommand::Tick, system(app, id)).await {
        Ok(outcome) if outcome.answer == JobAnswer::Nothing => {}
        Ok(_) | Err(ExecuteError::UnknownJob) => return Ok(()),
        Err(error) => return Err(error),
    }
    let Some(job) = execute::read_job(&app.log, id).await? else { return Ok(()) };
    if job.claim.is_some() && job.attempt().held {
        return lapse(app, row).await;
    }
    let due_at = match job.status {
        JobStatus::Running => deadline(job.attempt(), now, &app.config.limits),
        JobStatus::Dispatching => {
            job.lease_until.unwrap_or_else(|| deadline(job.attempt(), now, &app.config.limits))
        }
        JobStatus::RetryScheduled => job.run_after.unwrap_or(now),
        JobStatus::Cancelled => job.ending.map_or(now + LOOK_AGAIN, |it| it.until),
        JobStatus::Queued | JobStatus::Succeeded | JobStatus::Failed => now + LOOK_AGAIN,
    };
    let sql = "UPDATE queue SET due_at = $2 WHERE job_id = $1 AND due_at <= $3 AND state = $4 \
               AND claim IS NOT DISTINCT FROM $5";
    let client = app.log.database().get().await?;
    client
        .execute(sql, &[&id.0, &due_at.max(now), &now, &row.state, &row.claim])
        .await
        .map_err(DatabaseError::from)?;
    Ok(())
}

/// Ends the attempt of a worker that was lost: the lease of the row's own claim is over, by the
/// clock that renews it. One that has said its last word meanwhile was not lost.
async fn lapse(app: &App, row: &Due) -> Result<(), ExecuteError> {
    let Some(claim) = row.claim else { return Ok(()) };
    let sql = "SELECT FROM queue WHERE job_id = $1 AND claim = $2 AND state = 'running' \
               AND due_at <= clock_timestamp()";
    let client = app.log.database().get().await?;
    let over = client.query_opt(sql, &[&row.job_id.0, &claim]).await;
    drop(client);
    if over.map_err(DatabaseError::from)?.is_none() {
        return Ok(());
    }
    let command = JobCommand::LeaseLapsed { claim: Position(claim as u64) };
    match execute::to_job(app, row.job_id, command, system(app, row.job_id)).await {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_panics_begins_again() {
        let begun = Arc::new(AtomicU32::new(0));
        let run = || {
            let begun = Arc::clone(&begun);
            async move { assert!(begun.fetch_add(1, Ordering::Relaxed) > 0, "the first time") }
        };
        again("a test", CancellationToken::new(), run).await;
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }
}
