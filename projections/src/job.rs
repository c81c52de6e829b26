//! The state of one job, from its own stream: what decisions about it need, and its timeline.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher as _};

use jiff::Timestamp;
use milepost_schemas::event::{JobFailed, JobQueued, NotApplied, WORKFLOW_FAILED};
use milepost_schemas::{Attempt, Event, EventType, JobId, Position};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::compensation::Compensation;
use crate::steps::Progress;
use crate::{Projection, Recorded, Subject};

/// Deliveries a job remembers to recognise a repeat. Senders repeat within minutes; a job of 30
/// minutes with a heartbeat a minute and a dozen steps has about fifty.
pub const DELIVERIES_MAX: usize = 256;

/// Distinct (attempt, kind, step) callbacks a job remembers for senders without delivery ids.
pub const CALLBACKS_MAX: usize = 256;

/// Runs of one attempt of which it is remembered whether they were asked to end: more than one is
/// already one too many.
pub const CANCELS_MAX: usize = 16;

/// The status of a run at work, in GitHub's words.
pub const RUN_IN_PROGRESS: &str = "in_progress";

/// The status of a run that is over, in GitHub's words.
pub const RUN_COMPLETED: &str = "completed";

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Waits to be claimed.
    Queued,
    /// Claimed; its workflow has not spoken yet.
    Dispatching,
    /// Its workflow has spoken.
    Running,
    /// An attempt failed and another will follow.
    RetryScheduled,
    /// Ended: the agent runs.
    Succeeded,
    /// Ended: the last attempt failed.
    Failed,
    /// Ended by somebody.
    Cancelled,
}

impl JobStatus {
    /// Every status there is.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Dispatching,
        Self::Running,
        Self::RetryScheduled,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Ended is final.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The word in JSON and in the view's status column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Dispatching => "dispatching",
            Self::Running => "running",
            Self::RetryScheduled => "retry_scheduled",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why an attempt failed, or a job was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A stable code.
    pub code: String,
    /// The tool's own words, its last 10 KiB.
    pub message: String,
    /// Whether words before those were cut off.
    pub truncated: bool,
    /// The phase, where the workflow named it.
    pub failed_step: Option<String>,
    /// A server that may be left over.
    pub server_id: Option<String>,
}

/// The task an attempt's tool is at, or was at last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// Its number within the attempt, from 1.
    pub number: u64,
    /// The play it belongs to.
    pub play: Option<String>,
    /// Its name.
    pub task: String,
    /// When it began.
    pub started_at: Timestamp,
    /// Where that stands in the log.
    pub position: Position,
}

/// What a worker still runs of an attempt that somebody has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Where the worker's claim stands in the log.
    pub claim: Position,
    /// When its end is waited for no longer.
    pub until: Timestamp,
}

/// One attempt of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptState {
    /// Its number.
    pub number: Attempt,
    /// How far it has come.
    pub progress: Progress,
    /// Since when it waits, or waited.
    pub queued_at: Timestamp,
    /// Who runs it.
    pub dispatcher: Option<String>,
    /// The run that posts its callbacks.
    pub workflow_run_id: Option<String>,
    /// Where a person can look at the run.
    pub run_url: Option<String>,
    /// Whether the worker that claimed it runs it itself, under a lease.
    pub held: bool,
    /// When it was claimed, or first heard of.
    pub started_at: Option<Timestamp>,
    /// When it was last heard of: a callback, its dispatch, or its run seen at work.
    pub heard_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// When the next one begins, where this one failed and there is one.
    pub retry_at: Option<Timestamp>,
    /// The latest task its tool has begun.
    pub task: Option<RunningTask>,
    /// What its dispatcher said of it.
    #[serde(default)]
    pub run: RunState,
    /// The undoing of what it made, once it serves no more.
    #[serde(default)]
    pub compensation: Option<Compensation>,
}

