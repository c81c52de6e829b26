//! What may happen to a job: callbacks, claims, deadlines, retries, and its end.
//!
//! The rule behind all others: ended is final, an attempt's progress never goes backward, and
//! every authentic callback becomes an event whether or not it changes anything.

pub mod compensation;
mod ends;
mod run;

pub use run::{CANCEL_REQUESTS_MAX, RunSeen, unwanted};

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use milepost_projections::Job;
use milepost_projections::job::{AttemptState, JobStatus};
use milepost_schemas::event::{
    CompensationReason, HeartbeatRecorded, JobCancelled, JobFailed, JobPriorityChanged, JobRetried,
    JobSucceeded, LateCallbackRecorded, NotApplied, Outcome, ProvisioningStarted,
    ProvisioningStepRecorded, Retry, TaskStarted, WORKFLOW_FAILED, WorkflowDispatchFailed,
    WorkflowDispatchRequested, WorkflowDispatched,
};
use milepost_schemas::{Attempt, Callback, CallbackKind, Event, Position};

use serde_json::Value;

use self::compensation::Finding;
use self::ends::ServerFacts;

/// The bytes of an error that are kept: its last ones, where the cause stands.
pub const ERROR_BYTES_MAX: usize = 10 * 1024;

/// The highest priority a job can have; the lowest is its negative. Wide enough to put anything
/// before or behind anything else.
pub const PRIORITY_MAX: i16 = 100;

/// The bytes of a reason that somebody gives.
pub const REASON_BYTES_MAX: usize = 1_000;

/// The dispatcher that can be asked for its runs. With any other, what was under way when its
/// worker vanished is lost.
pub const LISTS_RUNS: &str = "github";

/// The code of an attempt that nobody can say was dispatched.
const DISPATCH_LOST: &str = "DISPATCH_LOST";

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
    /// What an attempt made is undone this long after its end, unless its run has ended before.
    pub clean_up: SignedDuration,
    /// Since when callbacks can be heard at all: when this process began.
    pub listening_since: Option<Timestamp>,
}

/// How long a run has to make itself heard after nobody listened: heartbeats come each minute,
/// and what was not taken is told again within half a minute.
pub const CATCH_UP: SignedDuration = SignedDuration::from_mins(2);

impl Default for Limits {
    fn default() -> Self {
        Self {
            retry_delays: [1, 5, 15].map(SignedDuration::from_mins).to_vec(),
            silence: SignedDuration::from_mins(15),
            attempt: SignedDuration::from_mins(30),
            lease: SignedDuration::from_mins(2),
            clean_up: compensation::CLEAN_UP,
            listening_since: None,
        }
    }
}

impl Limits {
    /// Attempts a job may take in all.
    pub fn max_attempts(&self) -> u32 {
        self.retry_delays.len() as u32 + 1
    }

    /// When a time that began `since` is over: not before what happened while nobody listened
    /// could have been told.
    fn over_at(&self, since: Timestamp, lasts: SignedDuration) -> Timestamp {
        let heard_by = self.listening_since.map(|listening| listening + CATCH_UP.min(lasts));
        heard_by.map_or(since + lasts, |heard_by| heard_by.max(since + lasts))
    }
}

