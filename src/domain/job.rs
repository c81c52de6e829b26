//! What may happen to a job: callbacks, claims, deadlines, retries, and its end.
//!
//! The rule behind all others: ended is final, an attempt's progress never goes backward, and
//! every authentic callback becomes an event whether or not it changes anything.

use jiff::{SignedDuration, Timestamp};
use milepost_projections::Job;
use milepost_projections::job::{AttemptState, JobStatus};
use milepost_schemas::event::{
    AgentActivated, HeartbeatRecorded, InstanceStarted, JobCancelled, JobFailed, JobRetried,
    JobSucceeded, LateCallbackRecorded, NotApplied, Outcome, ProvisioningEnded,
    ProvisioningStarted, ProvisioningStepRecorded, Retry, Server, TaskStarted, WORKFLOW_FAILED,
    WorkflowDispatchFailed, WorkflowDispatchRequested, WorkflowDispatched,
};
use milepost_schemas::{Attempt, Callback, CallbackKind, Event, Position};

/// The bytes of an error that are kept: its last ones, where the cause stands.
pub const ERROR_BYTES_MAX: usize = 10 * 1024;

/// The bytes of a reason given for a cancellation.
pub const REASON_BYTES_MAX: usize = 1_000;

/// How long things may take. The defaults are the product's promise; tests shorten them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Before the first, second and third automatic retry. As many retries as there are delays.
    pub retry_delays: Vec<SignedDuration>,
    /// An attempt that is silent for this long has failed.
    pub silence: SignedDuration,
    /// An attempt that takes longer than this has failed.
    pub attempt: SignedDuration,
    /// A claim whose dispatcher does not answer lapses after this.
    pub lease: SignedDuration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            retry_delays: [1, 5, 15].map(SignedDuration::from_mins).to_vec(),
            silence: SignedDuration::from_mins(15),
            attempt: SignedDuration::from_mins(30),
            lease: SignedDuration::from_mins(2),
        }
    }
}

impl Limits {
    /// Attempts a job may take in all.
    pub fn max_attempts(&self) -> u32 {
        self.retry_delays.len() as u32 + 1
    }
}

/// An order to a job.
#[derive(Clone, Debug)]
pub enum JobCommand {
    /// A signed callback of its workflow.
    Record(Callback),
    /// A worker wants to dispatch it.
    Claim {
        /// Who dispatches.
        dispatcher: &'static str,
        /// The worker's process.
        locked_by: String,
    },
    /// The dispatcher took the attempt.
    Dispatched {
        /// The attempt.
        attempt: Attempt,
        /// The run it became.
        workflow_run_id: Option<String>,
        /// Where to look at it.
        run_url: Option<String>,
    },
    /// The dispatcher refused the attempt; it may be tried again.
    DispatchFailed {
        /// The attempt.
        attempt: Attempt,
        /// In the dispatcher's words.
        reason: String,
        /// Before it is tried again.
        delay: SignedDuration,
    },
    /// The attempt's run is over; was it all it had to say?
    RunEnded {
        /// The attempt.
        attempt: Attempt,
        /// How the run ended.
        how: String,
    },
    /// Look whether a deadline is over or a retry is due.
    Tick,
    /// End it.
    Cancel {
        /// Who says so.
        by: String,
        /// Why.
        reason: Option<String>,
    },
}

/// What a job that has not ended waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// To be claimed.
    Queued,
    /// For its dispatcher's answer, until the lease ends.
    Dispatching,
    /// For callbacks, until a deadline.
    Running,
    /// For its next attempt.
    Retry,
    /// Nothing: it has ended.
    Ended,
}

impl QueueState {
    /// The word in the queue's state column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Dispatching => "dispatching",
            Self::Running => "running",
            Self::Retry => "retry",
            Self::Ended => "ended",
        }
    }
}

/// What an order came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobAnswer {
    /// The events were applied.
    Applied,
    /// A callback was kept but changed nothing.
    Kept(NotApplied),
    /// A callback was there before: its first answer.
    Repeated(Position, Option<NotApplied>),
    /// There is nothing to do.
    Nothing,
}

/// Why an order to a job is refused. A callback never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobRefusal {
    /// It has ended, or is not waiting, or another attempt is under way.
    #[error("the job is {}", .0.as_str())]
    Status(JobStatus),
}