/// What an attempt's dispatcher said of its dispatch and of its run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// How often its dispatch was put off.
    pub refusals: u32,
    /// Whether a dispatch may have been taken whose answer nobody has.
    pub unresolved: bool,
    /// Which time the run runs, and where it was seen last.
    pub seen: Option<(u32, String)>,
    /// How often its dispatcher was asked to end one of its runs.
    pub cancel_requests: u32,
    /// Whether it said of one that it will.
    pub cancel_accepted: bool,
    /// The same by run, of the first [`CANCELS_MAX`]. For decisions only.
    #[serde(skip)]
    pub cancels: Vec<RunCancel>,
}

/// What came of asking a dispatcher to end one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunCancel {
    /// The run.
    pub workflow_run_id: String,
    /// How often that was asked.
    pub requests: u32,
    /// Whether the dispatcher said that it will.
    pub accepted: bool,
}

impl RunState {
    /// Whether its run has ended: it makes nothing more.
    pub fn is_over(&self) -> bool {
        self.seen.as_ref().is_some_and(|(_, status)| status == RUN_COMPLETED)
    }

    /// What came of asking to end one of its runs.
    pub fn cancel_of(&self, run: &str) -> Option<&RunCancel> {
        self.cancels.iter().find(|cancel| cancel.workflow_run_id == run)
    }

    fn ask_to_end(&mut self, run: &str, accepted: bool) {
        self.cancel_requests += 1;
        self.cancel_accepted |= accepted;
        let known = self.cancels.iter_mut().find(|cancel| cancel.workflow_run_id == run);
        if let Some(cancel) = known {
            cancel.requests += 1;
            cancel.accepted |= accepted;
        } else if self.cancels.len() < CANCELS_MAX {
            let workflow_run_id = run.to_owned();
            self.cancels.push(RunCancel { workflow_run_id, requests: 1, accepted });
        }
    }
}

impl AttemptState {
    /// Another run than before has not been seen yet, however far that one was.
    fn is_run_by(&mut self, workflow_run_id: Option<&str>) {
        let Some(id) = workflow_run_id else { return };
        if self.workflow_run_id.as_deref().is_some_and(|known| known != id) {
            self.run.seen = None;
        }
        self.workflow_run_id = Some(id.to_owned());
    }

    fn queued(number: Attempt, at: Timestamp) -> Self {
        Self {
            number,
            progress: Progress::queued(at),
            queued_at: at,
            dispatcher: None,
            workflow_run_id: None,
            run_url: None,
            held: false,
            started_at: None,
            heard_at: None,
            ended_at: None,
            failure: None,
            retry_at: None,
            run: RunState::default(),
            task: None,
            compensation: None,
        }
    }
}

/// A callback the job has seen, so that a repeat gets the first one's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    digest: u64,
    /// Where the first one stands.
    pub position: Position,
    /// Why the first one was not applied, if it was not.
    pub reason: Option<NotApplied>,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub job_type: String,
    /// What it changes.
    pub subject: Subject,
    /// The ended job it repeats by hand.
    pub retry_of: Option<JobId>,
    /// Why, where somebody said.
    pub reason: Option<String>,
    /// Its place in the queue; the highest is claimed first.
    pub priority: i16,
    /// Where it stands.
    pub status: JobStatus,
    /// Attempts it may take in all.
    pub max_attempts: u32,
    /// Not dispatched before this.
    pub run_after: Option<Timestamp>,
    /// When its claim was taken.
    pub locked_at: Option<Timestamp>,
    /// The process that holds the claim.
    pub locked_by: Option<String>,
    /// When the claim lapses, while its dispatcher has not answered.
    pub lease_until: Option<Timestamp>,
    /// Where the claim stands in the log, as long as it holds: the fencing token of its worker.
    pub claim: Option<Position>,
    /// Why it waits, in the dispatcher's words.
    pub waiting_because: Option<String>,
    /// When its first attempt was first heard of.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When it was queued.
    pub created_at: Timestamp,
    /// When its stream last changed.
    pub updated_at: Timestamp,
    /// The last event folded.
    pub position: Position,
    /// Who ended it, where somebody did.
    pub cancelled_by: Option<String>,
    /// What its worker still runs, where somebody ended it meanwhile.
    #[serde(default)]
    pub ending: Option<Ending>,
    /// Every attempt so far, in order; never empty.
    pub attempts: Vec<AttemptState>,
    // For decisions only, which fold the stream themselves: a view's row does without.
    #[serde(skip)]
    deliveries: VecDeque<Seen>,
    #[serde(skip)]
    callbacks: VecDeque<Seen>,
}

