//! The JSON that programs and pages read: the same for an answer, a stream and a page.

use jiff::Timestamp;
use milepost_schemas::event::Resource;
use milepost_schemas::{AgentId, InstanceId, JobId, NodeId, Position};
use serde::Serialize;

use crate::board::InstanceStatus;
use crate::compensation::Compensation;
use crate::job::{AttemptState, Job, JobStatus, RunningTask};
use crate::steps::{COUNT, NODE_LABELS, Progress, Step};
use crate::{Agent, Board, NodeRow, NodeStatus, Subject};

/// An agent: `POST /api/agents`, `GET /api/agents/{id}`, a row of `GET /api/agents`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentAnswer {
    /// Its id.
    pub id: AgentId,
    /// What people call it.
    pub name: String,
    /// Where its servers are built by default.
    pub region: String,
    /// `new` before its first server runs, then `active`.
    pub status: &'static str,
    /// The job that is changing it now.
    pub active_job_id: Option<JobId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

impl AgentAnswer {
    /// The answer for one agent.
    pub fn of(agent: &Agent) -> Self {
        Self {
            id: agent.id,
            name: agent.name.clone(),
            region: agent.region.clone(),
            status: if agent.activated { "active" } else { "new" },
            active_job_id: agent.active_job,
            created_at: agent.created_at,
            updated_at: agent.updated_at,
        }
    }
}

/// A row of `GET /api/agents`: the agent, and where its current instance stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentRow {
    /// The agent.
    #[serde(flatten)]
    pub agent: AgentAnswer,
    /// Its current instance; `null` before the first order.
    pub instance: Option<InstanceBody>,
    /// The five steps.
    pub steps: [Step; COUNT],
    /// Seconds since the server runs; `null` while it does not.
    pub uptime: Option<i64>,
    /// The last event in it.
    pub position: Position,
}

impl From<InstanceAnswer> for AgentRow {
    fn from(answer: InstanceAnswer) -> Self {
        let InstanceAnswer { agent, instance, steps, uptime, position } = answer;
        Self { agent, instance, steps, uptime, position }
    }
}

/// The state of an agent's current instance: `GET /api/agents/{id}/instance`, and each message
/// of its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceAnswer {
    /// The agent.
    pub agent: AgentAnswer,
    /// Its current instance; `null` before the first order.
    pub instance: Option<InstanceBody>,
    /// The five steps.
    pub steps: [Step; COUNT],
    /// Seconds since the server runs; `null` while it does not.
    pub uptime: Option<i64>,
    /// The last event in it.
    pub position: Position,
}

/// The instance itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceBody {
    /// Its id.
    pub id: InstanceId,
    /// Its agent.
    pub agent_id: AgentId,
    /// The job that builds it.
    pub job_id: JobId,
    /// Where that job stands.
    pub job_status: JobStatus,
    /// Where the instance stands.
    pub status: InstanceStatus,
    /// The last known step the workflow posted; `null` at the ends.
    pub current_step: Option<String>,
    /// The failing tool's own words.
    pub error: Option<String>,
    /// Their stable code.
    pub error_code: Option<String>,
    /// Whether words before those were cut off.
    pub error_truncated: bool,
    /// The phase that failed, as the workflow says.
    pub failed_step: Option<String>,
    /// The attempt under way, or last.
    pub attempt: u32,
    /// Attempts in all.
    pub max_attempts: u32,
    /// When the next attempt begins, where one is scheduled.
    pub retry_at: Option<Timestamp>,
    /// Why it waits, in the dispatcher's words.
    pub waiting_because: Option<String>,
    /// The task its tool is at, or was at last.
    pub task: Option<TaskAnswer>,
    /// Who runs the attempt.
    pub dispatcher: Option<String>,
    /// The run that posts.
    pub workflow_run_id: Option<String>,
    /// Where a person can look at it.
    pub run_url: Option<String>,
    /// Where the server is built.
    pub region: String,
    /// The server's id at the cloud provider.
    pub server_id: Option<String>,
    /// Its public address.
    pub server_ip: Option<String>,
    /// Its address in the tailnet.
    pub tailscale_ip: Option<String>,
    /// The server facts a finished workflow left out.
    pub missing: Vec<String>,
    /// Since when it is known that the server is not there any more.
    pub server_missing_since: Option<Timestamp>,
    /// When it was ordered.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Since when its server runs.
    pub running_since: Option<Timestamp>,
}

