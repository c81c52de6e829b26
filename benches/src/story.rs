//! The events of provisioning jobs as Milepost records them, many jobs at once, without a server:
//! what it takes to fill a log of a million events in seconds.

use std::collections::VecDeque;

use milepost_schemas::event::{
    AgentActivated, AgentCreated, HeartbeatRecorded, InstanceRequested, InstanceStarted,
    JobLogRecorded, JobQueued, JobSucceeded, ProvisioningRequested, ProvisioningStarted,
    ProvisioningStepRecorded, Server, TaskStarted, WorkflowDispatchRequested, WorkflowDispatched,
};
use milepost_schemas::{AgentId, Attempt, Event, InstanceId, JobId, Metadata, StreamId};
use serde_json::{Value, json};
use uuid::Uuid;

/// Jobs under way at once: their events stand interleaved in the log, as those of a busy day.
const JOBS_AT_ONCE: usize = 64;

/// Heartbeats of a job of eight minutes.
const HEARTBEATS: usize = 8;

/// Tasks of a playbook, and how many of them one event of printed lines holds.
const TASKS: u64 = 12;
const LINES_AN_EVENT: usize = 12;

/// One event with its place in its stream.
pub struct StoryEvent {
    /// Its stream.
    pub stream: StreamId,
    /// Its place there, from 1.
    pub version: i32,
    /// The fact.
    pub event: Event,
    /// The header.
    pub metadata: Metadata,
}

/// Events of jobs, interleaved, for ever.
pub struct Stories {
    made: u64,
    under_way: VecDeque<VecDeque<StoryEvent>>,
}

impl Stories {
    /// From the first job on.
    pub fn new() -> Self {
        Self { made: 0, under_way: VecDeque::new() }
    }
}

impl Default for Stories {
    fn default() -> Self {
        Self::new()
    }
}

impl Iterator for Stories {
    type Item = StoryEvent;

    fn next(&mut self) -> Option<StoryEvent> {
        while self.under_way.len() < JOBS_AT_ONCE {
            self.made += 1;
            self.under_way.push_back(story(self.made));
        }
        let mut story = self.under_way.pop_front()?;
        let event = story.pop_front();
        if !story.is_empty() {
            self.under_way.push_back(story);
        }
        event
    }
}

/// The events of one job, from its agent to the end.
fn story(number: u64) -> VecDeque<StoryEvent> {
    let id = |kind: u64| {
        // Time-ordered, as those the server draws: the first 48 bits count.
        let high = (0x0198_f3b2_0000 + number) << 16 | 0x7000 | kind;
        Uuid::from_u64_pair(
            high,
            0x8000_0000_0000_0000 | number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2,
        )
    };
    let (agent_id, job_id, instance_id) = (AgentId(id(1)), JobId(id(2)), InstanceId(id(3)));
    let (attempt, region) = (Attempt::FIRST, "eu-central".to_owned());
    let run = format!("{}", 17_351_905_213 + number);
    let agent = Some(agent_id);
    let lease_until = "2026-07-29T12:02:00Z".parse().expect("it is a time");
    let mut facts: Vec<(Event, Option<Value>)> = vec![
        (
            AgentCreated { agent_id, name: format!("agent-{number}"), region: region.clone() }
                .into(),
            None,
        ),
        (
            ProvisioningRequested { agent_id, job_id, instance_id, region: region.clone() }.into(),
            None,
        ),
        (
            JobQueued {
                job_id,
                job_type: "provision_agent".into(),
                agent_id: agent,
                node_id: None,
                instance_id: Some(instance_id),
                region: Some(region.clone()),
                max_attempts: 4,
                retry_of: None,
                reason: None,
            }
            .into(),
            None,
        ),
        (InstanceRequested { instance_id, agent_id, job_id, region }.into(), None),
        (
            WorkflowDispatchRequested {
                job_id,
                agent_id: agent,
                node_id: None,
                attempt,
                dispatcher: "github".into(),
                locked_by: "4242@127.0.0.1:8080".into(),
                lease_until,
            }
            .into(),
            None,
        ),
        (
            WorkflowDispatched {
                job_id,
                agent_id: agent,
                node_id: None,
                attempt,
                workflow_run_id: Some(run.clone()),
                run_url: Some(format!("https://github.com/example/agents/actions/runs/{run}")),
                held: false,
            }
            .into(),
            None,
        ),
        (
            ProvisioningStarted {
                job_id,
                agent_id: agent,
                node_id: None,
                attempt,
                workflow_run_id: Some(run.clone()),
            }
            .into(),
            Some(
                json!({"job_id": job_id, "status": "provisioning", "attempt": 1, "workflow_run_id": run}),
            ),
        ),
    ];
    for (index, step) in ["vm_created", "network_configured", "ansible_started", "ansible_complete"]
        .into_iter()
        .enumerate()
    {
        let metadata = json!({"server_id": "52103377", "location": "nbg1"});
        let body = json!({"job_id": job_id, "status": "provisioning", "step": step,
            "metadata": metadata, "attempt": 1, "workflow_run_id": run});
        let metadata = Some(metadata.into());
        let fact = ProvisioningStepRecorded {
            job_id,
            agent_id: agent,
            node_id: None,
            attempt,
            step: step.into(),
            metadata,
        };
        facts.push((fact.into(), Some(body)));
        for _ in 0..HEARTBEATS / 4 {
            let body = json!({"job_id": job_id, "type": "heartbeat", "attempt": 1});
            let fact = HeartbeatRecorded { job_id, agent_id: agent, node_id: None, attempt };
            facts.push((fact.into(), Some(body)));
        }
        if index == 2 {
            facts.extend(tasks(job_id, agent_id));
        }
    }
    let server = Server {
        server_id: "52103377".into(),
        server_ip: "203.0.113.7".into(),
        tailscale_ip: "100.64.0.7".into(),
    };
    let body = json!({"job_id": job_id, "status": "running", "attempt": 1, "server_id": "52103377",
        "server_ip": "203.0.113.7", "tailscale_ip": "100.64.0.7"});
    facts.push((
        JobSucceeded { job_id, agent_id: agent, node_id: None, attempt }.into(),
        Some(body.clone()),
    ));
    let server = Some(server);
    facts.push((
        InstanceStarted { instance_id, agent_id, job_id, server, missing: Vec::new() }.into(),
        Some(body.clone()),
    ));
    facts.push((AgentActivated { agent_id, job_id, instance_id }.into(), Some(body)));
    in_streams(facts, [agent_id.stream(), job_id.stream(), instance_id.stream()], job_id)
}

