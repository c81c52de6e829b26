//! Dispatch: an attempt is claimed, then given to whoever runs it.

mod ansible;
mod github_actions;
mod rehearsal;

pub use ansible::{end_strays, unready};
pub use github_actions::{find_run, run_name};
pub use rehearsal::SECRET_VARIABLE;

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use milepost_projections::Subject;
use milepost_schemas::{Attempt, JobId, Position};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::{Kind, system};
use crate::app::App;
use crate::config::Dispatcher;
use crate::domain::job::JobRefusal;
use crate::domain::{JobCommand, Report};
use crate::execute::{self, ExecuteError};

/// How long to wait before what the log did not take, or did not tell, is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The longest a job waits between two dispatches that are refused.
pub const BACK_OFF_MAX: SignedDuration = SignedDuration::from_mins(10);

/// What a dispatcher needs to know of an attempt.
#[derive(Clone, Debug)]
pub struct AttemptOrder {
    job_id: JobId,
    job_type: String,
    subject: Subject,
    attempt: Attempt,
    /// Where the claim stands in the log: the fencing token of all that is said of the attempt.
    claim: Position,
    /// How often it was refused so far.
    refusals: u32,
    /// Whether it may have been dispatched before.
    unresolved: bool,
}

/// Claims a queued job and has its attempt run. The claim is in the log before anything outside
/// is asked; `place` is given back when the run is over.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be written. A job that somebody else has claimed is none,
/// nor is a queue that was stopped after it was read at `queue_version`.
pub async fn claim(
    app: &Arc<App>,
    job_id: JobId,
    worker: &str,
    queue_version: u32,
    place: OwnedSemaphorePermit,
) -> Result<(), ExecuteError> {
    let Some(job) = execute::read_job(&app.log, job_id).await? else { return Ok(()) };
    let kind = match job.subject {
        Subject::Agent { .. } => Kind::Agent,
        Subject::Node { .. } => Kind::Node,
    };
    let Some(dispatcher) = kind.dispatcher(app) else { return Ok(()) };
    let command = JobCommand::Claim { dispatcher: dispatcher.name(), locked_by: worker.to_owned() };
    let metadata = system(app, job_id);
    let claimed = execute::to_job_in_queue(app, job_id, command, metadata, queue_version).await;
    let claim = match claimed {
        Ok(outcome) => outcome.position,
        Err(ExecuteError::Job(_) | ExecuteError::Moved) => return Ok(()),
        Err(error) => return Err(error),
    };
    app.metrics.dispatches.inc();
    let app = Arc::clone(app);
    // At the end of this process it is waited for: what is claimed is dispatched or given back.
    app.attempts.clone().spawn(async move {
        if let Some(order) = claimed_order(&app, job_id, claim).await {
            run(&app, dispatcher, order).await;
        }
        drop(place);
    });
    Ok(())
}

/// What there is to know of an attempt that was claimed. While the log cannot be read it is asked
/// again; `None` once the claim is over.
async fn claimed_order(app: &App, job_id: JobId, claim: Position) -> Option<AttemptOrder> {
    let read = async {
        loop {
            match execute::read_job(&app.log, job_id).await {
                Ok(job) => break job,
                Err(error) => {
                    tracing::warn!(
                        job = %job_id,
                        error = &error as &dyn std::error::Error,
                        "a claimed job cannot be read"
                    );
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    };
    let read = timeout(app.config.limits.lease.unsigned_abs(), read).await;
    let job = read.ok().flatten().filter(|job| job.claim == Some(claim))?;
    Some(AttemptOrder {
        job_id,
        attempt: job.attempt().number,
        claim,
        refusals: job.attempt().run.refusals,
        // A run that turned up meanwhile is this attempt's: it is looked for, not asked for again.
        unresolved: job.attempt().run.unresolved || job.attempt().workflow_run_id.is_some(),
        job_type: job.job_type,
        subject: job.subject,
    })
}

/// Has an attempt run by its dispatcher, or gives it back where this process ends.
async fn run(app: &App, dispatcher: Dispatcher, order: AttemptOrder) {
    if app.shutdown.is_cancelled() {
        return give_back_at_the_end(app, &order).await;
    }
    match dispatcher {
        Dispatcher::None => {}
        Dispatcher::Ansible => ansible::run(app, order).await,
        Dispatcher::Github => github_actions::run(app, order).await,
        Dispatcher::Rehearsal => rehearsal::run(app, order).await,
    }
}

/// Gives back an attempt of which nothing was begun.
async fn give_back(app: &App, order: &AttemptOrder, reason: String, delay: SignedDuration) {
    let report = Report::DispatchFailed { reason, delay, unresolved: order.unresolved };
    conclude(app, order, &report).await;
}

/// Says what came of a dispatch until the log takes it, but no longer than a claim holds.
async fn conclude(app: &App, order: &AttemptOrder, report: &Report) {
    let lease = app.config.limits.lease.unsigned_abs();
    drop(timeout(lease, insist(app, order, report)).await);
}

/// Gives it back for another worker to take at once.
async fn give_back_at_the_end(app: &App, order: &AttemptOrder) {
    let reason = "The worker that claimed it was told to end".to_owned();
    give_back(app, order, reason, SignedDuration::ZERO).await;
}

/// Says that nothing of the attempt runs any more, should anybody wait for that.
async fn end(app: &App, order: &AttemptOrder) {
    let command = JobCommand::EndRunner { claim: order.claim };
    let metadata = system(app, order.job_id);
    if let Err(error) = execute::to_job(app, order.job_id, command, metadata).await {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(job = %order.job_id, error, "the end of an attempt could not be recorded");
    }
}

/// How long a job waits after its dispatch was refused for the `refusals + 1`st time: twice as
/// long each time.
fn back_off(first: Duration, refusals: u32) -> SignedDuration {
    let first = SignedDuration::try_from(first).unwrap_or(BACK_OFF_MAX);
    let doubled = first.checked_mul(1_i32.checked_shl(refusals.min(30)).unwrap_or(i32::MAX));
    doubled.unwrap_or(BACK_OFF_MAX).min(BACK_OFF_MAX)
}

/// Says something of the attempt; whether it is in the log.
async fn tell(app: &App, order: &AttemptOrder, report: Report) -> bool {
    say(app, order, report).await.unwrap_or(false)
}

/// Says something of the attempt until it is in the log; `false` once its claim is over.
async fn insist(app: &App, order: &AttemptOrder, report: &Report) -> bool {
    loop {
        if let Ok(holds) = say(app, order, report.clone()).await {
            return holds;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Says something of the attempt; whether its claim holds. That it is over is no trouble: its
/// workflow has told the end itself, or a deadline was.
///
/// # Errors
/// [`ExecuteError`], which is logged; nothing of it is in the log then, unless the log was
/// `Unavailable`.
async fn say(app: &App, order: &AttemptOrder, report: Report) -> Result<bool, ExecuteError> {
    let command = JobCommand::Report { claim: order.claim, report };
    match execute::to_job(app, order.job_id, command, system(app, order.job_id)).await {
        Ok(_) => Ok(true),
        Err(ExecuteError::Job(JobRefusal::Fenced(_))) => Ok(false),
        Err(error) => {
            let words: &dyn std::error::Error = &error;
            tracing::warn!(job = %order.job_id, error = words, "a dispatch could not be recorded");
            Err(error)
        }
    }
}
