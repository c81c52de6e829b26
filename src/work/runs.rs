//! Follows the runs that GitHub works on: those that ended without a word, were cancelled or run
//! again, and those that nobody wants any more.
//!
//! Every round is one look at the newest runs, whatever the number of jobs; runs that are not
//! among them are asked for one by one. What is found goes through the same command as the
//! `workflow_run` webhooks, so each finding is an event once. Nothing is kept but in the log: a
//! process that starts finds what is to be cancelled among the runs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use milepost_projections::job::RUN_COMPLETED;
use milepost_projections::{Job, JobStatus};
use milepost_schemas::{Attempt, JobId, Metadata, Position};
use tokio::time::Instant;
use tokio_postgres::Row;

use super::{compensation, system};
use crate::app::App;
use crate::clients::github::{GithubError, RUNS_A_PAGE, Run};
use crate::domain::job::{LISTS_RUNS, RunSeen, unwanted};
use crate::domain::{AttemptId, JobCommand, Report};
use crate::execute::{self, ExecuteError, JobOutcome};

/// Requests that are left to dispatches: below this, nobody asks how runs are doing.
const QUOTA_RESERVED: u64 = 500;

/// Pages of runs read in one round.
const PAGES_MAX: usize = 3;

/// Runs older than this are nobody's that waits: an attempt takes half an hour.
const RUN_AGE_MAX: SignedDuration = SignedDuration::from_hours(2);

/// Runs asked for one by one in one round.
const RUNS_ASKED_MAX: usize = 20;

/// Runs are followed for so long after the last job has ended and the last run that may still make
/// something is over: to find runs that nobody knows of.
const FOLLOWED_AFTER: Duration = Duration::from_mins(15);

/// The shortest time between two rounds, however many jobs are cancelled.
const BREATH: Duration = Duration::from_secs(2);

/// Follows runs until shutdown.
pub fn start(app: Arc<App>) {
    tokio::spawn(async move {
        let shutdown = app.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow(&app) => {}
        }
    });
}

async fn follow(app: &App) {
    let mut last_active = Instant::now();
    let mut cancelled = app.log.feed().watch_cancellations();
    loop {
        match Followed::read(app).await {
            Ok(followed) => {
                if !followed.under_way.is_empty() || !followed.undone.is_empty() {
                    last_active = Instant::now();
                }
                if last_active.elapsed() < FOLLOWED_AFTER
                    && let Err(error) = round(app, &followed).await
                {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "GitHub's runs cannot be followed now");
                }
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the queue cannot be read");
            }
        }
        tokio::time::sleep(BREATH.min(app.config.github.poll)).await;
        drop(tokio::time::timeout(app.config.github.poll, cancelled.changed()).await);
    }
}

/// Whose runs are followed to their end.
struct Followed {
    /// Jobs that run, or may.
    under_way: HashSet<JobId>,
    /// Jobs that wait again: a run of theirs may have been taken all the same.
    waiting: HashSet<JobId>,
    /// Attempts that are being undone and whose run is not known to be over, by that run.
    undone: HashMap<String, AttemptId>,
}

impl Followed {
    async fn read(app: &App) -> Result<Self, ExecuteError> {
        let client = app.log.database().get().await?;
        let sql = "SELECT job_id, state FROM queue \
                   WHERE state IN ('dispatching', 'running') OR state = 'queued' AND claim IS NOT NULL";
        let rows = client.query(sql, &[]).await.map_err(crate::log::DatabaseError::from)?;
        let (waiting, under_way): (Vec<_>, Vec<_>) =
            rows.iter().partition(|row| row.get::<_, &str>(1) == "queued");
        let ids = |rows: Vec<&Row>| rows.iter().map(|row| JobId(row.get(0))).collect();
        let (waiting, under_way) = (ids(waiting), ids(under_way));
        // As old as the view may be: it is looked again soon.
        let mut undone = HashMap::new();
        for (id, _) in compensation::open(app, Position::START).await? {
            let Some(job) = execute::read_job(&app.log, id.job_id).await? else { continue };
            let attempt = job.attempts.iter().find(|it| it.number == id.attempt);
            let Some(attempt) = attempt.filter(|it| !it.run.is_over()) else { continue };
            if attempt.dispatcher.as_deref() == Some(LISTS_RUNS)
                && let Some(run) = &attempt.workflow_run_id
            {
                undone.insert(run.clone(), id);
            }
        }
        Ok(Self { under_way, waiting, undone })
    }