/// The tasks of a playbook, and what it prints: a fifth of a log's events, and half of its bytes.
fn tasks(job_id: JobId, agent_id: AgentId) -> Vec<(Event, Option<Value>)> {
    let (attempt, agent) = (Attempt::FIRST, Some(agent_id));
    let mut facts = Vec::new();
    for number in 1..=TASKS {
        let task = format!("docker : task number {number} of the role");
        let body = json!({"job_id": job_id, "type": "task", "number": number, "play": "agent", "task": task, "attempt": 1});
        let fact = TaskStarted {
            job_id,
            agent_id: agent,
            node_id: None,
            attempt,
            number,
            play: Some("agent".into()),
            task: task.clone(),
        };
        facts.push((fact.into(), Some(body)));
        if number % 4 == 0 {
            let first = (number / 4 - 1) * LINES_AN_EVENT as u64 + 1;
            let lines =
                vec![format!("changed: [203.0.113.7] => {{\"item\": \"{task}\"}}"); LINES_AN_EVENT];
            let printed = JobLogRecorded {
                job_id,
                agent_id: agent,
                node_id: None,
                attempt,
                from: first,
                first_row: first,
                heading: false,
                lost: 0,
                lines,
                ends: vec![first + LINES_AN_EVENT as u64 - 1],
            };
            facts.push((printed.into(), Some(Value::Null)));
        }
    }
    facts
}

fn in_streams(
    facts: Vec<(Event, Option<Value>)>,
    [agent, job, instance]: [StreamId; 3],
    job_id: JobId,
) -> VecDeque<StoryEvent> {
    let mut versions = [0; 4];
    let place = |(index, (event, body)): (usize, (Event, Option<Value>))| {
        let (stream, at) = match &event {
            Event::AgentCreated(_) | Event::ProvisioningRequested(_) | Event::AgentActivated(_) => {
                (agent, 0)
            }
            Event::InstanceRequested(_) | Event::InstanceStarted(_) => (instance, 1),
            Event::JobLogRecorded(_) => (job_id.log_stream(), 2),
            _ => (job, 3),
        };
        versions[at] += 1;
        StoryEvent { stream, version: versions[at], event, metadata: header(job_id, index, body) }
    };
    facts.into_iter().enumerate().map(place).collect()
}

/// A header as the server writes it: of a signed callback with the body that was signed (or its
/// hash, for printed lines), of an order without.
fn header(job_id: JobId, index: usize, body: Option<Value>) -> Metadata {
    let mut header = json!({
        "actor": "account:ada@example.com",
        "correlation_id": job_id,
        "causation_id": "request:0198f3b3-0c1d-7f66-9b58-7cb0ede17f06",
    });
    if let Some(body) = body {
        header["actor"] = json!("workflow:36e6d0bf");
        header["delivery_id"] = json!(format!("{}-1-{index}", job_id.0.as_u128() as u32));
        header["signature_form"] = json!("standard-webhooks");
        header["key_id"] = json!("36e6d0bf");
        header["attempt"] = json!(1);
        header["signature"] = json!("bgEHomiYx4rGZhhFajXOsigIyGOCPWOQLh3K01l9OM8=");
        header["signed_at"] = json!(1_756_461_600);
        if body.is_null() {
            header["body_sha256"] =
                json!("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08");
        } else {
            header["body"] = json!(body.to_string());
        }
    }
    serde_json::from_value(header).expect("it has all that a header must have")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn streams_have_no_gap_and_events_read_back() {
        let mut versions: HashMap<StreamId, i32> = HashMap::new();
        for it in Stories::new().take(10_000) {
            let version = versions.entry(it.stream).or_default();
            *version += 1;
            assert_eq!(it.version, *version);
            let body = serde_json::to_vec(&it.event).unwrap();
            let kind = it.event.event_type();
            assert_eq!(Event::decode(kind.code(), kind.schema_version(), &body).unwrap(), it.event);
        }
        assert!(versions.len() > 900, "{}", versions.len());
    }
}
