//! What an attempt made and no longer serves: when it is to be undone, and how often that is tried.
//!
//! It is asked for in the decision that ends the attempt, so that it cannot be forgotten; never for
//! the attempt that succeeded.

use jiff::{SignedDuration, Timestamp};
use milepost_projections::job::{AttemptState, JobStatus};
use milepost_projections::{Compensation, Job};
use milepost_schemas::event::{
    CompensationCompleted, CompensationPutOff, CompensationReason, CompensationRequested,
    CompensationStepTaken, Resource, UndoOutcome,
};
use milepost_schemas::{AgentId, Attempt, Event};

use super::{JobDecision, LISTS_RUNS, Limits, REASON_BYTES_MAX, last_words};

/// The dispatchers whose attempts build real servers.
pub const BUILDS_SERVERS: [&str; 1] = ["github"];

/// How long a workflow has to put its own things away once its attempt is over.
pub const CLEAN_UP: SignedDuration = SignedDuration::from_mins(2);

/// The pause after the first try that left something; it doubles after each.
pub const RETRY_FIRST: SignedDuration = SignedDuration::from_secs(30);

/// The longest of these pauses.
pub const RETRY_MAX: SignedDuration = SignedDuration::from_mins(10);

/// Tries at that pace: about three quarters of an hour, longer than most outages.
pub const TRIES_QUICK: u32 = 8;

/// The pause from then on. It never ends: a server that is left costs money until it is gone, and
/// whoever takes away what is in the way should not have to say so.
pub const RETRY_SLOW: SignedDuration = SignedDuration::from_hours(6);

/// How long a run can last: GitHub ends it then. Source: docs.github.com, "Usage limits" of
/// Actions, workflow run time.
pub const RUN_LASTS_MAX: SignedDuration = SignedDuration::from_hours(35 * 24);

/// Outcomes that one try may have; an attempt makes three things.
pub const FINDINGS_MAX: usize = 16;

/// What came of one thing in a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub resource: Resource,
    /// Which; `None` where nobody could be asked what there is.
    pub id: Option<String>,
    /// What came of it.
    pub outcome: UndoOutcome,
    /// Why.
    pub detail: Option<String>,
}

/// The request to undo what an attempt made, where it made anything that may be left, and nobody
/// has asked yet: it may have made what only a later word names.
pub(super) fn request(
    job: &Job,
    number: Attempt,
    server_id: Option<&str>,
    reason: CompensationReason,
    now: Timestamp,
    limits: &Limits,
) -> Option<Event> {
    let agent_id = job.subject.agent_id()?;
    let attempt = job.numbered(number)?;
    let succeeded = job.status == JobStatus::Succeeded && job.attempt().number == number;
    let serves = succeeded && reason != CompensationReason::InstanceReplaced;
    let news = match (&attempt.compensation, server_id) {
        (None, _) => true,
        (Some(known), _) if reopens(reason) => !known.is_open(),
        (Some(_), None) => false,
        (Some(known), Some(id)) => known.has_room() && !known.knows(id),
    };
    if serves || !news || !builds(attempt) {
        return None;
    }
    let event = CompensationRequested {
        job_id: job.id,
        agent_id,
        attempt: number,
        server_id: server_id.map(str::to_owned),
        reason,
        begin_at: now + limits.clean_up,
    };
    Some(event.into())
}

/// Whether it shows that something is there: what was completed begins anew then, whatever is
/// known of it.
fn reopens(reason: CompensationReason) -> bool {
    match reason {
        CompensationReason::ThingFound
        | CompensationReason::RunFound
        | CompensationReason::InstanceReplaced => true,
        CompensationReason::AttemptFailed
        | CompensationReason::JobCancelled
        | CompensationReason::LateCallback => false,
    }
}

/// Asks to undo what an attempt made that is over, or whose instance was replaced.
pub(super) fn reopen(
    job: &Job,
    number: Attempt,
    server_id: Option<&str>,
    reason: CompensationReason,
    now: Timestamp,
    limits: &Limits,
) -> JobDecision {
    let over = job.numbered(number).is_some_and(|attempt| attempt.ended_at.is_some());
    match request(job, number, server_id, reason, now, limits).filter(|_| over) {
        Some(event) => JobDecision::applied(vec![event], None),
        None => JobDecision::nothing(),
    }
}

