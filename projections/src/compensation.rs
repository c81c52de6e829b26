//! What an attempt made and no longer serves, and how far it is undone; and the view of the jobs
//! that have such an attempt.

use std::collections::BTreeMap;

use jiff::Timestamp;
use milepost_schemas::event::{
    CompensationPutOff, CompensationRequested, CompensationStepTaken, Resource, UndoOutcome,
};
use milepost_schemas::{Attempt, Event, EventType, JobId, StreamId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Projection, Recorded};

/// Servers of one attempt that are remembered by name: it makes one, and a workflow that names
/// ever others does not make the job's state grow without end.
pub const SERVERS_MAX: usize = 8;

/// Things of one attempt whose latest outcome is kept, for the same reason.
pub const STEPS_MAX: usize = 32;

/// The undoing of what one attempt made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compensation {
    /// The servers the workflow named.
    pub server_ids: Vec<String>,
    /// Not before this, unless the run has ended.
    pub begin_at: Timestamp,
    /// How often it was tried.
    pub tries: u32,
    /// When it is tried again, after a try that left something.
    pub next_try_at: Option<Timestamp>,
    /// Whether nothing was left, and its run may make more: it is tried again once that is over.
    #[serde(default)]
    pub awaits_run: bool,
    /// When it was done.
    pub completed_at: Option<Timestamp>,
    /// Of each thing, what came of it last.
    pub steps: Vec<UndoStep>,
}

/// What came of undoing one thing, last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoStep {
    /// What kind of thing.
    pub resource: Resource,
    /// Which; `None` where nobody could be asked.
    pub resource_id: Option<String>,
    /// What came of it.
    pub outcome: UndoOutcome,
    /// Why.
    pub detail: Option<String>,
}

impl Compensation {
    /// Whether there is something to do.
    pub fn is_open(&self) -> bool {
        self.completed_at.is_none()
    }

    /// When to try next; the grace is over when the run is, and so is the wait for it.
    pub fn due_at(&self, run_ended: bool) -> Timestamp {
        let first = if run_ended { Timestamp::MIN } else { self.begin_at };
        let put_off = self.next_try_at.filter(|_| !(run_ended && self.awaits_run));
        put_off.unwrap_or(first)
    }

    /// Whether a server is among those it knows.
    pub fn knows(&self, server_id: &str) -> bool {
        self.server_ids.iter().any(|id| id == server_id) || self.has_tried(server_id)
    }

    /// Whether there is an outcome for a server.
    pub fn has_tried(&self, server_id: &str) -> bool {
        self.steps.iter().any(|step| {
            step.resource == Resource::Server && step.resource_id.as_deref() == Some(server_id)
        })
    }

    /// Whether another server can be remembered.
    pub fn has_room(&self) -> bool {
        self.server_ids.len() < SERVERS_MAX
    }

    pub(crate) fn request(state: &mut Option<Self>, event: &CompensationRequested) {
        let known = state.get_or_insert_with(|| Self {
            server_ids: Vec::new(),
            begin_at: event.begin_at,
            tries: 0,
            next_try_at: None,
            awaits_run: false,
            completed_at: None,
            steps: Vec::new(),
        });
        if let Some(id) = &event.server_id
            && known.has_room()
            && !known.server_ids.contains(id)
        {
            known.server_ids.push(id.clone());
        }
        // It begins anew where it was done; where it is under way, it goes on as it was to.
        if known.completed_at.take().is_some() {
            known.begin_at = event.begin_at;
            known.tries = 0;
        }
    }

