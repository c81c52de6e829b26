//! `?at=`: the state at a place in the log, and what changed between two.

use milepost_schemas::{JobId, StreamId};
use serde_json::{Value, json};

use crate::harness::{Client, Server, text};

const STATE: [&str; 6] = [
    "/api/agents",
    "/api/jobs",
    "/api/nodes",
    "/api/queue",
    "/api/metrics",
    "/api/jobs?status=running",
];

async fn head(client: &Client) -> u64 {
    client.read("/api/events?limit=0").await["head"].as_u64().unwrap()
}

async fn step(client: &Client, job: &str, step: &str) -> u64 {
    let (_, answer) =
        client.callback(&json!({"job_id": job, "status": "provisioning", "step": step})).await;
    answer["position"].as_u64().unwrap()
}

fn with_at(path: &str, at: &impl std::fmt::Display) -> String {
    format!("{path}{}at={at}", if path.contains('?') { '&' } else { '?' })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_place_is_refused_and_what_is_to_come_is_not_there() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let end = head(&client).await;
    let one = [
        format!("/api/agents/{agent}"),
        format!("/api/agents/{agent}/instance"),
        format!("/api/jobs/{job}"),
        format!("/api/jobs/{job}/log"),
    ];
    for path in STATE.into_iter().map(str::to_owned).chain(one) {
        for at in ["-1", "yesterday", "1.5", "18446744073709551616", "2026-13-01T00:00:00Z"] {
            let (status, problem) = client.get(&with_at(&path, &at)).await;
            assert_eq!(status, 400, "{path} {at}: {problem}");
            assert!(text(&problem, "detail").contains(at), "{problem}");
        }
        for at in [(end + 1).to_string(), u64::MAX.to_string(), "2999-01-01T00:00:00Z".into()] {
            let (status, problem) = client.get(&with_at(&path, &at)).await;
            assert_eq!(status, 404, "{path} {at}: {problem}");
            assert_eq!(problem["type"], "urn:milepost:problem:not-yet");
            assert_eq!(problem["head"], end);
        }
        // A form that is sent empty asks for what is.
        assert_eq!(client.get(&with_at(&path, &"")).await.0, 200, "{path}");
        assert_eq!(client.get(&with_at(&path, &end)).await.0, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_exist_yet_is_not_there_and_lists_are_empty_before_the_first_event() {
    let server = Server::start().await;
    let client = server.client();
    let first = head(&client).await;
    let (agent, job) = client.job("mari").await;
    for path in [
        format!("/api/agents/{agent}"),
        format!("/api/agents/{agent}/instance"),
        format!("/api/jobs/{job}"),
        format!("/api/jobs/{job}/log"),
        format!("/api/jobs/{job}/log.txt"),
    ] {
        let (status, problem) = client.get(&with_at(&path, &first)).await;
        assert_eq!(status, 404, "{path}");
        assert_eq!(problem["type"], "urn:milepost:problem:not-found", "{path}");
    }
    assert_eq!(client.read("/api/agents?at=0").await["agents"], json!([]));
    assert_eq!(client.read("/api/jobs?at=0").await["jobs"], json!([]));
    assert_eq!(client.read("/api/nodes?at=0").await["nodes"], json!([]));
    let metrics = client.read("/api/metrics?at=0").await;
    assert_eq!((&metrics["agents_total"], &metrics["position"]), (&json!(0), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_question_has_the_same_answer_however_much_comes_after() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let created = step(&client, &job, "vm_created").await;
    let paths = STATE
        .into_iter()
        .map(str::to_owned)
        .chain([format!("/api/agents/{agent}/instance"), format!("/api/jobs/{job}")]);
    let mut answers = Vec::new();
    for path in paths {
        let path = with_at(&path, &created);
        answers.push((path.clone(), client.read(&path).await));
    }
    step(&client, &job, "ansible_started").await;
    client.callback(&json!({"job_id": job, "status": "running"})).await;
    client.job("juno").await;
    for (path, before) in answers {
        assert_eq!(client.read(&path).await, before, "{path}");
    }
    let instance = client.read(&format!("/api/agents/{agent}/instance?at={created}")).await;
    assert_eq!(instance["instance"]["current_step"], "vm_created");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_stands_for_the_last_position_by_then() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let created = step(&client, &job, "vm_created").await;
    let at = client.read(&format!("/api/events/{created}")).await;
    let path = format!("/api/agents/{agent}/instance");
    let by_time = client.read(&with_at(&path, &text(&at, "recorded_at"))).await;
    assert_eq!(by_time, client.read(&with_at(&path, &created)).await);
    // Before the log began nothing was there.
    assert_eq!(client.get(&with_at(&path, &"2001-01-01T00:00:00Z")).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_is_as_old_as_it_was_then() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    client.callback(&json!({"job_id": job, "status": "running"})).await;
    let position = head(&client).await;
    let path = format!("/api/agents/{agent}/instance?at={position}");
    assert_eq!(client.read(&path).await["uptime"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_has_the_lines_it_had() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    client.callback(&json!({"job_id": job, "status": "provisioning"})).await;
    let mut ends = Vec::new();
    for from in [1, 3, 5] {
        let lines = json!([format!("line {from}"), format!("line {}", from + 1)]);
        let body =
            json!({"job_id": job, "type": "log", "from": from, "lines": lines, "attempt": 1});
        let (_, answer) = client.callback(&body).await;
        ends.push((answer["position"].as_u64().unwrap(), from + 1));
    }
    for (position, printed) in ends {
        let page = client.read(&format!("/api/jobs/{job}/log?at={position}")).await;
        // The heading of the attempt is a row too.
        assert_eq!(page["total"], printed + 1, "{page}");
        let request =
            client.request(reqwest::Method::GET, &format!("/api/jobs/{job}/log.txt?at={position}"));
        let file = client.send(request.bearer_auth(&client.token)).await;
        assert!(file.text().trim_end().ends_with(&format!("line {printed}")), "{}", file.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_paged_and_filtered_as_they_were() {
    let server = Server::start().await;
    let client = server.client();
    let mut jobs = Vec::new();
    for name in ["mari", "juno", "cleo"] {
        jobs.push(client.job(name).await.1);
    }
    let end = head(&client).await;
    client.callback(&json!({"job_id": jobs[1], "status": "running"})).await;
    let ids = |answer: &Value| -> Vec<String> {
        answer["jobs"].as_array().unwrap().iter().map(|job| text(job, "id")).collect()
    };
    let all = client.read(&format!("/api/jobs?at={end}&limit=2")).await;
    assert_eq!(ids(&all), [jobs[2].clone(), jobs[1].clone()]);
    let rest = client.read(&format!("/api/jobs?at={end}&before={}", jobs[1])).await;
    assert_eq!(ids(&rest), [jobs[0].clone()]);
    let succeeded = format!("/api/jobs?status=succeeded&at={end}");
    assert_eq!(ids(&client.read(&succeeded).await), [""; 0]);
    let later = format!("/api/jobs?status=succeeded&at={}", head(&client).await);
    assert_eq!(ids(&client.read(&later).await), [jobs[1].clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_tells_each_field_that_changed_and_leaves_out_the_rest() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let (other, _) = client.job("juno").await;
    let before = head(&client).await;
    let created = step(&client, &job, "vm_created").await;
    let diff = client.read(&format!("/api/diff?at={before}&against={created}")).await;
    assert_eq!((&diff["events"], &diff["looked_to"]), (&json!(1), &json!(created)));
    let things: Vec<(String, String)> = diff["things"]
        .as_array()
        .unwrap()
        .iter()
        .map(|thing| (text(thing, "kind"), text(thing, "id")))
        .collect();
    assert_eq!(things, [("agent".into(), agent.clone()), ("job".into(), job.clone())]);
    let fields = diff["things"][0]["fields"].as_array().unwrap();
    let status = fields.iter().find(|field| field["field"] == "instance.status").unwrap();
    assert_eq!((&status["old"], &status["new"]), (&json!("pending"), &json!("provisioning")));
    assert!(fields.iter().all(|field| !text(field, "field").ends_with("position")));
    // Whichever is given first.
    assert_eq!(client.read(&format!("/api/diff?at={created}&against={before}")).await, diff);
    let none = client.read(&format!("/api/diff?at={before}&against={created}&agent={other}")).await;
    assert_eq!(none["things"], json!([]));
    let only = client.read(&format!("/api/diff?at={before}&stream={job}")).await;
    assert_eq!(only["things"].as_array().unwrap().len(), 1);
    assert_eq!(only["things"][0]["kind"], "job");
    // From nothing, everything is new.
    let all = client.read("/api/diff?at=0").await;
    assert!(all["things"].as_array().unwrap().iter().all(|thing| thing["is_new"] == true));
    let log = JobId(job.parse().unwrap()).log_stream();
    for wrong in [
        "/api/diff".to_owned(),
        "/api/diff?at=x".to_owned(),
        format!("/api/diff?at=0&agent={agent}&job={job}"),
        format!("/api/diff?at=0&stream={log}"),
    ] {
        assert_eq!(client.get(&wrong).await.0, 400, "{wrong}");
    }
    assert_eq!(client.get("/api/diff?at=0&against=99999").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_a_difference_and_is_seen_at_its_position_only() {
    let server = Server::start().await;
    let client = server.client();
    let before = head(&client).await;
    client.post("/api/queue/pause", &json!({"reason": "an outage"})).await;
    let paused = head(&client).await;
    client.post("/api/queue/resume", &json!({})).await;
    assert_eq!(client.read(&format!("/api/queue?at={before}")).await["paused"], Value::Null);
    let then = client.read(&format!("/api/queue?at={paused}")).await;
    assert_eq!(then["paused"]["reason"], "an outage");
    assert_eq!(client.read("/api/queue").await["paused"], Value::Null);
    let path = format!("/api/diff?at={before}&against={paused}&stream={}", StreamId::QUEUE);
    assert_eq!(client.read(&path).await["things"][0]["kind"], "queue");
}
