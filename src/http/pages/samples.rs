//! Every interesting state, told as the events that lead to it and folded like real ones.

mod ledger;

use jiff::{SignedDuration, Timestamp};
use milepost_projections::answers::{InstanceAnswer, JobAnswer, NodeAnswer};
use milepost_projections::job_log::rows;
use milepost_projections::upkeep::{Order, OrderKind};
use milepost_projections::usual::UsualDuration;
use milepost_projections::{Board, NodeStatus, Pause, Recorded};
use milepost_schemas::event::{
    AgentActivated, AgentCreated, HeartbeatRecorded, InstanceRequested, InstanceStarted,
    JobCancelled, JobFailed, JobLogRecorded, JobQueued, JobRetried, JobSucceeded, Outcome,
    ProvisioningEnded, ProvisioningRequested, ProvisioningStarted, ProvisioningStepRecorded, Retry,
    Server, Switch, TaskStarted, WorkflowDispatchFailed, WorkflowDispatchRequested,
    WorkflowDispatched,
};
use milepost_schemas::{
    AccountId, AgentId, Attempt, CallbackEvidence, Event, InstanceId, JobId, Metadata, NodeId,
    Position, Right, Role, SessionId, SignatureForm, StreamId, TokenId,
};
use serde_json::json;
use uuid::Uuid;

use crate::views::{
    Difference, GenerationStatus, PROJECTIONS, Phase, PoisonEvent, Progress, ProjectionStatus,
    RebuildStatus,
};

use crate::accounts::{AccountRow, SessionRow, TokenRow};
use crate::domain::access::READING;

use super::overview::LeftOut;
use super::{
    AccountPage, AccountsPage, AgentPage, EventList, EventRow, Frame, JobPage, LogView, LoginPage,
    NodesPage, OverviewPage, Place, ProblemPage, ProjectionsPage, Usual,
};

pub use ledger::{ledger_pages, pages_of_viewer};

/// The time of every sample.
pub fn now() -> Timestamp {
    "2026-07-29T12:04:31.2Z".parse().unwrap()
}

/// A history of 200 jobs: queued 0:02, creating 0:41, installing 1:30, configuring 0:55.
pub fn usual() -> Usual {
    [(2, 5), (41, 62), (90, 130), (55, 95), (1, 2)]
        .map(|(p50, p95)| Some(UsualDuration { p50_ms: p50 * 1000, p95_ms: p95 * 1000 }))
}

/// What stands around every sample.
pub fn frame(title: &str) -> Frame {
    Frame {
        title: title.into(),
        account: Some("night@example.org".into()),
        rights: Right::ALL.to_vec(),
        people: Vec::new(),
        epoch: 1_785_000_000,
        position: 18_240,
        now: now(),
        rehearsal: false,
        undoes: true,
        past: None,
    }
}

/// An error with characters that markup gives a meaning.
pub const MARKUP_ERROR: &str = "TASK [docker : add the repository] ***\n\
    fatal: [203.0.113.7]: UNREACHABLE! => {\"changed\": false, \"msg\": \"<script>alert('&')</script> \
    Failed to connect to the host via ssh: Connection timed out\", \"unreachable\": true}\n\n\
    PLAY RECAP ***\n203.0.113.7 : ok=11 changed=7 unreachable=1 failed=0\n";

/// One agent's events, folded as they come.
pub struct Story {
    /// The state they lead to.
    pub board: Board,
    /// Their rows, the oldest first.
    pub rows: Vec<EventRow>,
    id: u128,
    position: u64,
    attempt: Attempt,
}

impl Story {
    /// An agent is made, that many seconds before now.
    pub fn new(id: u128, name: &str, region: &str, ago: i64) -> Self {
        let mut story = Self {
            board: Board::default(),
            rows: Vec::new(),
            id,
            position: 18_000 + u64::try_from(id).unwrap() * 16,
            attempt: Attempt::FIRST,
        };
        let (name, region) = (name.into(), region.into());
        story.tell(ago, &Event::from(AgentCreated { agent_id: story.agent(), name, region }));
        story
    }