impl InstanceAnswer {
    /// The answer for one row of the board; `None` for a row without an agent.
    pub fn of(board: &Board, now: Timestamp) -> Option<Self> {
        let agent = board.agent.as_ref()?;
        let running_since = board.instance.as_ref().and_then(|instance| instance.running_since);
        Some(Self {
            agent: AgentAnswer::of(agent),
            instance: InstanceBody::of(board),
            steps: match &board.job {
                Some(job) => job.attempt().progress.steps(),
                None => Progress::none(),
            },
            uptime: running_since.map(|since| (now.as_second() - since.as_second()).max(0)),
            position: board.position,
        })
    }
}

impl InstanceBody {
    fn of(board: &Board) -> Option<Self> {
        let (instance, job) = (board.instance.as_ref()?, board.job.as_ref()?);
        let attempt = job.attempt();
        let failure = attempt.failure.as_ref();
        let server = instance.server.as_ref();
        Some(Self {
            id: instance.id,
            agent_id: board.agent.as_ref()?.id,
            job_id: job.id,
            job_status: job.status,
            status: board.status()?,
            current_step: attempt.progress.current_step.clone(),
            error: failure.map(|failure| failure.message.clone()),
            error_code: failure.map(|failure| failure.code.clone()),
            error_truncated: failure.is_some_and(|failure| failure.truncated),
            failed_step: failure.and_then(|failure| failure.failed_step.clone()),
            attempt: attempt.number.0,
            max_attempts: job.max_attempts,
            retry_at: attempt.retry_at,
            waiting_because: job.waiting_because.clone(),
            task: attempt.task.as_ref().map(TaskAnswer::of),
            dispatcher: attempt.dispatcher.clone(),
            workflow_run_id: attempt.workflow_run_id.clone(),
            run_url: attempt.run_url.clone(),
            region: instance.region.clone(),
            server_id: server.map(|server| server.server_id.clone()),
            server_ip: server.map(|server| server.server_ip.clone()),
            tailscale_ip: server.map(|server| server.tailscale_ip.clone()),
            missing: instance.missing.clone(),
            server_missing_since: instance.server_missing_since,
            created_at: instance.created_at,
            updated_at: job.updated_at,
            running_since: instance.running_since,
        })
    }
}

/// A node: `POST /api/nodes`, `GET /api/nodes/{id}`, a row of `GET /api/nodes`, and each `node`
/// message of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeAnswer {
    /// Its id.
    pub id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Its public address.
    pub public_ip: String,
    /// Whom to log in as.
    pub ssh_user: String,
    /// Where its SSH server listens.
    pub ssh_port: u16,
    /// Where it stands.
    pub status: NodeStatus,
    /// The job that is changing it now.
    pub active_job_id: Option<JobId>,
    /// Its latest job, ended or not.
    pub job: Option<JobAnswer>,
    /// When it was made known.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The last event in it.
    pub position: Position,
}

impl NodeAnswer {
    /// The answer for one node; `None` for a row without one.
    pub fn of(row: &NodeRow) -> Option<Self> {
        let node = row.node.as_ref()?;
        Some(Self {
            id: node.id,
            hostname: node.hostname.clone(),
            public_ip: node.public_ip.clone(),
            ssh_user: node.ssh_user.clone(),
            ssh_port: node.ssh_port,
            status: node.status,
            active_job_id: node.active_job,
            job: row.job.as_ref().map(JobAnswer::of),
            created_at: node.created_at,
            updated_at: node.updated_at,
            position: row.position,
        })
    }
}