/// What a decision does.
#[derive(Clone, Debug, PartialEq)]
pub struct JobDecision {
    /// What is recorded.
    pub events: Vec<Event>,
    /// The answer.
    pub answer: JobAnswer,
    /// When to look at the job next, where that changes.
    pub queue: Option<(QueueState, Timestamp)>,
}

impl JobDecision {
    fn nothing() -> Self {
        Self { events: Vec::new(), answer: JobAnswer::Nothing, queue: None }
    }

    fn applied(events: Vec<Event>, queue: Option<(QueueState, Timestamp)>) -> Self {
        Self { events, answer: JobAnswer::Applied, queue }
    }
}

/// Decides what an order does to a job.
///
/// # Errors
/// [`JobRefusal`] for an order that makes no sense where the job stands.
pub fn decide(
    job: &Job,
    command: JobCommand,
    now: Timestamp,
    limits: &Limits,
) -> Result<JobDecision, JobRefusal> {
    match command {
        JobCommand::Record(callback) => Ok(record(job, callback, now, limits)),
        JobCommand::Claim { dispatcher, locked_by } => {
            claim(job, dispatcher, locked_by, now, limits)
        }
        JobCommand::Dispatched { attempt, workflow_run_id, run_url } => {
            Ok(dispatched(job, attempt, workflow_run_id, run_url, now, limits))
        }
        JobCommand::DispatchFailed { attempt, reason, delay } => {
            Ok(dispatch_failed(job, attempt, reason, now + delay))
        }
        JobCommand::RunEnded { attempt, how } => Ok(run_ended(job, attempt, &how, now, limits)),
        JobCommand::Tick => Ok(tick(job, now, limits)),
        JobCommand::Cancel { by, reason } => cancel(job, by, reason, now),
    }
}

/// When to look at the job again: when its attempt would be over time if nothing more is heard.
pub fn deadline(attempt: &AttemptState, now: Timestamp, limits: &Limits) -> Timestamp {
    let started = attempt.started_at.unwrap_or(now);
    let heard = attempt.heard_at.unwrap_or(now);
    (started + limits.attempt).min(heard + limits.silence)
}

fn record(job: &Job, callback: Callback, now: Timestamp, limits: &Limits) -> JobDecision {
    let attempt = attempt_of(job, &callback);
    if callback.kind.is_numbered() {
        return match not_applicable(job, attempt, &callback.kind) {
            Some(reason) => keep_once(job, attempt, &callback.kind, reason),
            None => apply(job, attempt, callback, now, limits),
        };
    }
    let (kind, step) = (callback.kind.name(), callback.kind.step());
    if let Some(seen) = job.seen(callback.delivery_id.as_deref(), attempt, kind, step) {
        // The admission gate holds for a repeated *started* too: a run that somebody starts again
        // after its attempt has ended must stop there.
        let gate = matches!(callback.kind, CallbackKind::Started)
            .then(|| not_applicable(job, attempt, &callback.kind))
            .flatten();
        let answer = JobAnswer::Repeated(seen.position, gate.or(seen.reason));
        return JobDecision { events: Vec::new(), answer, queue: None };
    }
    match not_applicable(job, attempt, &callback.kind) {
        Some(reason) => keep(job, attempt, &callback.kind, reason),
        None => apply(job, attempt, callback, now, limits),
    }
}

/// Keeps the first of many callbacks that change nothing; the others get its answer.
fn keep_once(job: &Job, attempt: Attempt, kind: &CallbackKind, reason: NotApplied) -> JobDecision {
    match job.seen(None, attempt, kind.name(), kind.step()) {
        Some(seen) => {
            let answer = JobAnswer::Repeated(seen.position, seen.reason);
            JobDecision { events: Vec::new(), answer, queue: None }
        }
        None => keep(job, attempt, kind, reason),
    }
}

/// The attempt a callback speaks for. One that names none is told by its run. Else a *started* is
/// the first word of the attempt that waits, whoever dispatched it; all others belong to the
/// attempt under way, and to the one before while the next has not begun: no run of that has
/// spoken yet.
pub fn attempt_of(job: &Job, callback: &Callback) -> Attempt {
    let by_run = |attempt: &&AttemptState| {
        attempt.workflow_run_id.is_some() && attempt.workflow_run_id == callback.workflow_run_id
    };
    let begun = |attempt: &&AttemptState| {
        attempt.dispatcher.is_some() || attempt.heard_at.is_some() || attempt.ended_at.is_some()
    };
    let latest = || job.attempts.iter().rev();
    let first_word = matches!(callback.kind, CallbackKind::Started);
    let speaking = |attempt: &&AttemptState| first_word || begun(attempt);
    let unnamed = || latest().find(by_run).or_else(|| latest().find(speaking));
    callback.attempt.or_else(|| unnamed().map(|it| it.number)).unwrap_or(Attempt::FIRST)
}