impl Job {
    /// The attempt under way, to come, or last.
    pub fn attempt(&self) -> &AttemptState {
        self.attempts.last().expect("a job begins with its first attempt")
    }

    /// The attempt of a number.
    pub fn numbered(&self, number: Attempt) -> Option<&AttemptState> {
        self.attempts.iter().find(|attempt| attempt.number == number)
    }

    /// What failed last; cleared when a new attempt begins.
    pub fn failure(&self) -> Option<&Failure> {
        self.attempt().failure.as_ref()
    }

    /// The first answer to a callback this job has seen before: by its delivery id, or without
    /// one by attempt, kind and step. Heartbeats without a delivery id are never repeats.
    pub fn seen(
        &self,
        delivery_id: Option<&str>,
        attempt: Attempt,
        kind: &str,
        step: Option<&str>,
    ) -> Option<Seen> {
        let (window, digest) = match delivery_id {
            Some(id) => (&self.deliveries, digest(id)),
            None if kind == "heartbeat" => return None,
            None => (&self.callbacks, digest((attempt, kind, step))),
        };
        window.iter().rev().find(|seen| seen.digest == digest).copied()
    }

    /// Folds one event of a job's stream.
    pub fn apply(state: &mut Option<Self>, recorded: &Recorded<'_>) {
        if let Event::JobQueued(queued) = recorded.event {
            // Nothing but a whole one is ever recorded; a job for nobody is none.
            *state = Subject::of(queued).map(|subject| Self::queued(queued, subject, recorded));
            return;
        }
        if let Some(job) = state {
            job.fold(recorded);
        }
    }

    fn queued(event: &JobQueued, subject: Subject, recorded: &Recorded<'_>) -> Self {
        let at = recorded.recorded_at;
        Self {
            id: event.job_id,
            job_type: event.job_type.clone(),
            subject,
            retry_of: event.retry_of,
            reason: event.reason.clone(),
            priority: 0,
            status: JobStatus::Queued,
            max_attempts: event.max_attempts,
            run_after: None,
            locked_at: None,
            locked_by: None,
            lease_until: None,
            claim: None,
            waiting_because: None,
            started_at: None,
            finished_at: None,
            created_at: at,
            updated_at: at,
            position: recorded.position,
            cancelled_by: None,
            ending: None,
            attempts: vec![AttemptState::queued(Attempt::FIRST, at)],
            deliveries: VecDeque::new(),
            callbacks: VecDeque::new(),
        }
    }

