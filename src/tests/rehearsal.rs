//! The rehearsal: a child process plays the workflow, and whatever may go wrong with one.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::harness::{Client, MILEPOST, Options, PATIENCE, Server, text, wait_until};

/// A server whose rehearsals are quick, and go wrong like this.
async fn rehearsing(faults: &str, more: &[(&'static str, &str)]) -> Server {
    let mut env = vec![
        ("MILEPOST_REHEARSAL_PACE", "0.1".to_owned()),
        ("MILEPOST_REHEARSAL_HEARTBEAT", "0.2".to_owned()),
        ("MILEPOST_RETRY_DELAYS", "0.2,0.2,0.2".to_owned()),
    ];
    if !faults.is_empty() {
        env.push(("MILEPOST_REHEARSAL_FAULTS", faults.to_owned()));
    }
    env.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Server::with(Options { rehearsal: true, env, ..Options::default() }).await
}

async fn wait_for_status(client: &Client, job: &str, wanted: &str) -> Value {
    wait_until(&format!("the job is {wanted}"), || async {
        let state = client.read(&format!("/api/jobs/{job}")).await;
        (state["status"] == wanted).then_some(state)
    })
    .await
}

/// The types of a job's events, heartbeats and tasks left out, with what tells them apart.
async fn story(client: &Client, job: &str) -> Vec<String> {
    let events = client.events().await;
    let of_job = events.iter().filter(|event| event["stream"] == job);
    of_job
        .filter(|event| event["type"] != "HeartbeatRecorded" && event["type"] != "TaskStarted")
        .filter(|event| event["data"]["kind"] != "heartbeat" && event["data"]["kind"] != "task")
        .map(|event| {
            let step = event["data"]["step"].as_str().or(event["data"]["reason"].as_str());
            format!("{} {}", text(event, "type"), step.unwrap_or_default()).trim_end().to_owned()
        })
        .collect()
}

fn statuses(attempt: &Value) -> Vec<&str> {
    let steps = attempt["steps"].as_array().unwrap();
    steps.iter().map(|step| step["status"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_has_a_job_that_succeeds() {
    let server = rehearsing("", &[]).await;
    let client = server.client();
    // Rows are filled soon after a start.
    let agents = wait_until("agents are listed", || async {
        let (status, agents) = client.get("/api/agents").await;
        (status == 200).then_some(agents)
    })
    .await;
    let agent = &agents["agents"][0];
    assert_eq!(agent["name"], "rehearsal-1");
    let job = text(&agent["instance"], "job_id");
    let state = wait_for_status(&client, &job, "succeeded").await;
    assert_eq!(statuses(&state["timeline"][0]), ["completed"; 5]);
    let mut story = story(&client, &job).await;
    // The run may speak before its dispatcher does.
    story.retain(|event| event != "WorkflowDispatched");
    assert_eq!(
        story,
        [
            "JobQueued",
            "WorkflowDispatchRequested",
            "ProvisioningStarted",
            "ProvisioningStepRecorded vm_created",
            "ProvisioningStepRecorded network_configured",
            "ProvisioningStepRecorded ansible_started",
            "ProvisioningStepRecorded ansible_complete",
            "JobSucceeded",
        ]
    );
    let path = format!("/api/agents/{}/instance", text(agent, "id"));
    let instance = client.read(&path).await;
    assert!(text(&instance["instance"], "server_id").starts_with("rehearsal-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_tells_its_tasks_and_what_it_prints() {
    let server = rehearsing("fail@ansible_complete", &[]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let followed = run(&server, &["jobs", "log", &job, "--follow"]).await;
    let state = wait_for_status(&client, &job, "failed").await;
    for attempt in state["timeline"].as_array().unwrap() {
        assert_eq!(attempt["task"]["task"], "agent : wait for the agent to answer", "{attempt}");
        assert_eq!(attempt["task"]["number"], 6);
    }
    let printed = run(&server, &["jobs", "log", &job]).await;
    assert_eq!(followed, printed, "who follows gets what is there");
    assert!(!printed.contains('\u{1b}'), "colours are for terminals");
    for attempt in 1..=4 {
        assert!(printed.contains(&format!("Attempt {attempt}\n")), "{printed}");
    }
    assert_eq!(printed.matches("TASK [docker : add the repository]").count(), 4);
    assert_eq!(printed.matches("rehearsed failure before ansible_complete").count(), 4);
    assert!(!printed.contains("lost"), "{printed}");
    let path = format!("/api/jobs/{job}/log.txt");
    let request = client.request(reqwest::Method::GET, &path).bearer_auth(&client.token);
    assert_eq!(client.send(request).await.text(), printed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_retried_three_times_and_is_then_final() {
    let server = rehearsing("fail@ansible_complete", &[]).await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let state = wait_for_status(&client, &job, "failed").await;
    assert_eq!(state["attempt_count"], 4);
    assert_eq!(state["error_code"], "WORKFLOW_FAILED");
    for attempt in state["timeline"].as_array().unwrap() {
        let failed = ["completed", "completed", "completed", "error", "pending"];
        assert_eq!(statuses(attempt), failed, "{attempt}");
    }
    let instance = client.read(&format!("/api/agents/{agent}/instance")).await;
    assert_eq!(instance["instance"]["status"], "failed");
    assert!(text(&instance["instance"], "error").contains("before ansible_complete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_step_is_implied_by_the_next() {
    succeeds("lose@vm_created", "ProvisioningStepRecorded vm_created", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_told_twice_is_recorded_twice_and_moves_nothing() {
    succeeds("repeat@ansible_started", "ProvisioningStepRecorded ansible_started", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_out_of_order_move_nothing_back() {
    succeeds("reorder@vm_created", "ProvisioningStepRecorded vm_created", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_told_after_the_end_is_kept_and_not_applied() {
    let (server, job) = succeeds("late@vm_created", "", 0).await;
    let client = server.client();
    wait_until("the late step is kept", || async {
        let story = story(&client, &job).await;
        (story.last().unwrap() == "LateCallbackRecorded vm_created").then_some(())
    })
    .await;
    let state = client.read(&format!("/api/jobs/{job}")).await;
    assert_eq!(state["status"], "succeeded");
}

/// A job succeeds although this goes wrong; its progress never goes back, and the step was
/// recorded so many times.
async fn succeeds(fault: &str, step: &str, times: usize) -> (Server, String) {
    let server = rehearsing(fault, &[]).await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let mut states = client.stream(&format!("/api/agents/{agent}/instance/stream"), None).await;
    let mut furthest = 0;
    loop {
        let state = states.next_named("instance").await.json();
        let reached = statuses(&state).iter().filter(|status| **status == "completed").count();
        assert!(reached >= furthest, "{state}");
        furthest = reached;
        if state["instance"]["status"] == "running" {
            break;
        }
    }
    assert_eq!(furthest, 5);
    let state = wait_for_status(&client, &job, "succeeded").await;
    assert_eq!(state["attempt_count"], 1);
    let story = story(&client, &job).await;
    assert_eq!(story.iter().filter(|event| *event == step).count(), times, "{story:?}");
    (server, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_run_fails_its_attempt_and_does_not_keep_its_place() {
    let env = [("MILEPOST_SILENCE", "1"), ("MILEPOST_REHEARSAL_HEARTBEAT", "60")];
    let server = rehearsing("hang@ansible_started", &env).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let retried = wait_until("a second attempt is under way", || async {
        let state = client.read(&format!("/api/jobs/{job}")).await;
        (state["attempt_count"] == 2 && state["status"] == "running").then_some(state)
    })
    .await;
    let first = &retried["timeline"][0];
    assert_eq!(first["error_code"], "HEARTBEAT_TIMEOUT");
    assert_eq!(statuses(first), ["completed", "completed", "error", "pending", "pending"]);
    let run = text(first, "workflow_run_id");
    let pid: u32 = run.strip_prefix("rehearsal-").unwrap().parse().unwrap();
    wait_until("the silent run has been ended", || async {
        (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_fails_its_attempt_at_once() {
    let server = rehearsing("hang@ansible_started", &[]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let state = wait_until("the run has come to a halt", || async {
        let state = client.read(&format!("/api/jobs/{job}")).await;
        (statuses(&state["timeline"][0])[2] == "active").then_some(state)
    })
    .await;
    let run = text(&state["timeline"][0], "workflow_run_id");
    let pid = run.strip_prefix("rehearsal-").unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let state = wait_until("another attempt follows", || async {
        let state = client.read(&format!("/api/jobs/{job}")).await;
        (state["attempt_count"] == 2).then_some(state)
    })
    .await;
    let first = &state["timeline"][0];
    assert_eq!(first["error_code"], "RUN_ENDED");
    assert!(text(first, "error_message").contains("signal: 9"), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_with_a_server_that_was_killed() {
    let mut server = rehearsing("hang@started", &[]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let state = wait_until("the run is known", || async {
        let state = client.read(&format!("/api/jobs/{job}")).await;
        state["timeline"][0]["workflow_run_id"].is_string().then_some(state)
    })
    .await;
    let run = text(&state["timeline"][0], "workflow_run_id");
    let stat = format!("/proc/{}/stat", run.strip_prefix("rehearsal-").unwrap());
    // One that has ended and is not taken note of yet is a zombie.
    let is_alive = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(is_alive());
    server.kill().await;
    wait_until("the run has ended", || async { (!is_alive()).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_follows_and_replays_a_rehearsal() {
    let server = rehearsing("", &[]).await;
    let client = server.client();
    let beginning = client.beginning().await;
    let mut tail = command(&server, &["log", "tail", "--since", &beginning])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let (agent, job) = client.job("mari").await;

    let watched = run(&server, &["watch", &job]).await;
    assert!(watched.contains("    now: TASK [docker : add the repository]"), "{watched}");
    assert!(watched.contains("succeeded  attempt 1 of 4"), "{watched}");
    assert!(watched.contains("✓ Configuring Agent"), "{watched}");
    let watched = run(&server, &["watch", &agent]).await;
    assert!(watched.contains("mari  running"), "{watched}");

    let listed = run(&server, &["jobs", "list", "--status", "succeeded"]).await;
    assert!(listed.contains(&job), "{listed}");
    let late = run(&server, &["callback", &job, "step", "--step", "vm_created"]).await;
    assert!(late.starts_with("200 OK"), "{late}");
    assert!(late.contains("\"reason\":\"job_ended\""), "{late}");

    let events = client.events().await;
    let mut last = Value::Null;
    for position in 1..=events.len() {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        last = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(last["position"], position);
    }
    assert_eq!(&last, events.last().unwrap());

    let replayed = run(&server, &["log", "replay"]).await;
    let replayed: Vec<Value> =
        replayed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mine = replayed.iter().find(|answer| answer["agent"]["id"] == *agent).unwrap();
    let now = client.read(&format!("/api/agents/{agent}/instance")).await;
    assert_eq!(mine["instance"], now["instance"], "a replay gives the state that is shown");
    assert_eq!(mine["steps"], now["steps"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_ends_a_job_and_repeats_it() {
    let server = rehearsing("hang@ansible_started", &[]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    run(&server, &["jobs", "cancel", &job, "--reason", "it hangs"]).await;
    let state = client.read(&format!("/api/jobs/{job}")).await;
    assert_eq!(state["status"], "cancelled");
    assert_eq!(state["error_message"], "Cancelled by token:dev: it hangs");
    let again = run(&server, &["jobs", "retry", &job]).await;
    let again: Value = serde_json::from_str(&again).unwrap();
    let again = client.read(&format!("/api/jobs/{}", text(&again, "job_id"))).await;
    assert_eq!(again["retry_of"], *job);
    let listed = run(&server, &["jobs", "list"]).await;
    assert!(listed.contains("cancelled") && listed.contains(&text(&again, "id")), "{listed}");
}

fn command(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(MILEPOST);
    command.args(arguments).arg("--data-dir").arg(server.dir()).stdin(Stdio::null());
    command.env_remove("MILEPOST_URL").env_remove("MILEPOST_TOKEN");
    command
}

/// What a command prints; it must succeed.
async fn run(server: &Server, arguments: &[&str]) -> String {
    let output = command(server, arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {printed}{said}");
    printed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_is_none_ends_the_start_and_is_named() {
    for (faults, why) in [
        ("fail@nowhere", "nowhere is no step"),
        ("fail@running,break@started", "break is no fault"),
        ("", "a fault is KIND@STEP"),
    ] {
        for role in ["dev", "serve"] {
            let dir = crate::harness::data_dir();
            let mut command = Command::new(MILEPOST);
            command.arg(role).current_dir(dir.path());
            command.env("MILEPOST_REHEARSAL_FAULTS", faults);
            let ended = command.output().await.unwrap();
            assert_eq!(ended.status.code(), Some(1));
            let said = String::from_utf8(ended.stderr).unwrap();
            assert!(said.contains("MILEPOST_REHEARSAL_FAULTS") && said.contains(why), "{said}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was begun");
        }
    }
}
