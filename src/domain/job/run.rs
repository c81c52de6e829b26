//! The runs of an attempt, as their dispatcher tells of them: runs that end without a word, that
//! somebody cancels or starts again, and runs that nobody wants any more.

use std::cmp::Ordering;

use jiff::Timestamp;
use milepost_projections::Job;
use milepost_projections::job::{
    AttemptState, CANCELS_MAX, JobStatus, RUN_COMPLETED, RUN_IN_PROGRESS,
};
use milepost_schemas::Attempt;
use milepost_schemas::event::{
    CompensationReason, WORKFLOW_FAILED, WorkflowRunCancelRequested, WorkflowRunObserved,
};

use super::ends::ServerFacts;
use super::{
    JobDecision, LISTS_RUNS, Limits, REASON_BYTES_MAX, compensation, dispatched, last_words,
    run_ended, succeed,
};

/// How often a dispatcher may refuse to end a run before that is left alone: a run ends by itself
/// when its job's time is over, and at the gate it stops anyway.
pub const CANCEL_REQUESTS_MAX: u32 = 5;

/// A run that is seen at work is recorded again when nothing was heard of its attempt for this part
/// of the silence that ends one: three such looks may fail before it counts as silent.
const SEEN_AGAIN_PER_SILENCE: i32 = 4;

/// How a run ends that has done all it had to do.
const SUCCESS: &str = "success";

/// A run as its dispatcher tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSeen {
    /// The attempt, by the run's name.
    pub attempt: Attempt,
    /// The run.
    pub workflow_run_id: String,
    /// Where a person looks at it.
    pub run_url: Option<String>,
    /// From 1; higher when somebody ran it again.
    pub run_attempt: u32,
    /// `completed`, or any other while it is not.
    pub status: String,
    /// How it ended.
    pub conclusion: Option<String>,
}

impl RunSeen {
    /// Whether it has ended.
    pub fn is_completed(&self) -> bool {
        rank(&self.status) == COMPLETED
    }

    /// How far it is: what is told late and out of order is no news.
    fn place(&self) -> (u32, u8) {
        (self.run_attempt, rank(&self.status))
    }

    fn is_of(&self, attempt: &AttemptState) -> bool {
        attempt.workflow_run_id.as_ref().is_none_or(|id| *id == self.workflow_run_id)
    }
}

const COMPLETED: u8 = 2;

/// How far a run is, by its status.
fn rank(status: &str) -> u8 {
    match status {
        RUN_COMPLETED => COMPLETED,
        RUN_IN_PROGRESS => 1,
        _ => 0,
    }
}

/// Records what is new about an attempt's run. One that has ended while its job waits for a word
/// from it, or for its own dispatch to be settled, ends the attempt: it will not speak any more. A
/// run that did all it had to do, and could only not say so, has built a server, so the job has
/// succeeded; what is not known of the server is kept as missing. One at work is news again after a
/// silence, for it counts as heard.
pub(super) fn observe(job: &Job, run: RunSeen, now: Timestamp, limits: &Limits) -> JobDecision {
    let Some(attempt) = job.numbered(run.attempt) else { return JobDecision::nothing() };
    if attempt.dispatcher.as_deref() != Some(LISTS_RUNS) {
        // Nobody asked for a run of this attempt, whatever a run calls itself.
        return JobDecision::nothing();
    }
    let seen = attempt.run.seen.as_ref().map(|(run_attempt, status)| (*run_attempt, rank(status)));
    let news = match seen.map_or(Ordering::Greater, |seen| run.place().cmp(&seen)) {
        Ordering::Greater => true,
        Ordering::Equal => matters_again(job, &run, now, limits),
        Ordering::Less => false,
    };
    if !news || !run.is_of(attempt) {
        return JobDecision::nothing();
    }
    let mut decision = consequence(job, &run, now, limits);
    let (agent_id, node_id) = job.subject.ids();
    let observed = WorkflowRunObserved {
        job_id: job.id,
        agent_id,
        node_id,
        attempt: run.attempt,
        workflow_run_id: run.workflow_run_id,
        run_attempt: run.run_attempt,
        status: run.status,
        conclusion: run.conclusion,
    };
    decision.events.insert(0, observed.into());
    JobDecision::applied(decision.events, decision.queue)
}

