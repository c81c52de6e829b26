//! The instance board: one row an agent, with its current instance and the job behind it. It is
//! what the dashboard shows.

use jiff::Timestamp;
use milepost_schemas::event::{InstanceServerMissing, InstanceServerNotFound, Server, SubjectKind};
use milepost_schemas::{AgentId, Event, EventType, InstanceId, JobId, Position};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::job::job_of;
use crate::{Agent, Job, JobStatus, Projection, Recorded};

/// The status of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceStatus {
    /// Its job waits.
    Pending,
    /// Its job runs.
    Provisioning,
    /// Its server runs.
    Running,
    /// Its server is being stopped.
    Stopping,
    /// Its server is stopped.
    Stopped,
    /// Its job's last attempt failed.
    Failed,
    /// Its server is gone.
    Destroyed,
}

impl InstanceStatus {
    /// Every status there is.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Provisioning,
        Self::Running,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
        Self::Destroyed,
    ];

    /// The word in JSON and on pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Provisioning => "provisioning",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Destroyed => "destroyed",
        }
    }
}

/// The current instance of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The job that builds it.
    pub job_id: JobId,
    /// Where.
    pub region: String,
    /// When it was planned.
    pub created_at: Timestamp,
    /// Since when its server runs.
    pub running_since: Option<Timestamp>,
    /// The server, once the workflow has named it in full.
    pub server: Option<Server>,
    /// What the workflow left out of it.
    pub missing: Vec<String>,
    /// Since when it is known that the server is not there any more.
    pub server_missing_since: Option<Timestamp>,
}

/// One row of the board.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Board {
    /// The agent.
    pub agent: Option<Agent>,
    /// Its current instance.
    pub instance: Option<Instance>,
    /// The job that builds that instance.
    pub job: Option<Job>,
    /// The last event folded.
    pub position: Position,
}

impl Board {
    /// The current instance's status; `None` before the first order.
    pub fn status(&self) -> Option<InstanceStatus> {
        let instance = self.instance.as_ref()?;
        if instance.running_since.is_some() {
            return Some(InstanceStatus::Running);
        }
        Some(match self.job.as_ref().map(|job| job.status) {
            None | Some(JobStatus::Queued | JobStatus::Dispatching) => InstanceStatus::Pending,
            Some(JobStatus::Running) => InstanceStatus::Provisioning,
            Some(JobStatus::Succeeded) => InstanceStatus::Running,
            Some(JobStatus::RetryScheduled | JobStatus::Failed | JobStatus::Cancelled) => {
                InstanceStatus::Failed
            }
        })
    }

    /// Folds one event that [`agent_of`] gives to this agent.
    pub fn fold(&mut self, recorded: &Recorded<'_>) {
        match recorded.event {
            Event::AgentCreated(_) | Event::AgentActivated(_) | Event::ProvisioningEnded(_) => {
                Agent::apply(&mut self.agent, recorded);
            }
            Event::ProvisioningRequested(_) => {
                Agent::apply(&mut self.agent, recorded);
                self.instance = None;
                self.job = None;
            }
            Event::InstanceRequested(event) => {
                self.instance = Some(Instance {
                    id: event.instance_id,
                    job_id: event.job_id,
                    region: event.region.clone(),
                    created_at: recorded.recorded_at,
                    running_since: None,
                    server: None,
                    missing: Vec::new(),
                    server_missing_since: None,
                });
            }
            Event::InstanceStarted(event) => {
                if let Some(instance) =
                    self.instance.as_mut().filter(|it| it.id == event.instance_id)
                {
                    instance.running_since = Some(recorded.recorded_at);
                    instance.server.clone_from(&event.server);
                    instance.missing.clone_from(&event.missing);
                }
            }
            Event::InstanceServerMissing(InstanceServerMissing { instance_id, .. })
            | Event::InstanceServerNotFound(InstanceServerNotFound { instance_id, .. }) => {
                if let Some(instance) = self.instance.as_mut().filter(|it| it.id == *instance_id) {
                    instance.server_missing_since = Some(recorded.recorded_at);
                }
            }
            Event::JobQueued(event) => {
                // An order is one commit of four events; only the latest one's job is shown.
                if self.agent.as_ref().and_then(|agent| agent.active_job) == Some(event.job_id) {
                    Job::apply(&mut self.job, recorded);
                }
            }
            Event::WorkflowDispatchRequested(_)
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
            | Event::TaskStarted(_)
            | Event::JobPriorityChanged(_)
            | Event::WorkflowRunObserved(_)
            | Event::WorkflowRunCancelRequested(_)
            | Event::CompensationRequested(_)
            | Event::CompensationStepTaken(_)
            | Event::CompensationCompleted(_)
            | Event::CompensationPutOff(_) => {
                if self.job.as_ref().map(|job| job.id) == job_of(recorded.event) {
                    Job::apply(&mut self.job, recorded);
                }
            }
            // What it knows is sealed, and opens no more.
            Event::PersonalDataErased(_) => {}
            Event::JobLogRecorded(_)
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
            | Event::RunnerEndAwaited(_)
            | Event::RunnerEnded(_)
            | Event::ProjectionRebuildRequested(_)
            | Event::ProjectionRollbackRequested(_)
            | Event::ProjectionVerifyRequested(_)
            | Event::ProjectionSwitchRequested(_)
            | Event::ProjectionOrderCancelled(_)
            | Event::ProjectionOrderEnded(_)
            | Event::ProjectionEventSkipped(_)
            | Event::QueueResumed(_)
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
            | Event::TokenRevoked(_) => return,
        }
        self.position = recorded.position;
    }
}

