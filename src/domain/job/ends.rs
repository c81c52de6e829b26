//! What the end of a job means for what it changes: decided by the job, in the same commit.

use jiff::Timestamp;
use milepost_projections::job::Ending;
use milepost_projections::{Job, Subject};
use milepost_schemas::event::{
    AgentActivated, InstanceStarted, NodeActivated, NodeBecameUnreachable, NodeDecommissionEnded,
    NodeDecommissioned, Outcome, ProvisioningEnded, RunnerEndAwaited, RunnerEnded, Server,
};
use milepost_schemas::{Event, Position};

use super::{JobDecision, Limits, QueueState};
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

/// What is waited for before a cancelled job's node is free, and until when: its worker runs the
/// attempt itself, and takes its time to end it. A lease lasts longer than that.
pub(super) fn runner_awaited(
    job: &Job,
    now: Timestamp,
    limits: &Limits,
) -> Option<(Event, Timestamp)> {
    let node_id = job.subject.node_id()?;
    let attempt = job.attempt();
    (attempt.held && job.claim.is_some()).then(|| {
        let until = now + limits.lease;
        let (job_id, attempt) = (job.id, attempt.number);
        (RunnerEndAwaited { job_id, node_id, attempt, until }.into(), until)
    })
}

/// A worker says that nothing of its attempt runs any more.
pub(super) fn runner_ended(job: &Job, claim: Position, now: Timestamp) -> JobDecision {
    match job.ending {
        Some(ending) if ending.claim == claim => released(job, false, now),
        Some(_) | None => JobDecision::nothing(),
    }
}

/// Looks whether a worker has had its time to say so.
pub(super) fn runner_lapsed(job: &Job, now: Timestamp) -> JobDecision {
    match job.ending {
        Some(Ending { until, .. }) if until <= now => released(job, true, now),
        Some(_) | None => JobDecision::nothing(),
    }
}

fn released(job: &Job, lapsed: bool, now: Timestamp) -> JobDecision {
    let Some(node_id) = job.subject.node_id() else { return JobDecision::nothing() };
    let (job_id, attempt) = (job.id, job.attempt().number);
    let mut events = vec![RunnerEnded { job_id, node_id, attempt, lapsed }.into()];
    events.extend(ended(job, Outcome::Cancelled));
    JobDecision::applied(events, Some((QueueState::Ended, now)))
}
