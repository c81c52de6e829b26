//! Dispatch: an attempt is claimed, then given to whoever runs it.

mod rehearsal;

pub use rehearsal::SECRET_VARIABLE;

use std::sync::Arc;

use milepost_projections::Subject;
use milepost_schemas::{Attempt, JobId, Position};
use tokio::sync::OwnedSemaphorePermit;

use super::system;
use crate::app::App;
use crate::config::Dispatcher;
use crate::domain::JobCommand;
use crate::execute::{self, ExecuteError};

/// What a dispatcher needs to know of an attempt.
#[derive(Clone, Debug)]
pub struct AttemptOrder {
    job_id: JobId,
    subject: Subject,
    attempt: Attempt,
    /// Where the claim stands in the log: the fencing token of all that is said of the attempt.
    claim: Position,
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
    let Some(dispatcher) = app.config.dispatcher.name() else { return Ok(()) };
    let command = JobCommand::Claim { dispatcher, locked_by: worker.to_owned() };
    let metadata = system(app, job_id);
    let claimed = execute::to_job_in_queue(app, job_id, command, metadata, queue_version).await;
    let claim = match claimed {
        Ok(outcome) => outcome.position,
        Err(ExecuteError::Job(_) | ExecuteError::Moved) => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(job) = execute::read_job(&app.log, job_id).await? else { return Ok(()) };
    let order = AttemptOrder { job_id, attempt: job.attempt().number, claim, subject: job.subject };
    app.metrics.dispatches.inc();
    match app.config.dispatcher {
        Dispatcher::None => {}
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
