//! Follows the runs that GitHub works on: those that ended without a word, were cancelled or run
//! again, and those that nobody wants any more.
//!
//! Every round is one look at the newest runs, whatever the number of jobs; runs that are not
//! among them are asked for one by one. What is found goes through the same command as the
//! `workflow_run` webhooks, so each finding is an event once. What is to be cancelled is found among
//! the runs; a process keeps only for how long GitHub has not known one, and when to ask it again.
//! One process at a time follows, so that GitHub is asked once, however many there are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use milepost_projections::job::RUN_COMPLETED;
use milepost_projections::{Job, JobStatus};
use milepost_schemas::{Attempt, JobId, Metadata, Position};
use tokio::time::Instant;
use tokio_postgres::Row;

use super::lead::lead;
use super::{again, compensation, system};
use crate::app::App;
use crate::clients::github::{GithubError, RUNS_A_PAGE, Run};
use crate::domain::job::{LISTS_RUNS, RunSeen, unwanted};
use crate::domain::{AttemptId, JobCommand, Report};
use crate::execute::{self, ExecuteError, JobOutcome};

/// The advisory lock of the process that follows: "runs" in ASCII.
const LOCK: i64 = 0x72_75_6e_73;

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

/// The longest pause before a run is told to end again that GitHub failed to end: a run that nobody
/// wants may last half an hour.
const CANCEL_PAUSE_MAX: Duration = Duration::from_mins(5);

/// Follows runs until shutdown.
pub fn start(app: Arc<App>) {
    tokio::spawn(again("the following of runs", app.shutdown.clone(), move || {
        let app = Arc::clone(&app);
        async move { Box::pin(lead(&app, LOCK, || follow(&app))).await }
    }));
}