/// Why a callback changes nothing; `None` when it does.
fn not_applicable(job: &Job, attempt: Attempt, kind: &CallbackKind) -> Option<NotApplied> {
    let current = job.attempt().number;
    if job.status.is_ended() {
        return Some(NotApplied::JobEnded);
    }
    if attempt < current || job.status == JobStatus::RetryScheduled && attempt == current {
        return Some(NotApplied::AttemptSuperseded);
    }
    if attempt > current {
        return Some(NotApplied::AttemptNotBegun);
    }
    match kind {
        CallbackKind::Unknown { .. } => Some(NotApplied::UnknownStatus),
        // A heartbeat extends a running attempt only.
        CallbackKind::Heartbeat if job.status != JobStatus::Running => Some(NotApplied::NotRunning),
        CallbackKind::Heartbeat
        | CallbackKind::Started
        | CallbackKind::Step { .. }
        | CallbackKind::Done { .. }
        | CallbackKind::Failed { .. }
        | CallbackKind::Task { .. }
        | CallbackKind::Log { .. } => None,
    }
}

fn keep(job: &Job, attempt: Attempt, kind: &CallbackKind, reason: NotApplied) -> JobDecision {
    let server_id = match kind {
        CallbackKind::Done { server_id, .. } | CallbackKind::Failed { server_id, .. } => {
            server_id.clone()
        }
        CallbackKind::Heartbeat
        | CallbackKind::Started
        | CallbackKind::Step { .. }
        | CallbackKind::Task { .. }
        | CallbackKind::Log { .. }
        | CallbackKind::Unknown { .. } => None,
    };
    let event = LateCallbackRecorded {
        job_id: job.id,
        agent_id: job.agent_id,
        attempt,
        kind: kind.name().to_owned(),
        step: kind.step().map(str::to_owned),
        reason,
        server_id,
    };
    JobDecision { events: vec![event.into()], answer: JobAnswer::Kept(reason), queue: None }
}

fn apply(
    job: &Job,
    attempt: Attempt,
    callback: Callback,
    now: Timestamp,
    limits: &Limits,
) -> JobDecision {
    let (job_id, agent_id) = (job.id, job.agent_id);
    // The first word of a run moves its job from waiting to running; the later ones leave the
    // queue alone, for their deadline is looked up when the earlier one is over.
    let run = || {
        (job.status != JobStatus::Running)
            .then(|| (QueueState::Running, now + limits.silence.min(limits.attempt)))
    };
    match callback.kind {
        CallbackKind::Heartbeat => {
            let event = HeartbeatRecorded { job_id, agent_id, attempt };
            JobDecision::applied(vec![event.into()], None)
        }
        CallbackKind::Started => {
            let workflow_run_id = callback.workflow_run_id;
            let event = ProvisioningStarted { job_id, agent_id, attempt, workflow_run_id };
            JobDecision::applied(vec![event.into()], run())
        }
        CallbackKind::Step { step, metadata } => {
            let event = ProvisioningStepRecorded { job_id, agent_id, attempt, step, metadata };
            JobDecision::applied(vec![event.into()], run())
        }
        CallbackKind::Done { server_id, server_ip, tailscale_ip } => {
            let facts = [
                ("server_id", server_id),
                ("server_ip", server_ip),
                ("tailscale_ip", tailscale_ip),
            ];
            succeed(job, attempt, facts, now)
        }
        CallbackKind::Failed { error, failed_step, step, server_id } => {
            let failure = Failing {
                code: WORKFLOW_FAILED,
                message: error.unwrap_or_else(|| "The workflow gave no reason".into()),
                failed_step,
                step,
                server_id,
            };
            fail(job, failure, now, limits)
        }
        CallbackKind::Task { number, play, task } => match &job.attempt().task {
            // A repeat, or too late to be what runs now.
            Some(latest) if number <= latest.number => {
                let answer = JobAnswer::Repeated(latest.position, None);
                JobDecision { events: Vec::new(), answer, queue: None }
            }
            Some(_) | None => {
                let event = TaskStarted { job_id, agent_id, attempt, number, play, task };
                JobDecision::applied(vec![event.into()], run())
            }
        },
        // Lines have a stream of their own; those of an attempt that has not begun come here.
        CallbackKind::Log { .. } => {
            keep_once(job, attempt, &callback.kind, NotApplied::AttemptNotBegun)
        }
        CallbackKind::Unknown { .. } => {
            keep(job, attempt, &callback.kind, NotApplied::UnknownStatus)
        }
    }
}