    fn uuid(&self, kind: u128) -> Uuid {
        Uuid::from_u128(0x0198_5a00_0000_7000_8000_0000_0000_0000 + (kind << 32) + self.id)
    }

    fn agent(&self) -> AgentId {
        AgentId(self.uuid(1))
    }

    fn job(&self) -> JobId {
        JobId(self.uuid(2))
    }

    fn instance(&self) -> InstanceId {
        InstanceId(self.uuid(3))
    }

    fn tell(&mut self, ago: i64, event: &Event) {
        self.position += 1;
        let at = now() - SignedDuration::from_secs(ago);
        let signed = matches!(
            event,
            Event::ProvisioningStarted(_)
                | Event::ProvisioningStepRecorded(_)
                | Event::HeartbeatRecorded(_)
                | Event::JobSucceeded(_)
                | Event::JobFailed(_)
        );
        let metadata = Metadata {
            actor: if signed { "workflow:5f1d2c3b" } else { "account:night@example.org" }.into(),
            correlation_id: self.uuid(2),
            causation_id: None,
            callback: signed.then(|| CallbackEvidence {
                delivery_id: Some(format!("run-4411-{}", self.position)),
                signature_form: SignatureForm::XSignature,
                key_id: "5f1d2c3b".into(),
                attempt: Some(self.attempt.0),
                signature: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
                    .into(),
                signed_at: None,
                body: Some("{\"status\":\"provisioning\"}".into()),
                body_sha256: None,
            }),
        };
        let recorded = Recorded {
            position: Position(self.position),
            stream: StreamId(self.uuid(2)),
            version: self.rows.len() as u32 + 1,
            recorded_at: at,
            delivery_id: None,
            event,
        };
        self.board.fold(&recorded);
        let place = Place {
            position: self.position,
            epoch: frame("").epoch,
            stream: recorded.stream.0,
            version: recorded.version,
            recorded_at: at,
        };
        let data = serde_json::to_value(event).unwrap();
        self.rows.push(EventRow::new(place, event.event_type().name(), &data, &metadata));
    }

    /// A server is ordered.
    pub fn ordered(mut self, ago: i64) -> Self {
        let (agent_id, job_id, instance_id) = (self.agent(), self.job(), self.instance());
        let region = self.board.agent.as_ref().unwrap().region.clone();
        self.tell(
            ago,
            &Event::from(ProvisioningRequested {
                agent_id,
                job_id,
                instance_id,
                region: region.clone(),
            }),
        );
        self.tell(
            ago,
            &Event::from(InstanceRequested {
                instance_id,
                agent_id,
                job_id,
                region: region.clone(),
            }),
        );
        self.tell(
            ago,
            &Event::from(JobQueued {
                job_id,
                job_type: "provision_agent".into(),
                agent_id: Some(agent_id),
                node_id: None,
                instance_id: Some(instance_id),
                region: Some(region),
                max_attempts: 4,
                retry_of: None,
                reason: None,
            }),
        );
        self
    }

    /// An attempt is claimed.
    pub fn claimed(mut self, ago: i64) -> Self {
        let (job_id, agent_id, attempt) = (self.job(), self.agent(), self.attempt);
        self.tell(
            ago,
            &Event::from(WorkflowDispatchRequested {
                job_id,
                agent_id: Some(agent_id),
                node_id: None,
                attempt,
                dispatcher: "github".into(),
                locked_by: "milepost-1".into(),
                lease_until: now(),
            }),
        );
        self
    }

    /// The dispatcher refuses it.
    pub fn refused(mut self, ago: i64) -> Self {
        let (job_id, agent_id, attempt) = (self.job(), self.agent(), self.attempt);
        let reason = "GitHub answered 401: Bad credentials".into();
        let run_after = now() + SignedDuration::from_secs(42);
        self.tell(
            ago,
            &Event::from(WorkflowDispatchFailed {
                job_id,
                agent_id: Some(agent_id),
                node_id: None,
                attempt,
                reason,
                run_after,
                unresolved: false,
            }),
        );
        self
    }