    pub(crate) fn step(&mut self, event: &CompensationStepTaken) {
        self.tries = event.try_number;
        self.awaits_run = false;
        if event.next_try_at.is_some() {
            self.next_try_at = event.next_try_at;
        }
        let CompensationStepTaken { resource, resource_id, outcome, detail, .. } = event;
        let (resource_id, detail) = (resource_id.clone(), detail.clone());
        let gone = *outcome == UndoOutcome::AlreadyGone;
        let removed = |step: &UndoStep| {
            step.outcome == UndoOutcome::Removed
                && (step.resource, &step.resource_id) == (*resource, &resource_id)
        };
        if gone && self.steps.iter().any(removed) {
            // By an earlier try: that is what became of it.
            return;
        }
        // That somebody can be asked again makes it no matter that once nobody could.
        self.steps.retain(|step| {
            step.resource != *resource
                || step.resource_id.is_some() && step.resource_id != resource_id
        });
        self.steps.push(UndoStep { resource: *resource, resource_id, outcome: *outcome, detail });
        if self.steps.len() > STEPS_MAX {
            self.steps.remove(0);
        }
    }

    pub(crate) fn put_off(&mut self, event: &CompensationPutOff) {
        self.tries = event.try_number;
        self.next_try_at = Some(event.next_try_at);
        self.awaits_run = true;
        self.steps.retain(|step| step.outcome != UndoOutcome::Failed);
    }

    pub(crate) fn complete(&mut self, at: Timestamp) {
        self.completed_at = Some(at);
        self.next_try_at = None;
        self.awaits_run = false;
        self.steps.retain(|step| step.outcome != UndoOutcome::Failed);
    }
}

/// The stream that says that something serves nobody: one a thing, so that it is reported once.
pub fn orphan_stream(resource: Resource, id: &str) -> StreamId {
    let name = format!("milepost:orphan:{}:{id}", resource.as_str());
    StreamId(Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()))
}

/// A job's row in the view: the attempts whose compensation is open, and when each is due at the
/// latest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenCompensations {
    /// The job.
    pub job_id: Option<JobId>,
    /// Each attempt, and when it is to be looked at.
    pub attempts: BTreeMap<u32, OpenCompensation>,
}

/// An attempt in such a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenCompensation {
    /// When it is tried next.
    pub due_at: Timestamp,
    /// Whether it was tried before, and does not wait for its run: the end of that makes it due at
    /// once.
    pub tried: bool,
}

impl OpenCompensations {
    /// The label of rows with something to do.
    pub const OPEN: &'static str = "open";

    fn set(&mut self, attempt: Attempt, due_at: Timestamp, tried: bool) {
        self.attempts.insert(attempt.0, OpenCompensation { due_at, tried });
    }
}

/// The view of all jobs that ever had something to undo, one row each.
pub struct Compensations;

impl Projection for Compensations {
    const NAME: &'static str = "compensations";
    const VERSION: i16 = 2;
    const PASSES_OVER: &'static [EventType] = &[
        EventType::AgentCreated,
        EventType::ProvisioningRequested,
        EventType::AgentActivated,
        EventType::ProvisioningEnded,
        EventType::JobQueued,
        EventType::WorkflowDispatchRequested,
        EventType::WorkflowDispatched,
        EventType::WorkflowDispatchFailed,
        EventType::ProvisioningStarted,
        EventType::ProvisioningStepRecorded,
        EventType::HeartbeatRecorded,
        EventType::JobSucceeded,
        EventType::JobFailed,
        EventType::JobRetried,
        EventType::JobCancelled,
        EventType::LateCallbackRecorded,
        EventType::JobPriorityChanged,
        EventType::TaskStarted,
        EventType::JobLogRecorded,
        EventType::WorkflowRunObserved,
        EventType::WorkflowRunCancelRequested,
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
        EventType::QueueResumed,
        EventType::ProjectionRebuildRequested,
        EventType::ProjectionRollbackRequested,
        EventType::ProjectionVerifyRequested,
        EventType::ProjectionSwitchRequested,
        EventType::ProjectionOrderCancelled,
        EventType::ProjectionOrderEnded,
        EventType::ProjectionEventSkipped,
        EventType::OrphanFound,
        EventType::OrphanRemoved,
        EventType::InstanceServerMissing,
        EventType::RunnerEndAwaited,
        EventType::RunnerEnded,
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
    type State = OpenCompensations;

