//! Two nodes on one database.

use std::collections::HashSet;

use reqwest::StatusCode;
use serde_json::json;

use super::{Follower, Load, check_log};
use crate::harness::{PATIENCE, Server, wait_until};

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
