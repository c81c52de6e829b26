//! The runs of an attempt, as their dispatcher tells of them: runs that end without a word, that
//! somebody cancels or starts again, and runs that nobody wants any more.

use jiff::Timestamp;
use milepost_projections::Job;
use milepost_projections::job::{AttemptState, JobStatus};
use milepost_schemas::Attempt;
use milepost_schemas::event::{WORKFLOW_FAILED, WorkflowRunCancelRequested, WorkflowRunObserved};

use super::ends::ServerFacts;
use super::{
    JobDecision, LISTS_RUNS, Limits, REASON_BYTES_MAX, dispatched, last_words, run_ended, succeed,
};

/// How often a dispatcher is asked to end one attempt's run before it is left alone: a run ends by
/// itself when its job's time is over, and at the gate it stops anyway.
pub const CANCEL_REQUESTS_MAX: u32 = 5;

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

    fn is_of(&self, attempt: &AttemptState) -> bool {
        attempt.workflow_run_id.as_ref().is_none_or(|id| *id == self.workflow_run_id)
    }
}

const COMPLETED: u8 = 2;

/// How far a run is: what is told late and out of order is no news.
fn rank(status: &str) -> u8 {
    match status {
        "completed" => COMPLETED,
        "in_progress" => 1,
        _ => 0,
    }
}

/// Records what is new about an attempt's run. One that has ended while its job waits for a word
/// from it ends the attempt: it will not speak any more. A run that did all it had to do, and
/// could only not say so, has built a server, so the job has succeeded; what is not known of the
/// server is kept as missing.
pub(super) fn observe(job: &Job, run: RunSeen, now: Timestamp, limits: &Limits) -> JobDecision {
    let Some(attempt) = numbered(job, run.attempt) else { return JobDecision::nothing() };
    if attempt.dispatcher.as_deref() != Some(LISTS_RUNS) {
        // Nobody asked for a run of this attempt, whatever a run calls itself.
        return JobDecision::nothing();
    }
    let seen = attempt.run.seen.as_ref();
    let stale = seen.is_some_and(|(run_attempt, status)| {
        (*run_attempt, rank(status)) >= (run.run_attempt, rank(&run.status))
    });
    if stale || !run.is_of(attempt) {
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

fn consequence(job: &Job, run: &RunSeen, now: Timestamp, limits: &Limits) -> JobDecision {
    let under_way = matches!(job.status, JobStatus::Dispatching | JobStatus::Running);
    if !under_way || job.attempt().number != run.attempt {
        return JobDecision::nothing();
    }
    if !run.is_completed() {
        let (id, url) = (Some(run.workflow_run_id.clone()), run.run_url.clone());
        return dispatched(job, id, url, now, limits);
    }
    match run.conclusion.as_deref() {
        Some(SUCCESS) => succeed(job, ServerFacts::default(), now),
        how => run_ended(job, how.unwrap_or("it does not say how"), now, limits),
    }
}

/// Whether a run should be ended: its attempt is over and it goes on, or it is not its attempt's
/// own. One that has just reported its end is left to put its things away.
pub fn unwanted(job: &Job, run: &RunSeen) -> bool {
    let Some(attempt) = numbered(job, run.attempt) else { return false };
    let asked = &attempt.run;
    if run.is_completed() || asked.cancel_accepted || asked.cancel_requests >= CANCEL_REQUESTS_MAX {
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

/// Records that a run was asked to end, and what came of it.
pub(super) fn record_cancel(
    job: &Job,
    attempt: Attempt,
    workflow_run_id: String,
    refusal: Option<String>,
) -> JobDecision {
    let asked = numbered(job, attempt).map(|attempt| attempt.run.cancel_requests);
    if asked.is_none_or(|asked| asked >= CANCEL_REQUESTS_MAX) {
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

fn numbered(job: &Job, number: Attempt) -> Option<&AttemptState> {
    job.attempts.iter().find(|attempt| attempt.number == number)
}
