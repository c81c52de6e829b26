//! What an attempt made and no longer serves: when it is to be undone, and how often that is tried.
//!
//! It is asked for in the decision that ends the attempt, so that it cannot be forgotten; never for
//! the attempt that succeeded.

use jiff::{SignedDuration, Timestamp};
use milepost_projections::job::{AttemptState, JobStatus};
use milepost_projections::{Compensation, Job};
use milepost_schemas::event::{
    CompensationCompleted, CompensationReason, CompensationRequested, CompensationStepTaken,
    Resource, UndoOutcome,
};
use milepost_schemas::{AgentId, Attempt, Event};

use super::{JobDecision, Limits, REASON_BYTES_MAX, last_words};

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
    let attempt = numbered(job, number)?;
    let succeeded = job.status == JobStatus::Succeeded && job.attempt().number == number;
    let news = match (&attempt.compensation, server_id) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(known), Some(id)) => known.has_room() && !known.knows(id),
    };
    if succeeded || !news || !builds(attempt) {
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

/// Whether an attempt may have made a server: its dispatcher builds some, and may have begun.
fn builds(attempt: &AttemptState) -> bool {
    let dispatcher = attempt.dispatcher.as_deref();
    let begun = attempt.started_at.is_some() || attempt.run.unresolved;
    begun && dispatcher.is_some_and(|name| BUILDS_SERVERS.contains(&name))
}

/// An attempt with something to undo now.
pub fn due(job: &Job, number: Attempt, now: Timestamp) -> Option<(AgentId, &Compensation)> {
    let attempt = numbered(job, number)?;
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
    let undoing = numbered(job, number).and_then(|it| it.compensation.as_ref());
    let open = undoing.filter(|it| it.is_open() && it.tries + 1 == try_number);
    let (Some(undoing), Some(agent_id)) = (open, job.subject.agent_id()) else {
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
        events.push(CompensationCompleted { job_id, agent_id, attempt }.into());
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

fn numbered(job: &Job, number: Attempt) -> Option<&AttemptState> {
    job.attempts.iter().find(|attempt| attempt.number == number)
}
