//! `?at=` equals what was live at that position, and every page renders there.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use milepost_projections::answers::{AgentRow, InstanceAnswer, JobAnswer, NodeAnswer};
use milepost_projections::board::Boards;
use milepost_projections::job::Jobs;
use milepost_projections::node::Nodes;
use milepost_projections::{Board, Job, JobStatus, NodeRow, Projection, Queue, Recorded};
use milepost_schemas::{Event, EventType, Position, StreamId};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Client, Messages, Options, Server, text, wait_until};
use crate::routes::log_in;

/// Positions that are looked at.
const POSITIONS: usize = 1_000;

/// Requests under way at once: as many as the machine has cores.
const AT_ONCE: usize = 2;

/// The same positions in every run.
struct Random(u64);

impl Random {
    /// A number below `end`. Source: splitmix64.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// The log folded event by event, as the views fold it while it grows.
#[derive(Default)]
struct World {
    boards: HashMap<Uuid, Board>,
    jobs: HashMap<Uuid, Option<Job>>,
    nodes: HashMap<Uuid, NodeRow>,
    queue: Queue,
    now: jiff::Timestamp,
}

impl World {
    fn fold(&mut self, event: &Value) {
        let kind = EventType::from_name(event["type"].as_str().unwrap()).unwrap();
        let version = event["schema_version"].as_i64().unwrap() as i16;
        let body = event["data"].to_string();
        let fact = Event::decode(kind.code(), version, body.as_bytes()).unwrap();
        let recorded = Recorded {
            position: Position(event["position"].as_u64().unwrap()),
            stream: StreamId(text(event, "stream").parse().unwrap()),
            version: event["version"].as_u64().unwrap() as u32,
            recorded_at: text(event, "recorded_at").parse().unwrap(),
            delivery_id: event["metadata"]["delivery_id"].as_str(),
            event: &fact,
        };
        self.now = recorded.recorded_at;
        if recorded.stream == StreamId::QUEUE {
            self.queue = Queue::after(&recorded).unwrap_or(self.queue.clone());
        }
        apply::<Boards>(&mut self.boards, &recorded);
        apply::<Jobs>(&mut self.jobs, &recorded);
        apply::<Nodes>(&mut self.nodes, &recorded);
    }

    fn agents(&self) -> Vec<InstanceAnswer> {
        let answers = newest(&self.boards);
        answers.filter_map(|board| InstanceAnswer::of(board, self.now)).collect()
    }

    fn jobs(&self) -> Vec<JobAnswer> {
        newest(&self.jobs).flatten().map(JobAnswer::of).collect()
    }

    fn nodes(&self) -> Vec<NodeAnswer> {
        newest(&self.nodes).filter_map(NodeAnswer::of).collect()
    }

    fn count(&self, status: JobStatus) -> usize {
        self.jobs.values().flatten().filter(|job| job.status == status).count()
    }

    /// Every list as the API answers it, by its path.
    fn lists(&self) -> Vec<(&'static str, Value)> {
        let agents: Vec<_> = self.agents().into_iter().map(AgentRow::from).collect();
        let queue = json!({
            "paused": self.queue.paused,
            "queued": self.count(JobStatus::Queued),
            "dispatching": self.count(JobStatus::Dispatching),
            "running": self.count(JobStatus::Running),
            "retry_scheduled": self.count(JobStatus::RetryScheduled),
        });
        vec![
            ("/api/agents", json!({"agents": agents})),
            ("/api/jobs?limit=1000", json!({"jobs": self.jobs()})),
            ("/api/nodes", json!({"nodes": self.nodes()})),
            ("/api/queue", queue),
        ]
    }