/// The job, its instance and its agent change in one commit.
fn succeed(
    job: &Job,
    attempt: Attempt,
    facts: [(&str, Option<String>); 3],
    now: Timestamp,
) -> JobDecision {
    let (job_id, agent_id, instance_id) = (job.id, job.agent_id, job.instance_id);
    let missing: Vec<String> =
        facts.iter().filter(|(_, fact)| fact.is_none()).map(|(name, _)| (*name).into()).collect();
    // Partial counts as none: half a server is no address to hand to a customer.
    let server = match facts.map(|(_, fact)| fact) {
        [Some(server_id), Some(server_ip), Some(tailscale_ip)] => {
            Some(Server { server_id, server_ip, tailscale_ip })
        }
        _ => None,
    };
    JobDecision::applied(
        vec![
            JobSucceeded { job_id, agent_id, attempt }.into(),
            InstanceStarted { instance_id, agent_id, job_id, server, missing }.into(),
            AgentActivated { agent_id, job_id, instance_id }.into(),
        ],
        Some((QueueState::Ended, now)),
    )
}

struct Failing {
    code: &'static str,
    message: String,
    failed_step: Option<String>,
    step: Option<String>,
    server_id: Option<String>,
}

fn fail(job: &Job, failure: Failing, now: Timestamp, limits: &Limits) -> JobDecision {
    let (job_id, agent_id, attempt) = (job.id, job.agent_id, job.attempt().number);
    let (error_message, truncated) = last_words(&failure.message, ERROR_BYTES_MAX);
    let delay = limits.retry_delays.get(attempt.0 as usize - 1);
    let retry = delay
        .filter(|_| attempt.0 < job.max_attempts)
        .map(|delay| Retry { attempt: attempt.next(), run_after: now + *delay });
    let failed = JobFailed {
        job_id,
        agent_id,
        attempt,
        error_code: failure.code.to_owned(),
        error_message,
        truncated,
        failed_step: failure.failed_step,
        step: failure.step,
        server_id: failure.server_id,
        retry,
    };
    if let Some(retry) = retry {
        JobDecision::applied(vec![failed.into()], Some((QueueState::Retry, retry.run_after)))
    } else {
        let ended = ProvisioningEnded { agent_id, job_id, outcome: Outcome::Failed };
        JobDecision::applied(vec![failed.into(), ended.into()], Some((QueueState::Ended, now)))
    }
}

fn claim(
    job: &Job,
    dispatcher: &str,
    locked_by: String,
    now: Timestamp,
    limits: &Limits,
) -> Result<JobDecision, JobRefusal> {
    let due = job.run_after.is_none_or(|run_after| run_after <= now);
    if job.status != JobStatus::Queued || !due {
        return Err(JobRefusal::Status(job.status));
    }
    let lease_until = now + limits.lease;
    let event = WorkflowDispatchRequested {
        job_id: job.id,
        agent_id: job.agent_id,
        attempt: job.attempt().number,
        dispatcher: dispatcher.to_owned(),
        locked_by,
        lease_until,
    };
    Ok(JobDecision::applied(vec![event.into()], Some((QueueState::Dispatching, lease_until))))
}

fn dispatched(
    job: &Job,
    attempt: Attempt,
    workflow_run_id: Option<String>,
    run_url: Option<String>,
    now: Timestamp,
    limits: &Limits,
) -> JobDecision {
    if job.status.is_ended() || job.attempt().number != attempt {
        return JobDecision::nothing();
    }
    let event = WorkflowDispatched {
        job_id: job.id,
        agent_id: job.agent_id,
        attempt,
        workflow_run_id,
        run_url,
    };
    // The run may have spoken before the dispatcher's answer came: it is watched already then.
    let queue = (job.status == JobStatus::Dispatching)
        .then(|| (QueueState::Running, deadline(job.attempt(), now, limits)));
    JobDecision::applied(vec![event.into()], queue)
}

