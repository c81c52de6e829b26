//! Dispatch to GitHub Actions, and what becomes of answers that are lost.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::doubles::github::{Fault, Github, REPOSITORY};
use crate::harness::{Client, Options, PATIENCE, Server, sql, text, wait_until};

/// Random fault placements.
const PLACEMENTS: usize = 200;

/// Longer than any test: a run is listed when the test says so.
const NEVER: Duration = Duration::from_hours(1);

async fn dispatching(github: &Github, more: &[(&'static str, &str)]) -> Server {
    let mut env = github.env();
    env.push(("MILEPOST_RETRY_DELAYS", vec!["0.05"; 20].join(",")));
    env.retain(|(name, _)| more.iter().all(|(other, _)| name != other));
    env.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Server::with(Options { env, ..Options::default() }).await
}

async fn job_when(
    client: &Client,
    job: &str,
    what: &str,
    mut condition: impl FnMut(&Value) -> bool,
) -> Value {
    let mut state = Value::Null;
    let met = async {
        loop {
            state = client.read(&format!("/api/jobs/{job}")).await;
            if condition(&state) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let met = tokio::time::timeout(PATIENCE, met).await;
    assert!(met.is_ok(), "never: {what}: {state:#}");
    state
}

fn latest(state: &Value) -> &Value {
    state["timeline"].as_array().unwrap().last().unwrap()
}

async fn taken(client: &Client, job: &str) -> Value {
    job_when(client, job, "its run is known", |it| latest(it)["workflow_run_id"].is_string()).await
}

async fn waiting(client: &Client, job: &str, words: &str) -> Value {
    job_when(client, job, &format!("it waits: {words}"), |it| {
        it["status"] == "queued"
            && it["waiting_because"].as_str().is_some_and(|reason| reason.contains(words))
    })
    .await
}

async fn count(client: &Client, kind: &str) -> usize {
    client.events().await.iter().filter(|event| event["type"] == kind).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_dispatched_with_its_inputs_and_knows_its_run() {
    let github = Github::start().await;
    let server = dispatching(&github, &[]).await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let state = taken(&client, &job).await;
    let [run] = &github.runs()[..] else { panic!() };
    assert_eq!(latest(&state)["workflow_run_id"], run.id.to_string());
    let url = format!("https://github.example/{REPOSITORY}/actions/runs/{}", run.id);
    assert_eq!(latest(&state)["run_url"], url);
    let body = &github.asked("dispatch")[0];
    assert_eq!(
        body,
        &json!({
            "ref": "main",
            "return_run_details": true,
            "inputs": {
                "job_id": job,
                "agent_id": agent,
                "region": "eu-central",
                "callback_url": format!("{}/api/webhooks/github", server.url()),
                "attempt": "1",
            },
        })
    );
    let kinds: Vec<String> =
        client.events().await.iter().map(|event| text(event, "type")).collect();
    let place = |kind: &str| kinds.iter().position(|it| it == kind).unwrap();
    assert!(place("WorkflowDispatchRequested") < place("WorkflowDispatched"), "the intent first");
    github.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_run_is_completed_by_the_runs_name() {
    for old in [false, true] {
        let github = Github::start().await;
        if old {
            github.is_old();
        } else {
            github.fault("dispatch", [Fault::Silent]);
        }
        let server = dispatching(&github, &[]).await;
        let client = server.client();
        let (_, job) = client.job("mari").await;
        let state = taken(&client, &job).await;
        assert_eq!(latest(&state)["workflow_run_id"], github.runs()[0].id.to_string());
        let asked = github.asked("dispatch");
        assert_eq!(asked.len(), if old { 2 } else { 1 });
        assert_eq!(asked.last().unwrap().get("return_run_details").is_none(), old);
        github.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_setting_keeps_the_job_waiting_and_says_which() {
    let github = Github::start().await;
    let server = dispatching(&github, &[("MILEPOST_GITHUB_TOKEN", "")]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    waiting(&client, &job, "MILEPOST_GITHUB_TOKEN is not set").await;
    assert!(github.asked("dispatch").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_keeps_the_job_waiting_longer_each_time_and_then_it_goes() {
    let github = Github::start().await;
    github.fault("dispatch", vec![Fault::Status(403, Vec::new()); 4]);
    let server = dispatching(&github, &[]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let state = taken(&client, &job).await;
    assert_eq!((&state["attempt_count"], github.runs().len()), (&json!(1), 1));
    let events = client.events().await;
    let refused = events.iter().filter(|event| event["type"] == "WorkflowDispatchFailed");
    let waits: Vec<f64> = refused
        .map(|event| {
            assert!(text(&event["data"], "reason").starts_with("GitHub answered 403"));
            let time = |text: String| text.parse::<jiff::Timestamp>().unwrap();
            let until = time(text(&event["data"], "run_after"));
            until.duration_since(time(text(event, "recorded_at"))).as_secs_f64()
        })
        .collect();
    assert_eq!(waits.len(), 4);
    assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_waited_for_as_long_as_github_says() {
    let github = Github::start().await;
    github.fault("dispatch", [Fault::Status(429, vec![("retry-after", "1800".to_owned())])]);
    let server = dispatching(&github, &[]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let state = waiting(&client, &job, "rate limit").await;
    let until: jiff::Timestamp = text(&state, "run_after").parse().unwrap();
    let wait = until.duration_since(milepost::app::Clock.now());
    assert!((1_700..=1_800).contains(&wait.as_secs()), "{wait}");
    assert_eq!(github.asked("dispatch").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_lost_after_the_run_began_is_found_and_not_dispatched_again() {
    for fault in [Fault::ResetAfter, Fault::HangAfter, Fault::StatusAfter(502)] {
        let github = Github::start().await;
        github.list_after(Duration::from_millis(200));
        github.fault("dispatch", [fault]);
        let server = dispatching(&github, &[]).await;
        let client = server.client();
        let (_, job) = client.job("mari").await;
        let state = taken(&client, &job).await;
        assert_eq!(latest(&state)["workflow_run_id"], github.runs()[0].id.to_string());
        assert_eq!((github.asked("dispatch").len(), github.runs().len()), (1, 1));
        assert_eq!(state["attempt_count"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_lost_without_a_trace_costs_the_attempt_not_a_second_dispatch() {
    let github = Github::start().await;
    github.fault("dispatch", [Fault::ResetBefore]);
    let server = dispatching(&github, &[]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let state = taken(&client, &job).await;
    assert_eq!(state["attempt_count"], 2);
    assert_eq!(state["timeline"][0]["error_code"], "DISPATCH_LOST");
    let attempts: Vec<Value> =
        github.asked("dispatch").iter().map(|body| body["inputs"]["attempt"].clone()).collect();
    assert_eq!(attempts, ["1", "2"]);
}

/// What decision 0004 leaves open: GitHub fails, lists no run for the settling time, and lists one
/// after all. There are two runs then; one of them is told to end, and the other does the work,
/// until it is told as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_answers_run_that_is_listed_after_the_settling_time_is_ended_and_one_goes_on() {
    let github = Github::start().await;
    github.fault("dispatch", [Fault::StatusAfter(502)]);
    github.list_after(NEVER);
    let server = dispatching(&github, &[]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let state = taken(&client, &job).await;
    assert_eq!(state["attempt_count"], 1);
    github.list_after(Duration::ZERO);
    let known = text(latest(&state), "workflow_run_id");
    let told = wait_until("the other is told to end", || async {
        let told = client.read("/api/events?type=WorkflowRunCancelRequested").await;
        told["events"].as_array().unwrap().first().cloned()
    })
    .await;
    let ids: Vec<String> = github.runs().iter().map(|run| run.id.to_string()).collect();
    assert_eq!((ids.len(), github.asked("cancel").len()), (2, 1));
    assert!(ids.contains(&known));
    let ended = text(&told["data"], "workflow_run_id");
    assert!(ids.contains(&ended) && ended != known, "{told}");
    let body = json!({"job_id": job, "status": "provisioning", "workflow_run_id": known});
    assert!(client.callback(&body).await.0.is_success());
    assert_eq!(client.read(&format!("/api/jobs/{job}")).await["status"], "running");
    let (status, _) = client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    assert_eq!(status, 202);
    wait_until("the one that went on has ended too", || async {
        github.runs().iter().all(|run| run.status == "completed").then_some(())
    })
    .await;
    assert_eq!(github.asked("cancel").len(), 2);
    github.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_github_does_not_know_for_a_moment_goes_on_and_for_longer_has_ended() {
    let gone = || Fault::Status(404, Vec::new());
    let github = Github::start().await;
    github.list_after(NEVER);
    let more = [("MILEPOST_GITHUB_SETTLE", "0.3"), ("MILEPOST_RETRY_DELAYS", "600")];
    let server = dispatching(&github, &more).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    taken(&client, &job).await;
    github.fault("run", [gone(), Fault::Fine, gone(), Fault::Fine, gone(), Fault::Fine]);
    let body = json!({"job_id": job, "status": "provisioning"});
    assert!(client.callback(&body).await.0.is_success());
    wait_until("it was asked for again and again", || async {
        (github.asked("run").len() > 6).then_some(())
    })
    .await;
    assert_eq!(client.read(&format!("/api/jobs/{job}")).await["status"], "running");
    github.always("run", Some(gone()));
    let state = job_when(&client, &job, "it failed", |it| it["status"] == "retry_scheduled").await;
    assert_eq!(latest(&state)["error_code"], "RUN_ENDED");
    assert!(text(latest(&state), "error_message").contains("knows the run no more"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_while_its_job_waits_again_ends_the_attempt_at_once() {
    let github = Github::start().await;
    github.fault("dispatch", [Fault::StatusAfter(502)]);
    github.list_after(NEVER);
    let more = [("MILEPOST_GITHUB_BACK_OFF", "600"), ("MILEPOST_RETRY_DELAYS", "600")];
    let server = dispatching(&github, &more).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    waiting(&client, &job, "GitHub answered 502").await;
    github.list_after(Duration::ZERO);
    github.complete(github.runs()[0].id, "failure");
    let failed = |it: &Value| it["status"] == "retry_scheduled";
    let state = job_when(&client, &job, "its end is seen", failed).await;
    assert_eq!(latest(&state)["error_code"], "RUN_ENDED");
    assert_eq!(github.asked("dispatch").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_at_work_that_nobody_hears_does_not_fail_by_silence() {
    let github = Github::start().await;
    let server = dispatching(&github, &[("MILEPOST_SILENCE", "3")]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    taken(&client, &job).await;
    github.change(github.runs()[0].id, |run| "in_progress".clone_into(&mut run.status));
    let seen = wait_until("it was seen for longer than silence may last", || async {
        let seen = client.read("/api/events?type=WorkflowRunObserved").await;
        let seen = seen["events"].as_array().unwrap().clone();
        (seen.len() > 6).then_some(seen)
    })
    .await;
    assert!(seen.iter().all(|event| event["data"]["status"] == "in_progress"));
    let state = client.read(&format!("/api/jobs/{job}")).await;
    // It waits for the first word, and has not given up.
    assert_eq!((&state["status"], &state["attempt_count"]), (&json!("dispatching"), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_keeps_the_job_waiting_with_the_reason_until_it_is_over() {
    let github = Github::start().await;
    for kind in ["dispatch", "runs"] {
        github.always(kind, Some(Fault::Status(503, Vec::new())));
    }
    let server = dispatching(&github, &[]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    waiting(&client, &job, "not known yet: GitHub answered 503").await;
    assert_eq!(github.asked("dispatch").len(), 1, "nothing is sent before GitHub can be asked");
    for kind in ["dispatch", "runs"] {
        github.always(kind, None);
    }
    taken(&client, &job).await;
    assert_eq!(github.runs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_github_that_is_not_there_keeps_the_job_waiting_and_its_attempt() {
    let github = Github::start().await;
    // Nobody listens on port 1.
    let server = dispatching(&github, &[("MILEPOST_GITHUB_API_URL", "http://127.0.0.1:1")]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let state = waiting(&client, &job, "GitHub cannot be reached").await;
    assert_eq!(state["attempt_count"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_in_the_middle_finds_its_run_when_it_is_back() {
    let github = Github::start().await;
    github.fault("dispatch", [Fault::HangAfter]);
    let more = [
        ("MILEPOST_GITHUB_TIMEOUT", "60"),
        ("MILEPOST_GITHUB_SETTLE", "0.2"),
        ("MILEPOST_LEASE", "2"),
    ];
    let mut server = dispatching(&github, &more).await;
    let (_, job) = server.client().job("mari").await;
    wait_until("GitHub has the run", || async { (!github.runs().is_empty()).then_some(()) }).await;
    server.kill().await;
    server.restart().await;
    let state = taken(&server.client(), &job).await;
    assert_eq!(latest(&state)["workflow_run_id"], github.runs()[0].id.to_string());
    assert_eq!((github.runs().len(), &state["attempt_count"]), (1, &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_under_way_at_the_end_is_given_back_and_costs_no_attempt() {
    let quiet = Server::start().await;
    let (_, job) = quiet.client().job("mari").await;
    let gate = sql(&quiet.database_url()).await;
    gate.batch_execute("BEGIN; SELECT FROM queue FOR UPDATE").await.unwrap();
    let github = Github::start().await;
    let on_the_same = || Options {
        database_url: Some(quiet.database_url()),
        env: github.env(),
        ..Options::default()
    };
    let mut server = Server::with(on_the_same()).await;
    let claiming = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                    AND datname = current_database() AND query LIKE '%append_batch%')";
    // Not through the gate: a transaction goes on seeing the activity that it saw first.
    let watch = sql(&quiet.database_url()).await;
    wait_until("the claim is under way", || async {
        watch.query_one(claiming, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    let log = server.dir().join("server.log");
    tokio::join!(server.stop(), async {
        wait_until("it is ending", || async {
            std::fs::read_to_string(&log).unwrap().contains(r#""message":"ending""#).then_some(())
        })
        .await;
        gate.batch_execute("ROLLBACK").await.unwrap();
    });
    assert_eq!(github.asked("dispatch").len(), 0);
    let other = Server::with(on_the_same()).await;
    let client = other.client();
    let state = taken(&client, &job).await;
    assert_eq!((&state["attempt_count"], github.runs().len()), (&json!(1), 1));
    let given_back = client.read("/api/events?type=WorkflowDispatchFailed").await;
    let given_back = &given_back["events"][0]["data"];
    assert!(text(given_back, "reason").contains("was told to end"), "{given_back}");
    assert!(given_back["unresolved"].is_null(), "nothing was sent: {given_back}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatch_under_way_at_the_end_is_waited_for() {
    for listed in [true, false] {
        let github = Github::start().await;
        github.fault("dispatch", [Fault::HangAfter]);
        if !listed {
            github.list_after(NEVER);
        }
        let more = [("MILEPOST_GITHUB_SETTLE", "600")];
        let mut server = dispatching(&github, &more).await;
        let (_, job) = server.client().job("mari").await;
        let has_run = || async { (!github.runs().is_empty()).then_some(()) };
        wait_until("GitHub has the run", has_run).await;
        // The answer has a second; of the time to look for the run nothing is taken.
        server.stop().await;
        let database_url = Some(server.database_url());
        let quiet = Server::with(Options { database_url, ..Options::default() }).await;
        let state = quiet.client().read(&format!("/api/jobs/{job}")).await;
        assert_eq!(latest(&state)["workflow_run_id"].is_string(), listed, "{state:#}");
        if !listed {
            let words = text(&state, "waiting_because");
            assert!(words.contains("the worker that asked has ended"), "{words}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_gets_a_token_for_this_repository_and_keeps_it() {
    let github = Github::start().await;
    let made = std::process::Command::new("openssl")
        .args(["genrsa", "-traditional", "2048"])
        .output()
        .unwrap();
    let key = String::from_utf8(made.stdout).unwrap();
    assert!(key.contains("BEGIN RSA PRIVATE KEY"), "the form GitHub gives");
    let more = [
        ("MILEPOST_GITHUB_TOKEN", ""),
        ("MILEPOST_GITHUB_APP_ID", "12345"),
        ("MILEPOST_GITHUB_APP_INSTALLATION_ID", "678"),
        ("MILEPOST_GITHUB_APP_PRIVATE_KEY", key.as_str()),
    ];
    let server = dispatching(&github, &more).await;
    let client = server.client();
    for name in ["mari", "juhan"] {
        let (_, job) = client.job(name).await;
        taken(&client, &job).await;
    }
    let asked = github.asked("access_token");
    assert_eq!(asked, [json!({"repositories": ["milepost"], "permissions": {"actions": "write"}})]);
    github.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_without_a_word_is_found_and_its_attempt_fails() {
    let github = Github::start().await;
    let server = dispatching(&github, &[("MILEPOST_RETRY_DELAYS", "600")]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    taken(&client, &job).await;
    github.complete(github.runs()[0].id, "cancelled");
    let state = job_when(&client, &job, "it failed", |it| it["status"] == "retry_scheduled").await;
    assert_eq!(latest(&state)["error_code"], "RUN_ENDED");
    assert!(text(latest(&state), "error_message").contains("cancelled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_somebody_runs_again_after_its_attempt_is_ended() {
    let github = Github::start().await;
    let server = dispatching(&github, &[("MILEPOST_RETRY_DELAYS", "600")]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    taken(&client, &job).await;
    let id = github.runs()[0].id;
    github.complete(id, "failure");
    job_when(&client, &job, "it failed", |it| it["status"] == "retry_scheduled").await;
    github.change(id, |run| {
        "in_progress".clone_into(&mut run.status);
        run.conclusion = None;
        run.times = 2;
    });
    wait_until("it is told to end", || async {
        (!github.asked("cancel").is_empty()).then_some(())
    })
    .await;
    wait_until("that is recorded", || async {
        (count(&client, "WorkflowRunCancelRequested").await == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_cancel_is_tried_again_within_a_bound_and_stops_no_cancel() {
    let github = Github::start().await;
    github.always("cancel", Some(Fault::Status(403, Vec::new())));
    let server = dispatching(&github, &[]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    taken(&client, &job).await;
    let (status, _) = client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    assert_eq!(status, 202);
    assert_eq!(client.read(&format!("/api/jobs/{job}")).await["status"], "cancelled");
    let bound = milepost::domain::job::CANCEL_REQUESTS_MAX as usize;
    wait_until("it was tried as often as it may be", || async {
        (count(&client, "WorkflowRunCancelRequested").await == bound).then_some(())
    })
    .await;
    // Two more rounds that leave it alone.
    let rounds = github.asked("runs").len();
    wait_until("two more rounds", || async {
        (github.asked("runs").len() >= rounds + 2).then_some(())
    })
    .await;
    assert_eq!(github.asked("cancel").len(), bound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_github_fails_to_answer_is_asked_for_until_it_is_taken() {
    let github = Github::start().await;
    let failures = milepost::domain::job::CANCEL_REQUESTS_MAX as usize + 1;
    github.fault("cancel", vec![Fault::Status(500, Vec::new()); failures]);
    let server = dispatching(&github, &[("MILEPOST_GITHUB_BACK_OFF", "0.01")]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    taken(&client, &job).await;
    client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    let told = wait_until("it is taken", || async {
        let told = client.read("/api/events?type=WorkflowRunCancelRequested").await;
        told["events"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(told["data"]["accepted"], true);
    assert_eq!(github.asked("cancel").len(), failures + 1);
    assert_eq!(count(&client, "WorkflowRunCancelRequested").await, 1);
}

/// A webhook of GitHub's own.
fn webhook(client: &Client, server: &Server, event: &str, body: &Value) -> reqwest::RequestBuilder {
    let body = body.to_string();
    let signature = format!("sha256={}", server.secret().sign(body.as_bytes()));
    client
        .unsigned(body)
        .header("x-github-event", event)
        .header("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
        .header("x-hub-signature-256", signature)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_tells_of_the_end_of_a_run_once() {
    let github = Github::start().await;
    let more = [("MILEPOST_GITHUB_POLL", "3600"), ("MILEPOST_RETRY_DELAYS", "600")];
    let server = dispatching(&github, &more).await;
    let client = server.client();
    wait_until("the one round is over that finds no job", || async {
        (!github.asked("runs").is_empty()).then_some(())
    })
    .await;
    let (_, job) = client.job("mari").await;
    taken(&client, &job).await;
    let run = &github.runs()[0];
    let body = json!({
        "action": "completed",
        "workflow_run": {
            "id": run.id, "display_title": run.name, "html_url": "https://github.example/run",
            "run_attempt": 1, "status": "completed", "conclusion": "timed_out",
            "event": "workflow_dispatch", "path": ".github/workflows/provision-agent.yml",
        },
        "repository": {"full_name": REPOSITORY},
    });
    let answer = client.send(webhook(&client, &server, "workflow_run", &body)).await.into_json();
    assert_eq!((answer.0.as_u16(), &answer.1["applied"]), (200, &json!(true)), "{}", answer.1);
    let state = client.read(&format!("/api/jobs/{job}")).await;
    assert_eq!(latest(&state)["error_code"], "RUN_ENDED");
    let again = client.send(webhook(&client, &server, "workflow_run", &body)).await.into_json();
    assert_eq!((&again.1["applied"], &again.1["reason"]), (&json!(false), &json!("no_news")));
    assert_eq!(count(&client, "WorkflowRunObserved").await, 1);

    // What concerns no job is not kept, and what is forged or confused is refused.
    let kept = async || -> Vec<String> {
        client.events().await.iter().map(|event| text(event, "type")).collect()
    };
    let before = kept().await;
    let mut other = body.clone();
    other["workflow_run"]["display_title"] = "ci".into();
    for (event, body, status) in [
        ("workflow_run", &other, 204),
        ("ping", &body, 204),
        ("workflow_run", &json!({"job_id": job, "type": "heartbeat"}), 400),
    ] {
        let request = webhook(&client, &server, event, body);
        assert_eq!(client.raw_status(request).await, status, "{event}");
    }
    let forged = client.unsigned(body.to_string()).header("x-github-event", "workflow_run");
    assert_eq!(client.raw_status(forged.header("x-hub-signature-256", "sha256=00")).await, 401);
    assert_eq!(client.raw_status(client.signed(body.to_string())).await, 400, "it is no callback");
    assert_eq!(kept().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_answers_are_lost_no_attempt_has_two_runs() {
    let github = Github::start().await;
    github.list_after(Duration::from_millis(150));
    let mut dice = Dice(0x5eed_0003);
    let dispatches = (0..PLACEMENTS).map(|_| dice.fault());
    github.fault("dispatch", dispatches.collect::<Vec<_>>());
    let looks = (0..PLACEMENTS).map(|_| dice.look());
    github.fault("runs", looks.collect::<Vec<_>>());
    let more = [("MILEPOST_GITHUB_TIMEOUT", "0.3"), ("MILEPOST_GITHUB_SETTLE", "0.4")];
    let server = dispatching(&github, &more).await;
    let client = server.client();
    let mut jobs = Vec::new();
    for number in 0..PLACEMENTS / 2 {
        jobs.push(client.job(&format!("agent-{number}")).await.1);
    }
    for job in &jobs {
        let state = taken(&client, job).await;
        let id = text(latest(&state), "workflow_run_id");
        let name = format!("provision {job} attempt {}", state["attempt_count"]);
        let runs = github.runs();
        let run = runs.iter().find(|run| run.id.to_string() == id).unwrap();
        assert_eq!(run.name, name, "the run it knows is its attempt's");
    }
    // Every placement was met, for half the jobs took more than one.
    while github.asked("dispatch").len() < PLACEMENTS {
        let (_, job) = client.job(&format!("more-{}", jobs.len())).await;
        taken(&client, &job).await;
        jobs.push(job);
    }
    let mut names = HashMap::new();
    for run in github.runs() {
        *names.entry(run.name).or_insert(0) += 1;
    }
    assert!(names.values().all(|runs| *runs == 1), "{names:?}");
    github.check();
}

/// Splitmix64: the same dice in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn fault(&mut self) -> Fault {
        match self.roll(10) {
            0 | 1 => Fault::ResetAfter,
            2 => Fault::ResetBefore,
            3 => Fault::HangAfter,
            4 => Fault::Hang,
            5 => Fault::StatusAfter(502),
            6 => Fault::Status(503, Vec::new()),
            7 => Fault::Status(403, Vec::new()),
            8 => Fault::Silent,
            _ => Fault::Fine,
        }
    }

    fn look(&mut self) -> Fault {
        match self.roll(6) {
            0 => Fault::ResetBefore,
            1 => Fault::Status(502, Vec::new()),
            2 => Fault::Status(429, vec![("retry-after", "0".to_owned())]),
            _ => Fault::Fine,
        }
    }
}