/// An order to a job.
#[derive(Clone, Debug)]
pub enum JobCommand {
    /// A signed callback of its workflow.
    Record(Arc<Callback>),
    /// A worker wants to dispatch it.
    Claim {
        /// Who dispatches.
        dispatcher: &'static str,
        /// The worker's process.
        locked_by: String,
    },
    /// A word of the worker that claimed the attempt.
    Report {
        /// Where its claim stands in the log: the fencing token.
        claim: Position,
        /// What it says.
        report: Report,
    },
    /// The lease of an attempt that a worker runs itself is over, as the queue's row has it.
    LeaseLapsed {
        /// The claim it belonged to.
        claim: Position,
    },
    /// The dispatcher's word on a run of an attempt.
    ObserveRun(RunSeen),
    /// The dispatcher was asked to end a run.
    RecordRunCancel {
        /// The attempt.
        attempt: Attempt,
        /// The run.
        workflow_run_id: String,
        /// Why it did not take the request; `None` when it did.
        refusal: Option<String>,
    },
    /// Move it up or down the queue.
    Prioritise {
        /// The new priority.
        priority: i16,
        /// Who says so.
        by: String,
        /// Why.
        reason: Option<String>,
    },
    /// What came of a try to undo what an attempt made.
    RecordCompensation {
        /// The attempt.
        attempt: Attempt,
        /// The number of the try: the next one, or it is not recorded.
        try_number: u32,
        /// How many of the servers that the workflow named it was about.
        named: usize,
        /// What came of each thing.
        findings: Vec<Finding>,
    },
    /// What an attempt made that is over turned up, or serves no more.
    Undo {
        /// The attempt.
        attempt: Attempt,
        /// Its server, where one turned up.
        server_id: Option<String>,
        /// Why.
        reason: CompensationReason,
    },
    /// The worker of a cancelled attempt has ended all that it ran.
    EndRunner {
        /// Where its claim stood in the log.
        claim: Position,
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

/// What the worker that claimed an attempt says of it. Anything it says after its claim is over is
/// refused, however late it comes.
#[derive(Clone, Debug)]
pub enum Report {
    /// The dispatcher took the attempt; its runner tells the rest by callbacks.
    Dispatched {
        /// The run it became.
        workflow_run_id: Option<String>,
        /// Where to look at it.
        run_url: Option<String>,
    },
    /// The worker runs the attempt itself, under a lease.
    Held {
        /// The process it runs.
        workflow_run_id: Option<String>,
    },
    /// The dispatcher refused the attempt; it may be tried again.
    DispatchFailed {
        /// In the dispatcher's words.
        reason: String,
        /// Before it is tried again.
        delay: SignedDuration,
        /// Whether it may have been taken all the same.
        unresolved: bool,
    },
    /// The dispatcher's answer was lost, and it knows no such run: the attempt has failed.
    DispatchLost,
    /// The attempt has reached a step.
    Step {
        /// Its name.
        step: String,
        /// What there is to say of it.
        metadata: Option<Arc<Value>>,
    },
    /// The attempt is done, and well.
    Succeeded,
    /// The attempt failed.
    Failed {
        /// A stable code.
        code: &'static str,
        /// The tool's own words.
        message: String,
        /// The phase that failed.
        failed_step: Option<String>,
        /// Whether another attempt may help.
        retryable: bool,
    },
    /// The attempt's run is over; was it all it had to say?
    RunEnded {
        /// How the run ended.
        how: String,
    },
}

/// What a job that has not ended waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// To be claimed.
    Queued,
    /// For its dispatcher's answer, until the lease ends.
    Dispatching,
    /// For callbacks, until a deadline; or for its worker to end what it runs, once cancelled.
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
    /// A worker speaks of a claim that is over: its lease lapsed, its attempt ended, or another
    /// worker has claimed the job since.
    #[error("the claim at position {0} is over")]
    Fenced(Position),
    /// There is no such priority.
    #[error("a priority is a number from -{PRIORITY_MAX} to {PRIORITY_MAX}")]
    Priority,
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
        JobCommand::Record(callback) => Ok(record(job, &callback, now, limits)),
        JobCommand::Claim { dispatcher, locked_by } => {
            claim(job, dispatcher, locked_by, now, limits)
        }
        JobCommand::Report { claim, report } => {
            fence(job, claim)?;
            Ok(apply_report(job, report, now, limits))
        }
        JobCommand::LeaseLapsed { claim } => {
            fence(job, claim)?;
            Ok(lapse(job, now, limits))
        }
        JobCommand::ObserveRun(seen) => Ok(run::observe(job, seen, now, limits)),
        JobCommand::RecordRunCancel { attempt, workflow_run_id, refusal } => {
            Ok(run::record_cancel(job, attempt, workflow_run_id, refusal))
        }
        JobCommand::RecordCompensation { attempt, try_number, named, findings } => {
            Ok(compensation::record(job, attempt, try_number, named, findings, now))
        }
        JobCommand::Undo { attempt, server_id, reason } => {
            let server_id = server_id.as_deref();
            Ok(compensation::reopen(job, attempt, server_id, reason, now, limits))
        }
        JobCommand::EndRunner { claim } => Ok(ends::runner_ended(job, claim, now)),
        JobCommand::Prioritise { priority, by, reason } => prioritise(job, priority, by, reason),
        JobCommand::Tick => Ok(tick(job, now, limits)),
        JobCommand::Cancel { by, reason } => cancel(job, by, reason, now, limits),
    }
}