    /// The workflow starts.
    pub fn started(mut self, ago: i64) -> Self {
        let (job_id, agent_id, attempt) = (self.job(), self.agent(), self.attempt);
        let run = format!("{}", 4411 + attempt.0);
        let url = format!("https://github.example/runs/{run}");
        self.tell(
            ago + 1,
            &Event::from(WorkflowDispatched {
                job_id,
                agent_id: Some(agent_id),
                node_id: None,
                attempt,
                workflow_run_id: Some(run.clone()),
                run_url: Some(url),
                held: false,
            }),
        );
        self.tell(
            ago,
            &Event::from(ProvisioningStarted {
                job_id,
                agent_id: Some(agent_id),
                node_id: None,
                attempt,
                workflow_run_id: Some(run),
            }),
        );
        self
    }

    /// The workflow's tool begins a task.
    pub fn task(mut self, ago: i64, number: u64, task: &str) -> Self {
        let (job_id, agent_id, attempt) = (self.job(), self.agent(), self.attempt);
        let (play, task) = (Some("Configure the agent".into()), task.into());
        let event = TaskStarted {
            job_id,
            agent_id: Some(agent_id),
            node_id: None,
            attempt,
            number,
            play,
            task,
        };
        self.tell(ago, &event.into());
        self
    }

    /// The workflow posts a step.
    pub fn step(mut self, ago: i64, step: &str) -> Self {
        let (job_id, agent_id, attempt) = (self.job(), self.agent(), self.attempt);
        self.tell(
            ago,
            &Event::from(ProvisioningStepRecorded {
                job_id,
                agent_id: Some(agent_id),
                node_id: None,
                attempt,
                step: step.into(),
                metadata: Some(json!({ "duration": 41 }).into()),
            }),
        );
        self
    }

    /// The workflow says it lives.
    pub fn beat(mut self, ago: i64) -> Self {
        let (job_id, agent_id, attempt) = (self.job(), self.agent(), self.attempt);
        self.tell(
            ago,
            &Event::from(HeartbeatRecorded {
                job_id,
                agent_id: Some(agent_id),
                node_id: None,
                attempt,
            }),
        );
        self
    }

    /// The attempt fails; with `retry_in` another follows.
    pub fn failed(mut self, ago: i64, message: &str, retry_in: Option<i64>) -> Self {
        let (job_id, agent_id, attempt) = (self.job(), self.agent(), self.attempt);
        self.tell(
            ago,
            &Event::from(JobFailed {
                job_id,
                agent_id: Some(agent_id),
                node_id: None,
                attempt,
                error_code: "ANSIBLE_HOST_UNREACHABLE".into(),
                error_message: message.into(),
                truncated: message.len() >= 10 * 1024,
                failed_step: Some("configure".into()),
                step: Some("ansible_started".into()),
                server_id: Some("47110815".into()),
                retry: retry_in.map(|seconds| Retry {
                    attempt: attempt.next(),
                    run_after: now() + SignedDuration::from_secs(seconds),
                }),
            }),
        );
        if retry_in.is_none() {
            self.tell(
                ago,
                &Event::from(ProvisioningEnded { agent_id, job_id, outcome: Outcome::Failed }),
            );
        }
        self
    }

    /// The next attempt's time has come.
    pub fn retried(mut self, ago: i64) -> Self {
        self.attempt = self.attempt.next();
        let (job_id, agent_id, attempt) = (self.job(), self.agent(), self.attempt);
        self.tell(
            ago,
            &Event::from(JobRetried { job_id, agent_id: Some(agent_id), node_id: None, attempt }),
        );
        self
    }

    /// The server runs; the workflow names it or leaves it out.
    pub fn done(mut self, ago: i64, named: bool) -> Self {
        let (job_id, agent_id, instance_id) = (self.job(), self.agent(), self.instance());
        let attempt = self.attempt;
        let server = named.then(|| Server {
            server_id: "47110815".into(),
            server_ip: "203.0.113.7".into(),
            tailscale_ip: "100.101.102.103".into(),
        });
        let missing = if named {
            Vec::new()
        } else {
            ["server_id", "server_ip", "tailscale_ip"].map(String::from).to_vec()
        };
        self.tell(
            ago,
            &Event::from(JobSucceeded { job_id, agent_id: Some(agent_id), node_id: None, attempt }),
        );
        self.tell(
            ago,
            &Event::from(InstanceStarted { instance_id, agent_id, job_id, server, missing }),
        );
        self.tell(ago, &Event::from(AgentActivated { agent_id, job_id, instance_id }));
        self
    }

