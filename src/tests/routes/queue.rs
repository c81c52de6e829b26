//! `/api/queue`, and the order in which jobs are taken from it.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{Client, MILEPOST, Options, Server, text, wait_until};

async fn rehearsing() -> Server {
    let env = vec![("MILEPOST_REHEARSAL_PACE", "0.01".to_owned())];
    Server::with(Options { rehearsal: true, env, ..Options::default() }).await
}

async fn claims(client: &Client) -> Vec<String> {
    let answer = client.read("/api/events?type=WorkflowDispatchRequested").await;
    let events = answer["events"].as_array().unwrap();
    events.iter().map(|event| text(&event["data"], "job_id")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_says_who_and_why_and_claims_nothing() {
    let server = rehearsing().await;
    let client = server.client();
    assert_eq!(client.read("/api/queue").await["paused"], Value::Null);
    let (status, queue) = client.post("/api/queue/pause", &json!({"reason": "an outage"})).await;
    assert_eq!(status, 200, "{queue}");
    assert_eq!(queue["paused"]["reason"], "an outage");
    assert!(text(&queue["paused"], "by").starts_with("token:"), "{queue}");
    let before = claims(&client).await;
    let (_, job) = client.job("mari").await;
    // Whatever the worker does with a job it finds, it does before it looks a second time.
    wait_until("the worker has looked at the queue", || async {
        (client.metric("milepost_jobs_active").await == 1).then_some(())
    })
    .await;
    assert_eq!(client.read(&format!("/api/jobs/{job}")).await["status"], "queued");
    assert_eq!(claims(&client).await, before);
    assert_eq!(client.read("/api/queue").await["queued"], 1);

    let (status, queue) = client.post("/api/queue/resume", &json!({})).await;
    assert_eq!((status.as_u16(), &queue["paused"]), (200, &Value::Null));
    wait_until("the job is claimed", || async {
        claims(&client).await.contains(&job).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_needs_a_reason_and_what_is_so_already_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    for (path, body, status) in [
        ("/api/queue/pause", json!({}), 400),
        ("/api/queue/pause", json!({"reason": " "}), 400),
        ("/api/queue/resume", json!({}), 409),
        ("/api/queue/pause", json!({"reason": "an outage"}), 200),
        ("/api/queue/pause", json!({"reason": "another"}), 409),
        ("/api/queue/resume", json!({"reason": "it is over"}), 200),
    ] {
        let (answered, answer) = client.post(path, &body).await;
        assert_eq!(answered, status, "{path} {body}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_goes_on_while_the_queue_is_paused() {
    let env = vec![("MILEPOST_RETRY_DELAYS", "0.2".to_owned())];
    let server = Server::with(Options { env, ..Options::default() }).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    client.post("/api/queue/pause", &json!({"reason": "an outage"})).await;
    for status in ["provisioning", "failed"] {
        let (_, answer) = client.callback(&json!({"job_id": job, "status": status})).await;
        assert_eq!(answer["applied"], true, "{answer}");
    }
    // Nobody reads the job: the sweeper finds that its retry is due.
    wait_until("the next attempt waits", || async {
        let retried = client.read("/api/events?type=JobRetried").await;
        (!retried["events"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_priority_is_claimed_first() {
    let server = rehearsing().await;
    let client = server.client();
    client.post("/api/queue/pause", &json!({"reason": "to set them in order"})).await;
    let mut jobs = Vec::new();
    for name in ["first", "last", "urgent"] {
        jobs.push(client.job(name).await.1);
    }
    for (job, priority) in [(&jobs[1], -5), (&jobs[2], 50)] {
        let body = json!({"priority": priority, "reason": "a customer waits"});
        let (status, answer) = client.post(&format!("/api/jobs/{job}/priority"), &body).await;
        assert_eq!(status, 202, "{answer}");
    }
    let moved = client.read(&format!("/api/jobs/{}", jobs[2])).await;
    assert_eq!(moved["priority"], 50);
    client.post("/api/queue/resume", &json!({})).await;
    let order = wait_until("all are claimed", || async {
        let mut order = claims(&client).await;
        order.retain(|job| jobs.contains(job));
        (order.len() == 3).then_some(order)
    })
    .await;
    assert_eq!(order, [&jobs[2], &jobs[0], &jobs[1]].map(String::clone));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_that_makes_no_sense_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let path = format!("/api/jobs/{job}/priority");
    for (body, status) in [
        (json!({}), 400),
        (json!({"priority": "high"}), 400),
        (json!({"priority": 101}), 422),
        (json!({"priority": -101}), 422),
        (json!({"priority": 100}), 202),
    ] {
        assert_eq!(client.post(&path, &body).await.0, status, "{body}");
    }
    client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    assert_eq!(client.post(&path, &json!({"priority": 1})).await.0, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_do_all_of_it_from_the_command_line() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let milepost = async |arguments: &[&str]| {
        let ran = tokio::process::Command::new(MILEPOST)
            .arg("jobs")
            .args(arguments)
            .args(["--url", &server.url(), "--token", &server.ready("admin_token")])
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    milepost(&["pause", "--reason", "an outage"]).await;
    assert_eq!(client.read("/api/queue").await["paused"]["reason"], "an outage");
    milepost(&["resume", "--reason", "it is over"]).await;
    assert_eq!(client.read("/api/queue").await["paused"], Value::Null);
    milepost(&["prioritise", &job, "-7", "--reason", "later"]).await;
    assert!(milepost(&["list"]).await.contains("priority -7"));
    milepost(&["cancel", &job, "--reason", "by mistake"]).await;
    milepost(&["retry", &job, "--reason", "it was none"]).await;
    let jobs = client.read("/api/jobs").await;
    assert_eq!(jobs["jobs"][0]["retry_of"], job);
    assert_eq!(jobs["jobs"][0]["retry_reason"], "it was none");
}