/// The agent whose state or history an event belongs to. What its jobs print is no part of that.
pub fn agent_of(event: &Event) -> Option<AgentId> {
    match event {
        Event::AgentCreated(event) => Some(event.agent_id),
        Event::ProvisioningRequested(event) => Some(event.agent_id),
        Event::AgentActivated(event) => Some(event.agent_id),
        Event::ProvisioningEnded(event) => Some(event.agent_id),
        Event::JobQueued(event) => event.agent_id,
        Event::WorkflowDispatchRequested(event) => event.agent_id,
        Event::WorkflowDispatched(event) => event.agent_id,
        Event::WorkflowDispatchFailed(event) => event.agent_id,
        Event::ProvisioningStarted(event) => event.agent_id,
        Event::ProvisioningStepRecorded(event) => event.agent_id,
        Event::HeartbeatRecorded(event) => event.agent_id,
        Event::JobSucceeded(event) => event.agent_id,
        Event::JobFailed(event) => event.agent_id,
        Event::JobRetried(event) => event.agent_id,
        Event::JobCancelled(event) => event.agent_id,
        Event::LateCallbackRecorded(event) => event.agent_id,
        Event::TaskStarted(event) => event.agent_id,
        Event::JobPriorityChanged(event) => event.agent_id,
        Event::WorkflowRunObserved(event) => event.agent_id,
        Event::WorkflowRunCancelRequested(event) => event.agent_id,
        Event::InstanceRequested(event) => Some(event.agent_id),
        Event::InstanceStarted(event) => Some(event.agent_id),
        Event::CompensationRequested(event) => Some(event.agent_id),
        Event::CompensationStepTaken(event) => Some(event.agent_id),
        Event::CompensationCompleted(event) => Some(event.agent_id),
        Event::CompensationPutOff(event) => Some(event.agent_id),
        Event::InstanceServerMissing(event) => Some(event.agent_id),
        Event::InstanceServerNotFound(event) => Some(event.agent_id),
        Event::PersonalDataErased(event) if event.kind == SubjectKind::Agent => {
            Some(event.subject.into())
        }
        Event::PersonalDataErased(_)
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
        | Event::RunnerEndAwaited(_)
        | Event::RunnerEnded(_)
        | Event::ProjectionRebuildRequested(_)
        | Event::ProjectionRollbackRequested(_)
        | Event::ProjectionVerifyRequested(_)
        | Event::ProjectionSwitchRequested(_)
        | Event::ProjectionOrderCancelled(_)
        | Event::ProjectionOrderEnded(_)
        | Event::ProjectionEventSkipped(_)
        | Event::QueueResumed(_)
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
        | Event::TokenRevoked(_) => None,
    }
}

/// The view of all agents, one row each.
pub struct Boards;

impl Projection for Boards {
    const NAME: &'static str = "board";
    const VERSION: i16 = 4;
    const PASSES_OVER: &'static [EventType] = &[
        EventType::JobLogRecorded,
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
        EventType::RunnerEndAwaited,
        EventType::RunnerEnded,
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
    ];
    type State = Board;

    fn key(event: &Event) -> Option<Uuid> {
        agent_of(event).map(|agent| agent.0)
    }

    fn label(state: &Board) -> &'static str {
        state.status().map_or("new", InstanceStatus::as_str)
    }

    fn apply(state: &mut Board, recorded: &Recorded<'_>) {
        state.fold(recorded);
    }
}