/// A job with its timeline: `GET /api/jobs/{id}`, a row of `GET /api/jobs`, and each message of
/// a job's stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobAnswer {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub job_type: String,
    /// Where it stands.
    pub status: JobStatus,
    /// The agent it changes; `null` where it changes a node.
    pub agent_id: Option<AgentId>,
    /// The server it builds for that agent.
    pub instance_id: Option<InstanceId>,
    /// Always `null`: no job changes a site.
    pub site_id: Option<String>,
    /// Always `null`: no job changes an environment.
    pub environment_id: Option<String>,
    /// The node it changes; `null` where it changes an agent.
    pub node_id: Option<NodeId>,
    /// Where it builds that server.
    pub region: Option<String>,
    /// Its place in the queue; the highest is claimed first.
    pub priority: i16,
    /// The attempt under way, to come, or last.
    pub attempt_count: u32,
    /// Attempts in all.
    pub max_attempts: u32,
    /// Not dispatched before this.
    pub run_after: Option<Timestamp>,
    /// When its claim was taken.
    pub locked_at: Option<Timestamp>,
    /// The process that holds it.
    pub locked_by: Option<String>,
    /// Why it waits, in the dispatcher's words.
    pub waiting_because: Option<String>,
    /// When it was first heard of.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What failed last.
    pub error_code: Option<String>,
    /// In the tool's own words.
    pub error_message: Option<String>,
    /// Whether words before those were cut off.
    pub error_truncated: bool,
    /// The ended job it repeats by hand.
    pub retry_of: Option<JobId>,
    /// Why it repeats that one, where somebody said.
    pub retry_reason: Option<String>,
    /// Who ended it.
    pub cancelled_by: Option<String>,
    /// When it was queued.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The last event in it.
    pub position: Position,
    /// Every attempt, in order.
    pub timeline: Vec<AttemptAnswer>,
}

/// One attempt in a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttemptAnswer {
    /// Its number, from 1.
    pub attempt: u32,
    /// `queued`, `dispatching`, `running`, `succeeded`, `failed` or `cancelled`.
    pub status: &'static str,
    /// Who runs it.
    pub dispatcher: Option<String>,
    /// The run that posts.
    pub workflow_run_id: Option<String>,
    /// Where a person can look at it.
    pub run_url: Option<String>,
    /// When it was first heard of.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The last known step the workflow posted.
    pub current_step: Option<String>,
    /// What failed.
    pub error_code: Option<String>,
    /// In the tool's own words.
    pub error_message: Option<String>,
    /// The phase that failed.
    pub failed_step: Option<String>,
    /// A server that may be left over.
    pub server_id: Option<String>,
    /// When the next attempt begins.
    pub retry_at: Option<Timestamp>,
    /// The task its tool is at, or was at last.
    pub task: Option<TaskAnswer>,
    /// The undoing of what it made; `null` where nothing is to be undone.
    pub compensation: Option<CompensationAnswer>,
    /// The five steps.
    pub steps: [Step; COUNT],
}

/// The undoing of what an attempt made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CompensationAnswer {
    /// `waiting` for its first try, `failed` where a try left something, `awaits_run` where
    /// nothing was left but its run goes on, or `completed`.
    pub status: &'static str,
    /// How often it was tried.
    pub tries: u32,
    /// When it is tried next; `null` once it is completed.
    pub next_try_at: Option<Timestamp>,
    /// When it was completed.
    pub completed_at: Option<Timestamp>,
    /// Each thing, and what came of it last.
    pub resources: Vec<UndoAnswer>,
}

/// One thing that an attempt made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UndoAnswer {
    /// `server`, `device` or `key`.
    pub resource: &'static str,
    /// Which; `null` where nobody could be asked.
    pub id: Option<String>,
    /// `waiting`, `removed`, `already_gone`, `kept` or `failed`.
    pub outcome: &'static str,
    /// Why.
    pub detail: Option<String>,
}

