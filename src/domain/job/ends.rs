//! What the end of a job means for what it changes: decided by the job, in the same commit.

use milepost_projections::{Job, Subject};
use milepost_schemas::Event;
use milepost_schemas::event::{
    AgentActivated, InstanceStarted, NodeActivated, NodeBecameUnreachable, NodeDecommissionEnded,
    NodeDecommissioned, Outcome, ProvisioningEnded, Server,
};

use crate::domain::node::DECOMMISSION_NODE;

/// What a finished workflow says of the server it built, each fact where it says it.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerFacts {
    pub(super) server_id: Option<String>,
    pub(super) server_ip: Option<String>,
    pub(super) tailscale_ip: Option<String>,
}

impl ServerFacts {
    fn missing(&self) -> Vec<String> {
        let facts = [
            ("server_id", &self.server_id),
            ("server_ip", &self.server_ip),
            ("tailscale_ip", &self.tailscale_ip),
        ];
        facts.iter().filter(|(_, fact)| fact.is_none()).map(|(name, _)| (*name).into()).collect()
    }

    /// Partial counts as none: half a server is no address to hand to a customer.
    fn whole(self) -> Option<Server> {
        let Self { server_id, server_ip, tailscale_ip } = self;
        Some(Server { server_id: server_id?, server_ip: server_ip?, tailscale_ip: tailscale_ip? })
    }
}

/// What follows from a job's success.
pub(super) fn succeeded(job: &Job, facts: ServerFacts) -> Vec<Event> {
    let job_id = job.id;
    match job.subject {
        Subject::Agent { agent_id, instance_id, .. } => {
            let missing = facts.missing();
            let server = facts.whole();
            vec![
                InstanceStarted { instance_id, agent_id, job_id, server, missing }.into(),
                AgentActivated { agent_id, job_id, instance_id }.into(),
            ]
        }
        Subject::Node { node_id } if job.job_type == DECOMMISSION_NODE => {
            vec![NodeDecommissioned { node_id, job_id }.into()]
        }
        Subject::Node { node_id } => vec![NodeActivated { node_id, job_id }.into()],
    }
}

/// What follows from a job's end without success.
pub(super) fn ended(job: &Job, outcome: Outcome) -> Vec<Event> {
    let job_id = job.id;
    match job.subject {
        Subject::Agent { agent_id, .. } => {
            vec![ProvisioningEnded { agent_id, job_id, outcome }.into()]
        }
        Subject::Node { node_id } if job.job_type == DECOMMISSION_NODE => {
            vec![NodeDecommissionEnded { node_id, job_id, outcome }.into()]
        }
        Subject::Node { node_id } => {
            vec![NodeBecameUnreachable { node_id, job_id, outcome }.into()]
        }
    }
}
