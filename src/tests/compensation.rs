//! What attempts leave behind: undone, found, and never another's or a healthy server's.

use std::process::Output as Ended;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use milepost::app::App;
use milepost::clients::{Patience, Time};
use milepost::config::{CloudAccounts, Config, ServerShape};
use milepost::domain::orphan::{Removal, Standing};
use milepost::domain::{AgentCommand, AttemptId, JobCommand, ServerIdentity};
use milepost::work::compensation;
use milepost::work::reconcile::{self, MissingServer, Survey};
use milepost::work::servers::{Output, ServerOrder, Servers};
use milepost::{execute, views};
use milepost_projections::{Compensation, Job, JobStatus};
use milepost_schemas::event::{OrphanReason, UndoOutcome};
use milepost_schemas::{AgentId, Attempt, Callback, InstanceId, JobId, Metadata, Position};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::doubles::github::{self, Github};
use crate::doubles::hetzner::refusal;
use crate::doubles::{Clouds, Fault, FlyingTime, Reply};
use crate::harness::{Client, MASTER_KEY, MILEPOST, Options, Server, database, wait_until};

/// Random stories.
const STORIES: u64 = 60;

/// What may happen in one of them.
const ACTS: u64 = 12;

/// A log, both doubles, and a worker's way to them.
struct World {
    app: Arc<App>,
    clouds: Clouds,
    servers: Servers,
    url: String,
}

/// An agent and the job that builds its server.
#[derive(Clone, Copy)]
struct Order {
    agent: AgentId,
    job: JobId,
}

async fn open(url: &str) -> Arc<App> {
    let config = Config::from_env(|name| match name {
        "DATABASE_URL" => Some(url.to_owned()),
        "MILEPOST_PUBLIC_URL" => Some("http://127.0.0.1:1".to_owned()),
        "MILEPOST_CALLBACK_SECRETS" => Some("of no importance".to_owned()),
        "MILEPOST_MASTER_KEY" => Some(MASTER_KEY.to_owned()),
        "MILEPOST_RETRY_DELAYS" => Some(["0.001"; 3].join(",")),
        "MILEPOST_CLEAN_UP" => Some("0.001".to_owned()),
        _ => None,
    });
    App::open(config.unwrap(), CancellationToken::new()).await.unwrap()
}

fn servers(clouds: &Clouds) -> Servers {
    let patience = Patience { tries_max: 2, ..Patience::default() };
    servers_in(clouds, Arc::new(FlyingTime::default()), patience)
}

fn servers_in(clouds: &Clouds, time: Arc<dyn Time>, patience: Patience) -> Servers {
    let env = clouds.env();
    let get = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
    Servers::new(&CloudAccounts::from_env(get).unwrap(), time, patience)
}

fn metadata(job: JobId) -> Metadata {
    let actor = "system:worker".to_owned();
    Metadata { actor, correlation_id: job.0, causation_id: None, callback: None }
}

impl World {
    async fn new() -> Self {
        let url = database().await;
        let (app, clouds) = (open(&url).await, Clouds::start().await);
        views::start(Arc::clone(&app));
        let servers = servers(&clouds);
        Self { app, clouds, servers, url }
    }

    async fn order(&self) -> Order {
        let (agent, job) = (AgentId(self.app.clock.id()), JobId(self.app.clock.id()));
        let (name, region) = (format!("agent-{}", agent.0.simple()), None);
        let create = AgentCommand::Create { agent_id: agent, name, region };
        execute::to_agent(&self.app, agent, create, metadata(job)).await.unwrap();
        let order = self.provision(agent).await;
        self.claim(order).await;
        order
    }

    /// A job of the agent's that waits.
    async fn provision(&self, agent: AgentId) -> Order {
        let job = JobId(self.app.clock.id());
        let provision = AgentCommand::Provision {
            job_id: job,
            instance_id: InstanceId(self.app.clock.id()),
            region: None,
            max_attempts: 4,
            retry_of: None,
            reason: None,
        };
        execute::to_agent(&self.app, agent, provision, metadata(job)).await.unwrap();
        Order { agent, job }
    }

    async fn give(&self, order: Order, command: JobCommand) -> bool {
        execute::to_job(&self.app, order.job, command, metadata(order.job)).await.is_ok()
    }

    async fn claim(&self, order: Order) {
        let locked_by = "worker".to_owned();
        let command = JobCommand::Claim { dispatcher: "github", locked_by };
        assert!(self.give(order, command).await);
    }

