//! The state of one node, from its own stream; and its row on the list, with the job behind it.

use jiff::Timestamp;
use milepost_schemas::event::SubjectKind;
use milepost_schemas::{Event, EventType, JobId, NodeId, Position, StreamId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::job::job_of;
use crate::{Job, Projection, Recorded};

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// It is ready.
    Active,
    /// It waits to be made ready, or is being made so.
    Provisioning,
    /// Making it ready came to nothing: nobody knows what it can do.
    Unreachable,
    /// It was given up, for good.
    Decommissioned,
}

impl NodeStatus {
    /// The word in JSON and in the view's label column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Provisioning => "provisioning",
            Self::Unreachable => "unreachable",
            Self::Decommissioned => "decommissioned",
        }
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its host name, in small letters; sealed.
    pub hostname: String,
    /// Its public address; sealed.
    pub public_ip: String,
    /// Whom to log in as.
    pub ssh_user: String,
    /// Where its SSH server listens.
    pub ssh_port: u16,
    /// Where it stands.
    pub status: NodeStatus,
    /// The job that is changing it now; at most one.
    pub active_job: Option<JobId>,
    /// The latest job, ended or not.
    pub latest_job: Option<JobId>,
    /// When it was made known.
    pub created_at: Timestamp,
    /// When its stream last changed.
    pub updated_at: Timestamp,
}

impl Node {
    /// Folds one event of a node's stream.
    pub fn apply(state: &mut Option<Self>, recorded: &Recorded<'_>) {
        let at = recorded.recorded_at;
        if let Event::NodeRegistered(event) = recorded.event {
            *state = Some(Self {
                id: event.node_id,
                hostname: event.hostname.clone(),
                public_ip: event.public_ip.clone(),
                ssh_user: event.ssh_user.clone(),
                ssh_port: event.ssh_port,
                status: NodeStatus::Provisioning,
                active_job: None,
                latest_job: None,
                created_at: at,
                updated_at: at,
            });
        }
        let Some(node) = state else { return };
        match recorded.event {
            Event::NodeProvisioningRequested(event) => {
                node.status = NodeStatus::Provisioning;
                node.begin(event.job_id);
            }
            Event::NodeDecommissionRequested(event) => node.begin(event.job_id),
            Event::NodeActivated(_) => node.end(Some(NodeStatus::Active)),
            Event::NodeBecameUnreachable(_) => node.end(Some(NodeStatus::Unreachable)),
            Event::NodeDecommissioned(_) => node.end(Some(NodeStatus::Decommissioned)),
            Event::NodeDecommissionEnded(_) => node.end(None),
            Event::NodeRegistered(_) => {}
            Event::NodeAddressTaken(_)
            | Event::AgentCreated(_)
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
        node.updated_at = at;
    }

    fn begin(&mut self, job: JobId) {
        self.active_job = Some(job);
        self.latest_job = Some(job);
    }

    fn end(&mut self, status: Option<NodeStatus>) {
        self.active_job = None;
        self.status = status.unwrap_or(self.status);
    }
}

/// A node, and its latest job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// The node.
    pub node: Option<Node>,
    /// Its latest job.
    pub job: Option<Job>,
    /// The last event folded.
    pub position: Position,
}

impl NodeRow {
    /// Folds one event that [`node_of`] gives to this node.
    pub fn fold(&mut self, recorded: &Recorded<'_>) {
        Node::apply(&mut self.node, recorded);
        let latest = self.node.as_ref().and_then(|node| node.latest_job);
        if self.job.as_ref().map(|job| job.id) != latest {
            self.job = None;
        }
        if job_of(recorded.event).is_some_and(|job| Some(job) == latest) {
            Job::apply(&mut self.job, recorded);
        }
        self.position = recorded.position;
    }
}