    /// Somebody ends the job.
    pub fn cancelled(mut self, ago: i64) -> Self {
        let (job_id, agent_id, attempt) = (self.job(), self.agent(), self.attempt);
        self.tell(
            ago,
            &Event::from(JobCancelled {
                job_id,
                agent_id: Some(agent_id),
                node_id: None,
                attempt,
                cancelled_by: "night@example.org".into(),
                reason: Some("wrong region".into()),
            }),
        );
        self.tell(
            ago,
            &Event::from(ProvisioningEnded { agent_id, job_id, outcome: Outcome::Cancelled }),
        );
        self
    }

    /// The agent as interfaces say it.
    pub fn answer(&self) -> InstanceAnswer {
        InstanceAnswer::of(&self.board, now()).unwrap()
    }

    /// Its job.
    pub fn job_answer(&self) -> Option<JobAnswer> {
        self.board.job.as_ref().map(JobAnswer::of)
    }

    fn events(&self) -> EventList {
        let rows = self.rows.iter().rev().cloned().collect();
        EventList { rows, older: true, before: None, and_at: String::new() }
    }

    /// What the runs of a job that has been heard of have printed.
    fn log(&self, job: &JobAnswer) -> LogView {
        let lines = [
            "PLAY [Configure the agent] *****",
            "",
            "TASK [docker : add the repository] *****",
            "\u{1b}[0;33mchanged: [203.0.113.7]\u{1b}[0m",
            "\u{1b}[0;31mfatal: <script>alert('&')</script>\u{1b}[0m",
        ];
        let event = JobLogRecorded {
            job_id: self.job(),
            agent_id: Some(self.agent()),
            node_id: None,
            attempt: self.attempt,
            from: 41,
            first_row: 1_203,
            heading: true,
            lost: 40,
            lines: lines.map(str::to_owned).to_vec(),
            ends: vec![1_201, 45],
        };
        let heard = job.started_at.is_some();
        let rows: Vec<_> = rows(&event, now()).filter(|_| heard).collect();
        LogView::new(job.id.to_string(), rows.last().map_or(0, |row| row.line), &rows)
    }

    /// Its page.
    pub fn agent_page(&self) -> AgentPage {
        let answer = self.answer();
        let job = self.job_answer();
        let log = job.as_ref().map(|job| self.log(job)).unwrap_or_default();
        let frame = frame(&answer.agent.name);
        AgentPage::new(frame, &answer, job.as_ref(), &usual(), log, self.events())
    }

    /// Its job's page.
    pub fn job_page(&self) -> Option<JobPage> {
        let name = self.answer().agent.name;
        let job = self.job_answer()?;
        let log = self.log(&job);
        Some(JobPage::new(frame(&name), name, &job, &usual(), log, self.events()))
    }
}