async fn follow(app: &App) {
    let mut last_active = Instant::now();
    let mut memory = Memory::default();
    let mut cancelled = app.log.feed().watch_cancellations();
    loop {
        match Followed::read(app).await {
            Ok(followed) => {
                if !followed.under_way.is_empty() || !followed.undone.is_empty() {
                    last_active = Instant::now();
                }
                if last_active.elapsed() < FOLLOWED_AFTER
                    && let Err(error) = round(app, &mut memory, &followed).await
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
    /// Attempts that are being undone and whose run is not known to be over, by that run; and
    /// which time that runs.
    undone: HashMap<String, (AttemptId, u32)>,
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
            let attempt = job.numbered(id.attempt).filter(|it| !it.run.is_over());
            let Some(attempt) = attempt else { continue };
            if attempt.dispatcher.as_deref() == Some(LISTS_RUNS)
                && let Some(run) = &attempt.workflow_run_id
            {
                let run_attempt = attempt.run.seen.as_ref().map_or(1, |(times, _)| *times);
                undone.insert(run.clone(), (id, run_attempt));
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

/// What one round leaves to the next.
#[derive(Default)]
struct Memory {
    /// Since when GitHub has not known a run, by its id.
    unknown: HashMap<u64, Instant>,
    /// When a run is told to end again that GitHub failed to end, and after which pause.
    put_off: HashMap<u64, (Instant, Duration)>,
}

impl Memory {
    /// Forgets runs that have not been asked for in a long time.
    fn tidy(&mut self, settle: Duration) {
        self.unknown.retain(|_, since| since.elapsed() < settle + FOLLOWED_AFTER);
        self.put_off.retain(|_, (until, _)| until.elapsed() < FOLLOWED_AFTER);
    }

    /// Whether a run is gone that GitHub does not know now: it has not for the settling time. One
    /// answer says little, for whoever gave it may not have heard of the run yet.
    fn is_gone(&mut self, run: u64, settle: Duration) -> bool {
        let unknown_for = self.unknown.get(&run).map(Instant::elapsed);
        self.unknown.entry(run).or_insert_with(Instant::now);
        unknown_for.is_some_and(|it| it >= settle)
    }

    /// Whether a run may be told to end now.
    fn may_tell(&self, run: u64) -> bool {
        self.put_off.get(&run).is_none_or(|(until, _)| *until <= Instant::now())
    }

    /// Puts the next try off: longer each time.
    fn put_off(&mut self, run: u64, first: Duration) {
        let pause = self.put_off.get(&run).map_or(first, |(_, pause)| pause.saturating_mul(2));
        let pause = pause.min(CANCEL_PAUSE_MAX);
        self.put_off.insert(run, (Instant::now() + pause, pause));
    }
}

/// One look at GitHub's runs.
///
/// # Errors
/// [`GithubError`] when GitHub does not say; the next round asks again.
async fn round(app: &App, memory: &mut Memory, followed: &Followed) -> Result<(), GithubError> {
    let quota = app.github.quota();
    let now = app.clock.now();
    let scarce = quota.remaining.is_some_and(|left| left < QUOTA_RESERVED);
    if scarce && quota.reset_at.is_some_and(|reset_at| now < reset_at) {
        return Ok(());
    }
    memory.tidy(app.config.github.settle);
    let mut listed = HashSet::new();
    for page in 1..=PAGES_MAX {
        let runs = app.github.runs(page, now).await?;
        let last = runs.len() < RUNS_A_PAGE || runs.last().is_some_and(|run| is_old(run, now));
        for run in &runs {
            let Some((job_id, attempt)) = parse_name(&run.display_title) else { continue };
            let id = run.id.to_string();
            let completed = run.status.as_deref() == Some(RUN_COMPLETED);
            if !completed || followed.includes(job_id, &id) {
                look(app, memory, job_id, seen(run, attempt)).await;
            }
            memory.unknown.remove(&run.id);
            listed.insert(id);
        }
        if last {
            break;
        }
    }
    let others = ask_for_others(app, memory, &followed.under_way, &listed).await;
    let undone = ask_for_undone(app, memory, &followed.undone, &listed).await;
    others.and(undone)
}

/// Whether a run is nobody's that waits.
fn is_old(run: &Run, now: Timestamp) -> bool {
    now.duration_since(run.created_at) > RUN_AGE_MAX
}

/// What GitHub says of one run.
enum Answer {
    /// How it is.
    Run(Run),
    /// There is none of that id any more.
    Gone,
    /// It does not know it now, which says little yet.
    NotKnownNow,
}

async fn ask(app: &App, memory: &mut Memory, run: u64) -> Result<Answer, GithubError> {
    Ok(match app.github.run(run, app.clock.now()).await? {
        Some(found) => {
            memory.unknown.remove(&run);
            Answer::Run(found)
        }
        None if memory.is_gone(run, app.config.github.settle) => Answer::Gone,
        None => Answer::NotKnownNow,
    })
}

/// Asks for the runs of attempts that are being undone and that are not among the newest. One that
/// GitHub knows no more makes nothing any more.
async fn ask_for_undone(
    app: &App,
    memory: &mut Memory,
    undone: &HashMap<String, (AttemptId, u32)>,
    listed: &HashSet<String>,
) -> Result<(), GithubError> {
    let others = undone.iter().filter(|(run, _)| !listed.contains(*run));
    for (run, (AttemptId { job_id, attempt }, run_attempt)) in others.take(RUNS_ASKED_MAX) {
        let answer = match run.parse() {
            Ok(number) => ask(app, memory, number).await?,
            // GitHub gave no such id.
            Err(_) => Answer::Gone,
        };
        let seen = match answer {
            Answer::Run(run) => seen(&run, *attempt),
            Answer::Gone => gone(run, *attempt, *run_attempt),
            Answer::NotKnownNow => continue,
        };
        look(app, memory, *job_id, seen).await;
    }
    Ok(())
}

/// Asks for the runs of jobs under way that are not among the newest.
async fn ask_for_others(
    app: &App,
    memory: &mut Memory,
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
        match ask(app, memory, number).await? {
            Answer::Run(run) => look(app, memory, *job_id, seen(&run, attempt.number)).await,
            Answer::Gone => {
                let Some(claim) = job.claim else { continue };
                let report = Report::RunEnded { how: "GitHub knows the run no more".to_owned() };
                tell(app, *job_id, JobCommand::Report { claim, report }).await;
            }
            Answer::NotKnownNow => {}
        }
    }
    Ok(())
}

/// Takes what a run was seen to do, and ends it if nobody wants it.
async fn look(app: &App, memory: &mut Memory, job_id: JobId, run: RunSeen) {
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
        cancel(app, memory, &job, &run).await;
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

async fn cancel(app: &App, memory: &mut Memory, job: &Job, run: &RunSeen) {
    let Ok(id) = run.workflow_run_id.parse() else { return };
    if !memory.may_tell(id) {
        return;
    }
    let answer = app.github.cancel(id, app.clock.now()).await;
    let refusal = match &answer {
        Ok(()) => None,
        Err(error @ (GithubError::Refused { .. } | GithubError::Settings(_))) => {
            Some(app.redactor.mask(&error.words()).into_owned())
        }
        // Nobody has refused: it is asked for until somebody answers, and not counted.
        Err(
            GithubError::Limited { .. }
            | GithubError::Unreachable(_)
            | GithubError::Failing { .. }
            | GithubError::Lost(_),
        ) => {
            memory.put_off(id, app.config.github.back_off);
            return;
        }
    };
    memory.put_off.remove(&id);
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

/// A run that is there no more, as it was seen last. Should it be run again after all, that is news.
fn gone(run: &str, attempt: Attempt, run_attempt: u32) -> RunSeen {
    RunSeen {
        attempt,
        workflow_run_id: run.to_owned(),
        run_url: None,
        run_attempt,
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
    fn a_run_is_old_after_hours_and_one_from_the_end_of_time_is_not() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let is_old = |created_at: Timestamp| {
            let run = serde_json::json!({
                "id": 7, "display_title": "ci", "html_url": "", "created_at": created_at,
            });
            is_old(&serde_json::from_value(run).unwrap(), now)
        };
        assert!(
            !is_old(now - RUN_AGE_MAX) && is_old(now - RUN_AGE_MAX - SignedDuration::from_secs(1))
        );
        assert!(!is_old(Timestamp::MAX) && is_old(Timestamp::MIN));
    }

    #[test]
    fn a_run_is_gone_only_once_it_was_unknown_for_the_settling_time() {
        let mut memory = Memory::default();
        assert!(!memory.is_gone(7, Duration::ZERO) && memory.is_gone(7, Duration::ZERO));
        assert!(!memory.is_gone(7, Duration::from_hours(1)));
        memory.tidy(Duration::ZERO);
        assert!(memory.is_gone(7, Duration::ZERO), "it is not forgotten soon");
    }

    #[test]
    fn a_run_that_cannot_be_ended_is_told_again_later_each_time_up_to_a_bound() {
        let mut memory = Memory::default();
        assert!(memory.may_tell(7));
        memory.put_off(7, Duration::ZERO);
        assert!(memory.may_tell(7));
        let pauses: Vec<_> = (0..12)
            .map(|_| {
                memory.put_off(8, Duration::from_secs(1));
                memory.put_off[&8].1
            })
            .collect();
        assert!(!memory.may_tell(8));
        assert_eq!(pauses[..3], [1, 2, 4].map(Duration::from_secs));
        assert_eq!(pauses[11], CANCEL_PAUSE_MAX);
    }

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