fn dispatch_failed(
    job: &Job,
    attempt: Attempt,
    reason: String,
    run_after: Timestamp,
) -> JobDecision {
    if job.status != JobStatus::Dispatching || job.attempt().number != attempt {
        return JobDecision::nothing();
    }
    let (job_id, agent_id) = (job.id, job.agent_id);
    let event = WorkflowDispatchFailed { job_id, agent_id, attempt, reason, run_after };
    JobDecision::applied(vec![event.into()], Some((QueueState::Queued, run_after)))
}

fn run_ended(
    job: &Job,
    attempt: Attempt,
    how: &str,
    now: Timestamp,
    limits: &Limits,
) -> JobDecision {
    let under_way = matches!(job.status, JobStatus::Dispatching | JobStatus::Running);
    if !under_way || job.attempt().number != attempt {
        return JobDecision::nothing();
    }
    let message = format!("The run ended without saying how it went: {how}");
    fail(job, overdue(job, "RUN_ENDED", message), now, limits)
}

fn tick(job: &Job, now: Timestamp, limits: &Limits) -> JobDecision {
    let attempt = job.attempt();
    match job.status {
        JobStatus::RetryScheduled => match job.run_after {
            Some(run_after) if run_after <= now => {
                let attempt = attempt.number.next();
                let event = JobRetried { job_id: job.id, agent_id: job.agent_id, attempt };
                JobDecision::applied(vec![event.into()], Some((QueueState::Queued, now)))
            }
            _ => JobDecision::nothing(),
        },
        JobStatus::Dispatching if job.lease_until.is_some_and(|until| until <= now) => {
            let message = "The worker that was to start the workflow vanished".to_owned();
            fail(job, overdue(job, "DISPATCH_LOST", message), now, limits)
        }
        JobStatus::Dispatching | JobStatus::Running => {
            let (started, heard) = (attempt.started_at, attempt.heard_at);
            if started.is_some_and(|started| started + limits.attempt <= now) {
                let message = format!("The attempt took longer than {:#}", limits.attempt);
                return fail(job, overdue(job, "ATTEMPT_TIMEOUT", message), now, limits);
            }
            if heard.is_some_and(|heard| heard + limits.silence <= now) {
                let message = format!("Nothing was heard for {:#}", limits.silence);
                return fail(job, overdue(job, "HEARTBEAT_TIMEOUT", message), now, limits);
            }
            JobDecision::nothing()
        }
        JobStatus::Queued | JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => {
            JobDecision::nothing()
        }
    }
}

/// A failure nobody reported. With no step heard of, it was the server that was being created.
fn overdue(job: &Job, code: &'static str, message: String) -> Failing {
    let unknown = job.attempt().progress.current_step.is_none();
    let failed_step = unknown.then(|| "provision".to_owned());
    Failing { code, message, failed_step, step: None, server_id: None }
}

fn cancel(
    job: &Job,
    by: String,
    reason: Option<String>,
    now: Timestamp,
) -> Result<JobDecision, JobRefusal> {
    if job.status.is_ended() {
        return Err(JobRefusal::Status(job.status));
    }
    let (job_id, agent_id) = (job.id, job.agent_id);
    let reason = reason
        .map(|reason| last_words(reason.trim(), REASON_BYTES_MAX).0)
        .filter(|reason| !reason.is_empty());
    let attempt = job.attempt().number;
    let cancelled = JobCancelled { job_id, agent_id, attempt, cancelled_by: by, reason };
    let ended = ProvisioningEnded { agent_id, job_id, outcome: Outcome::Cancelled };
    Ok(JobDecision::applied(vec![cancelled.into(), ended.into()], Some((QueueState::Ended, now))))
}

/// The last `bytes_max` bytes of some words, cut where a character begins; and whether any were
/// cut off.
pub fn last_words(words: &str, bytes_max: usize) -> (String, bool) {
    if words.len() <= bytes_max {
        return (words.to_owned(), false);
    }
    let mut start = words.len() - bytes_max;
    while !words.is_char_boundary(start) {
        start += 1;
    }
    (words[start..].to_owned(), true)
}

#[cfg(test)]
mod tests;