    fn key(event: &Event) -> Option<Uuid> {
        job_of(event).map(|job| job.0)
    }

    fn label(state: &Self::State) -> &'static str {
        if state.attempts.is_empty() { "none" } else { OpenCompensations::OPEN }
    }

    fn apply(state: &mut Self::State, recorded: &Recorded<'_>) {
        state.job_id = job_of(recorded.event).or(state.job_id);
        match told(recorded.event) {
            Some((_, attempt, Told::Requested { begin_at })) => {
                if !state.attempts.contains_key(&attempt.0) {
                    state.set(attempt, begin_at, false);
                }
            }
            Some((_, attempt, Told::Tried { next_try_at: Some(next_try_at) })) => {
                state.set(attempt, next_try_at, true);
            }
            Some((_, attempt, Told::PutOff { next_try_at })) => {
                state.set(attempt, next_try_at, false);
            }
            Some((_, attempt, Told::Completed)) => {
                state.attempts.remove(&attempt.0);
            }
            Some((_, _, Told::Tried { next_try_at: None })) | None => {}
        }
    }
}

/// What an event tells of a compensation.
enum Told {
    Requested { begin_at: Timestamp },
    Tried { next_try_at: Option<Timestamp> },
    PutOff { next_try_at: Timestamp },
    Completed,
}

/// The job whose compensation an event tells of.
fn job_of(event: &Event) -> Option<JobId> {
    told(event).map(|(job_id, ..)| job_id)
}

/// The job and the attempt whose compensation an event tells of, and what it tells.
fn told(event: &Event) -> Option<(JobId, Attempt, Told)> {
    match event {
        Event::CompensationRequested(event) => {
            Some((event.job_id, event.attempt, Told::Requested { begin_at: event.begin_at }))
        }
        Event::CompensationStepTaken(event) => {
            Some((event.job_id, event.attempt, Told::Tried { next_try_at: event.next_try_at }))
        }
        Event::CompensationCompleted(event) => Some((event.job_id, event.attempt, Told::Completed)),
        Event::CompensationPutOff(event) => {
            Some((event.job_id, event.attempt, Told::PutOff { next_try_at: event.next_try_at }))
        }
        Event::AgentCreated(_)
        | Event::ProvisioningRequested(_)
        | Event::AgentActivated(_)
        | Event::ProvisioningEnded(_)
        | Event::JobQueued(_)
        | Event::WorkflowDispatchRequested(_)
        | Event::WorkflowDispatched(_)
        | Event::WorkflowDispatchFailed(_)
        | Event::ProvisioningStarted(_)
        | Event::ProvisioningStepRecorded(_)
        | Event::HeartbeatRecorded(_)
        | Event::JobSucceeded(_)
        | Event::JobFailed(_)
        | Event::JobRetried(_)
        | Event::JobCancelled(_)
        | Event::LateCallbackRecorded(_)
        | Event::JobPriorityChanged(_)
        | Event::TaskStarted(_)
        | Event::JobLogRecorded(_)
        | Event::WorkflowRunObserved(_)
        | Event::WorkflowRunCancelRequested(_)
        | Event::RunnerEndAwaited(_)
        | Event::RunnerEnded(_)
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
        | Event::QueueResumed(_)
        | Event::ProjectionRebuildRequested(_)
        | Event::ProjectionRollbackRequested(_)
        | Event::ProjectionVerifyRequested(_)
        | Event::ProjectionSwitchRequested(_)
        | Event::ProjectionOrderCancelled(_)
        | Event::ProjectionOrderEnded(_)
        | Event::ProjectionEventSkipped(_)
        | Event::OrphanFound(_)
        | Event::OrphanRemoved(_)
        | Event::InstanceServerMissing(_)
        | Event::InstanceServerNotFound(_)
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
        | Event::PersonalDataErased(_) => None,
    }
}
