//! What a job changes.

use milepost_schemas::event::JobQueued;
use milepost_schemas::{AgentId, InstanceId, NodeId};
use serde::{Deserialize, Serialize};

/// What a job changes: an agent, for which it builds a server, or a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// An agent.
    Agent {
        /// Which.
        agent_id: AgentId,
        /// The server the job builds for it.
        instance_id: InstanceId,
        /// Where.
        region: String,
    },
    /// A node.
    Node {
        /// Which.
        node_id: NodeId,
    },
}

impl Subject {
    /// What a queued job is to change; `None` for an event that names nothing whole.
    pub fn of(queued: &JobQueued) -> Option<Self> {
        if let Some(node_id) = queued.node_id {
            return Some(Self::Node { node_id });
        }
        let (agent_id, instance_id) = (queued.agent_id?, queued.instance_id?);
        Some(Self::Agent { agent_id, instance_id, region: queued.region.clone()? })
    }

    /// As events name it: `agent_id` and `node_id`.
    pub fn ids(&self) -> (Option<AgentId>, Option<NodeId>) {
        (self.agent_id(), self.node_id())
    }

    /// What it is, in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Agent { .. } => "agent",
            Self::Node { .. } => "node",
        }
    }

    /// The agent, where it is one.
    pub fn agent_id(&self) -> Option<AgentId> {
        match self {
            Self::Agent { agent_id, .. } => Some(*agent_id),
            Self::Node { .. } => None,
        }
    }

    /// The node, where it is one.
    pub fn node_id(&self) -> Option<NodeId> {
        match self {
            Self::Agent { .. } => None,
            Self::Node { node_id } => Some(*node_id),
        }
    }

    /// The server the job builds, where it builds one.
    pub fn instance_id(&self) -> Option<InstanceId> {
        match self {
            Self::Agent { instance_id, .. } => Some(*instance_id),
            Self::Node { .. } => None,
        }
    }

    /// Where it builds that server.
    pub fn region(&self) -> Option<&str> {
        match self {
            Self::Agent { region, .. } => Some(region),
            Self::Node { .. } => None,
        }
    }
}