    fn includes(&self, job_id: JobId, run: &str) -> bool {
        self.under_way.contains(&job_id)
            || self.waiting.contains(&job_id)
            || self.undone.contains_key(run)
    }
}

/// One look at GitHub's runs.
///
/// # Errors
/// [`GithubError`] when GitHub does not say; the next round asks again.
async fn round(app: &App, followed: &Followed) -> Result<(), GithubError> {
    let quota = app.github.quota();
    let now = app.clock.now();
    let scarce = quota.remaining.is_some_and(|left| left < QUOTA_RESERVED);
    if scarce && quota.reset_at.is_some_and(|reset_at| now < reset_at) {
        return Ok(());
    }
    let mut listed = HashSet::new();
    for page in 1..=PAGES_MAX {
        let runs = app.github.runs(page, now).await?;
        let last = runs.len() < RUNS_A_PAGE
            || runs.last().is_some_and(|run| run.created_at + RUN_AGE_MAX < now);
        for run in &runs {
            let Some((job_id, attempt)) = parse_name(&run.display_title) else { continue };
            let id = run.id.to_string();
            let completed = run.status.as_deref() == Some(RUN_COMPLETED);
            if !completed || followed.includes(job_id, &id) {
                look(app, job_id, seen(run, attempt)).await;
            }
            listed.insert(id);
        }
        if last {
            break;
        }
    }
    ask_for_others(app, &followed.under_way, &listed).await?;
    ask_for_undone(app, &followed.undone, &listed).await
}

/// Asks for the runs of attempts that are being undone and that are not among the newest. One that
/// GitHub knows no more makes nothing any more.
async fn ask_for_undone(
    app: &App,
    undone: &HashMap<String, AttemptId>,
    listed: &HashSet<String>,
) -> Result<(), GithubError> {
    let others = undone.iter().filter(|(run, _)| !listed.contains(*run));
    for (run, AttemptId { job_id, attempt }) in others.take(RUNS_ASKED_MAX) {
        let found = match run.parse() {
            Ok(number) => app.github.run(number, app.clock.now()).await?,
            // GitHub gave no such id.
            Err(_) => None,
        };
        let seen = found.map_or_else(|| gone(run, *attempt), |run| seen(&run, *attempt));
        look(app, *job_id, seen).await;
    }
    Ok(())
}

/// Asks for the runs of jobs under way that are not among the newest.
async fn ask_for_others(
    app: &App,
    active: &HashSet<JobId>,
    listed: &HashSet<String>,
) -> Result<(), GithubError> {
    let mut asked = 0;
    for job_id in active {
        let Ok(Some(job)) = execute::read_job(&app.log, *job_id).await else { continue };
        let attempt = job.attempt();
        let Some(id) = attempt.workflow_run_id.as_deref() else { continue };
        if job.status != JobStatus::Running || listed.contains(id) || asked == RUNS_ASKED_MAX {
            continue;
        }
        let Ok(number) = id.parse() else { continue };
        asked += 1;
        if let Some(run) = app.github.run(number, app.clock.now()).await? {
            look(app, *job_id, seen(&run, attempt.number)).await;
        } else {
            let Some(claim) = job.claim else { continue };
            let report = Report::RunEnded { how: "GitHub knows the run no more".to_owned() };
            tell(app, *job_id, JobCommand::Report { claim, report }).await;
        }
    }
    Ok(())
}

