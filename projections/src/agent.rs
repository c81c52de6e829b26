//! The state of one agent, from its own stream: what decisions about it need.

use jiff::Timestamp;
use milepost_schemas::{AgentId, Event, InstanceId, JobId};
use serde::{Deserialize, Serialize};

use crate::Recorded;

/// One agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// What people call it.
    pub name: String,
    /// Where its servers are built by default.
    pub region: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its stream last changed.
    pub updated_at: Timestamp,
    /// The job that is changing it now; at most one.
    pub active_job: Option<JobId>,
    /// The latest order: the job, and the server it is to build.
    pub latest: Option<(JobId, InstanceId)>,
    /// Whether a server of it has ever run.
    pub activated: bool,
    /// The job that built the server it runs on: the latest that came to one.
    #[serde(default)]
    pub serving: Option<JobId>,
}

impl Agent {
    /// Folds one event of an agent's stream.
    pub fn apply(state: &mut Option<Self>, recorded: &Recorded<'_>) {
        let at = recorded.recorded_at;
        if let Event::AgentCreated(made) = recorded.event {
            *state = Some(Self {
                id: made.agent_id,
                name: made.name.clone(),
                region: made.region.clone(),
                created_at: at,
                updated_at: at,
                active_job: None,
                latest: None,
                activated: false,
                serving: None,
            });
        }
        let Some(agent) = state else { return };
        match recorded.event {
            Event::AgentCreated(_) => {}
            Event::ProvisioningRequested(event) => {
                agent.active_job = Some(event.job_id);
                agent.latest = Some((event.job_id, event.instance_id));
            }
            Event::AgentActivated(event) => {
                agent.active_job = None;
                agent.activated = true;
                agent.serving = Some(event.job_id);
            }
            Event::ProvisioningEnded(_) => agent.active_job = None,
            Event::JobQueued(_)
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
            | Event::WorkflowRunObserved(_)
            | Event::WorkflowRunCancelRequested(_)
            | Event::RunnerEndAwaited(_)
            | Event::RunnerEnded(_)
            | Event::JobPriorityChanged(_)
            | Event::TaskStarted(_)
            | Event::JobLogRecorded(_)
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
            | Event::CompensationRequested(_)
            | Event::CompensationStepTaken(_)
            | Event::CompensationCompleted(_)
            | Event::CompensationPutOff(_)
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
            | Event::QueueResumed(_) => return,
        }
        agent.updated_at = at;
    }
}