    fn fold(&mut self, recorded: &Recorded<'_>) {
        let at = recorded.recorded_at;
        match recorded.event {
            Event::WorkflowDispatchRequested(event) => {
                self.status = JobStatus::Dispatching;
                self.run_after = None;
                self.waiting_because = None;
                self.locked_at = Some(at);
                self.locked_by = Some(event.locked_by.clone());
                self.lease_until = Some(event.lease_until);
                self.claim = Some(recorded.position);
                self.hear(at);
                self.current().dispatcher = Some(event.dispatcher.clone());
            }
            Event::WorkflowDispatched(event) => {
                let attempt = self.current();
                attempt.run_url.clone_from(&event.run_url);
                attempt.is_run_by(event.workflow_run_id.as_deref());
                attempt.run.unresolved = false;
                self.lease_until = None;
                if event.held {
                    self.run(at);
                    let attempt = self.current();
                    attempt.held = true;
                    attempt.progress.start(at);
                }
            }
            Event::WorkflowDispatchFailed(event) => {
                self.status = JobStatus::Queued;
                self.unlock();
                self.run_after = Some(event.run_after);
                self.waiting_because = Some(event.reason.clone());
                let attempt = self.current();
                attempt.started_at = None;
                attempt.heard_at = None;
                attempt.run.refusals += 1;
                attempt.run.unresolved = event.unresolved;
                if event.attempt == Attempt::FIRST {
                    self.started_at = None;
                }
            }
            Event::ProvisioningStarted(event) => {
                self.run(at);
                let attempt = self.current();
                attempt.progress.start(at);
                attempt.is_run_by(event.workflow_run_id.as_deref());
                self.remember(recorded, event.attempt, "started", None, None);
            }
            Event::ProvisioningStepRecorded(event) => {
                self.run(at);
                self.current().progress.record(&event.step, at);
                self.remember(recorded, event.attempt, "step", Some(&event.step), None);
            }
            // Not remembered: its number says whether it is a repeat.
            Event::TaskStarted(event) => {
                self.run(at);
                self.current().task = Some(RunningTask {
                    number: event.number,
                    play: event.play.clone(),
                    task: event.task.clone(),
                    started_at: at,
                    position: recorded.position,
                });
            }
            Event::HeartbeatRecorded(event) => {
                self.hear(at);
                self.remember(recorded, event.attempt, "heartbeat", None, None);
            }
            Event::JobSucceeded(event) => {
                self.end(JobStatus::Succeeded, at);
                self.current().progress.complete(at);
                self.remember(recorded, event.attempt, "done", None, None);
            }
            Event::JobFailed(event) => self.fail(event, recorded),
            Event::JobRetried(event) => {
                self.status = JobStatus::Queued;
                self.run_after = None;
                self.attempts.push(AttemptState::queued(event.attempt, at));
            }
            Event::JobCancelled(event) => {
                self.end(JobStatus::Cancelled, at);
                self.cancelled_by = Some(event.cancelled_by.clone());
                let attempt = self.current();
                if attempt.failure.is_none() {
                    attempt.progress.stop(at);
                    attempt.failure = Some(cancelled(&event.cancelled_by, event.reason.as_deref()));
                }
                attempt.retry_at = None;
            }
            Event::LateCallbackRecorded(event) => {
                let step = event.step.as_deref();
                self.remember(recorded, event.attempt, &event.kind, step, Some(event.reason));
            }
            Event::WorkflowRunObserved(event) => {
                let waits = self.attempt().number == event.attempt
                    && matches!(self.status, JobStatus::Dispatching | JobStatus::Running);
                if let Some(attempt) = self.numbered_mut(event.attempt) {
                    attempt.run.seen = Some((event.run_attempt, event.status.clone()));
                    attempt.workflow_run_id.get_or_insert_with(|| event.workflow_run_id.clone());
                    // Seen at work, it is heard of, whatever becomes of its own words.
                    if waits && event.status == RUN_IN_PROGRESS {
                        attempt.heard_at = Some(at);
                    }
                }
            }
            Event::WorkflowRunCancelRequested(event) => {
                if let Some(attempt) = self.numbered_mut(event.attempt) {
                    attempt.run.ask_to_end(&event.workflow_run_id, event.accepted);
                }
            }
            Event::JobPriorityChanged(event) => self.priority = event.priority,
            Event::CompensationRequested(event) => {
                if let Some(attempt) = self.numbered_mut(event.attempt) {
                    Compensation::request(&mut attempt.compensation, event);
                }
            }
            Event::CompensationStepTaken(event) => {
                if let Some(undone) = self.compensation(event.attempt) {
                    undone.step(event);
                }
            }
            Event::CompensationCompleted(event) => {
                if let Some(undone) = self.compensation(event.attempt) {
                    undone.complete(at);
                }
            }
            Event::CompensationPutOff(event) => {
                if let Some(undone) = self.compensation(event.attempt) {
                    undone.put_off(event);
                }
            }
            Event::RunnerEndAwaited(event) => {
                // It comes before the cancel, which ends the claim.
                self.ending = self.claim.map(|claim| Ending { claim, until: event.until });
            }
            Event::RunnerEnded(_) => self.ending = None,
            Event::JobQueued(_)
            | Event::AgentCreated(_)
            | Event::ProvisioningRequested(_)
            | Event::AgentActivated(_)
            | Event::ProvisioningEnded(_)
            | Event::InstanceRequested(_)
            | Event::InstanceStarted(_)
            | Event::JobLogRecorded(_)
            | Event::CallbackRejected(_)
            | Event::NodeRegistered(_)
            | Event::NodeProvisioningRequested(_)
            | Event::NodeActivated(_)
            | Event::NodeBecameUnreachable(_)
            | Event::NodeDecommissionRequested(_)
            | Event::NodeDecommissioned(_)
            | Event::NodeDecommissionEnded(_)
            | Event::NodeAddressTaken(_)
            | Event::QueuePaused(_)
            | Event::LogKeyRotated(_)
            | Event::LogEpochBegun(_)
            | Event::LogRangeArchived(_)
            | Event::LogRangeRestored(_)
            | Event::OrphanFound(_)
            | Event::OrphanRemoved(_)
            | Event::PersonalDataErased(_)
            | Event::InstanceServerMissing(_)
            | Event::InstanceServerNotFound(_)
            | Event::ProjectionRebuildRequested(_)
            | Event::ProjectionRollbackRequested(_)
            | Event::ProjectionVerifyRequested(_)
            | Event::ProjectionSwitchRequested(_)
            | Event::ProjectionOrderCancelled(_)
            | Event::ProjectionOrderEnded(_)
            | Event::ProjectionEventSkipped(_)
            | Event::AccountCreated(_)
            | Event::AccountRoleChanged(_)
            | Event::AccountDisabled(_)
            | Event::AccountEnabled(_)
            | Event::PasswordChanged(_)
            | Event::SessionBegan(_)
            | Event::SessionEnded(_)
            | Event::LogInFailed(_)
            | Event::ActionRefused(_)
            | Event::TokenCreated(_)
            | Event::TokenRevoked(_)
            | Event::QueueResumed(_) => return,
        }
        self.updated_at = at;
        self.position = recorded.position;
    }

