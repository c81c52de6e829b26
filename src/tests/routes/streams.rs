//! The four streams. That messages are as documented is checked wherever a test gets one.

use std::collections::HashSet;

use milepost::push::{Subscription, Wants};
use milepost_projections::upkeep::upkeep_stream;
use milepost_schemas::StreamId;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::log_in;
use crate::harness::{Client, Message, Messages, PATIENCE, Server, sql, text};
use crate::leases::worker;

async fn step(client: &Client, job: &str, step: &str) -> u64 {
    let body = json!({"job_id": job, "status": "provisioning", "step": step});
    let (status, answer) = client.callback(&body).await;
    assert_eq!(status, 200, "{answer}");
    answer["position"].as_u64().unwrap()
}

async fn epoch(client: &Client) -> i64 {
    client.read("/api/events?limit=0").await["epoch"].as_i64().unwrap()
}

/// Everything up to the bookmark that says that the snapshot is whole.
async fn snapshot(stream: &mut Messages) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        let message = stream.next().await.unwrap();
        if message.event == "bookmark" {
            return messages;
        }
        messages.push(message);
    }
}

fn names(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.event.as_str()).collect()
}

fn position(message: &Message) -> u64 {
    message.id.split_once('-').unwrap().1.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_s_stream_begins_with_its_state_and_brings_each_change() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let path = format!("/api/agents/{agent}/instance");
    let mut stream = client.stream(&format!("{path}/stream"), None).await;
    let first = snapshot(&mut stream).await;
    assert_eq!(names(&first), ["instance"]);
    assert_eq!(first[0].json(), client.read(&path).await);
    for name in ["vm_created", "ansible_started", "ansible_complete"] {
        let posted = step(&client, &job, name).await;
        let message = stream.next_named("instance").await;
        assert_eq!(message.json()["instance"]["current_step"], name);
        assert_eq!(message.json(), client.read(&path).await, "as an answer says it");
        assert_eq!(position(&message), posted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_s_stream_begins_with_its_state_and_brings_each_change() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let mut stream = client.stream(&format!("/api/jobs/{job}/stream"), None).await;
    let first = snapshot(&mut stream).await;
    assert_eq!(names(&first), ["job"]);
    assert_eq!(first[0].json(), client.read(&format!("/api/jobs/{job}")).await);
    step(&client, &job, "vm_created").await;
    assert_eq!(stream.next_named("job").await.json()["status"], "running");
    client.callback(&json!({"job_id": job, "status": "running"})).await;
    let message = stream.next_named("job").await;
    assert_eq!(message.json(), client.read(&format!("/api/jobs/{job}")).await);
    // What happens elsewhere is none of its business.
    let (_, other) = client.job("liis").await;
    step(&client, &other, "vm_created").await;
    client.callback(&json!({"job_id": job, "type": "heartbeat"})).await;
    assert_eq!(stream.next_named("job").await.json()["id"], job);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_s_stream_begins_now_and_leaves_nothing_out() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let before = client.events().await.len();
    let mut stream = client.stream("/api/events/stream", None).await;
    let count = 30;
    for number in 0..count {
        step(&client, &job, &format!("step_{number}")).await;
    }
    let mut told = Vec::new();
    for _ in 0..count {
        let message = stream.next_named("recorded").await;
        assert_eq!(message.id, message.json()["event_id"]);
        told.push(message.json());
    }
    assert_eq!(told, client.events().await[before..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_s_stream_is_filtered_by_stream_and_type() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let (_, other) = client.job("liis").await;
    let since = format!("since={}-0", epoch(&client).await);
    let path = format!("/api/events/stream?{since}&stream={job}&type=ProvisioningStepRecorded");
    let mut stream = client.stream(&path, None).await;
    step(&client, &other, "vm_created").await;
    client.callback(&json!({"job_id": job, "status": "provisioning"})).await;
    let posted = step(&client, &job, "vm_created").await;
    assert_eq!(position(&stream.next_named("recorded").await), posted);
    let path = format!("/api/events/stream?{since}&type=JobQueued");
    let mut stream = client.stream(&path, None).await;
    for job in [&job, &other] {
        assert_eq!(stream.next().await.unwrap().json()["data"]["job_id"], **job);
    }
    for query in ["type=Nothing", "stream=x", "after=x"] {
        let (status, problem) = client.get(&format!("/api/events/stream?{query}")).await;
        assert_eq!((status.as_u16(), &problem["status"]), (400, &json!(400)), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_resumes_exactly_behind_any_message() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    for number in 0..6 {
        step(&client, &job, &format!("step_{number}")).await;
    }
    let events = client.events().await;
    let epoch = epoch(&client).await;
    for seen in 0..events.len() {
        let id = format!("{epoch}-{seen}");
        let by_query = format!("/api/events/stream?since={id}");
        let mut streams = [
            client.stream("/api/events/stream", Some(&id)).await,
            client.stream(&by_query, None).await,
            client.stream("/api/stream?events=all", Some(&id)).await,
        ];
        for stream in &mut streams {
            for event in &events[seen..] {
                assert_eq!(stream.next_named("recorded").await.json(), *event, "after {id}");
            }
        }
    }
    // What is said after the reader is gone is there when it comes back.
    let mut stream = client.stream("/api/events/stream", None).await;
    step(&client, &job, "while it listens").await;
    let last = stream.next_named("recorded").await.id;
    drop(stream);
    let missed = step(&client, &job, "while it is away").await;
    let mut stream = client.stream("/api/events/stream", Some(&last)).await;
    assert_eq!(position(&stream.next_named("recorded").await), missed);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_header_goes_before_the_query() {
    let server = Server::start().await;
    let client = server.client();
    client.job("mari").await;
    let epoch = epoch(&client).await;
    let path = format!("/api/events/stream?since={epoch}-0");
    let mut stream = client.stream(&path, Some(&format!("{epoch}-3"))).await;
    assert_eq!(position(&stream.next().await.unwrap()), 4);
    let mut stream = client.stream(&path, None).await;
    assert_eq!(position(&stream.next().await.unwrap()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_nobody_knows_gets_a_reset_and_the_state() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let epoch = epoch(&client).await;
    for place in [
        format!("{}-1", epoch + 1),
        format!("{epoch}-5"),
        format!("{epoch}-18446744073709551615"),
        format!("{epoch}"),
        "nonsense".to_owned(),
        format!("{epoch}--1"),
    ] {
        let paths = [
            (format!("/api/agents/{agent}/instance/stream"), vec!["reset", "instance"]),
            (format!("/api/jobs/{job}/stream"), vec!["reset", "job"]),
            (format!("/api/stream?agent=all&job={job}"), vec!["reset", "job", "instance"]),
        ];
        for (path, expected) in paths {
            let mut stream = client.stream(&path, Some(&place)).await;
            assert_eq!(names(&snapshot(&mut stream).await), expected, "{place} on {path}");
        }
        let mut stream = client.stream("/api/events/stream", Some(&place)).await;
        let reset = stream.next().await.unwrap();
        assert_eq!((reset.event.as_str(), position(&reset)), ("reset", 4), "{place}");
        assert_eq!(reset.json()["epoch"], epoch);
    }
    // The head itself is known.
    let mut stream =
        client.stream(&format!("/api/jobs/{job}/stream"), Some(&format!("{epoch}-4"))).await;
    assert_eq!(names(&snapshot(&mut stream).await), ["job"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_what_several_pages_need() {
    let server = Server::start().await;
    let client = server.client();
    let (mari, job) = client.job("mari").await;
    let (liis, other) = client.job("liis").await;
    let path = format!("/api/stream?agent=all&job={job}&events={mari}&events={other}&flavour=x");
    let mut stream = client.stream(&path, None).await;
    let first = snapshot(&mut stream).await;
    assert_eq!(names(&first), ["job", "instance", "instance"]);
    let agents: Vec<String> =
        first[1..].iter().map(|message| text(&message.json()["agent"], "id")).collect();
    assert_eq!(agents, [&*liis, &mari]);
    // The events of mari's job and of liis's are both asked for, by an agent and by a job.
    for (name, agent, job) in [("mari", &mari, &job), ("liis", &liis, &other)] {
        let posted = step(&client, job, "vm_created").await;
        let event = stream.next().await.unwrap();
        assert_eq!((event.event.as_str(), position(&event)), ("recorded", posted), "{name}");
        let states = if name == "mari" { 2 } else { 1 };
        let mut said = Vec::new();
        for _ in 0..states {
            let state = stream.next().await.unwrap();
            // The event comes before the states that hold it.
            assert_eq!(position(&state), posted, "{name}");
            assert_eq!(state.json()["position"], posted, "{name}");
            said.push(state.event);
        }
        said.sort();
        assert_eq!(said, &["instance", "job"][..states], "{name}");
        assert!(client.read(&format!("/api/agents/{agent}/instance")).await["steps"].is_array());
    }
    // A new agent is one of all, but its events were not asked for.
    let new = client.agent("new").await;
    let message = stream.next().await.unwrap();
    assert_eq!((message.event.as_str(), &message.json()["agent"]["id"]), ("instance", &json!(new)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_a_stream_of_nobody_are_told_beside_the_queue_s() {
    let server = Server::start().await;
    let client = server.client();
    // Nothing has been ordered of the view yet: its stream has no event.
    let (queue, upkeep) = (StreamId::QUEUE, upkeep_stream("board"));
    let path = format!("/api/stream?events={queue}&events={upkeep}");
    let mut stream = client.stream(&path, None).await;
    assert!(snapshot(&mut stream).await.is_empty());
    client.agent("mari").await;
    let (status, _) = client.post("/api/projections/board/verify", &json!({})).await;
    assert_eq!(status, 202);
    let (status, _) = client.post("/api/queue/pause", &json!({"reason": "an outage"})).await;
    assert!(status.is_success());
    let mut told = Vec::new();
    while !told.contains(&"QueuePaused".to_owned()) {
        told.push(text(&stream.next_named("recorded").await.json(), "type"));
    }
    assert_eq!(told[0], "ProjectionVerifyRequested");
    assert!(!told.contains(&"AgentCreated".to_owned()), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_things_none_is_missed_where_only_the_log_has_them() {
    let mut server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let (liis, _) = client.job("liis").await;
    let (_, other) = client.job("ott").await;
    let head = client.read("/api/events?limit=0").await;
    let since = format!("{}-{}", head["epoch"], head["head"]);
    let (status, _) = client.post("/api/queue/pause", &json!({"reason": "an outage"})).await;
    assert!(status.is_success());
    let started = json!({"job_id": job, "status": "provisioning"});
    client.callback(&started).await;
    let lines = json!({"job_id": job, "type": "log", "from": 1, "lines": ["one", "two"]});
    client.callback(&lines).await;
    step(&client, &other, "vm_created").await;
    client.post(&format!("/api/agents/{liis}/provision"), &json!({})).await;
    let (status, _) = client.post("/api/queue/resume", &json!({})).await;
    assert!(status.is_success());
    let queue = StreamId::QUEUE;
    // What happened is in the memory of no process any more.
    server.kill().await;
    server.restart().await;
    let path = format!("/api/stream?events={queue}&events={job}&log={job}&events={liis}");
    let mut stream = client.stream(&path, Some(&since)).await;
    let told: Vec<String> = snapshot(&mut stream)
        .await
        .iter()
        .map(|message| match message.event.as_str() {
            "recorded" => text(&message.json(), "type"),
            name => name.to_owned(),
        })
        .collect();
    assert_eq!(told, ["QueuePaused", "ProvisioningStarted", "log", "QueueResumed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overview_is_handed_over_in_pieces() {
    const AGENTS: usize = 130;
    let server = Server::start().await;
    let client = server.client();
    for number in 0..AGENTS {
        client.agent(&format!("agent-{number}")).await;
    }
    let app = worker(&server.database_url()).await;
    let wants = Wants { all_agents: true, ..Wants::default() };
    let mut subscription = Subscription::new(app, wants, None);
    let mut pieces = Vec::new();
    let mut told = HashSet::new();
    while !pieces.last().is_some_and(|piece: &String| piece.contains("event: bookmark\n")) {
        let frames = subscription.next().await.unwrap();
        let piece: String = frames.iter().map(|it| String::from_utf8_lossy(it)).collect();
        for data in piece.lines().filter_map(|line| line.strip_prefix("data: ")) {
            let state: Value = serde_json::from_str(data).unwrap();
            told.extend(state["agent"]["id"].as_str().map(str::to_owned));
        }
        pieces.push(piece);
    }
    let states = |piece: &String| piece.matches("event: instance\n").count();
    let counts: Vec<usize> = pieces.iter().map(states).collect();
    assert_eq!(counts, [0, 64, 64, 2, 0], "and each by itself");
    assert_eq!(told.len(), AGENTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_64_things_and_no_more() {
    let server = Server::start().await;
    let client = server.client();
    let agent = client.agent("mari").await;
    let many =
        |count: usize| format!("/api/stream?{}", vec![format!("agent={agent}"); count].join("&"));
    let mut stream = client.stream(&many(64), None).await;
    assert_eq!(snapshot(&mut stream).await.len(), 64);
    for path in [
        &*many(65),
        &format!("{}&events={agent}", many(64)),
        "/api/stream",
        "/api/stream?flavour=x",
        "/api/stream?agent=mari",
        "/api/stream?job=all",
        "/api/stream?events=x",
    ] {
        let (status, problem) = client.get(path).await;
        assert_eq!(status, 400, "{path}");
        assert_eq!(problem["type"], "urn:milepost:problem:bad-request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_stream_says_how_far_it_is() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, _) = client.job("mari").await;
    let mut stream = client.stream(&format!("/api/agents/{agent}/instance/stream"), None).await;
    let state = stream.next().await.unwrap();
    let whole = stream.next().await.unwrap();
    assert_eq!((state.event.as_str(), whole.event.as_str()), ("instance", "bookmark"));
    assert_eq!((position(&state), position(&whole)), (4, 4));
    // Elsewhere the log goes on; the next bookmark says that nothing was missed.
    client.agent("liis").await;
    let quiet = stream.next().await.unwrap();
    assert_eq!((quiet.event.as_str(), position(&quiet)), ("bookmark", 5));
    assert_eq!(quiet.json()["position"], 5);
}

/// Asks for a stream in HTTP/1.0, and reads until it has said some words.
async fn http_1_0(client: &Client, path: &str, words: &str) -> (String, String) {
    let mut socket = client.connect().await;
    let request =
        format!("GET {path} HTTP/1.0\r\nAuthorization: {}\r\n\r\n", client.authorization());
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&said).contains(words) {
            assert_ne!(socket.read_buf(&mut said).await.unwrap(), 0, "the stream goes on");
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the stream is silent");
    let said = String::from_utf8(said).unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_proxy_gets_the_stream_without_chunks() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let (head, body) =
        http_1_0(&client, &format!("/api/jobs/{job}/stream"), "event: bookmark").await;
    assert!(head.starts_with("http/1.0 200"), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
    for header in [
        "content-type: text/event-stream",
        "cache-control: no-cache, no-transform",
        "connection: close",
        "x-accel-buffering: no",
    ] {
        assert!(head.contains(header), "{header} is not in {head}");
    }
    let mut lines = body.lines();
    let retry = lines.next().unwrap().strip_prefix("retry: ").unwrap();
    assert!((1_000..3_000).contains(&retry.parse().unwrap()), "{retry}");
    assert_eq!(lines.next(), Some(""));
    assert!(lines.next().unwrap().starts_with("id: "));
    assert_eq!(lines.next(), Some("event: job"));
    let data = lines.next().unwrap().strip_prefix("data: ").unwrap();
    assert_eq!(serde_json::from_str::<Value>(data).unwrap()["id"], job);
    assert_eq!(lines.next(), Some(""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_stream_of_events_says_that_it_is_there() {
    let server = Server::start().await;
    let (_, body) = http_1_0(&server.client(), "/api/events/stream", ": here\n\n").await;
    assert!(!body.contains("event:"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_session_behind_it() {
    let server = Server::start().await;
    let client = server.client();
    let cookie = log_in(&server).await;
    let owner = sql(&server.database_url()).await;
    owner
        .batch_execute("UPDATE session SET expires_at = now() + interval '4 seconds'")
        .await
        .unwrap();
    let request = client.request(Method::GET, "/api/events/stream");
    let request = request.header("cookie", format!("session_token={cookie}"));
    let mut stream = client.follow(request).await.unwrap();
    client.agent("mari").await;
    assert!(stream.next().await.is_some());
    assert!(stream.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_one_thing_hear_the_same() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let path = format!("/api/agents/{agent}/instance/stream");
    let mut readers = Vec::new();
    for _ in 0..20 {
        let mut stream = client.stream(&path, None).await;
        snapshot(&mut stream).await;
        readers.push(stream);
    }
    let open = client.read("/api/metrics").await["streams_open"].as_u64().unwrap();
    assert_eq!(open, 20);
    step(&client, &job, "vm_created").await;
    let first = readers[0].next_named("instance").await;
    for reader in &mut readers[1..] {
        assert_eq!(reader.next_named("instance").await, first);
    }
    drop(readers);
    crate::harness::wait_until("the streams are closed", || async {
        let open = client.read("/api/metrics").await["streams_open"].as_u64();
        (open == Some(0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_events_is_told_that_it_is_fresh_while_nothing_happens() {
    let server = Server::start().await;
    let client = server.client();
    let mut stream = client.stream("/api/stream?events=all", None).await;
    assert_eq!(stream.next().await.unwrap().event, "bookmark");
}
