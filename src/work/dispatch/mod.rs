//! Dispatch: an attempt is claimed, then given to whoever runs it.

mod github_actions;
mod rehearsal;

pub use github_actions::{BACK_OFF_MAX, find_run, run_name};
pub use rehearsal::SECRET_VARIABLE;

use std::sync::Arc;

use milepost_projections::Subject;
use milepost_schemas::{Attempt, JobId};
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
    /// How often it was refused so far.
    refusals: u32,
    /// Whether it may have been dispatched before.
    unresolved: bool,
}

/// Claims a queued job and has its attempt run. The claim is in the log before anything outside
/// is asked; `place` is given back when the run is over.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be written. A job that somebody else has claimed is none.
pub async fn claim(
    app: &Arc<App>,
    job_id: JobId,
    worker: &str,
    place: OwnedSemaphorePermit,
) -> Result<(), ExecuteError> {
    let Some(dispatcher) = app.config.dispatcher.name() else { return Ok(()) };
    let command = JobCommand::Claim { dispatcher, locked_by: worker.to_owned() };
    match execute::to_job(app, job_id, command, system(app, job_id)).await {
        Ok(_) => {}
        Err(ExecuteError::Job(_)) => return Ok(()),
        Err(error) => return Err(error),
    }
    let Some(job) = execute::read_job(&app.log, job_id).await? else { return Ok(()) };
    let order = AttemptOrder {
        job_id,
        attempt: job.attempt().number,
        refusals: job.attempt().run.refusals,
        unresolved: job.attempt().run.unresolved,
        subject: job.subject,
    };
    app.metrics.dispatches.inc();
    match app.config.dispatcher {
        Dispatcher::None => {}
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