    fn fail(&mut self, event: &JobFailed, recorded: &Recorded<'_>) {
        let at = recorded.recorded_at;
        match event.retry {
            Some(retry) => {
                self.status = JobStatus::RetryScheduled;
                self.run_after = Some(retry.run_after);
                self.unlock();
                self.current().ended_at = Some(at);
            }
            None => self.end(JobStatus::Failed, at),
        }
        let attempt = self.current();
        if let Some(step) = &event.step {
            attempt.progress.record(step, at);
        }
        attempt.progress.fail(event.failed_step.as_deref(), at);
        attempt.retry_at = event.retry.map(|retry| retry.run_after);
        attempt.failure = Some(Failure {
            code: event.error_code.clone(),
            message: event.error_message.clone(),
            truncated: event.truncated,
            failed_step: event.failed_step.clone(),
            server_id: event.server_id.clone(),
        });
        // A deadline is nobody's callback: the workflow's own word may still come.
        if event.error_code == WORKFLOW_FAILED {
            self.remember(recorded, event.attempt, "failed", event.step.as_deref(), None);
        }
    }

    fn current(&mut self) -> &mut AttemptState {
        self.attempts.last_mut().expect("a job begins with its first attempt")
    }

    fn numbered_mut(&mut self, number: Attempt) -> Option<&mut AttemptState> {
        self.attempts.iter_mut().find(|attempt| attempt.number == number)
    }

    fn compensation(&mut self, number: Attempt) -> Option<&mut Compensation> {
        self.numbered_mut(number)?.compensation.as_mut()
    }