    async fn cancel(&self, order: Order) -> bool {
        let command = JobCommand::Cancel { by: "account:ada@example.com".into(), reason: None };
        self.give(order, command).await
    }

    async fn hear(&self, order: Order, mut body: Value) {
        body["job_id"] = json!(order.job);
        body["delivery_id"] = json!(self.app.clock.id());
        let callback = Callback::parse(body.to_string().as_bytes()).unwrap();
        assert!(self.give(order, JobCommand::Record(Arc::new(callback))).await);
    }

    /// The server of an attempt is made; its id.
    async fn build(&self, order: Order, attempt: u32) -> String {
        let attempt = AttemptId { job_id: order.job, attempt: Attempt(attempt) };
        let new = ServerOrder {
            identity: ServerIdentity { agent_id: order.agent, attempt },
            region: "eu-central".to_owned(),
            shape: ServerShape::default(),
            enrol_timeout: Duration::from_mins(10),
        };
        let mut id = None;
        let tell = |output| {
            if let Output::ServerId(known) = output {
                id = Some(known.to_string());
            }
            Ok(())
        };
        self.servers.create(&new, tell).await.unwrap();
        id.unwrap()
    }

    /// An agent that runs, and its server.
    async fn running(&self) -> (Order, String) {
        let order = self.order().await;
        let id = self.build(order, 1).await;
        self.hear(order, done(&id, 1)).await;
        (order, id)
    }

    async fn job(&self, order: Order) -> Job {
        execute::read_job(&self.app.log, order.job).await.unwrap().unwrap()
    }

    /// The next attempt begins.
    async fn retry(&self, order: Order) {
        wait_until("the retry is due", || async {
            assert!(self.give(order, JobCommand::Tick).await);
            (self.job(order).await.status == JobStatus::Queued).then_some(())
        })
        .await;
        self.claim(order).await;
    }

    async fn round(&self) {
        let head = self.app.log.feed().head();
        compensation::round(&self.app, &self.servers, head).await.unwrap();
    }

    /// The undoing of the first attempt is due.
    async fn due(&self, order: Order) {
        wait_until("it is due", || async {
            let attempt = self.job(order).await.attempts[0].clone();
            let due_at = attempt.compensation.unwrap().due_at(attempt.run.is_over());
            (due_at <= self.app.clock.now()).then_some(())
        })
        .await;
    }

    /// Undoes until nothing is due; what came of an attempt.
    async fn undone(&self, order: Order, attempt: u32) -> Compensation {
        let of = |job: Job| job.attempts[attempt as usize - 1].compensation.clone();
        wait_until("what it made is undone", || async {
            self.round().await;
            of(self.job(order).await).filter(|undoing| !undoing.is_open())
        })
        .await
    }

    async fn survey(&self) -> Survey {
        let (later, head) = (self.later(), self.app.log.feed().head());
        reconcile::survey(&self.app, &self.servers, later, head).await.unwrap()
    }

    /// When nothing is young any more.
    fn later(&self) -> Timestamp {
        self.app.clock.now() + SignedDuration::from_hours(1)
    }

    fn server_ids(&self) -> Vec<String> {
        self.clouds.hetzner.state().servers.keys().map(ToString::to_string).collect()
    }

    async fn count(&self, kind: &str) -> usize {
        let sql = crate::harness::sql(&self.url).await;
        let code = milepost_schemas::EventType::from_name(kind).unwrap().code();
        let count = sql.query_one("SELECT count(*) FROM event WHERE type = $1", &[&code]).await;
        usize::try_from(count.unwrap().get::<_, i64>(0)).unwrap()
    }

    async fn doctor(&self, more: &[&str]) -> Ended {
        let mut command = Command::new(MILEPOST);
        command.arg("doctor").args(more).env_clear().envs(self.clouds.env());
        command.env("MILEPOST_MASTER_KEY", MASTER_KEY);
        command.env("DATABASE_URL", &self.url).output().await.unwrap()
    }
}

fn done(server: &str, attempt: u32) -> Value {
    json!({
        "status": "running", "attempt": attempt, "server_id": server,
        "server_ip": "192.0.2.1", "tailscale_ip": "100.64.0.1",
    })
}

fn failed(server: Option<&str>, attempt: u32) -> Value {
    json!({"status": "failed", "attempt": attempt, "error": "words", "server_id": server})
}

