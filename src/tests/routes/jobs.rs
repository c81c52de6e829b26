//! `/api/jobs`.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use milepost::app::{App, Clock};
use milepost::config::Config;
use milepost::domain::JobCommand;
use milepost::execute::{self, ExecuteError};
use milepost_schemas::{JobId, Metadata};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{Client, MASTER_KEY, Messages, Options, Server, text, wait_until};

/// A delay that no test outlives.
const NEVER: &str = "3600,3600,3600";

async fn with(env: &[(&'static str, &str)]) -> Server {
    let env = env.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Server::with(Options { env, ..Options::default() }).await
}

async fn say(client: &Client, mut body: Value, job: &str) {
    body["job_id"] = job.into();
    let (status, answer) = client.callback(&body).await;
    assert_eq!((status.as_u16(), &answer["applied"]), (200, &json!(true)), "{body}: {answer}");
}

/// The next state of a job that is as it should be.
async fn state(stream: &mut Messages, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let job = stream.next_named("job").await.json();
        if wanted(&job) {
            return job;
        }
    }
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

fn letters(value: &Value) -> String {
    let steps = value["steps"].as_array().unwrap();
    steps.iter().map(|step| step["status"].as_str().unwrap().chars().next().unwrap()).collect()
}

fn path(job: &str, tail: &str) -> String {
    format!("/api/jobs/{job}{tail}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_tells_what_it_is_and_each_attempt() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let shown = client.read(&path(&job, "")).await;
    for (name, value) in [
        ("id", json!(job)),
        ("job_type", json!("provision_agent")),
        ("status", json!("queued")),
        ("agent_id", json!(agent)),
        ("site_id", Value::Null),
        ("environment_id", Value::Null),
        ("node_id", Value::Null),
        ("attempt_count", json!(1)),
        ("max_attempts", json!(4)),
        ("run_after", Value::Null),
        ("locked_at", Value::Null),
        ("locked_by", Value::Null),
        ("started_at", Value::Null),
        ("finished_at", Value::Null),
        ("error_code", Value::Null),
        ("error_message", Value::Null),
        ("retry_of", Value::Null),
    ] {
        assert_eq!(shown[name], value, "{name}");
    }
    assert_eq!(shown["created_at"], shown["updated_at"]);
    say(&client, json!({"status": "provisioning", "workflow_run_id": 44}), &job).await;
    say(&client, json!({"status": "provisioning", "step": "vm_created"}), &job).await;
    say(&client, json!({"status": "running"}), &job).await;
    let shown = client.read(&path(&job, "")).await;
    assert_eq!(shown["status"], "succeeded");
    assert!(time(&shown["created_at"]) <= time(&shown["started_at"]));
    assert!(time(&shown["started_at"]) <= time(&shown["finished_at"]));
    let attempt = &shown["timeline"][0];
    assert_eq!((&attempt["attempt"], &attempt["status"]), (&json!(1), &json!("succeeded")));
    assert_eq!(attempt["workflow_run_id"], "44");
    assert_eq!(letters(attempt), "ccccc");
    assert_eq!(attempt["finished_at"], shown["finished_at"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_newest_first_and_by_status() {
    let server = Server::start().await;
    let client = server.client();
    let (_, first) = client.job("first").await;
    let (_, second) = client.job("second").await;
    let (_, third) = client.job("third").await;
    say(&client, json!({"status": "provisioning"}), &second).await;
    let list = async |query: &str| -> Vec<String> {
        let list = client.read(&format!("/api/jobs{query}")).await;
        list["jobs"].as_array().unwrap().iter().map(|job| text(job, "id")).collect()
    };
    assert_eq!(list("").await, [&*third, &second, &first]);
    assert_eq!(list("?status=running").await, [&*second]);
    assert_eq!(list("?status=queued").await, [&*third, &first]);
    assert_eq!(list("?limit=1").await, [&*third]);
    assert_eq!(list(&format!("?before={third}&limit=1")).await, [&*second]);
    assert_eq!(list(&format!("?before={first}")).await, [""; 0]);
    for query in ["?status=asleep", "?before=yesterday", "?limit=-1", "?limit=many"] {
        let (status, problem) = client.get(&format!("/api/jobs{query}")).await;
        assert_eq!(status, 400, "{query}: {problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_found_under_an_id_that_no_job_has() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, _) = client.job("mari").await;
    for id in ["019ab0c2-7d2a-7a41-8c33-5b1f0d9e7a02", &agent, "job", "%FF"] {
        for (method, tail) in [
            (Method::GET, ""),
            (Method::GET, "/stream"),
            (Method::POST, "/cancel"),
            (Method::POST, "/retry"),
        ] {
            let request = client.request(method, &path(id, tail));
            let answer = client.send(request.header("authorization", client.authorization())).await;
            assert_eq!(answer.status, 404, "{id}{tail}: {}", answer.text());
            assert!(answer.text().contains("There is no such job"), "{}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_once_and_for_all() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    say(&client, json!({"status": "provisioning", "step": "vm_created"}), &job).await;
    let (status, accepted) =
        client.post(&path(&job, "/cancel"), &json!({"reason": "by mistake"})).await;
    assert_eq!((status.as_u16(), &accepted), (202, &json!({"job_id": job})));
    let shown = client.read(&path(&job, "")).await;
    assert_eq!(
        (&shown["status"], &shown["cancelled_by"]),
        (&json!("cancelled"), &json!("token:dev"))
    );
    assert_eq!(shown["error_message"], "Cancelled by token:dev: by mistake");
    assert_eq!(letters(&shown["timeline"][0]), "ccepp");
    assert_eq!(client.read(&format!("/api/agents/{agent}")).await["active_job_id"], Value::Null);
    let (status, problem) = client.post(&path(&job, "/cancel"), &json!({})).await;
    assert_eq!(status, 409);
    assert_eq!(problem["type"], "urn:milepost:problem:job-status");
    assert_eq!(problem["detail"], "the job is cancelled");
    // An order needs no body, and no content type then.
    let (_, other) = client.job("liis").await;
    let request = client.request(Method::POST, &path(&other, "/cancel"));
    let answer = client.send(request.header("authorization", client.authorization())).await;
    assert_eq!(answer.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_by_hand_is_a_new_job() {
    let server = Server::start().await;
    let client = server.client();
    let agent = text(
        &client.post("/api/agents", &json!({"name": "mari", "region": "us-east"})).await.1,
        "id",
    );
    let order = format!("/api/agents/{agent}/provision");
    let job = text(&client.post(&order, &json!({"region": "eu-west"})).await.1, "job_id");
    let retry = path(&job, "/retry");
    let (status, problem) = client.post(&retry, &json!({})).await;
    assert_eq!(status, 409);
    assert_eq!(problem["type"], "urn:milepost:problem:job-status", "it has not ended: {problem}");
    client.post(&path(&job, "/cancel"), &json!({})).await;
    let before = client.read(&path(&job, "")).await;
    let (status, accepted) = client.post(&retry, &json!({})).await;
    assert_eq!(status, 202, "{accepted}");
    let again = text(&accepted, "job_id");
    assert_ne!(again, job);
    let shown = client.read(&path(&again, "")).await;
    assert_eq!((&shown["retry_of"], &shown["status"]), (&json!(job), &json!("queued")));
    assert_eq!((&shown["region"], &shown["attempt_count"]), (&json!("eu-west"), &json!(1)));
    assert_eq!(client.read(&path(&job, "")).await, before, "ended is final");
    let (status, problem) = client.post(&retry, &json!({})).await;
    assert_eq!(status, 409);
    assert_eq!(problem["type"], "urn:milepost:problem:agent-busy", "{problem}");
    say(&client, json!({"status": "running"}), &again).await;
    let (status, problem) = client.post(&path(&again, "/retry"), &json!({})).await;
    assert_eq!(status, 409);
    assert_eq!(problem["type"], "urn:milepost:problem:job-status", "it has succeeded: {problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_retry_is_scheduled_the_failed_attempt_is_shown() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    say(&client, json!({"status": "provisioning", "step": "ansible_started"}), &job).await;
    let failed = json!({"status": "failed", "error": "no route", "failed_step": "configure"});
    say(&client, failed, &job).await;
    let shown = client.read(&path(&job, "")).await;
    assert_eq!((&shown["status"], &shown["attempt_count"]), (&json!("retry_scheduled"), &json!(1)));
    let failed_at = time(&shown["timeline"][0]["finished_at"]);
    let delay = time(&shown["run_after"]).duration_since(failed_at);
    let off = (delay - SignedDuration::from_mins(1)).abs();
    assert!(off < SignedDuration::from_secs(5), "{delay}");
    let answer = client.read(&format!("/api/agents/{agent}/instance")).await;
    let instance = &answer["instance"];
    assert_eq!((&instance["status"], &instance["error"]), (&json!("failed"), &json!("no route")));
    assert_eq!(instance["retry_at"], shown["run_after"]);
    assert_eq!(letters(&answer), "cccep");
    assert_eq!(answer["agent"]["active_job_id"], job, "the order goes on");
    // It may be ended there, too.
    assert_eq!(client.post(&path(&job, "/cancel"), &json!({})).await.0, 202);
    let answer = client.read(&format!("/api/agents/{agent}/instance")).await;
    assert_eq!(answer["instance"]["retry_at"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn four_attempts_and_no_more() {
    let server = with(&[("MILEPOST_RETRY_DELAYS", "0.2,0.2,0.2")]).await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let mut stream = client.stream(&path(&job, "/stream"), None).await;
    for attempt in 1..=4 {
        // Nobody reads the job meanwhile: the sweeper finds what is due.
        let queued = state(&mut stream, |job| job["attempt_count"] == attempt).await;
        assert_eq!(queued["status"], "queued");
        assert_eq!(letters(&queued["timeline"][attempt - 1]), "apppp", "it starts over");
        let answer = client.read(&format!("/api/agents/{agent}/instance")).await;
        assert_eq!(answer["instance"]["status"], "pending");
        assert_eq!(answer["instance"]["error"], Value::Null);
        let vm = json!({"status": "provisioning", "step": "vm_created", "attempt": attempt});
        say(&client, vm, &job).await;
        let error = format!("attempt {attempt} failed");
        say(&client, json!({"status": "failed", "error": error, "attempt": attempt}), &job).await;
    }
    let failed = state(&mut stream, |job| job["status"] == "failed").await;
    assert_eq!(failed["attempt_count"], 4);
    assert_eq!(failed["error_message"], "attempt 4 failed");
    assert_eq!(
        (&failed["run_after"], failed["timeline"].as_array().unwrap().len()),
        (&Value::Null, 4)
    );
    for (index, attempt) in failed["timeline"].as_array().unwrap().iter().enumerate() {
        assert_eq!(
            (&attempt["attempt"], &attempt["status"]),
            (&json!(index + 1), &json!("failed"))
        );
        assert_eq!(letters(attempt), "ccepp");
    }
    let types: Vec<String> =
        client.events().await.iter().map(|event| text(event, "type")).collect();
    assert_eq!(types.iter().filter(|it| *it == "JobRetried").count(), 3);
    let last = ["JobFailed", "ProvisioningEnded", "CompensationRequested"];
    assert_eq!(types[types.len() - last.len()..], last, "the server of the last attempt, too");
    assert_eq!(client.read(&format!("/api/agents/{agent}")).await["active_job_id"], Value::Null);
    let (status, accepted) = client.post(&path(&job, "/retry"), &json!({})).await;
    assert_eq!(status, 202);
    assert_eq!(client.read(&path(&text(&accepted, "job_id"), "")).await["retry_of"], job);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_falls_silent_has_failed() {
    let server = with(&[("MILEPOST_SILENCE", "0.4"), ("MILEPOST_RETRY_DELAYS", NEVER)]).await;
    let client = server.client();
    for (callback, expected) in [
        (json!({"status": "provisioning"}), "ceppp"),
        (json!({"status": "provisioning", "step": "ansible_started"}), "cccep"),
    ] {
        let (_, job) = client.job("mari").await;
        let mut stream = client.stream(&path(&job, "/stream"), None).await;
        say(&client, callback, &job).await;
        let failed = state(&mut stream, |job| job["status"] == "retry_scheduled").await;
        assert_eq!(failed["error_code"], "HEARTBEAT_TIMEOUT");
        assert_eq!(letters(&failed["timeline"][0]), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_takes_too_long_has_failed() {
    let server = with(&[("MILEPOST_ATTEMPT", "0.6"), ("MILEPOST_RETRY_DELAYS", NEVER)]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let mut stream = client.stream(&path(&job, "/stream"), None).await;
    say(&client, json!({"status": "provisioning"}), &job).await;
    let begun = state(&mut stream, |job| job["status"] == "running").await;
    // A heartbeat puts off the end of silence only.
    client.callback(&json!({"job_id": job, "type": "heartbeat"})).await;
    let failed = state(&mut stream, |job| job["status"] == "retry_scheduled").await;
    assert_eq!(failed["error_code"], "ATTEMPT_TIMEOUT");
    let took = time(&failed["updated_at"]).duration_since(time(&begun["started_at"]));
    assert!(took >= SignedDuration::from_millis(600), "{took}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_over_for_whoever_reads_after_it() {
    let server = with(&[("MILEPOST_SILENCE", "0.5"), ("MILEPOST_RETRY_DELAYS", "0.5")]).await;
    let client = server.client();
    let over = async |at: Timestamp| {
        wait_until("the deadline", || async { (Clock.now() > at).then_some(()) }).await;
    };
    for tail in ["", "/instance"] {
        let (agent, job) = client.job("mari").await;
        say(&client, json!({"status": "provisioning"}), &job).await;
        let begun = client.events().await.last().unwrap()["recorded_at"].clone();
        let read = async || {
            if tail.is_empty() {
                return client.read(&path(&job, "")).await["status"].clone();
            }
            let answer = client.read(&format!("/api/agents/{agent}{tail}")).await;
            answer["instance"]["job_status"].clone()
        };
        over(time(&begun) + SignedDuration::from_millis(500)).await;
        assert_ne!(read().await, "running");
        let failed = client.read("/api/events?type=JobFailed").await;
        let failed = failed["events"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(failed["data"]["job_id"], job);
        over(time(&failed["data"]["retry"]["run_after"])).await;
        assert_eq!(read().await, "queued");
    }
}

/// Another node's worker, which claims jobs for a while and does no more.
async fn worker(server: &Server) -> Arc<App> {
    let config = Config::from_env(|name| match name {
        "DATABASE_URL" => Some(server.database_url()),
        "MILEPOST_PUBLIC_URL" => Some(server.url()),
        "MILEPOST_CALLBACK_SECRETS" => Some("of no importance".to_owned()),
        "MILEPOST_MASTER_KEY" => Some(MASTER_KEY.to_owned()),
        "MILEPOST_LEASE" => Some("0.4".to_owned()),
        _ => None,
    });
    App::open(config.unwrap(), CancellationToken::new()).await.unwrap()
}

async fn claim(app: &App, job: &str) -> Result<(), ExecuteError> {
    let job: JobId = job.parse().unwrap();
    let metadata = Metadata {
        actor: "system:worker".to_owned(),
        correlation_id: job.0,
        causation_id: None,
        callback: None,
    };
    let command = JobCommand::Claim { dispatcher: "rehearsal", locked_by: "worker@1".to_owned() };
    execute::to_job(app, job, command, metadata).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_claims_on_two_nodes_one_is_taken() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let workers = [worker(&server).await, worker(&server).await];
    let mut claims = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (app, job) = (Arc::clone(&workers[number % 2]), job.clone());
        claims.spawn(async move { claim(&app, &job).await });
    }
    let outcomes = claims.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    let refused =
        |outcome: &&Result<(), ExecuteError>| matches!(outcome, Err(ExecuteError::Job(_)));
    assert_eq!(outcomes.iter().filter(refused).count(), 15, "{outcomes:?}");
    let claimed = client.read("/api/events?type=WorkflowDispatchRequested").await;
    assert_eq!(claimed["events"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_worker_vanished_lapses() {
    let server = with(&[("MILEPOST_RETRY_DELAYS", NEVER)]).await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let mut stream = client.stream(&path(&job, "/stream"), None).await;
    claim(&*worker(&server).await, &job).await.unwrap();
    let claimed = state(&mut stream, |job| job["status"] == "dispatching").await;
    assert_eq!(
        (&claimed["locked_by"], claimed["locked_at"].is_string()),
        (&json!("worker@1"), true)
    );
    let lost = state(&mut stream, |job| job["status"] == "retry_scheduled").await;
    assert_eq!((&lost["error_code"], &lost["locked_by"]), (&json!("DISPATCH_LOST"), &Value::Null));
    assert_eq!(letters(&lost["timeline"][0]), "ceppp");
    let answer = client.read(&format!("/api/agents/{agent}/instance")).await;
    assert_eq!(answer["instance"]["status"], "failed");
}