/// When to look at the job again: when its attempt would be over time if nothing more is heard.
pub fn deadline(attempt: &AttemptState, now: Timestamp, limits: &Limits) -> Timestamp {
    let ends = limits.over_at(attempt.started_at.unwrap_or(now), limits.attempt);
    if attempt.held {
        // Its lease says whether anybody still works on it.
        return ends;
    }
    ends.min(limits.over_at(attempt.heard_at.unwrap_or(now), limits.silence))
}

/// A worker may speak of its attempt as long as its claim holds, and no longer.
fn fence(job: &Job, claim: Position) -> Result<(), JobRefusal> {
    if job.claim == Some(claim) { Ok(()) } else { Err(JobRefusal::Fenced(claim)) }
}

fn record(job: &Job, callback: &Callback, now: Timestamp, limits: &Limits) -> JobDecision {
    let attempt = attempt_of(job, callback);
    if callback.kind.is_numbered() {
        return match not_applicable(job, attempt, &callback.kind) {
            Some(reason) => keep_once(job, attempt, &callback.kind, reason, now, limits),
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
        Some(reason) => keep(job, attempt, &callback.kind, reason, now, limits),
        None => apply(job, attempt, callback, now, limits),
    }
}

/// Keeps the first of many callbacks that change nothing; the others get its answer.
fn keep_once(
    job: &Job,
    attempt: Attempt,
    kind: &CallbackKind,
    reason: NotApplied,
    now: Timestamp,
    limits: &Limits,
) -> JobDecision {
    match job.seen(None, attempt, kind.name(), kind.step()) {
        Some(seen) => {
            let answer = JobAnswer::Repeated(seen.position, seen.reason);
            JobDecision { events: Vec::new(), answer, queue: None }
        }
        None => keep(job, attempt, kind, reason, now, limits),
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

fn keep(
    job: &Job,
    attempt: Attempt,
    kind: &CallbackKind,
    reason: NotApplied,
    now: Timestamp,
    limits: &Limits,
) -> JobDecision {
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
    let (agent_id, node_id) = job.subject.ids();
    let event = LateCallbackRecorded {
        job_id: job.id,
        agent_id,
        node_id,
        attempt,
        kind: kind.name().to_owned(),
        step: kind.step().map(str::to_owned),
        reason,
        server_id: server_id.clone(),
    };
    // A server that nobody else may know of.
    let over = matches!(reason, NotApplied::JobEnded | NotApplied::AttemptSuperseded);
    let undo = server_id.filter(|_| over).and_then(|id| {
        let why = CompensationReason::LateCallback;
        compensation::request(job, attempt, Some(&id), why, now, limits)
    });
    let events = std::iter::once(event.into()).chain(undo).collect();
    JobDecision { events, answer: JobAnswer::Kept(reason), queue: None }
}

fn apply(
    job: &Job,
    attempt: Attempt,
    callback: &Callback,
    now: Timestamp,
    limits: &Limits,
) -> JobDecision {
    let (job_id, (agent_id, node_id)) = (job.id, job.subject.ids());
    match &callback.kind {
        CallbackKind::Heartbeat => {
            let event = HeartbeatRecorded { job_id, agent_id, node_id, attempt };
            JobDecision::applied(vec![event.into()], None)
        }
        CallbackKind::Started => {
            let workflow_run_id = callback.workflow_run_id.clone();
            let event = ProvisioningStarted { job_id, agent_id, node_id, attempt, workflow_run_id };
            JobDecision::applied(vec![event.into()], begun(job, now, limits))
        }
        CallbackKind::Step { step, metadata } => {
            let (step, metadata) = (step.clone(), metadata.clone());
            let event =
                ProvisioningStepRecorded { job_id, agent_id, node_id, attempt, step, metadata };
            JobDecision::applied(vec![event.into()], begun(job, now, limits))
        }
        CallbackKind::Done { server_id, server_ip, tailscale_ip } => {
            let facts = ServerFacts {
                server_id: server_id.clone(),
                server_ip: server_ip.clone(),
                tailscale_ip: tailscale_ip.clone(),
            };
            succeed(job, facts, now)
        }
        CallbackKind::Failed { error, failed_step, step, server_id } => {
            let failure = Failing {
                code: WORKFLOW_FAILED,
                message: error.clone().unwrap_or_else(|| "The workflow gave no reason".into()),
                failed_step: failed_step.clone(),
                step: step.clone(),
                server_id: server_id.clone(),
                retryable: true,
            };
            fail(job, failure, now, limits)
        }
        CallbackKind::Task { number, play, task } => match &job.attempt().task {
            // A repeat, or too late to be what runs now.
            Some(latest) if *number <= latest.number => {
                let answer = JobAnswer::Repeated(latest.position, None);
                JobDecision { events: Vec::new(), answer, queue: None }
            }
            Some(_) | None => {
                let (number, play, task) = (*number, play.clone(), task.clone());
                let event = TaskStarted { job_id, agent_id, node_id, attempt, number, play, task };
                JobDecision::applied(vec![event.into()], begun(job, now, limits))
            }
        },
        // Lines have a stream of their own; those of an attempt that has not begun come here.
        CallbackKind::Log { .. } => {
            keep_once(job, attempt, &callback.kind, NotApplied::AttemptNotBegun, now, limits)
        }
        CallbackKind::Unknown { .. } => {
            keep(job, attempt, &callback.kind, NotApplied::UnknownStatus, now, limits)
        }
    }
}

/// The first word of a run moves its job from waiting to running; the later ones leave the queue
/// alone, for their deadline is looked up when the earlier one is over.
fn begun(job: &Job, now: Timestamp, limits: &Limits) -> Option<(QueueState, Timestamp)> {
    (job.status != JobStatus::Running)
        .then(|| (QueueState::Running, now + limits.silence.min(limits.attempt)))
}

/// The job and what it changes, in one commit.
fn succeed(job: &Job, facts: ServerFacts, now: Timestamp) -> JobDecision {
    let (job_id, (agent_id, node_id)) = (job.id, job.subject.ids());
    let attempt = job.attempt().number;
    let mut events = vec![JobSucceeded { job_id, agent_id, node_id, attempt }.into()];
    events.extend(ends::succeeded(job, facts));
    JobDecision::applied(events, Some((QueueState::Ended, now)))
}

struct Failing {
    code: &'static str,
    message: String,
    failed_step: Option<String>,
    step: Option<String>,
    server_id: Option<String>,
    retryable: bool,
}

fn fail(job: &Job, failure: Failing, now: Timestamp, limits: &Limits) -> JobDecision {
    let (job_id, (agent_id, node_id)) = (job.id, job.subject.ids());
    let attempt = job.attempt().number;
    let (error_message, truncated) = last_words(&failure.message, ERROR_BYTES_MAX);
    let delay = limits.retry_delays.get(attempt.0 as usize - 1);
    let retry = delay
        .filter(|_| failure.retryable && attempt.0 < job.max_attempts)
        .map(|delay| Retry { attempt: attempt.next(), run_after: now + *delay });
    let failed = JobFailed {
        job_id,
        agent_id,
        node_id,
        attempt,
        error_code: failure.code.to_owned(),
        error_message,
        truncated,
        failed_step: failure.failed_step,
        step: failure.step,
        server_id: failure.server_id.clone(),
        retry,
    };
    let mut events = vec![failed.into()];
    if retry.is_none() {
        events.extend(ends::ended(job, Outcome::Failed));
    }
    let (server_id, why) = (failure.server_id.as_deref(), CompensationReason::AttemptFailed);
    events.extend(compensation::request(job, attempt, server_id, why, now, limits));
    let next = retry.map(|retry| (QueueState::Retry, retry.run_after));
    JobDecision::applied(events, Some(next.unwrap_or((QueueState::Ended, now))))
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
    let (agent_id, node_id) = job.subject.ids();
    let event = WorkflowDispatchRequested {
        job_id: job.id,
        agent_id,
        node_id,
        attempt: job.attempt().number,
        dispatcher: dispatcher.to_owned(),
        locked_by,
        lease_until,
    };
    Ok(JobDecision::applied(vec![event.into()], Some((QueueState::Dispatching, lease_until))))
}

fn apply_report(job: &Job, report: Report, now: Timestamp, limits: &Limits) -> JobDecision {
    let (job_id, (agent_id, node_id)) = (job.id, job.subject.ids());
    let attempt = job.attempt().number;
    match report {
        Report::Dispatched { workflow_run_id, run_url } => {
            dispatched(job, workflow_run_id, run_url, now, limits)
        }
        Report::Held { workflow_run_id } => {
            let event = WorkflowDispatched {
                job_id,
                agent_id,
                node_id,
                attempt,
                workflow_run_id,
                run_url: None,
                held: true,
            };
            let lease_until = now + limits.lease;
            JobDecision::applied(vec![event.into()], Some((QueueState::Running, lease_until)))
        }
        // Its run has spoken, or was found by somebody else: it was dispatched after all.
        Report::DispatchFailed { .. } | Report::DispatchLost if !awaits_dispatch(job) => {
            JobDecision::nothing()
        }
        Report::DispatchFailed { reason, delay, unresolved } => {
            dispatch_failed(job, reason, now + delay, unresolved)
        }
        // It is not dispatched again: that its run is not listed does not prove that there is
        // none. The next attempt's number makes the gate stop this one, should it begin after all.
        Report::DispatchLost => {
            let message = "The dispatcher's answer was lost, and it lists no such run".to_owned();
            fail(job, overdue(job, DISPATCH_LOST, message), now, limits)
        }
        Report::Step { step, metadata } => {
            let event =
                ProvisioningStepRecorded { job_id, agent_id, node_id, attempt, step, metadata };
            JobDecision::applied(vec![event.into()], begun(job, now, limits))
        }
        Report::Succeeded => succeed(job, ServerFacts::default(), now),
        Report::Failed { code, message, failed_step, retryable } => {
            let failing =
                Failing { code, message, failed_step, step: None, server_id: None, retryable };
            fail(job, failing, now, limits)
        }
        Report::RunEnded { how } => run_ended(job, &how, now, limits),
    }
}

fn dispatched(
    job: &Job,
    workflow_run_id: Option<String>,
    run_url: Option<String>,
    now: Timestamp,
    limits: &Limits,
) -> JobDecision {
    // Whoever looks for a run may find what another has found.
    let known = job.attempt();
    let news = job.lease_until.is_some()
        || workflow_run_id.is_some() && known.workflow_run_id.is_none()
        || run_url.is_some() && known.run_url.is_none();
    if !news {
        return JobDecision::nothing();
    }
    let (agent_id, node_id) = job.subject.ids();
    let event = WorkflowDispatched {
        job_id: job.id,
        agent_id,
        node_id,
        attempt: known.number,
        workflow_run_id,
        run_url,
        held: false,
    };
    // The run may have spoken before the dispatcher's answer came: it is watched already then.
    let queue = (job.status == JobStatus::Dispatching)
        .then(|| (QueueState::Running, deadline(known, now, limits)));
    JobDecision::applied(vec![event.into()], queue)
}

/// Whether nobody knows yet what became of the attempt's dispatch. Its run may have spoken, or been
/// found by somebody else, before its dispatcher says that there is none.
fn awaits_dispatch(job: &Job) -> bool {
    job.status == JobStatus::Dispatching && job.lease_until.is_some()
}

fn dispatch_failed(
    job: &Job,
    reason: String,
    run_after: Timestamp,
    unresolved: bool,
) -> JobDecision {
    let (agent_id, node_id) = job.subject.ids();
    let event = WorkflowDispatchFailed {
        job_id: job.id,
        agent_id,
        node_id,
        attempt: job.attempt().number,
        reason,
        run_after,
        unresolved,
    };
    JobDecision::applied(vec![event.into()], Some((QueueState::Queued, run_after)))
}

fn run_ended(job: &Job, how: &str, now: Timestamp, limits: &Limits) -> JobDecision {
    let message = format!("The run ended without saying how it went: {how}");
    fail(job, overdue(job, "RUN_ENDED", message), now, limits)
}

/// The worker that runs the attempt itself has stopped renewing its lease.
fn lapse(job: &Job, now: Timestamp, limits: &Limits) -> JobDecision {
    if !job.attempt().held {
        return JobDecision::nothing();
    }
    let worker = job.locked_by.as_deref().unwrap_or("that ran the attempt");
    let message = format!("The worker {worker} was not heard of for {:#}", limits.lease);
    fail(job, overdue(job, "WORKER_LOST", message), now, limits)
}

fn tick(job: &Job, now: Timestamp, limits: &Limits) -> JobDecision {
    let attempt = job.attempt();
    match job.status {
        JobStatus::RetryScheduled => match job.run_after {
            Some(run_after) if run_after <= now => {
                let attempt = attempt.number.next();
                let (agent_id, node_id) = job.subject.ids();
                let event = JobRetried { job_id: job.id, agent_id, node_id, attempt };
                JobDecision::applied(vec![event.into()], Some((QueueState::Queued, now)))
            }
            _ => JobDecision::nothing(),
        },
        JobStatus::Dispatching if job.lease_until.is_some_and(|until| until <= now) => {
            let message = "The worker that was to start the workflow vanished".to_owned();
            if attempt.dispatcher.as_deref() == Some(LISTS_RUNS) {
                return dispatch_failed(job, message, now, true);
            }
            fail(job, overdue(job, DISPATCH_LOST, message), now, limits)
        }
        JobStatus::Dispatching | JobStatus::Running => {
            let (started, heard) = (attempt.started_at, attempt.heard_at);
            let over = |since: Timestamp, lasts| limits.over_at(since, lasts) <= now;
            if started.is_some_and(|started| over(started, limits.attempt)) {
                let message = format!("The attempt took longer than {:#}", limits.attempt);
                return fail(job, overdue(job, "ATTEMPT_TIMEOUT", message), now, limits);
            }
            if !attempt.held && heard.is_some_and(|heard| over(heard, limits.silence)) {
                let message = format!("Nothing was heard for {:#}", limits.silence);
                return fail(job, overdue(job, "HEARTBEAT_TIMEOUT", message), now, limits);
            }
            JobDecision::nothing()
        }
        JobStatus::Cancelled => ends::runner_lapsed(job, now),
        JobStatus::Queued | JobStatus::Succeeded | JobStatus::Failed => JobDecision::nothing(),
    }
}

/// A failure nobody reported. With no step heard of, it was the server that was being created.
fn overdue(job: &Job, code: &'static str, message: String) -> Failing {
    let unknown = job.attempt().progress.current_step.is_none();
    let failed_step = unknown.then(|| "provision".to_owned());
    Failing { code, message, failed_step, step: None, server_id: None, retryable: true }
}

fn cancel(
    job: &Job,
    by: String,
    reason: Option<String>,
    now: Timestamp,
    limits: &Limits,
) -> Result<JobDecision, JobRefusal> {
    if job.status.is_ended() {
        return Err(JobRefusal::Status(job.status));
    }
    let (job_id, (agent_id, node_id)) = (job.id, job.subject.ids());
    let (reason, attempt) = (reason.and_then(|reason| said(&reason)), job.attempt().number);
    let cancelled = JobCancelled { job_id, agent_id, node_id, attempt, cancelled_by: by, reason };
    if let Some((awaited, until)) = ends::runner_awaited(job, now, limits) {
        // What the cancel means for the node follows once nothing runs on it any more.
        let events = vec![awaited, cancelled.into()];
        return Ok(JobDecision::applied(events, Some((QueueState::Running, until))));
    }
    let mut events = vec![cancelled.into()];
    events.extend(ends::ended(job, Outcome::Cancelled));
    let why = CompensationReason::JobCancelled;
    events.extend(compensation::request(job, attempt, None, why, now, limits));
    Ok(JobDecision::applied(events, Some((QueueState::Ended, now))))
}

/// Only a job that waits has a place in the queue to change; a later attempt waits there again.
fn prioritise(
    job: &Job,
    priority: i16,
    changed_by: String,
    reason: Option<String>,
) -> Result<JobDecision, JobRefusal> {
    if job.status.is_ended() {
        return Err(JobRefusal::Status(job.status));
    }
    if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&priority) {
        return Err(JobRefusal::Priority);
    }
    if job.priority == priority {
        return Ok(JobDecision::nothing());
    }
    let (job_id, (agent_id, node_id)) = (job.id, job.subject.ids());
    let reason = reason.and_then(|reason| said(&reason));
    let event = JobPriorityChanged { job_id, agent_id, node_id, priority, changed_by, reason };
    let state = match job.status {
        JobStatus::Queued => Some(QueueState::Queued),
        JobStatus::RetryScheduled => Some(QueueState::Retry),
        JobStatus::Dispatching
        | JobStatus::Running
        | JobStatus::Succeeded
        | JobStatus::Failed
        | JobStatus::Cancelled => None,
    };
    let due_at = job.run_after.unwrap_or(job.attempt().queued_at);
    Ok(JobDecision::applied(vec![event.into()], state.map(|state| (state, due_at))))
}

/// A reason somebody gave, within its bounds; none where they said nothing.
pub fn said(reason: &str) -> Option<String> {
    let (reason, _) = last_words(reason.trim(), REASON_BYTES_MAX);
    (!reason.is_empty()).then_some(reason)
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