/// Whether a run that was seen there before is to be recorded once more.
fn matters_again(job: &Job, run: &RunSeen, now: Timestamp, limits: &Limits) -> bool {
    if !waits_for(job, run) {
        return false;
    }
    let heard_at = job.attempt().heard_at;
    let silent = |heard_at| now >= heard_at + limits.silence / SEEN_AGAIN_PER_SILENCE;
    run.is_completed() || run.status == RUN_IN_PROGRESS && heard_at.is_some_and(silent)
}

/// Whether a job waits for what a run does: it runs, or nobody knows yet whether it was taken.
fn waits_for(job: &Job, run: &RunSeen) -> bool {
    let current = job.attempt().number == run.attempt;
    match job.status {
        JobStatus::Dispatching | JobStatus::Running => current,
        // The next claim would find it, and wait for words that do not come.
        JobStatus::Queued => current && run.is_completed(),
        JobStatus::RetryScheduled
        | JobStatus::Succeeded
        | JobStatus::Failed
        | JobStatus::Cancelled => false,
    }
}

fn consequence(job: &Job, run: &RunSeen, now: Timestamp, limits: &Limits) -> JobDecision {
    match (waits_for(job, run), run.is_completed()) {
        (true, false) => {
            let (id, url) = (Some(run.workflow_run_id.clone()), run.run_url.clone());
            dispatched(job, id, url, now, limits)
        }
        (true, true) => match run.conclusion.as_deref() {
            Some(SUCCESS) => succeed(job, ServerFacts::default(), now),
            how => {
                let job = known(job, run);
                run_ended(&job, how.unwrap_or("it does not say how"), now, limits)
            }
        },
        (false, true) => JobDecision::nothing(),
        // It may make what nobody will look for any more, if its attempt is over.
        (false, false) => {
            let why = CompensationReason::RunFound;
            compensation::reopen(&known(job, run), run.attempt, None, why, now, limits)
        }
    }
}

/// The job as of the run being known: an attempt that has a run may have made something.
fn known(job: &Job, run: &RunSeen) -> Job {
    let mut job = job.clone();
    if let Some(attempt) = job.attempts.iter_mut().find(|it| it.number == run.attempt) {
        attempt.workflow_run_id.get_or_insert_with(|| run.workflow_run_id.clone());
    }
    job
}

/// Whether a run should be ended: its attempt is over and it goes on, or it is not its attempt's
/// own. One that has just reported its end is left to put its things away.
pub fn unwanted(job: &Job, run: &RunSeen) -> bool {
    let Some(attempt) = job.numbered(run.attempt) else { return false };
    if run.is_completed() || !may_be_told(attempt, &run.workflow_run_id) {
        return false;
    }
    if !run.is_of(attempt) {
        return true;
    }
    let superseded = attempt.number < job.attempt().number;
    let over = superseded || job.status.is_ended() || job.status == JobStatus::RetryScheduled;
    let failure = attempt.failure.as_ref().map(|failure| failure.code.as_str());
    let reported = failure == Some(WORKFLOW_FAILED) || job.status == JobStatus::Succeeded;
    over && (!reported || run.run_attempt > 1)
}

/// Whether a run may be told to end once more.
fn may_be_told(attempt: &AttemptState, run: &str) -> bool {
    match attempt.run.cancel_of(run) {
        Some(told) => !told.accepted && told.requests < CANCEL_REQUESTS_MAX,
        None => attempt.run.cancels.len() < CANCELS_MAX,
    }
}

/// Records that a run was asked to end, and what came of it.
pub(super) fn record_cancel(
    job: &Job,
    attempt: Attempt,
    workflow_run_id: String,
    refusal: Option<String>,
) -> JobDecision {
    if !job.numbered(attempt).is_some_and(|attempt| may_be_told(attempt, &workflow_run_id)) {
        return JobDecision::nothing();
    }
    let (agent_id, node_id) = job.subject.ids();
    let event = WorkflowRunCancelRequested {
        job_id: job.id,
        agent_id,
        node_id,
        attempt,
        workflow_run_id,
        accepted: refusal.is_none(),
        detail: refusal.map(|words| last_words(&words, REASON_BYTES_MAX).0),
    };
    JobDecision::applied(vec![event.into()], None)
}
