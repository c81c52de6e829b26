//! The state of the queue itself: whether it is stopped, by whom and why.

use jiff::Timestamp;
use milepost_schemas::Event;
use serde::Serialize;

use crate::Recorded;

/// The queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Who stopped it, while it is stopped.
    pub paused: Option<Pause>,
}

/// The queue is stopped: nothing is claimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// Who stopped it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

impl Queue {
    /// The queue after an event of its stream, which says all there is to know, or nothing of it:
    /// then it stands as it did before.
    pub fn after(latest: &Recorded<'_>) -> Option<Self> {
        let paused = match latest.event {
            Event::QueuePaused(event) => Some(Pause {
                by: event.paused_by.clone(),
                reason: event.reason.clone(),
                since: latest.recorded_at,
            }),
            Event::QueueResumed(_) => None,
            Event::AgentCreated(_)
            | Event::ProjectionRebuildRequested(_)
            | Event::ProjectionRollbackRequested(_)
            | Event::ProjectionVerifyRequested(_)
            | Event::ProjectionSwitchRequested(_)
            | Event::ProjectionOrderCancelled(_)
            | Event::ProjectionOrderEnded(_)
            | Event::ProjectionEventSkipped(_)
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
            | Event::WorkflowRunObserved(_)
            | Event::WorkflowRunCancelRequested(_)
            | Event::RunnerEndAwaited(_)
            | Event::RunnerEnded(_)
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
            | Event::CompensationRequested(_)
            | Event::CompensationStepTaken(_)
            | Event::CompensationCompleted(_)
            | Event::CompensationPutOff(_)
            | Event::OrphanFound(_)
            | Event::OrphanRemoved(_)
            | Event::InstanceServerMissing(_)
            | Event::LogKeyRotated(_)
            | Event::LogEpochBegun(_)
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
            | Event::LogRangeArchived(_)
            | Event::LogRangeRestored(_)
            | Event::PersonalDataErased(_) => return None,
        };
        Some(Self { paused })
    }
}