impl CompensationAnswer {
    fn of(undoing: &Compensation, run_over: bool) -> Self {
        let open = undoing.is_open();
        let status = match (open, undoing.next_try_at) {
            (false, _) => "completed",
            (true, Some(_)) if undoing.awaits_run => "awaits_run",
            (true, None) => "waiting",
            (true, Some(_)) => "failed",
        };
        let tried = undoing.steps.iter().map(|step| UndoAnswer {
            resource: step.resource.as_str(),
            id: step.resource_id.clone(),
            outcome: step.outcome.as_str(),
            detail: step.detail.clone(),
        });
        let untried = undoing.server_ids.iter().filter(|id| open && !undoing.has_tried(id));
        let waiting = untried.map(|id| UndoAnswer {
            resource: Resource::Server.as_str(),
            id: Some(id.clone()),
            outcome: "waiting",
            detail: None,
        });
        Self {
            status,
            tries: undoing.tries,
            // As soon as may be, once the run is over.
            next_try_at: Some(undoing.due_at(run_over))
                .filter(|due_at| open && *due_at > Timestamp::MIN),
            completed_at: undoing.completed_at,
            resources: waiting.chain(tried).collect(),
        }
    }
}

/// A task of an attempt's tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskAnswer {
    /// Its number within the attempt, from 1.
    pub number: u64,
    /// The play it belongs to.
    pub play: Option<String>,
    /// Its name.
    pub task: String,
    /// When it began.
    pub started_at: Timestamp,
}

impl TaskAnswer {
    fn of(task: &RunningTask) -> Self {
        let RunningTask { number, play, task, started_at, position: _ } = task;
        Self { number: *number, play: play.clone(), task: task.clone(), started_at: *started_at }
    }
}

impl JobAnswer {
    /// The answer for one job.
    pub fn of(job: &Job) -> Self {
        let failure = job.failure();
        Self {
            id: job.id,
            job_type: job.job_type.clone(),
            status: job.status,
            agent_id: job.subject.agent_id(),
            instance_id: job.subject.instance_id(),
            site_id: None,
            environment_id: None,
            node_id: job.subject.node_id(),
            region: job.subject.region().map(str::to_owned),
            priority: job.priority,
            attempt_count: job.attempt().number.0,
            max_attempts: job.max_attempts,
            run_after: job.run_after,
            locked_at: job.locked_at,
            locked_by: job.locked_by.clone(),
            waiting_because: job.waiting_because.clone(),
            started_at: job.started_at,
            finished_at: job.finished_at,
            error_code: failure.map(|failure| failure.code.clone()),
            error_message: failure.map(|failure| failure.message.clone()),
            error_truncated: failure.is_some_and(|failure| failure.truncated),
            retry_of: job.retry_of,
            retry_reason: job.reason.clone(),
            cancelled_by: job.cancelled_by.clone(),
            created_at: job.created_at,
            updated_at: job.updated_at,
            position: job.position,
            timeline: job.attempts.iter().map(|attempt| AttemptAnswer::of(job, attempt)).collect(),
        }
    }
}

impl AttemptAnswer {
    fn of(job: &Job, attempt: &AttemptState) -> Self {
        let failure = attempt.failure.as_ref();
        Self {
            attempt: attempt.number.0,
            status: attempt_status(job, attempt),
            dispatcher: attempt.dispatcher.clone(),
            workflow_run_id: attempt.workflow_run_id.clone(),
            run_url: attempt.run_url.clone(),
            started_at: attempt.started_at,
            finished_at: attempt.ended_at,
            current_step: attempt.progress.current_step.clone(),
            error_code: failure.map(|failure| failure.code.clone()),
            error_message: failure.map(|failure| failure.message.clone()),
            failed_step: failure.and_then(|failure| failure.failed_step.clone()),
            server_id: failure.and_then(|failure| failure.server_id.clone()),
            retry_at: attempt.retry_at,
            task: attempt.task.as_ref().map(TaskAnswer::of),
            compensation: attempt
                .compensation
                .as_ref()
                .map(|it| CompensationAnswer::of(it, attempt.run.is_over())),
            steps: labelled(job, attempt.progress.steps()),
        }
    }
}

/// The steps in the words of what the job changes.
fn labelled(job: &Job, mut steps: [Step; COUNT]) -> [Step; COUNT] {
    if let Subject::Node { .. } = job.subject {
        for (step, label) in steps.iter_mut().zip(NODE_LABELS) {
            step.label = label;
        }
    }
    steps
}