/// Every state, by name.
pub fn stories() -> Vec<(&'static str, Story)> {
    let long = format!("{MARKUP_ERROR}{}", "x".repeat(90) + "\n").repeat(40);
    let long = &long[long.len() - 10 * 1024..];
    let order = |id, name: &str, ago| Story::new(id, name, "eu-central", ago + 60).ordered(ago);
    let three_failed = |id, name: &str| {
        order(id, name, 2400)
            .claimed(2399)
            .started(2398)
            .step(2350, "vm_created")
            .failed(2250, "the mirror answered 503", Some(-2190))
            .retried(2190)
            .claimed(2189)
            .started(2188)
            .failed(2000, "the mirror answered 503", Some(-1700))
            .retried(1700)
            .claimed(1699)
            .started(1698)
            .step(1650, "vm_created")
            .step(1600, "ansible_started")
            .failed(1500, MARKUP_ERROR, Some(-600))
            .retried(600)
            .claimed(598)
            .started(597)
            .step(555, "vm_created")
            .step(500, "ansible_started")
    };
    vec![
        ("new", Story::new(1, "sune-dev-1", "us-east", 340)),
        ("queued", order(2, "ada-dev-4", 1)),
        ("waiting", order(3, "otto-prod-2", 130).claimed(129).refused(128)),
        ("dispatching", order(4, "noor-stage-1", 4).claimed(2)),
        ("creating", order(5, "liv-prod-3", 22).claimed(21).started(20)),
        (
            "installing",
            order(6, "mari-prod-7", 115).claimed(114).started(113).step(72, "vm_created").beat(13),
        ),
        (
            "configuring",
            order(7, "timo-prod-1", 190)
                .claimed(189)
                .started(188)
                .step(145, "vm_created")
                .step(33, "ansible_started"),
        ),
        (
            "starting",
            order(8, "ines-dev-2", 201)
                .claimed(200)
                .started(199)
                .step(158, "vm_created")
                .step(61, "ansible_started")
                .step(1, "ansible_complete"),
        ),
        (
            "running",
            order(9, "kira-prod-1", 273_790)
                .claimed(273_788)
                .started(273_787)
                .step(273_746, "vm_created")
                .step(273_655, "ansible_started")
                .step(273_601, "ansible_complete")
                .done(273_600, true),
        ),
        (
            "running-unnamed",
            order(10, "bela-prod-9", 7800).claimed(7799).started(7798).done(7509, false),
        ),
        (
            "retrying",
            order(11, "juno-prod-2", 400)
                .claimed(399)
                .started(398)
                .step(350, "vm_created")
                .step(262, "ansible_started")
                .failed(48, MARKUP_ERROR, Some(252)),
        ),
        ("failed", three_failed(12, "hugo-prod-5").failed(312, MARKUP_ERROR, None)),
        ("failed-long", three_failed(13, "vera-prod-6").failed(95, long, None)),
        (
            "second-attempt",
            order(14, "alma-prod-4", 500)
                .claimed(499)
                .started(498)
                .step(450, "vm_created")
                .failed(300, MARKUP_ERROR, Some(-240))
                .retried(240)
                .claimed(239)
                .started(238)
                .step(190, "vm_created")
                .step(101, "ansible_started")
                .task(12, 4, "docker : add the repository")
                .beat(7),
        ),
        (
            "overdue",
            order(15, "nils-stage-8", 320)
                .claimed(319)
                .started(318)
                .step(270, "vm_created")
                .beat(20),
        ),
        (
            "cancelled",
            order(16, "cleo-dev-7-with-a-name-that-goes-on-and-on", 900)
                .claimed(899)
                .started(898)
                .cancelled(860),
        ),
    ]
}

impl OverviewPage {
    /// All stories, or none.
    pub fn sample(empty: bool) -> Self {
        let answers: Vec<_> = stories().iter().map(|(_, story)| story.answer()).collect();
        let agents = if empty { &[] } else { answers.as_slice() };
        let callback_url = "https://milepost.example.org/api/webhooks/github".into();
        let frame = Frame { rehearsal: empty, ..frame("Agents") };
        Self::new(frame, agents, None, &usual(), None, callback_url)
    }

    /// As a viewer sees it.
    pub fn of_viewer() -> Self {
        let answers: Vec<_> = stories().iter().map(|(_, story)| story.answer()).collect();
        let left_out = Some(LeftOut::Settled { total: 4_711 });
        Self::new(viewer("Agents"), &answers, left_out, &usual(), None, String::new())
    }

    /// While somebody has stopped the queue.
    pub fn paused() -> Self {
        let pause = Pause {
            by: "account:night@example.org".into(),
            reason: "the provider has an <outage>".into(),
            since: now() - SignedDuration::from_mins(12),
        };
        Self::new(frame("Agents"), &[], None, &usual(), Some(pause), String::new())
    }
}