    /// One thing of each kind, by its path, with its answer.
    fn things(&self, random: &mut Random) -> Vec<(String, Value)> {
        let mut things = Vec::new();
        if let Some(agent) = any(&self.agents(), random) {
            let path = format!("/api/agents/{}", agent.agent.id);
            things.push((format!("{path}/instance"), json!(agent)));
            things.push((path, json!(agent.agent)));
        }
        if let Some(job) = any(&self.jobs(), random) {
            things.push((format!("/api/jobs/{}", job.id), json!(job)));
        }
        if let Some(node) = any(&self.nodes(), random) {
            things.push((format!("/api/nodes/{}", node.id), json!(node)));
        }
        things
    }
}

fn apply<P: Projection>(rows: &mut HashMap<Uuid, P::State>, recorded: &Recorded<'_>) {
    if let Some(key) = P::key(recorded.event) {
        P::apply(rows.entry(key).or_default(), recorded);
    }
}

fn newest<T>(rows: &HashMap<Uuid, T>) -> impl Iterator<Item = &T> {
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_unstable_by(|one, other| other.0.cmp(one.0));
    rows.into_iter().map(|(_, row)| row)
}

fn any<'a, T>(items: &'a [T], random: &mut Random) -> Option<&'a T> {
    (!items.is_empty()).then(|| &items[random.below(items.len() as u64) as usize])
}

/// An answer about one thing without the position of its last event: what a list or a stream tells
/// counts what came too late for an earlier job as well.
fn settled(mut answer: Value) -> Value {
    if let Some(members) = answer.as_object_mut() {
        members.remove("position");
    }
    answer
}

/// What was told live of agents, nodes and jobs: path and state, each with its position.
struct Live(Vec<(String, Value)>);

impl Live {
    /// Reads a stream until something has been told after everything that was to happen.
    async fn read(mut stream: Messages, upto: u64) -> Self {
        let mut told = Vec::new();
        loop {
            let message = stream.next().await.expect("the stream goes on");
            let data = message.json();
            let path = match message.event.as_str() {
                "instance" => format!("/api/agents/{}/instance", text(&data["agent"], "id")),
                "node" => format!("/api/nodes/{}", text(&data, "id")),
                "job" => format!("/api/jobs/{}", text(&data, "id")),
                "bookmark" if data["position"].as_u64().unwrap() >= upto => return Self(told),
                _ => continue,
            };
            told.push((path, data));
        }
    }
}

/// A history with everything in it: jobs that succeed, fail, are retried, cancelled and moved, nodes,
/// and a queue that was stopped. Returns the streams that followed it.
async fn history(client: &Client) -> Vec<Messages> {
    let all = client.stream("/api/stream?agent=all&node=all", None).await;
    client.post("/api/queue/pause", &json!({"reason": "an outage"})).await;
    let mut jobs = Vec::new();
    for name in ["mari", "juno", "cleo", "otto", "nina"] {
        jobs.push(client.job(name).await.1);
    }
    let wanted: Vec<String> = jobs.iter().map(|job| format!("job={job}")).collect();
    let of_jobs = client.stream(&format!("/api/stream?{}", wanted.join("&")), None).await;
    for job in &jobs[..2] {
        client.callback(&json!({"job_id": job, "status": "provisioning"})).await;
        client.deliver(json!({"job_id": job, "status": "failed", "error": "no route"})).await;
    }
    let host = json!({"hostname": "web-1.example.com", "public_ip": "192.0.2.1"});
    let (_, node) = client.post("/api/nodes", &host).await;
    let provision = format!("/api/nodes/{}/provision", text(&node, "id"));
    let (_, ordered) = client.post(&provision, &json!({})).await;
    client.post(&format!("/api/jobs/{}/priority", jobs[4]), &json!({"priority": 3})).await;
    client.post(&format!("/api/jobs/{}/cancel", jobs[3]), &json!({"reason": "no more"})).await;
    client.post("/api/queue/resume", &json!({})).await;
    client.post(&format!("/api/jobs/{}/cancel", text(&ordered, "job_id")), &json!({})).await;
    wait_until("every job has ended", || async {
        let metrics = client.read("/api/metrics").await;
        let open = ["queued", "dispatching", "running", "retry_scheduled"];
        open.iter().all(|it| metrics[format!("jobs_{it}")] == 0).then_some(())
    })
    .await;
    // A second order for one of them, and a late word on its first.
    let agents = client.read("/api/agents").await;
    let agent = text(&agents["agents"][0], "id");
    client.post(&format!("/api/agents/{agent}/provision"), &json!({})).await;
    let late = json!({"job_id": jobs[4], "status": "provisioning", "step": "vm_created"});
    client.deliver(late).await;
    wait_until("the last one has ended", || async {
        let metrics = client.read("/api/metrics").await;
        let open = ["queued", "dispatching", "running", "retry_scheduled"];
        open.iter().all(|it| metrics[format!("jobs_{it}")] == 0).then_some(())
    })
    .await;
    vec![all, of_jobs]
}