/// Takes what a run was seen to do, and ends it if nobody wants it.
async fn look(app: &App, job_id: JobId, run: RunSeen) {
    let outcome = observe(app, job_id, run.clone(), system(app, job_id)).await;
    if let Err(error) = outcome {
        if !matches!(error, ExecuteError::UnknownJob) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(%job_id, error, "a run cannot be looked at");
        }
        return;
    }
    let Ok(Some(job)) = execute::read_job(&app.log, job_id).await else { return };
    if unwanted(&job, &run) {
        cancel(app, &job, &run).await;
    }
}

/// Tells a job what its run was seen to do.
///
/// # Errors
/// [`ExecuteError`]: there is no such job, or the log cannot be written.
pub async fn observe(
    app: &App,
    job_id: JobId,
    run: RunSeen,
    metadata: Metadata,
) -> Result<JobOutcome, ExecuteError> {
    execute::to_job(app, job_id, JobCommand::ObserveRun(run), metadata).await
}

async fn cancel(app: &App, job: &Job, run: &RunSeen) {
    let Ok(id) = run.workflow_run_id.parse() else { return };
    let refusal = match app.github.cancel(id, app.clock.now()).await {
        Ok(()) => None,
        // Nothing was asked: the next round does it, and this one is not counted.
        Err(GithubError::Limited { .. } | GithubError::Unreachable(_)) => return,
        Err(error) => Some(app.redactor.mask(&error.words()).into_owned()),
    };
    let workflow_run_id = run.workflow_run_id.clone();
    let command = JobCommand::RecordRunCancel { attempt: run.attempt, workflow_run_id, refusal };
    tell(app, job.id, command).await;
}

async fn tell(app: &App, job_id: JobId, command: JobCommand) {
    if let Err(error) = execute::to_job(app, job_id, command, system(app, job_id)).await {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(%job_id, error, "a run's state could not be recorded");
    }
}

/// A run that is there no more: later than whatever was seen of it.
fn gone(run: &str, attempt: Attempt) -> RunSeen {
    RunSeen {
        attempt,
        workflow_run_id: run.to_owned(),
        run_url: None,
        run_attempt: u32::MAX,
        status: RUN_COMPLETED.to_owned(),
        conclusion: Some("gone".to_owned()),
    }
}

fn seen(run: &Run, attempt: Attempt) -> RunSeen {
    RunSeen {
        attempt,
        workflow_run_id: run.id.to_string(),
        run_url: Some(run.html_url.clone()),
        run_attempt: run.run_attempt,
        status: run.status.clone().unwrap_or_else(|| "unknown".to_owned()),
        conclusion: run.conclusion.clone(),
    }
}

/// The job and attempt in a run's name: `provision <job_id> attempt <n>`, and nothing else.
pub fn parse_name(name: &str) -> Option<(JobId, Attempt)> {
    let (job, attempt) = name.strip_prefix("provision ")?.split_once(" attempt ")?;
    let parsed = (job.parse().ok()?, Attempt(attempt.parse().ok().filter(|it| *it > 0)?));
    (super::dispatch::run_name(parsed.0, parsed.1) == name).then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_name_tells_its_job_and_attempt_and_others_tell_nothing() {
        let job: JobId = "0198f3b2-6a4e-7b22-9d14-2e7c5a9f3b02".parse().unwrap();
        let name = crate::work::dispatch::run_name(job, Attempt(2));
        assert_eq!(name, "provision 0198f3b2-6a4e-7b22-9d14-2e7c5a9f3b02 attempt 2");
        assert_eq!(parse_name(&name), Some((job, Attempt(2))));
        for other in [
            "ci",
            "",
            "provision x attempt 1",
            "provision 0198f3b2-6a4e-7b22-9d14-2e7c5a9f3b02 attempt 0",
            "provision 0198f3b2-6a4e-7b22-9d14-2e7c5a9f3b02 attempt 01",
            "provision 0198f3b2-6a4e-7b22-9d14-2e7c5a9f3b02 attempt 1 ",
            "provision 0198F3B2-6A4E-7B22-9D14-2E7C5A9F3B02 attempt 1",
        ] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