/// The node an event concerns.
pub fn node_of(event: &Event) -> Option<NodeId> {
    match event {
        Event::JobQueued(event) => event.node_id,
        Event::WorkflowDispatchRequested(event) => event.node_id,
        Event::WorkflowDispatched(event) => event.node_id,
        Event::WorkflowDispatchFailed(event) => event.node_id,
        Event::ProvisioningStarted(event) => event.node_id,
        Event::ProvisioningStepRecorded(event) => event.node_id,
        Event::HeartbeatRecorded(event) => event.node_id,
        Event::JobSucceeded(event) => event.node_id,
        Event::JobFailed(event) => event.node_id,
        Event::JobRetried(event) => event.node_id,
        Event::JobCancelled(event) => event.node_id,
        Event::LateCallbackRecorded(event) => event.node_id,
        Event::JobPriorityChanged(event) => event.node_id,
        Event::WorkflowRunObserved(event) => event.node_id,
        Event::WorkflowRunCancelRequested(event) => event.node_id,
        Event::RunnerEndAwaited(event) => Some(event.node_id),
        Event::RunnerEnded(event) => Some(event.node_id),
        Event::TaskStarted(event) => event.node_id,
        Event::NodeRegistered(event) => Some(event.node_id),
        Event::NodeProvisioningRequested(event) => Some(event.node_id),
        Event::NodeActivated(event) => Some(event.node_id),
        Event::NodeBecameUnreachable(event) => Some(event.node_id),
        Event::NodeDecommissionRequested(event) => Some(event.node_id),
        Event::NodeDecommissioned(event) => Some(event.node_id),
        Event::NodeDecommissionEnded(event) => Some(event.node_id),
        Event::NodeAddressTaken(event) => Some(event.node_id),
        Event::PersonalDataErased(event) if event.kind == SubjectKind::Node => {
            Some(event.subject.into())
        }
        Event::AgentCreated(_)
        | Event::ProvisioningRequested(_)
        | Event::AgentActivated(_)
        | Event::ProvisioningEnded(_)
        | Event::InstanceRequested(_)
        | Event::InstanceStarted(_)
        | Event::CallbackRejected(_)
        | Event::JobLogRecorded(_)
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
        | Event::QueueResumed(_) => None,
    }
}

/// The stream that says to which node a host name or an address belongs.
pub fn address_stream(address: &str) -> StreamId {
    StreamId(Uuid::new_v5(&Uuid::NAMESPACE_DNS, address.as_bytes()))
}

/// The view of all nodes, one row each.
pub struct Nodes;

impl Projection for Nodes {
    const NAME: &'static str = "nodes";
    const VERSION: i16 = 3;
    const PASSES_OVER: &'static [EventType] = &[
        EventType::AgentCreated,
        EventType::ProvisioningRequested,
        EventType::AgentActivated,
        EventType::ProvisioningEnded,
        EventType::InstanceRequested,
        EventType::InstanceStarted,
        EventType::CallbackRejected,
        EventType::JobLogRecorded,
        EventType::QueuePaused,
        EventType::CompensationRequested,
        EventType::CompensationStepTaken,
        EventType::CompensationCompleted,
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
        EventType::CompensationPutOff,
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
    ];
    type State = NodeRow;

    fn key(event: &Event) -> Option<Uuid> {
        node_of(event).map(|node| node.0)
    }

    fn label(state: &NodeRow) -> &'static str {
        state.node.as_ref().map_or("", |node| node.status.as_str())
    }

    fn apply(state: &mut NodeRow, recorded: &Recorded<'_>) {
        state.fold(recorded);
    }
}

#[cfg(test)]
mod tests {
    use milepost_schemas::event::{
        NodeActivated, NodeBecameUnreachable, NodeDecommissionEnded, NodeDecommissionRequested,
        NodeDecommissioned, NodeProvisioningRequested, Outcome,
    };

    use super::*;
    use crate::tests::{JOB, NODE, at, node_registered};

    fn after(events: impl IntoIterator<Item = Event>) -> Node {
        let mut node = None;
        for (index, event) in std::iter::once(node_registered()).chain(events).enumerate() {
            let (position, version) = (Position(index as u64 + 1), index as u32 + 1);
            let recorded = Recorded {
                position,
                stream: NODE.stream(),
                version,
                recorded_at: at(index as i64),
                delivery_id: None,
                event: &event,
            };
            Node::apply(&mut node, &recorded);
        }
        node.unwrap()
    }

    #[test]
    fn a_node_stands_where_its_jobs_left_it() {
        let (node_id, job_id) = (NODE, JOB);
        let provision = || Event::from(NodeProvisioningRequested { node_id, job_id });
        let decommission = || Event::from(NodeDecommissionRequested { node_id, job_id });
        let activated = || Event::from(NodeActivated { node_id, job_id });
        let failed = NodeBecameUnreachable { node_id, job_id, outcome: Outcome::Failed };
        let ended = NodeDecommissionEnded { node_id, job_id, outcome: Outcome::Cancelled };
        for (events, status, active) in [
            (vec![], NodeStatus::Provisioning, None),
            (vec![provision()], NodeStatus::Provisioning, Some(JOB)),
            (vec![provision(), activated()], NodeStatus::Active, None),
            (vec![provision(), failed.into()], NodeStatus::Unreachable, None),
            (vec![provision(), activated(), provision()], NodeStatus::Provisioning, Some(JOB)),
            (vec![provision(), activated(), decommission()], NodeStatus::Active, Some(JOB)),
            (
                vec![provision(), activated(), decommission(), ended.into()],
                NodeStatus::Active,
                None,
            ),
            (
                vec![decommission(), NodeDecommissioned { node_id, job_id }.into()],
                NodeStatus::Decommissioned,
                None,
            ),
        ] {
            let node = after(events);
            assert_eq!((node.status, node.active_job), (status, active));
        }
    }
}