/// An attempt that is not the last one has failed; the last one stands where its job stands.
fn attempt_status(job: &Job, attempt: &AttemptState) -> &'static str {
    if attempt.number != job.attempt().number {
        return "failed";
    }
    match job.status {
        JobStatus::Queued => "queued",
        JobStatus::Dispatching => "dispatching",
        JobStatus::Running => "running",
        JobStatus::Succeeded => "succeeded",
        JobStatus::RetryScheduled | JobStatus::Failed => "failed",
        JobStatus::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use milepost_schemas::Event;

    use super::*;
    use crate::tests::{
        at, cancelled, created, failed, fold_board, ordered, requested, retried, server, started,
        step, succeeded,
    };

    /// The answer after an order and what followed.
    fn after(events: impl IntoIterator<Item = Event>) -> InstanceAnswer {
        let begun = std::iter::once(created()).chain(ordered());
        InstanceAnswer::of(&fold_board(begun.chain(events)), at(3_600)).unwrap()
    }

    /// A started attempt that told these steps.
    fn told(steps: &[&str]) -> Vec<Event> {
        let steps = steps.iter().map(|it| step(1, it));
        [requested(1), started(1)].into_iter().chain(steps).collect()
    }

    /// Status, current step, and the first letters of the five steps' statuses.
    fn row(answer: &InstanceAnswer) -> (&'static str, Option<&str>, String) {
        let instance = answer.instance.as_ref().unwrap();
        let steps = answer.steps.iter().map(|step| &step.status.as_str()[..1]).collect();
        (instance.status.as_str(), instance.current_step.as_deref(), steps)
    }

    #[test]
    fn the_five_steps_have_their_ids_and_labels() {
        let steps = after([]).steps.map(|step| (step.id, step.label));
        let expected = [
            ("queued", "Queued"),
            ("creating", "Creating Server"),
            ("installing", "Installing Dependencies"),
            ("configuring", "Configuring Agent"),
            ("running", "Running"),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn each_status_and_current_step_shows_its_five_steps() {
        for (events, expected) in [
            (vec![], ("pending", None, "apppp")),
            (vec![requested(1)], ("pending", None, "apppp")),
            (told(&[]), ("provisioning", None, "cappp")),
            (told(&["new"]), ("provisioning", None, "cappp")),
            (vec![requested(1), step(1, "new")], ("provisioning", None, "cappp")),
            (told(&["vm_created"]), ("provisioning", Some("vm_created"), "ccapp")),
            (told(&["vm_created", "new"]), ("provisioning", Some("vm_created"), "ccapp")),
            (told(&["network_configured"]), ("provisioning", Some("network_configured"), "ccapp")),
            (told(&["ansible_started"]), ("provisioning", Some("ansible_started"), "cccap")),
            (told(&["ansible_complete"]), ("provisioning", Some("ansible_complete"), "cccca")),
            (
                told(&["ansible_started", "vm_created"]),
                ("provisioning", Some("ansible_started"), "cccap"),
            ),
        ] {
            let expected = (expected.0, expected.1, expected.2.to_owned());
            assert_eq!(row(&after(events.clone())), expected, "{events:?}");
        }
    }

    #[test]
    fn a_running_instance_has_all_five_behind_it_and_no_current_step() {
        for steps in [&[][..], &["vm_created"], &["ansible_complete"]] {
            let answer = after(told(steps).into_iter().chain(succeeded(Some(server()))));
            assert_eq!(row(&answer), ("running", None, "ccccc".to_owned()));
            assert_eq!(answer.agent.status, "active");
            let instance = answer.instance.unwrap();
            assert_eq!(instance.server_ip.as_deref(), Some("192.0.2.1"));
            assert_eq!(answer.uptime, Some(3_600 - instance.running_since.unwrap().as_second()));
        }
    }

    #[test]
    fn a_running_instance_without_its_facts_says_what_is_missing() {
        let instance = after(told(&[]).into_iter().chain(succeeded(None))).instance.unwrap();
        assert_eq!((instance.server_id, instance.missing), (None, vec!["server_ip".to_owned()]));
    }

    #[test]
    fn each_failure_stands_where_the_table_puts_it() {
        for (steps, failed_step, step, expected) in [
            // The last step known goes before what the workflow says failed.
            (&["vm_created"][..], Some("provision"), None, "ccepp"),
            (&["network_configured"], None, None, "ccepp"),
            (&["ansible_started"], Some("configure"), None, "cccep"),
            (&["ansible_started", "vm_created"], Some("provision"), None, "cccep"),
            (&["ansible_complete"], Some("configure"), None, "cccce"),
            // The failure itself may name it.
            (&[], Some("configure"), Some("ansible_started"), "cccep"),
            (&["vm_created"], None, Some("ansible_complete"), "cccce"),
            (&["ansible_started"], None, Some("vm_created"), "cccep"),
            // No step known: where the workflow says.
            (&[], Some("provision"), None, "ceppp"),
            (&[], Some("configure"), None, "cccep"),
            (&[], Some("configure_agent"), Some("new"), "cccep"),
            (&["new"], Some("provision"), None, "ceppp"),
            // Nothing says where.
            (&[], Some("elsewhere"), None, "ccepp"),
            (&[], None, None, "ccepp"),
            (&["new"], None, None, "ccepp"),
        ] {
            for retry in [true, false] {
                let mut events = told(steps);
                events.push(failed(failed_step, step, retry));
                let (status, _, shown) = row(&after(events));
                assert_eq!(status, "failed");
                assert_eq!(shown, expected, "{steps:?} {failed_step:?} {step:?}");
            }
        }
    }

    #[test]
    fn while_a_retry_is_scheduled_the_failed_attempt_is_shown_with_the_time_of_the_next() {
        let mut events = told(&["ansible_started"]);
        events.push(failed(Some("configure"), None, true));
        let answer = after(events.clone());
        assert_eq!(row(&answer), ("failed", Some("ansible_started"), "cccep".to_owned()));
        let instance = answer.instance.unwrap();
        assert_eq!((instance.attempt, instance.retry_at), (1, Some(at(500))));
        assert_eq!(instance.error.as_deref(), Some("no route to host"));

        events.push(retried());
        let answer = after(events);
        assert_eq!(row(&answer), ("pending", None, "apppp".to_owned()));
        let instance = answer.instance.unwrap();
        assert_eq!((instance.attempt, instance.retry_at, instance.error), (2, None, None));
    }

    #[test]
    fn a_cancelled_job_stops_where_it_stood() {
        for (events, expected) in
            [(vec![], "epppp"), (told(&[]), "ceppp"), (told(&["ansible_started"]), "cccep")]
        {
            let answer = after(events.into_iter().chain([cancelled()]));
            let (status, _, steps) = row(&answer);
            assert_eq!((status, steps.as_str()), ("failed", expected));
            assert_eq!(answer.instance.unwrap().error_code.as_deref(), Some("CANCELLED"));
        }
    }

    #[test]
    fn an_agent_without_an_order_has_no_instance_and_five_pending_steps() {
        let answer = InstanceAnswer::of(&fold_board([created()]), at(0)).unwrap();
        assert_eq!((answer.instance, answer.agent.status), (None, "new"));
        assert!(answer.steps.iter().all(|step| step.status.as_str() == "pending"));
        assert!(InstanceAnswer::of(&fold_board([]), at(0)).is_none());
    }

    #[test]
    fn a_timeline_tells_every_attempt_with_its_own_steps_and_error() {
        let mut events = told(&["ansible_started"]);
        events.extend([failed(Some("configure"), None, true), retried(), requested(2), started(2)]);
        let board = fold_board(std::iter::once(created()).chain(ordered()).chain(events));
        let answer = JobAnswer::of(board.job.as_ref().unwrap());
        let told =
            answer.timeline.iter().map(|it| (it.attempt, it.status, it.error_code.is_some()));
        assert_eq!(told.collect::<Vec<_>>(), [(1, "failed", true), (2, "running", false)]);
        assert_eq!((answer.attempt_count, answer.max_attempts, answer.error_code), (2, 4, None));
    }
}