fn outcomes(undoing: &Compensation) -> Vec<(&str, Option<&str>, UndoOutcome)> {
    let steps = undoing.steps.iter();
    steps.map(|it| (it.resource.as_str(), it.resource_id.as_deref(), it.outcome)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempts_server_and_device_go_and_those_of_others_stay() {
    let world = World::new().await;
    let (_, healthy) = world.running().await;
    let others = world.clouds.leftovers();
    let order = world.order().await;
    let id = world.build(order, 1).await;
    world.hear(order, failed(None, 1)).await;
    let undoing = world.undone(order, 1).await;
    assert_eq!(outcomes(&undoing)[0], ("server", Some(id.as_str()), UndoOutcome::Removed));
    assert_eq!(outcomes(&undoing)[1].0, "device");
    assert_eq!(world.clouds.leftovers(), others);
    assert_eq!(world.server_ids(), [healthy]);
    // The next attempt's server is its own.
    world.retry(order).await;
    let next = world.build(order, 2).await;
    world.hear(order, failed(Some(&id), 1)).await;
    world.round().await;
    world.hear(order, done(&next, 2)).await;
    world.round().await;
    assert!(world.server_ids().contains(&next));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_runs_server_goes_and_so_does_that_of_a_late_running() {
    let world = World::new().await;
    let order = world.order().await;
    world.build(order, 1).await;
    assert!(world.cancel(order).await);
    world.undone(order, 1).await;
    assert_eq!(world.clouds.leftovers(), Vec::<String>::new());
    // It was on its way all the same.
    let late = world.build(order, 1).await;
    world.hear(order, done(&late, 1)).await;
    world.undone(order, 1).await;
    assert_eq!(world.clouds.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_labels_say_otherwise_is_kept_whatever_a_callback_says() {
    let world = World::new().await;
    let (_, healthy) = world.running().await;
    let foreign = world.clouds.hetzner.state().add("web-1", &json!({})).to_string();
    for named in [&healthy, &foreign] {
        let order = world.order().await;
        world.hear(order, failed(Some(named), 1)).await;
        let undoing = world.undone(order, 1).await;
        let [step] = &undoing.steps[..] else { panic!("{undoing:?}") };
        assert_eq!(step.outcome, UndoOutcome::Kept);
        let detail = world.app.log.keys().open_text(step.detail.as_ref().unwrap()).await.unwrap();
        assert!(detail.contains("milepost-job"), "{detail}");
    }
    assert_eq!(world.server_ids(), [healthy, foreign]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_is_told_with_the_reason_and_the_next_try() {
    let world = World::new().await;
    let order = world.order().await;
    let id = world.build(order, 1).await;
    world.hear(order, failed(Some(&id), 1)).await;
    let locked = Fault::Refuse(Reply::new(423, refusal(423, "locked", "it is locked").body));
    world.clouds.hetzner.fail_each("DELETE /servers/{id}", locked);
    let undoing = wait_until("it was tried", || async {
        world.round().await;
        world.job(order).await.attempts[0].compensation.clone().filter(|it| it.tries > 0)
    })
    .await;
    let step = undoing.steps.iter().find(|step| step.outcome == UndoOutcome::Failed).unwrap();
    assert_eq!(step.resource_id.as_deref(), Some(id.as_str()));
    let detail = world.app.log.keys().open_text(step.detail.as_ref().unwrap()).await.unwrap();
    assert!(detail.contains("locked"), "{detail}");
    assert!(undoing.is_open() && undoing.next_try_at.is_some());
    // It is left in peace until then.
    let asked = world.clouds.hetzner.asked().len();
    world.round().await;
    assert_eq!(world.clouds.hetzner.asked().len(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_a_removal_is_no_failure() {
    let world = World::new().await;
    let order = world.order().await;
    world.build(order, 1).await;
    world.hear(order, failed(None, 1)).await;
    world.clouds.hetzner.fail_next("DELETE /servers/{id}", Fault::CutAfter);
    world.clouds.tailscale.fail_next("DELETE /api/v2/device/{id}", Fault::CutAfter);
    let undoing = world.undone(order, 1).await;
    assert_eq!(undoing.tries, 1);
    assert_eq!(world.clouds.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_does_not_end_holds_up_no_other() {
    let mut world = World::new().await;
    let poll = Duration::from_millis(5);
    // Longer than any test.
    let action_timeout = Duration::from_hours(1);
    let patience = Patience { poll, action_timeout, ..Patience::default() };
    world.servers = servers_in(&world.clouds, Arc::new(world.app.clock), patience);
    let mut orders = Vec::new();
    for _ in 0..3 {
        let order = world.order().await;
        orders.push((order, world.build(order, 1).await));
    }
    // The first one: it is tried before the others.
    let stuck = orders[0].1.parse().unwrap();
    world.clouds.hetzner.state().stuck = Some(stuck);
    for (order, _) in &orders {
        world.hear(*order, failed(None, 1)).await;
        world.due(*order).await;
    }
    let world = &world;
    let undoing =
        |order| async move { world.job(order).await.attempts[0].compensation.clone().unwrap() };
    let others = wait_until("the others are undone", || async {
        for (order, _) in &orders[1..] {
            if undoing(*order).await.is_open() {
                return None;
            }
        }
        Some(())
    });
    tokio::select! {
        () = world.round() => panic!("the first one's deletion has ended"),
        () = others => {}
    }
    assert!(undoing(orders[0].0).await.is_open());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_workers_at_once_each_try_is_recorded_once() {
    let world = World::new().await;
    let mut orders = Vec::new();
    for _ in 0..10 {
        let order = world.order().await;
        world.build(order, 1).await;
        world.hear(order, failed(None, 1)).await;
        orders.push(order);
    }
    let (other, its_servers) = (open(&world.url).await, servers(&world.clouds));
    for order in &orders {
        wait_until("both have undone it", || async {
            let head = world.app.log.feed().head();
            let ((), second) =
                tokio::join!(world.round(), compensation::round(&other, &its_servers, head));
            second.unwrap();
            let undoing = world.job(*order).await.attempts[0].compensation.clone()?;
            (!undoing.is_open()).then_some(())
        })
        .await;
    }
    assert_eq!(world.clouds.leftovers(), Vec::<String>::new());
    assert_eq!(world.count("CompensationCompleted").await, orders.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_there_is_is_told_whom_it_serves() {
    let world = World::new().await;
    let (_, serving) = world.running().await;
    let (gone_order, gone) = world.running().await;
    world.clouds.hetzner.state().servers.remove(&gone.parse().unwrap());
    let waiting = world.order().await;
    let under_way = world.build(waiting, 1).await;
    let over = world.order().await;
    world.hear(over, failed(None, 1)).await;
    world.undone(over, 1).await;
    let superseded = {
        world.retry(over).await;
        world.build(over, 1).await
    };
    let ended = world.order().await;
    assert!(world.cancel(ended).await);
    let awaits = world.build(ended, 1).await;
    let stranger = Order { agent: AgentId(world.app.clock.id()), job: JobId(world.app.clock.id()) };
    let unknown = world.build(stranger, 1).await;
    let disagrees = world.build(waiting, 3).await;
    let labels = json!({"managed-by": "milepost"});
    let unlabelled = world.clouds.hetzner.state().add("by-hand", &labels).to_string();
    world.clouds.hetzner.state().add("web-1", &json!({}));
    let standing_of = |survey: &Survey, id: &str| {
        let of = survey.things.iter().find(|(thing, _)| thing.id == id);
        of.unwrap_or_else(|| panic!("{id} is not listed")).1
    };
    let survey = world.survey().await;
    assert!(matches!(standing_of(&survey, &serving), Standing::Serving { .. }));
    assert_eq!(standing_of(&survey, &under_way), Standing::UnderWay);
    assert_eq!(standing_of(&survey, &awaits), Standing::AwaitsCompensation);
    for (id, reason) in [
        (&superseded, OrphanReason::Superseded),
        (&unknown, OrphanReason::UnknownJob),
        (&disagrees, OrphanReason::Disagrees),
        (&unlabelled, OrphanReason::Unlabelled),
    ] {
        assert_eq!(standing_of(&survey, id), Standing::Orphan(reason));
    }
    let [missing] = &survey.missing[..] else { panic!("{:?}", survey.missing) };
    assert_eq!(missing.agent_id, gone_order.agent);
    assert_eq!(missing.server, MissingServer::Named(gone));

    world.undone(ended, 1).await;
    let late = world.build(ended, 1).await;
    let survey = world.survey().await;
    assert_eq!(standing_of(&survey, &late), Standing::Orphan(OrphanReason::Ended));
    let now = world.app.clock.now();
    let fresh = reconcile::survey(&world.app, &world.servers, now, Position::START).await.unwrap();
    assert_eq!(standing_of(&fresh, &late), Standing::Settling);

    // Each is recorded once, and removed only by whoever may.
    let found = survey.orphans().count();
    for _ in 0..2 {
        reconcile::record(&world.app, &survey).await.unwrap();
    }
    assert_eq!(world.count("OrphanFound").await, found);
    assert_eq!(world.count("InstanceServerMissing").await, 1);
    let board = views::read_board(&world.app.log, gone_order.agent).await.unwrap().unwrap();
    assert!(board.instance.unwrap().server_missing_since.is_some());
    let remove = |by| reconcile::remove(&world.app, &world.servers, &survey, by);
    let removed = remove(Removal::Certain).await.unwrap();
    assert!(removed.iter().all(|thing| thing.id != unknown), "{removed:?}");
    let left = world.server_ids();
    assert!(!left.contains(&superseded) && !left.contains(&late) && left.contains(&unknown));
    remove(Removal::WhenTold).await.unwrap();
    let left = world.server_ids();
    assert!(!left.contains(&unknown));
    for kept in [&serving, &under_way, &disagrees, &unlabelled] {
        assert!(left.contains(kept), "{kept} of {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_is_content_or_says_what_it_found_and_removes_it_when_told() {
    let world = World::new().await;
    world.running().await;
    let content = world.doctor(&[]).await;
    let printed = String::from_utf8(content.stdout).unwrap();
    assert_eq!(content.status.code(), Some(0), "{printed}");
    assert!(printed.contains("serves agent") && printed.contains("Nothing is wrong"), "{printed}");

    let labels = json!({
        "managed-by": "milepost", "milepost-agent": AgentId(world.app.clock.id()),
        "milepost-job": JobId(world.app.clock.id()), "milepost-attempt": "1",
    });
    let orphan = world.clouds.hetzner.state().add("mp-stray", &labels).to_string();
    let found = world.doctor(&[]).await;
    let printed = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(3), "{printed}");
    assert!(printed.contains("ORPHAN: this log knows no such job"), "{printed}");
    assert!(world.server_ids().contains(&orphan), "it was not told to");
    let told = world.doctor(&["--remove", "--json"]).await;
    let report: Value = serde_json::from_slice(&told.stdout).unwrap();
    let things = report["things"].as_array().unwrap();
    let its = things.iter().find(|thing| thing["id"] == orphan.as_str()).unwrap();
    assert_eq!((&its["reason"], &its["removed"]), (&json!("unknown_job"), &json!(true)));
    assert!(!world.server_ids().contains(&orphan));
    assert_eq!(world.doctor(&[]).await.status.code(), Some(0));
    assert_eq!(world.count("OrphanRemoved").await, 1);
}

/// A job whose first attempt has a run, on a server that undoes; and the labels of its server.
async fn a_dispatched_job(clouds: &Clouds, github: &Github) -> (Server, String, Value) {
    let mut env = github.env();
    env.push(("MILEPOST_CLEAN_UP", "0.05".to_owned()));
    env.extend(clouds.env());
    let server = Server::with(Options { env, ..Options::default() }).await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    wait_until("it is dispatched", || async {
        let state = client.read(&format!("/api/jobs/{job}")).await;
        state["timeline"][0]["workflow_run_id"].is_string().then_some(())
    })
    .await;
    let labels = json!({
        "managed-by": "milepost", "milepost-agent": agent, "milepost-job": job,
        "milepost-attempt": "1",
    });
    (server, job, labels)
}

/// The same once that attempt has a server and has failed.
async fn a_failed_job(clouds: &Clouds, github: &Github) -> (Server, String) {
    let (server, job, labels) = a_dispatched_job(clouds, github).await;
    let client = server.client();
    let id = clouds.hetzner.state().add("mp-of-the-attempt", &labels);
    clouds.hetzner.state().looks = 0;
    let body = json!({"job_id": job, "status": "failed", "attempt": 1, "server_id": id});
    assert!(client.callback(&body).await.0.is_success());
    (server, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_undoes_by_itself_and_its_api_and_page_say_so() {
    let (clouds, github) = (Clouds::start().await, Github::start().await);
    let (server, job) = a_failed_job(&clouds, &github).await;
    let client = server.client();
    let session = crate::routes::log_in(&server).await;
    let line = || async {
        let request = client.request(Method::GET, &format!("/jobs/{job}"));
        let page = client.send(request.header("cookie", format!("session_token={session}"))).await;
        let (_, rest) = page.text().split_once("data-slot=\"undo\">").unwrap();
        let (said, rest) = rest.split_once("</span>").unwrap();
        let (_, rest) = rest.split_once("data-slot=\"undo-word\">").unwrap();
        (said.to_owned(), rest.split_once("</span>").unwrap().0.to_owned())
    };
    let undoing = undone_as(&client, &job, "awaits_run").await;
    let id = undoing["resources"][0]["id"].as_str().unwrap().to_owned();
    let removed = format!("server {id} removed ✓");
    assert_eq!(line().await, (removed.clone(), "looked at again when its run ends, or in".into()));
    github.complete(github.runs()[0].id, "failure");
    let undoing = undone_as(&client, &job, "completed").await;
    assert_eq!(undoing["resources"][0]["outcome"], "removed");
    assert_eq!(clouds.leftovers(), Vec::<String>::new());
    assert_eq!(line().await, (removed, String::new()));
}

/// The undoing of a job's first attempt, once it has come so far.
async fn undone_as(client: &Client, job: &str, status: &str) -> Value {
    wait_until(&format!("the undoing is {status}"), || async {
        let state = client.read(&format!("/api/jobs/{job}")).await;
        let undoing = state["timeline"][0]["compensation"].clone();
        (undoing["status"] == status).then_some(undoing)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_goes_on_after_its_cancel_failed_leaves_no_server_behind() {
    let (clouds, github) = (Clouds::start().await, Github::start().await);
    github.always("cancel", Some(github::Fault::Status(500, Vec::new())));
    let (server, job, labels) = a_dispatched_job(&clouds, &github).await;
    let client = server.client();
    client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    undone_as(&client, &job, "awaits_run").await;
    assert!(!github.asked("cancel").is_empty());
    // Only now it makes a server, of which it never says a word.
    let late = clouds.hetzner.state().add("mp-made-late", &labels).to_string();
    github.complete(github.runs()[0].id, "cancelled");
    let undoing = undone_as(&client, &job, "completed").await;
    let removed = undoing["resources"].as_array().unwrap();
    assert!(removed.iter().any(|it| it["id"] == late && it["outcome"] == "removed"));
    assert_eq!(clouds.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_process_that_undoes_is_killed_another_takes_over() {
    let (clouds, github) = (Clouds::start().await, Github::start().await);
    github.always("cancel", Some(github::Fault::Status(500, Vec::new())));
    let (mut server, job, labels) = a_dispatched_job(&clouds, &github).await;
    server.client().post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    undone_as(&server.client(), &job, "awaits_run").await;
    let mut env = github.env();
    env.extend(clouds.env());
    let other = Server::with(Options {
        database_url: Some(server.database_url()),
        env,
        ..Options::default()
    })
    .await;
    server.kill().await;
    clouds.hetzner.state().add("mp-of-the-attempt", &labels);
    github.complete(github.runs()[0].id, "cancelled");
    undone_as(&other.client(), &job, "completed").await;
    assert_eq!(clouds.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_undoes_what_is_due_beside_a_server_that_cannot_and_each_try_is_one() {
    let world = World::new().await;
    let order = world.order().await;
    world.build(order, 1).await;
    world.hear(order, failed(None, 1)).await;
    world.due(order).await;
    let (told, ()) = tokio::join!(world.doctor(&["--remove"]), world.round());
    assert_eq!(told.status.code(), Some(0), "{}", String::from_utf8_lossy(&told.stdout));
    assert_eq!(world.clouds.leftovers(), Vec::<String>::new());
    assert_eq!(world.count("CompensationCompleted").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_by_its_exit_code_whether_to_look_again() {
    let world = World::new().await;
    for (status, code) in [(503, 75), (403, 1)] {
        // Longer than a service is waited for.
        let refuse = || {
            let reply = refusal(status, "words", "of no importance");
            Fault::Refuse(reply.header("retry-after", 3_600))
        };
        for at_hetzner in [true, false] {
            if at_hetzner {
                world.clouds.hetzner.fail_next("GET /servers", refuse());
            } else {
                let devices = "GET /api/v2/tailnet/{tailnet}/devices";
                world.clouds.tailscale.fail_next(devices, refuse());
            }
            let ended = world.doctor(&[]).await;
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(code), "{status} {at_hetzner}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_setting_that_it_lacks() {
    let world = World::new().await;
    for missing in ["DATABASE_URL", "HCLOUD_TOKEN"] {
        let mut command = Command::new(MILEPOST);
        command.arg("doctor").env_clear().envs(world.clouds.env());
        command.env("DATABASE_URL", &world.url).env_remove(missing);
        let ended = command.output().await.unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(said.contains(missing), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_or_a_device_that_turns_up_after_all_was_undone_is_undone_too() {
    let world = World::new().await;
    let order = world.order().await;
    world.hear(order, failed(None, 1)).await;
    world.undone(order, 1).await;
    for with_server in [true, false] {
        let late = world.build(order, 1).await;
        if !with_server {
            world.clouds.hetzner.state().servers.remove(&late.parse().unwrap());
        }
        let survey = world.survey().await;
        let kinds: Vec<_> = survey.orphans().map(|(thing, _)| thing.resource.as_str()).collect();
        assert_eq!(kinds, if with_server { &["server", "device"][..] } else { &["device"] });
        reconcile::undo(&world.app, &survey).await.unwrap();
        assert!(world.survey().await.orphans().next().is_none(), "they await it");
        world.undone(order, 1).await;
        assert_eq!(world.clouds.leftovers(), Vec::<String>::new());
    }
    assert_eq!(world.count("CompensationRequested").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_an_unknown_job_is_reported_and_removed_when_told_and_others_are_none_of_ours()
{
    let world = World::new().await;
    let name = "mp-00abcdef-00000000000000000000000000000007-1";
    let tags = json!(["tag:agent"]);
    let stray = world.clouds.tailscale.state().add_device(name, &tags);
    let untagged = world.clouds.tailscale.state().add_device(name, &json!([]));
    let foreign = world.clouds.tailscale.state().add_device("laptop", &tags);
    let survey = world.survey().await;
    let [(thing, reason)] = &survey.orphans().collect::<Vec<_>>()[..] else { panic!("{survey:?}") };
    assert_eq!((thing.id.as_str(), *reason), (stray.as_str(), OrphanReason::UnknownJob));
    reconcile::record(&world.app, &survey).await.unwrap();
    // Nothing is asked of a job that is not there.
    reconcile::undo(&world.app, &survey).await.unwrap();
    let remove = |by| reconcile::remove(&world.app, &world.servers, &survey, by);
    assert!(remove(Removal::Certain).await.unwrap().is_empty());
    assert_eq!(remove(Removal::WhenTold).await.unwrap().len(), 1);
    let left: Vec<String> = world.clouds.tailscale.state().devices.keys().cloned().collect();
    assert!(left.contains(&untagged) && left.contains(&foreign) && !left.contains(&stray));
    assert_eq!((world.count("OrphanFound").await, world.count("OrphanRemoved").await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_former_server_goes_when_it_runs_on_another_and_not_before() {
    let world = World::new().await;
    let (former, old) = world.running().await;
    let standing = |survey: &Survey| {
        survey.things.iter().find(|(thing, _)| thing.id == old).map(|(_, standing)| *standing)
    };
    let serves = |survey: &Survey| matches!(standing(survey), Some(Standing::Serving { .. }));
    let again = world.provision(former.agent).await;
    world.claim(again).await;
    let new = world.build(again, 1).await;
    assert!(serves(&world.survey().await), "the new one may come to nothing");
    world.hear(again, done(&new, 1)).await;
    let survey = world.survey().await;
    assert_eq!(standing(&survey), Some(Standing::Orphan(OrphanReason::Superseded)));
    reconcile::undo(&world.app, &survey).await.unwrap();
    world.undone(former, 1).await;
    assert_eq!(world.server_ids(), [new]);
    assert_eq!(world.job(former).await.status, JobStatus::Succeeded);
    assert_eq!(world.clouds.tailscale.state().devices.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_and_an_attempt_that_failed_replace_no_server() {
    let world = World::new().await;
    let (former, old) = world.running().await;
    let again = world.provision(former.agent).await;
    world.claim(again).await;
    world.cancel(again).await;
    let rehearsed = world.provision(former.agent).await;
    let locked_by = "worker".to_owned();
    let command = JobCommand::Claim { dispatcher: "rehearsal", locked_by };
    assert!(world.give(rehearsed, command).await);
    world.hear(rehearsed, done("1", 1)).await;
    assert_eq!(world.job(rehearsed).await.status, JobStatus::Succeeded);
    let survey = world.survey().await;
    assert!(survey.orphans().next().is_none(), "{survey:?}");
    assert_eq!(world.server_ids(), [old]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_nobody_has_named_a_server_for_is_missed_by_its_labels() {
    let world = World::new().await;
    let order = world.order().await;
    let id = world.build(order, 1).await;
    world.hear(order, json!({"status": "running", "attempt": 1})).await;
    assert_eq!(world.survey().await.missing, []);
    world.clouds.hetzner.state().servers.remove(&id.parse().unwrap());
    let survey = world.survey().await;
    let [missing] = &survey.missing[..] else { panic!("{survey:?}") };
    let attempt = AttemptId { job_id: order.job, attempt: Attempt::FIRST };
    let name = ServerIdentity { agent_id: order.agent, attempt }.name();
    assert_eq!(missing.server, MissingServer::Unnamed(name));
    for _ in 0..2 {
        reconcile::record(&world.app, &survey).await.unwrap();
    }
    assert_eq!(world.count("InstanceServerNotFound").await, 1);
    let board = views::read_board(&world.app.log, order.agent).await.unwrap().unwrap();
    assert!(board.instance.unwrap().server_missing_since.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survey_asks_for_nothing_that_is_listed_or_known_to_be_missing() {
    let world = World::new().await;
    for _ in 0..3 {
        let order = world.order().await;
        world.build(order, 1).await;
        world.hear(order, json!({"status": "running", "attempt": 1})).await;
    }
    let (_, named) = world.running().await;
    let unnamed = world.server_ids()[0].clone();
    for gone in [named, unnamed] {
        world.clouds.hetzner.state().servers.remove(&gone.parse().unwrap());
    }
    let survey = || async {
        let before = world.clouds.hetzner.asked().len();
        let survey = world.survey().await;
        (survey, world.clouds.hetzner.asked().len() - before)
    };
    let (first, asked) = survey().await;
    assert_eq!((first.missing.len(), asked), (2, 3), "the list, and the two that are not in it");
    reconcile::record(&world.app, &first).await.unwrap();
    let (second, asked) = survey().await;
    assert_eq!((second.missing, asked), (first.missing, 1), "the list alone");
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Whatever happens, the servers of running instances remain and no others.
#[tokio::test(flavor = "multi_thread")]
async fn after_any_story_exactly_the_servers_of_running_instances_remain() {
    let world = World::new().await;
    let mut dice = Dice(20_261_121);
    let mut healthy = Vec::new();
    let mut orders = Vec::new();
    for _ in 0..STORIES {
        let order = world.order().await;
        orders.push(order);
        let mut built: Vec<(u32, String)> = Vec::new();
        for _ in 0..dice.roll(ACTS) {
            let job = world.job(order).await;
            let current = job.attempt().number.0;
            let under_way = matches!(job.status, JobStatus::Dispatching | JobStatus::Running);
            let attempt = u32::try_from(dice.roll(u64::from(current))).unwrap() + 1;
            let known = built.iter().rev().find(|(of, _)| *of == attempt).map(|(_, id)| id.clone());
            match dice.roll(8) {
                // The run of an attempt, on time or late, makes its server or finds it.
                0..3 if job.status != JobStatus::Succeeded || attempt != current => {
                    built.push((attempt, world.build(order, attempt).await));
                }
                3 if known.is_some() => {
                    let id = known.unwrap();
                    // One that was undone cannot be told to run.
                    if world.server_ids().contains(&id) {
                        world.hear(order, done(&id, attempt)).await;
                        if under_way && attempt == current {
                            healthy.push(id);
                        }
                    }
                }
                4 => world.hear(order, failed(known.as_deref(), attempt)).await,
                5 if job.status == JobStatus::RetryScheduled => world.retry(order).await,
                6 if dice.roll(3) == 0 => drop(world.cancel(order).await),
                7 => world.round().await,
                _ => {}
            }
        }
        if !world.job(order).await.status.is_ended() {
            assert!(world.cancel(order).await);
        }
    }
    for order in orders {
        for attempt in world.job(order).await.attempts {
            if attempt.compensation.is_some() {
                world.undone(order, attempt.number.0).await;
            }
        }
    }
    // Servers that came after all was undone are found by looking.
    let survey = world.survey().await;
    reconcile::remove(&world.app, &world.servers, &survey, Removal::Certain).await.unwrap();
    healthy.sort();
    let mut left = world.server_ids();
    left.sort();
    assert!(healthy.len() > 5 && left == healthy, "{left:?} is not {healthy:?}");
    let devices = world.clouds.tailscale.state().devices.len();
    assert_eq!(devices, healthy.len(), "a device each");
    assert!(world.survey().await.orphans().next().is_none());
}