    fn hear(&mut self, at: Timestamp) {
        self.started_at.get_or_insert(at);
        let attempt = self.current();
        attempt.started_at.get_or_insert(at);
        attempt.heard_at = Some(at);
    }

    fn run(&mut self, at: Timestamp) {
        self.status = JobStatus::Running;
        self.run_after = None;
        self.waiting_because = None;
        self.lease_until = None;
        self.hear(at);
    }

    fn end(&mut self, status: JobStatus, at: Timestamp) {
        self.status = status;
        self.run_after = None;
        self.waiting_because = None;
        self.finished_at = Some(at);
        self.unlock();
        self.current().ended_at.get_or_insert(at);
    }

    fn unlock(&mut self) {
        self.locked_at = None;
        self.locked_by = None;
        self.lease_until = None;
        self.claim = None;
    }

    fn remember(
        &mut self,
        recorded: &Recorded<'_>,
        attempt: Attempt,
        kind: &str,
        step: Option<&str>,
        reason: Option<NotApplied>,
    ) {
        let position = recorded.position;
        // There may be hundreds of them, and they are told apart otherwise: the window is for
        // those that are not.
        let chatty = matches!(kind, "task" | "log");
        if let Some(id) = recorded.delivery_id.filter(|_| !chatty) {
            let seen = Seen { digest: digest(id), position, reason };
            push(&mut self.deliveries, seen, DELIVERIES_MAX);
        }
        if kind == "heartbeat" {
            return;
        }
        let digest = digest((attempt, kind, step));
        if !self.callbacks.iter().any(|seen| seen.digest == digest) {
            push(&mut self.callbacks, Seen { digest, position, reason }, CALLBACKS_MAX);
        }
    }
}

fn push(window: &mut VecDeque<Seen>, seen: Seen, max: usize) {
    if window.len() == max {
        window.pop_front();
    }
    window.push_back(seen);
}

fn cancelled(by: &str, reason: Option<&str>) -> Failure {
    Failure {
        code: "CANCELLED".into(),
        message: match reason {
            Some(reason) => format!("Cancelled by {by}: {reason}"),
            None => format!("Cancelled by {by}"),
        },
        truncated: false,
        failed_step: None,
        server_id: None,
    }
}

// 64 bits tell apart a window of a few hundred: it stays in memory, and holds what one job's own
// workflow sent, signed.
fn digest(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The view of all jobs, one row each.
pub struct Jobs;

impl Projection for Jobs {
    const NAME: &'static str = "jobs";
    const VERSION: i16 = 4;
    const PASSES_OVER: &'static [EventType] = &[
        EventType::JobLogRecorded,
        EventType::AgentCreated,
        EventType::ProvisioningRequested,
        EventType::AgentActivated,
        EventType::ProvisioningEnded,
        EventType::InstanceRequested,
        EventType::InstanceStarted,
        EventType::CallbackRejected,
        EventType::NodeRegistered,
        EventType::NodeProvisioningRequested,
        EventType::NodeActivated,
        EventType::NodeBecameUnreachable,
        EventType::NodeDecommissionRequested,
        EventType::NodeDecommissioned,
        EventType::NodeDecommissionEnded,
        EventType::NodeAddressTaken,
        EventType::QueuePaused,
        EventType::OrphanFound,
        EventType::OrphanRemoved,
        EventType::InstanceServerMissing,
        EventType::ProjectionRebuildRequested,
        EventType::ProjectionRollbackRequested,
        EventType::ProjectionVerifyRequested,
        EventType::ProjectionSwitchRequested,
        EventType::ProjectionOrderCancelled,
        EventType::ProjectionOrderEnded,
        EventType::ProjectionEventSkipped,
        EventType::QueueResumed,
        EventType::LogKeyRotated,
        EventType::LogEpochBegun,
        EventType::LogRangeArchived,
        EventType::LogRangeRestored,
        EventType::InstanceServerNotFound,
        EventType::AccountCreated,
        EventType::AccountRoleChanged,
        EventType::AccountDisabled,
        EventType::AccountEnabled,
        EventType::PasswordChanged,
        EventType::SessionBegan,
        EventType::SessionEnded,
        EventType::LogInFailed,
        EventType::ActionRefused,
        EventType::TokenCreated,
        EventType::TokenRevoked,
        EventType::PersonalDataErased,
    ];
    type State = Option<Job>;

    fn key(event: &Event) -> Option<Uuid> {
        job_of(event).map(|job| job.0)
    }

    fn label(state: &Self::State) -> &'static str {
        state.as_ref().map_or("", |job| job.status.as_str())
    }

    fn apply(state: &mut Self::State, recorded: &Recorded<'_>) {
        Job::apply(state, recorded);
    }
}

