//! Postgres dies under the server, again and again, and comes back.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Follower, Load, check_log};
use crate::harness::{Client, Options, Server, sql, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_postgres_costs_a_retry_and_nothing_else() {
    let server = Server::with(Options { embedded: true, ..Options::default() }).await;
    let client = server.client();
    let (quiet_agent, quiet_job) = client.job("quiet").await;
    let follower = Follower::start(&client).await;
    let load = Load::start(std::slice::from_ref(&client), 0).await;
    let (agent, _) = load.agents[0].clone();
    let newest = tokio::spawn(follow_state(client.clone(), agent.clone()));

    for _ in 0..3 {
        load.more(100).await;
        let postmaster = postmaster(server.dir()).unwrap();
        kill(postmaster, Signal::SIGQUIT).unwrap();
        wait_for_successor(&server, postmaster).await;
    }
    load.more(100).await;
    kill_the_appenders_backend(&server.database_url()).await;
    load.more(100).await;
    stay_down(&server, &client, &quiet_job).await;
    load.more(100).await;

    let answered = load.stop().await;
    let size = check_log(&server.database_url(), &answered).await;
    let connections = follower.read_up_to(size).await;
    println!("{} callbacks; {connections} connections of the reader", answered.len());
    let done = json!({"job_id": quiet_job, "status": "running"});
    assert_eq!(client.deliver(done).await.1["applied"], true);
    let quiet = client.read(&format!("/api/agents/{quiet_agent}/instance")).await;
    assert_eq!(quiet["instance"]["status"], "running");

    let state = client.read(&format!("/api/agents/{agent}/instance")).await;
    let end = json!({"job_id": state["instance"]["job_id"], "status": "running"});
    assert_eq!(client.deliver(end).await.0, StatusCode::OK);
    let mut state = client.read(&format!("/api/agents/{agent}/instance")).await;
    let mut newest = newest.await.unwrap();
    // Both count the seconds since; each at its own time.
    (state["uptime"], newest["uptime"]) = (Value::Null, Value::Null);
    assert_eq!(newest, state);
}

/// The last state a subscriber gets: the one that says that the agent runs.
async fn follow_state(client: Client, agent: String) -> Value {
    let path = format!("/api/agents/{agent}/instance/stream");
    let mut last_id = None;
    loop {
        let mut messages = wait_until("the state stream opens", || async {
            client.try_stream(&path, last_id.as_deref()).await
        })
        .await;
        while let Some(message) = messages.next().await {
            if message.event == "instance" && message.json()["instance"]["status"] == "running" {
                return message.json();
            }
            last_id = Some(message.id);
        }
    }
}

fn postmaster(dir: &Path) -> Option<Pid> {
    let file = std::fs::read_to_string(dir.join("postgres/cluster/postmaster.pid")).ok()?;
    file.lines().next()?.parse().ok().map(Pid::from_raw)
}

async fn wait_for_successor(server: &Server, old: Pid) {
    let client = server.client();
    wait_until("another Postgres answers", || async {
        let successor = postmaster(server.dir()).is_some_and(|pid| pid != old);
        (successor && client.get("/readyz").await.0 == StatusCode::OK).then_some(())
    })
    .await;
}

/// Postgres ends every session when one of its processes is killed, and recovers.
async fn kill_the_appenders_backend(database_url: &str) {
    let row = sql(database_url)
        .await
        .query_one(
            "SELECT pid, pg_postmaster_start_time()::text FROM pg_stat_activity \
             WHERE (query LIKE '%append_batch%' OR query LIKE '%UPDATE log_head%') \
             AND pid <> pg_backend_pid()",
            &[],
        )
        .await
        .unwrap();
    kill(Pid::from_raw(row.get(0)), Signal::SIGKILL).unwrap();
}

/// Postgres does not come back while a file of it is missing: the server says that it is not
/// ready and acknowledges nothing, then goes on by itself.
async fn stay_down(server: &Server, client: &Client, job: &str) {
    let control = server.dir().join("postgres/cluster/global/pg_control");
    let hidden = control.with_extension("hidden");
    wait_until("Postgres has recovered", || async {
        (client.get("/readyz").await.0 == StatusCode::OK).then_some(())
    })
    .await;
    std::fs::rename(&control, &hidden).unwrap();
    kill(postmaster(server.dir()).unwrap(), Signal::SIGQUIT).unwrap();
    let problem = wait_until("the server is not ready", || async {
        let (status, problem) = client.get("/readyz").await;
        (status == StatusCode::SERVICE_UNAVAILABLE).then_some(problem)
    })
    .await;
    assert_eq!(problem["type"], "urn:milepost:problem:unavailable");
    assert_eq!(client.get("/healthz").await.0, StatusCode::OK);
    let body = json!({"job_id": job, "status": "provisioning", "delivery_id": "while-down"});
    let refused = client.signed(body.to_string()).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "2");
    std::fs::rename(&hidden, &control).unwrap();
    let again = wait_until("the refused callback is taken", || async {
        let (status, answer) = client.callback(&body).await;
        (status == StatusCode::OK).then_some(answer)
    })
    .await;
    assert_eq!(again["applied"], true);
}
