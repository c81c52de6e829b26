//! Two nodes on one database.

use std::collections::HashSet;

use reqwest::StatusCode;
use serde_json::json;

use super::{Follower, Load, check_log};
use crate::harness::{Options, PATIENCE, Server, sql, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn either_node_takes_every_callback_and_tells_every_event() {
    let first = Server::start().await;
    let second = Server::beside(&first).await;
    let nodes = [first.client(), second.client()];
    let followers = [Follower::start(&nodes[0]).await, Follower::start(&nodes[1]).await];
    let load = Load::start(&nodes, 0).await;
    load.more(1_500).await;
    let agents = load.agents.clone();
    let refused = load.refused();
    let answered = load.stop().await;
    println!("{} callbacks on two nodes; {refused:?} tries refused, unanswered", answered.len());
    let size = check_log(&first.database_url(), &answered).await;
    for follower in followers {
        assert_eq!(follower.read_up_to(size).await, 1);
    }
    for (agent, _) in agents {
        let path = format!("/api/agents/{agent}/instance");
        assert_eq!(nodes[0].read(&path).await, nodes[1].read(&path).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_reaches_both_nodes_is_recorded_once() {
    let first = Server::start().await;
    let second = Server::beside(&first).await;
    let (one, other) = (first.client(), second.client());
    let (agent, job) = one.job("raced").await;
    let mut positions = HashSet::new();
    for turn in 0..100 {
        let body = json!({
            "job_id": job,
            "status": "provisioning",
            "step": format!("part-{turn}"),
            "delivery_id": format!("raced-{turn}"),
        });
        let (a, b) = tokio::join!(one.callback(&body), other.callback(&body));
        assert_eq!((a.0, b.0), (StatusCode::OK, StatusCode::OK));
        assert_eq!(a.1, b.1, "both get the answer of the one that came first");
        assert!(positions.insert(a.1["position"].as_u64().unwrap()));
        // And long after, from whichever node.
        assert_eq!(other.callback(&body).await.1, a.1);
    }
    let size = check_log(&first.database_url(), &[]).await;
    assert_eq!(size, 4 + 100);
    let path = format!("/api/agents/{agent}/instance");
    assert_eq!(one.read(&path).await, other.read(&path).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_another_node_has_moved_on_is_taken_up_again() {
    let first = Server::start().await;
    let second = Server::beside(&first).await;
    let (one, other) = (first.client(), second.client());
    // The first node has written to the job's stream, and does not know what became of it.
    let (_, job) = one.job("mari").await;
    for step in ["vm_created", "network_configured"] {
        let body = json!({"job_id": job, "status": "provisioning", "step": step});
        assert_eq!(other.callback(&body).await.1["applied"], true);
    }
    let body = json!({"job_id": job, "status": "provisioning", "step": "ansible_started"});
    let (status, answer) = one.callback(&body).await;
    assert_eq!((status, &answer["applied"]), (StatusCode::OK, &json!(true)), "{answer}");
    check_log(&first.database_url(), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_misses_nothing_while_another_node_takes_over_the_views() {
    let mut first = Server::start().await;
    let second = Server::beside(&first).await;
    let client = second.client();
    client.agent("before").await;
    wait_until("the view holds the agent", || async {
        let agents = client.read("/api/agents").await;
        (agents["agents"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    let ready = client.read("/readyz").await;
    let seen = format!("{}-{}", ready["epoch"], ready["position"]);
    first.kill().await;
    // Nobody folds the views now; whoever comes back was told of everything before this.
    let agent = client.agent("meanwhile").await;
    let mut stream = client.stream("/api/stream?agent=all", Some(&seen)).await;
    let told =
        async { while stream.next_named("instance").await.json()["agent"]["id"] != *agent {} };
    tokio::time::timeout(PATIENCE, told).await.expect("the overview is told of the agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_is_shut_on_every_node_once_an_attempt_has_ended_on_one() {
    let first = Server::start().await;
    let second = Server::beside(&first).await;
    let (one, other) = (first.client(), second.client());
    let (_, job) = one.job("mari").await;
    let started = json!({"job_id": job, "status": "provisioning", "attempt": 1});
    assert_eq!(one.callback(&started).await.0, StatusCode::OK);
    assert_eq!(one.callback(&started).await.0, StatusCode::OK, "it is under way");
    let failed = json!({"job_id": job, "status": "failed", "attempt": 1});
    assert_eq!(other.callback(&failed).await.0, StatusCode::OK);
    // Somebody starts the run again, and it speaks to the node that has not heard of its end.
    let (status, problem) = one.callback(&started).await;
    assert_eq!((status, &problem["reason"]), (StatusCode::CONFLICT, &json!("attempt_superseded")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_next_attempt_is_no_repeat_of_the_one_that_a_node_remembers() {
    let env = vec![("MILEPOST_RETRY_DELAYS", "0.1".to_owned())];
    let first = Server::with(Options { env, ..Options::default() }).await;
    let second = Server::beside(&first).await;
    let (one, other) = (first.client(), second.client());
    let (agent, job) = one.job("mari").await;
    let started =
        |attempt: u32| json!({"job_id": job, "status": "provisioning", "attempt": attempt});
    // It does not say of which attempt it is.
    let step = json!({"job_id": job, "status": "provisioning", "step": "vm_created"});
    assert_eq!(one.callback(&started(1)).await.1["applied"], true);
    let before = one.callback(&step).await.1["position"].as_u64();
    assert_eq!(one.callback(&step).await.1["position"].as_u64(), before, "a repeat");
    let failed = json!({"job_id": job, "status": "failed", "attempt": 1});
    assert_eq!(other.callback(&failed).await.1["applied"], true);
    wait_until("the next attempt waits", || async {
        let job = other.read(&format!("/api/jobs/{job}")).await;
        (job["status"] == "queued").then_some(())
    })
    .await;
    assert_eq!(other.callback(&started(2)).await.1["applied"], true);
    let answer = one.callback(&step).await.1;
    assert!(answer["position"].as_u64() > before, "{answer}");
    let state = one.read(&format!("/api/agents/{agent}/instance")).await;
    assert_eq!(state["instance"]["current_step"], "vm_created");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_from_a_node_that_was_further_on_is_not_reset() {
    let first = Server::start().await;
    let (_, job) = first.client().job("mari").await;
    let owner = sql(&first.database_url()).await;
    let lock = "SELECT pg_advisory_lock(x'7461696c'::bigint)";
    let held = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = x'7461696c'::bigint::oid \
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                AND granted = $1 AND mode = $2";
    // The first node hears of nothing from now on: its tailer cannot begin again.
    let holder = sql(&first.database_url()).await;
    let holding = tokio::spawn(async move {
        holder.batch_execute(lock).await.unwrap();
        holder
    });
    wait_until("the lock is waited for", || async {
        let waiting = owner.query_opt(held, &[&false, &"ExclusiveLock"]).await.unwrap();
        waiting.map(|_| ())
    })
    .await;
    let end = format!("SELECT pg_terminate_backend(pid) FROM ({held}) AS tailer");
    owner.execute(&end, &[&true, &"ShareLock"]).await.unwrap();
    let holder = holding.await.unwrap();

    let second = Server::beside(&first).await;
    let (one, other) = (first.client(), second.client());
    let step = |step: &str| json!({"job_id": job, "status": "provisioning", "step": step});
    let seen = other.callback(&step("vm_created")).await.1["position"].as_u64().unwrap();
    assert_eq!(one.metric("milepost_log_position").await, seen - 1);
    let id = one.beginning().await.replace("-0", &format!("-{seen}"));
    let mut states = one.stream(&format!("/api/jobs/{job}/stream"), Some(&id)).await;
    let state = states.next().await.unwrap();
    assert_eq!((state.event.as_str(), &state.id), ("job", &id));
    assert_eq!(state.json()["position"], seen);
    let mut events = one.stream("/api/events/stream", Some(&id)).await;
    drop(holder);
    let next = other.callback(&step("ansible_started")).await.1["position"].as_u64().unwrap();
    assert_eq!(next, seen + 1);
    assert_eq!(events.next().await.unwrap().json()["position"], next);
    // Beyond what any node has, there is nothing to go on from.
    let beyond = id.replace(&format!("-{seen}"), &format!("-{}", next + 1));
    let mut events = one.stream("/api/events/stream", Some(&beyond)).await;
    assert_eq!(events.next().await.unwrap().event, "reset");
}