/// A node in every state, by name.
pub fn nodes() -> Vec<(&'static str, NodeAnswer)> {
    let job = |status, story: Story| {
        let mut job = story.job_answer().unwrap();
        (job.agent_id, job.instance_id, job.region) = (None, None, None);
        (job.node_id, job.job_type) = (Some(NodeId(job.id.0)), "provision_node".into());
        (status, Some(job))
    };
    let order = |id| Story::new(id, "web", "eu-central", 400).ordered(300);
    let states = [
        ("registered", (NodeStatus::Provisioning, None)),
        ("provisioning", job(NodeStatus::Provisioning, order(31).claimed(299).started(290))),
        ("active", job(NodeStatus::Active, order(32).claimed(299).started(290).done(60, true))),
        (
            "unreachable",
            job(
                NodeStatus::Unreachable,
                order(33).claimed(299).started(290).failed(60, MARKUP_ERROR, None),
            ),
        ),
        ("decommissioned", (NodeStatus::Decommissioned, None)),
    ];
    let node = |(index, (name, (status, job))): (usize, (&'static str, _))| {
        let node = NodeAnswer {
            id: NodeId(Uuid::from_u128(index as u128 + 1)),
            hostname: format!("web-{index}.example.org"),
            public_ip: format!("192.0.2.{index}"),
            ssh_user: "root".into(),
            ssh_port: 22,
            status,
            active_job_id: None,
            job,
            created_at: now() - SignedDuration::from_mins(30),
            updated_at: now() - SignedDuration::from_mins(20),
            position: Position(index as u64 + 1),
        };
        (name, node)
    };
    states.into_iter().enumerate().map(node).collect()
}

/// What somebody sees who may do no more than that.
pub fn viewer(title: &str) -> Frame {
    Frame { rights: vec![Right::See], ..frame(title) }
}

/// An agent's page as a viewer sees it.
pub fn agent_of_viewer() -> AgentPage {
    let (_, story) = stories().into_iter().find(|(name, _)| *name == "second-attempt").unwrap();
    let events =
        EventList { rows: story.rows.clone(), older: false, before: None, and_at: String::new() };
    let (answer, job) = (story.answer(), story.job_answer());
    let frame = viewer("mari");
    AgentPage::new(frame, &answer, job.as_ref(), &usual(), LogView::default(), events)
}

fn sessions() -> Vec<SessionRow> {
    let row = |id: u128, email: &str, ago: i64, user_agent: &str| SessionRow {
        id: SessionId(Uuid::from_u128(id)),
        account_id: AccountId(Uuid::from_u128(1)),
        email: email.into(),
        created_at: now() - SignedDuration::from_mins(ago),
        last_used_at: Some(now() - SignedDuration::from_mins(ago / 2)),
        expires_at: now() + SignedDuration::from_mins(1_440 - ago),
        address: Some("192.0.2.7".into()),
        user_agent: Some(user_agent.into()),
    };
    let browser = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    vec![row(1, "night@example.org", 12, browser), row(2, "ada@example.org", 700, "<script>curl")]
}

impl AccountPage {
    /// One's own account, just after a change.
    pub fn sample() -> Self {
        let (own, email) = (SessionId(Uuid::from_u128(1)), "night@example.org".into());
        let done = Some("The password was changed, and your other sessions have ended.");
        Self::new(frame("Your account"), email, Role::Admin, &sessions(), own, done)
    }
}

impl AccountsPage {
    /// As an admin sees it who has just made a token, or as an auditor does.
    pub fn sample(admin: bool) -> Self {
        let account = |id: u128, email: &str, role, disabled: bool| AccountRow {
            id: AccountId(Uuid::from_u128(id)),
            email: email.into(),
            role,
            disabled_at: disabled.then(|| now() - SignedDuration::from_hours(3)),
            created_at: now() - SignedDuration::from_hours(300),
        };
        let accounts = [
            account(1, "night@example.org", Role::Admin, false),
            account(
                2,
                "a-rather-long-address.of-somebody@department.example.org",
                Role::Auditor,
                false,
            ),
            account(3, "gone@example.org", Role::Operator, true),
        ];
        let token = |id: u128, name: &str, role, scopes: &[Right]| TokenRow {
            id: TokenId(Uuid::from_u128(id)),
            name: name.into(),
            role,
            scopes: scopes.to_vec(),
            created_at: now() - SignedDuration::from_hours(40),
            expires_at: (id == 2).then(|| now() + SignedDuration::from_hours(100)),
            last_used_at: (id == 1).then(|| now() - SignedDuration::from_mins(4)),
        };
        let tokens =
            [token(1, "deploy", Role::Operator, &[]), token(2, "graphs", Role::Admin, &READING)];
        let made =
            admin.then(|| ("deploy".to_owned(), format!("mp_{}", "0123456789abcdef".repeat(4))));
        let rights = if admin { Right::ALL.to_vec() } else { READING.to_vec() };
        let frame = Frame { rights, ..frame("Accounts") };
        let sessions = if admin { sessions() } else { Vec::new() };
        let own = Some(SessionId(Uuid::from_u128(1)));
        Self::new(frame, &accounts, &tokens, &sessions, own, made)
    }
}

impl NodesPage {
    /// All of them, or none.
    pub fn sample(empty: bool) -> Self {
        let nodes: Vec<_> = nodes().into_iter().map(|(_, node)| node).collect();
        Self::new(frame("Nodes"), if empty { &[] } else { &nodes })
    }
}

impl ProjectionsPage {
    /// All is well; or one view is being rebuilt, one waits for somebody, and one has stopped.
    pub fn sample(trouble: bool) -> Self {
        Self::seen(frame("Projections"), trouble)
    }

    /// The troubles as a viewer sees them.
    pub fn of_viewer() -> Self {
        Self::seen(viewer("Projections"), true)
    }

    fn seen(frame: Frame, trouble: bool) -> Self {
        let generation = |generation, state: &str| {
            let at = now();
            let state = state.to_owned();
            let position = Position(18_234);
            GenerationStatus {
                generation,
                version: 3,
                state,
                position,
                created_at: at,
                updated_at: at,
            }
        };
        let mut views: Vec<_> = PROJECTIONS
            .into_iter()
            .map(|(name, version)| ProjectionStatus {
                name,
                version,
                generation: Some(2),
                position: Position(18_234),
                head: Position(18_234),
                lag_events: 0,
                lag_seconds: 0.0,
                events_per_second: 212.5,
                poisoned: 0,
                poison: Vec::new(),
                skipped: Vec::new(),
                order: None,
                progress: None,
                generations: vec![
                    GenerationStatus { version, ..generation(2, "active") },
                    GenerationStatus { version, ..generation(1, "former") },
                ],
                ended: None,
                verified: None,
            })
            .collect();
        if trouble {
            let difference = Difference {
                position: Position(18_234),
                rows_old: 412,
                rows_new: 412,
                differing: 1,
                first: vec![Uuid::nil()],
                checksum_old: "9f86d081".repeat(8),
                checksum_new: "2c26b46b".repeat(8),
            };
            let phases = [(Phase::Folding, None), (Phase::Waiting, Some(difference))];
            for (view, (phase, difference)) in views.iter_mut().zip(phases) {
                view.lag_events = 12;
                view.lag_seconds = 0.04;
                view.order = Some(Order {
                    position: Position(18_100),
                    kind: OrderKind::Rebuild,
                    by: "account:ada@example.com".into(),
                    reason: Some("after the <repair>".into()),
                    since: now(),
                    switch: Switch::WhenEqual,
                });
                let progress = Progress {
                    phase,
                    events: 9_120,
                    target: 18_101,
                    elapsed_ms: 15,
                    events_per_second: 610_000.0,
                    remaining_ms: Some(15),
                    folded_ms: None,
                    written_ms: None,
                    difference,
                };
                view.progress = Some(RebuildStatus { generation: 3, progress });
            }
            views[2].poisoned = 1;
            views[2].poison = vec![PoisonEvent {
                position: Position(18_230),
                stream: StreamId(Uuid::nil()),
                error: "JobQueued v2 is newer than this version knows".into(),
                recorded_at: now(),
            }];
        }
        Self::new(frame, &views)
    }
}

impl LoginPage {
    /// The form, fresh or refused.
    pub fn sample(refused: bool) -> Self {
        let error = refused.then(|| "That e-mail and password do not belong together.".into());
        Self::new(Frame { account: None, ..frame("Log in") }, error, "/".into())
    }
}

impl ProblemPage {
    /// The page for a status.
    pub fn sample(status: u16) -> Self {
        Self::new(frame("Not done"), status, "The state of things does not allow this".into())
    }
}