async fn rehearsing() -> Server {
    let env = vec![
        ("MILEPOST_REHEARSAL_PACE", "0.02".to_owned()),
        ("MILEPOST_REHEARSAL_HEARTBEAT", "0.1".to_owned()),
        ("MILEPOST_RETRY_DELAYS", "0.1,0.1,0.1".to_owned()),
        ("MILEPOST_REHEARSAL_FAULTS", "repeat@vm_created,late@network_configured".to_owned()),
    ];
    Server::with(Options { rehearsal: true, env, ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_at_a_position_is_what_was_live_then_and_every_page_renders() {
    let server = rehearsing().await;
    let client = server.client();
    let streams = history(&client).await;
    let events = client.events().await;
    let head = events.len() as u64;

    let mut told = 0;
    for stream in streams {
        let Live(messages) = Live::read(stream, head).await;
        for (path, live) in &messages {
            let position = live["position"].as_u64().unwrap();
            let mut then = client.read(&format!("{path}?at={position}")).await;
            let mut live = live.clone();
            for answer in [&mut then, &mut live] {
                // It was told some time after the event.
                answer.as_object_mut().unwrap().remove("uptime");
            }
            assert_eq!(settled(then), settled(live), "{path} at {position}");
        }
        told += messages.len();
    }
    assert!(told > 50, "only {told} states were told live");

    let mut random = Random(20_261_124);
    let mut positions: Vec<u64> = (0..POSITIONS).map(|_| random.below(head + 1)).collect();
    positions.sort_unstable();
    let cookie = format!("session_token={}", log_in(&server).await);
    let mut world = World::default();
    let mut folded = 0;
    let mut asked = Vec::new();
    for position in positions {
        for event in &events[folded..position as usize] {
            world.fold(event);
        }
        folded = position as usize;
        let things = world.things(&mut random);
        let pages = things.iter().filter(|(path, _)| !path.ends_with("/instance"));
        let pages = pages.map(|(path, _)| path.trim_start_matches("/api").to_owned());
        let pages: Vec<String> =
            pages.chain(["/", "/nodes", "/events"].map(str::to_owned)).collect();
        asked.push((position, world.lists(), things, pages));
    }
    let checks = futures_util::stream::iter(asked).map(|(position, lists, things, pages)| {
        let (client, cookie) = (&client, &cookie);
        async move {
            for (path, expected) in lists {
                let joint = if path.contains('?') { '&' } else { '?' };
                let answer = client.read(&format!("{path}{joint}at={position}")).await;
                assert_eq!(answer, expected, "{path} at {position}");
            }
            for (path, expected) in things {
                let answer = client.read(&format!("{path}?at={position}")).await;
                assert_eq!(settled(answer), settled(expected), "{path} at {position}");
            }
            for path in pages {
                let request = client.request(Method::GET, &format!("{path}?at={position}"));
                let page = client.send(request.header("cookie", cookie)).await;
                assert_eq!(page.status, 200, "{path} at {position}: {}", page.text());
                assert!(page.text().contains("As it was at"), "{path} at {position}");
            }
        }
    });
    checks.buffer_unordered(AT_ONCE).collect::<()>().await;

    // At its end the log is what it is.
    for path in ["/api/agents", "/api/jobs", "/api/nodes", "/api/queue"] {
        let then = client.read(&format!("{path}?at={head}")).await;
        let mut now = client.read(path).await;
        for agent in now["agents"].as_array_mut().into_iter().flatten() {
            agent["uptime"] = Value::Null;
        }
        let mut then = then;
        for agent in then["agents"].as_array_mut().into_iter().flatten() {
            agent["uptime"] = Value::Null;
        }
        assert_eq!(then, now, "{path}");
    }
    let mut counts = client.read("/api/metrics").await;
    counts.as_object_mut().unwrap().remove("streams_open");
    // The log may have gone on since: the sweeper has its own time.
    let at = &counts["position"];
    assert_eq!(client.read(&format!("/api/metrics?at={at}")).await, counts);
}
