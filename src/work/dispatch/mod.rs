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

use super::system;
use crate::app::App;
use crate::config::Dispatcher;
use crate::domain::job::JobRefusal;
use crate::domain::{JobCommand, Report};
use crate::execute::{self, ExecuteError};

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
    let dispatcher = match job.subject {
        Subject::Agent { .. } => app.config.dispatchers.agents,
        Subject::Node { .. } => app.config.dispatchers.nodes,
    };
    let Some(dispatcher) = dispatcher else { return Ok(()) };
    let command = JobCommand::Claim { dispatcher: dispatcher.name(), locked_by: worker.to_owned() };
    let metadata = system(app, job_id);
    let claimed = execute::to_job_in_queue(app, job_id, command, metadata, queue_version).await;
    let claim = match claimed {
        Ok(outcome) => outcome.position,
        Err(ExecuteError::Job(_) | ExecuteError::Moved) => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(job) = execute::read_job(&app.log, job_id).await? else { return Ok(()) };
    let order = AttemptOrder {
        job_id,
        attempt: job.attempt().number,
        claim,
        refusals: job.attempt().run.refusals,
        // A run that turned up meanwhile is this attempt's: it is looked for, not asked for again.
        unresolved: job.attempt().run.unresolved || job.attempt().workflow_run_id.is_some(),
        job_type: job.job_type,
        subject: job.subject,
    };
    app.metrics.dispatches.inc();
    match dispatcher {
        Dispatcher::None => {}
        Dispatcher::Ansible => {
            let attempts = app.attempts.clone();
            let app = Arc::clone(app);
            attempts.spawn(async move {
                ansible::run(&app, order).await;
                drop(place);
            });
        }
        Dispatcher::Github => {
            let app = Arc::clone(app);
            tokio::spawn(async move {
                github_actions::run(&app, order).await;
                drop(place);
            });
        }
        Dispatcher::Rehearsal => {
            let app = Arc::clone(app);
            tokio::spawn(async move {
                rehearsal::run(&app, order).await;
                drop(place);
            });
        }
    }
    Ok(())
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

/// Says something of the attempt; whether it is in the log. That its claim is over is no trouble: its
/// workflow has told the end itself, or a deadline was.
async fn tell(app: &App, order: &AttemptOrder, report: Report) -> bool {
    let command = JobCommand::Report { claim: order.claim, report };
    match execute::to_job(app, order.job_id, command, system(app, order.job_id)).await {
        Ok(_) => true,
        Err(ExecuteError::Job(JobRefusal::Fenced(_))) => false,
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(job = %order.job_id, error, "a dispatch could not be recorded");
            false
        }
    }
}