/// The job whose stream an event belongs to.
pub fn job_of(event: &Event) -> Option<JobId> {
    match event {
        Event::JobQueued(event) => Some(event.job_id),
        Event::WorkflowDispatchRequested(event) => Some(event.job_id),
        Event::WorkflowDispatched(event) => Some(event.job_id),
        Event::WorkflowDispatchFailed(event) => Some(event.job_id),
        Event::ProvisioningStarted(event) => Some(event.job_id),
        Event::ProvisioningStepRecorded(event) => Some(event.job_id),
        Event::HeartbeatRecorded(event) => Some(event.job_id),
        Event::JobSucceeded(event) => Some(event.job_id),
        Event::JobFailed(event) => Some(event.job_id),
        Event::JobRetried(event) => Some(event.job_id),
        Event::JobCancelled(event) => Some(event.job_id),
        Event::LateCallbackRecorded(event) => Some(event.job_id),
        Event::WorkflowRunObserved(event) => Some(event.job_id),
        Event::WorkflowRunCancelRequested(event) => Some(event.job_id),
        Event::JobPriorityChanged(event) => Some(event.job_id),
        Event::TaskStarted(event) => Some(event.job_id),
        Event::CompensationRequested(event) => Some(event.job_id),
        Event::CompensationStepTaken(event) => Some(event.job_id),
        Event::CompensationCompleted(event) => Some(event.job_id),
        Event::CompensationPutOff(event) => Some(event.job_id),
        Event::RunnerEndAwaited(event) => Some(event.job_id),
        Event::RunnerEnded(event) => Some(event.job_id),
        // What a job prints has a stream of its own.
        Event::JobLogRecorded(_)
        | Event::AgentCreated(_)
        | Event::ProvisioningRequested(_)
        | Event::AgentActivated(_)
        | Event::ProvisioningEnded(_)
        | Event::InstanceRequested(_)
        | Event::InstanceStarted(_)
        | Event::CallbackRejected(_)
        | Event::NodeRegistered(_)
        | Event::NodeProvisioningRequested(_)
        | Event::NodeActivated(_)
        | Event::NodeBecameUnreachable(_)
        | Event::NodeDecommissionRequested(_)
        | Event::NodeDecommissioned(_)
        | Event::NodeDecommissionEnded(_)
        | Event::NodeAddressTaken(_)
        | Event::QueuePaused(_)
        | Event::LogKeyRotated(_)
        | Event::LogEpochBegun(_)
        | Event::LogRangeArchived(_)
        | Event::LogRangeRestored(_)
        | Event::OrphanFound(_)
        | Event::OrphanRemoved(_)
        | Event::InstanceServerMissing(_)
        | Event::InstanceServerNotFound(_)
        | Event::ProjectionRebuildRequested(_)
        | Event::ProjectionRollbackRequested(_)
        | Event::ProjectionVerifyRequested(_)
        | Event::ProjectionSwitchRequested(_)
        | Event::ProjectionOrderCancelled(_)
        | Event::ProjectionOrderEnded(_)
        | Event::ProjectionEventSkipped(_)
        | Event::AccountCreated(_)
        | Event::AccountRoleChanged(_)
        | Event::AccountDisabled(_)
        | Event::AccountEnabled(_)
        | Event::PasswordChanged(_)
        | Event::SessionBegan(_)
        | Event::SessionEnded(_)
        | Event::LogInFailed(_)
        | Event::ActionRefused(_)
        | Event::TokenCreated(_)
        | Event::TokenRevoked(_)
        | Event::PersonalDataErased(_)
        | Event::QueueResumed(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{JOB, fold_job, queued, step};

    #[test]
    fn the_windows_of_seen_callbacks_stay_within_their_bounds() {
        let count = DELIVERIES_MAX + CALLBACKS_MAX;
        let steps = (0..count).map(|n| (step(1, &format!("step-{n}")), Some(format!("id-{n}"))));
        let job = fold_job(std::iter::once((queued(), None)).chain(steps)).unwrap();
        assert_eq!(job.deliveries.len(), DELIVERIES_MAX);
        assert_eq!(job.callbacks.len(), CALLBACKS_MAX);
        // The latest are kept.
        let last = Position(count as u64 + 1);
        let by_id = job.seen(Some(&format!("id-{}", count - 1)), Attempt(1), "step", None);
        assert_eq!(by_id.map(|seen| seen.position), Some(last));
        assert_eq!(job.seen(Some("id-0"), Attempt(1), "step", None), None);
        assert_eq!(job.seen(None, Attempt(1), "step", Some("step-0")), None);
    }

    fn task(attempt: u32, number: u64) -> Event {
        milepost_schemas::event::TaskStarted {
            job_id: JOB,
            agent_id: Some(crate::tests::AGENT),
            node_id: None,
            attempt: Attempt(attempt),
            number,
            play: None,
            task: format!("task {number}"),
        }
        .into()
    }

    #[test]
    fn the_latest_task_is_kept_and_a_new_attempt_has_none() {
        let entries = |events: Vec<Event>| events.into_iter().map(|event| (event, None));
        let told = vec![queued(), task(1, 1), task(1, 2)];
        let job = fold_job(entries(told.clone())).unwrap();
        let latest = job.attempt().task.as_ref().unwrap();
        assert_eq!((latest.number, latest.task.as_str()), (2, "task 2"));
        assert_eq!(latest.started_at, crate::tests::at(2));
        assert_eq!(job.status, JobStatus::Running);
        let failed = crate::tests::failed(None, None, true);
        let retried = told.into_iter().chain([failed, crate::tests::retried()]).collect();
        let job = fold_job(entries(retried)).unwrap();
        assert_eq!(job.attempt().task, None);
        assert_eq!(job.attempts[0].task.as_ref().map(|task| task.number), Some(2));
    }

    #[test]
    fn tasks_push_no_other_callback_out_of_the_window() {
        let first = (step(1, "vm_created"), Some("the-step".to_owned()));
        let tasks = (0..2 * DELIVERIES_MAX as u64).map(|n| (task(1, n + 1), Some(format!("t{n}"))));
        let job = fold_job([(queued(), None), first].into_iter().chain(tasks)).unwrap();
        assert!(job.seen(Some("the-step"), Attempt(1), "step", None).is_some());
    }

    #[test]
    fn a_failure_by_a_deadline_is_not_taken_for_the_workflows_word() {
        let failed = |code: &str| {
            JobFailed {
                job_id: JOB,
                agent_id: Some(crate::tests::AGENT),
                node_id: None,
                attempt: Attempt(1),
                error_code: code.into(),
                error_message: String::new(),
                truncated: false,
                failed_step: None,
                step: None,
                server_id: None,
                retry: None,
            }
            .into()
        };
        let seen = |code: &str| {
            let job = fold_job([(queued(), None), (failed(code), None)]).unwrap();
            job.seen(None, Attempt(1), "failed", None).map(|seen| seen.position)
        };
        assert_eq!(seen(WORKFLOW_FAILED), Some(Position(2)));
        assert_eq!(seen("HEARTBEAT_TIMEOUT"), None);
    }
}