/// Whether an attempt may have made a server: it may have begun, and its dispatcher builds some.
/// Without a dispatcher somebody began it by hand, with the same workflow.
pub fn builds(attempt: &AttemptState) -> bool {
    let dispatcher = attempt.dispatcher.as_deref();
    let known = attempt.run.unresolved || attempt.workflow_run_id.is_some();
    let begun = attempt.started_at.is_some() || known;
    begun && dispatcher.is_none_or(|name| BUILDS_SERVERS.contains(&name))
}

/// The run of an attempt that may still make things: nobody has seen it end.
fn run_under_way(attempt: &AttemptState, now: Timestamp) -> Option<&str> {
    let listed = attempt.dispatcher.as_deref() == Some(LISTS_RUNS);
    let lasts = now < attempt.queued_at + RUN_LASTS_MAX;
    let run = attempt.workflow_run_id.as_deref().filter(|_| listed && lasts);
    run.filter(|_| !attempt.run.is_over())
}

/// An attempt with something to undo now.
pub fn due(job: &Job, number: Attempt, now: Timestamp) -> Option<(AgentId, &Compensation)> {
    let attempt = job.numbered(number)?;
    let undoing = attempt.compensation.as_ref().filter(|it| it.is_open())?;
    let is_due = undoing.due_at(attempt.run.is_over()) <= now;
    Some((job.subject.agent_id()?, undoing)).filter(|_| is_due)
}

/// Records what came of a try. One whose number is not the next was overtaken by another process:
/// it says nothing new.
pub(super) fn record(
    job: &Job,
    number: Attempt,
    try_number: u32,
    named: usize,
    findings: Vec<Finding>,
    now: Timestamp,
) -> JobDecision {
    let open = job.numbered(number).and_then(|attempt| {
        let undoing = attempt.compensation.as_ref()?;
        (undoing.is_open() && undoing.tries + 1 == try_number).then_some((attempt, undoing))
    });
    let (Some((state, undoing)), Some(agent_id)) = (open, job.subject.agent_id()) else {
        return JobDecision::nothing();
    };
    // A server that was named while the try was under way is for the next one, which is due.
    let whole = undoing.server_ids.len() <= named;
    let (job_id, attempt) = (job.id, number);
    let failed = findings.iter().any(|finding| finding.outcome == UndoOutcome::Failed);
    let next_try_at = now + pause(try_number);
    // What failed comes first: it says when it goes on.
    let mut findings = findings;
    findings.sort_by_key(|finding| finding.outcome != UndoOutcome::Failed);
    findings.truncate(FINDINGS_MAX);
    let step = |finding: Finding| -> Event {
        let again = finding.outcome == UndoOutcome::Failed;
        CompensationStepTaken {
            job_id,
            agent_id,
            attempt,
            resource: finding.resource,
            resource_id: finding.id,
            outcome: finding.outcome,
            detail: finding.detail.map(|words| last_words(&words, REASON_BYTES_MAX).0),
            try_number,
            next_try_at: again.then_some(next_try_at),
        }
        .into()
    };
    let mut events: Vec<Event> = findings.into_iter().map(step).collect();
    if !failed && whole {
        events.push(match run_under_way(state, now) {
            Some(run) => {
                let workflow_run_id = run.to_owned();
                CompensationPutOff {
                    job_id,
                    agent_id,
                    attempt,
                    workflow_run_id,
                    try_number,
                    next_try_at,
                }
                .into()
            }
            None => CompensationCompleted { job_id, agent_id, attempt }.into(),
        });
    }
    JobDecision::applied(events, None)
}

/// How long to wait after a try, from 1.
fn pause(tried: u32) -> SignedDuration {
    if tried >= TRIES_QUICK {
        return RETRY_SLOW;
    }
    let doubled = RETRY_FIRST.saturating_mul(1 << (tried.max(1) - 1).min(TRIES_QUICK));
    doubled.min(RETRY_MAX)
}
