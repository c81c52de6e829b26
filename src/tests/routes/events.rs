//! `GET /api/events`, and the log behind it.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{Server, sql, text};

fn positions(page: &Value) -> Vec<u64> {
    page["events"].as_array().unwrap().iter().map(|it| it["position"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_read_in_pages() {
    let server = Server::start().await;
    let client = server.client();
    assert_eq!(client.read("/api/events").await["head"], 0);
    for number in 0..5 {
        client.agent(&format!("agent {number}")).await;
    }
    let all = client.read("/api/events").await;
    assert_eq!(positions(&all), [1, 2, 3, 4, 5]);
    assert_eq!(all["head"], 5);
    for (query, expected) in [
        ("?after=2", &[3, 4, 5][..]),
        ("?after=2&limit=2", &[3, 4]),
        ("?limit=0", &[]),
        ("?limit=100000", &[1, 2, 3, 4, 5]),
        ("?after=5", &[]),
        ("?after=99", &[]),
        ("?after=18446744073709551615", &[]),
    ] {
        let page = client.read(&format!("/api/events{query}")).await;
        assert_eq!((positions(&page).as_slice(), &page["head"]), (expected, &json!(5)), "{query}");
    }
    let stream = "stream=019ab0c2-7d2a-7a41-8c33-5b1f0d9e7a02";
    let many = format!("?{}", [stream; 65].join("&"));
    for query in ["?after=-1", "?after=x", "?limit=-1", "?type=Nothing", "?stream=x", &many] {
        let (status, problem) = client.get(&format!("/api/events{query}")).await;
        assert_eq!(status, 400, "{query}");
        assert_eq!(problem["type"], "urn:milepost:problem:bad-request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_read_by_stream_and_by_type() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let (other, _) = client.job("liis").await;
    let types = async |query: &str| -> Vec<String> {
        let page = client.read(&format!("/api/events?{query}")).await;
        page["events"].as_array().unwrap().iter().map(|event| text(event, "type")).collect()
    };
    assert_eq!(types(&format!("stream={job}")).await, ["JobQueued"]);
    assert_eq!(types(&format!("stream={agent}")).await, ["AgentCreated", "ProvisioningRequested"]);
    assert_eq!(types("type=JobQueued").await, ["JobQueued", "JobQueued"]);
    let both = format!("stream={agent}&stream={other}&type=AgentCreated&type=JobQueued");
    assert_eq!(types(&both).await, ["AgentCreated", "AgentCreated"]);
    assert_eq!(types(&format!("stream={job}&type=AgentCreated")).await, [""; 0]);
    let events = client.events().await;
    for (stream, versions) in [(&agent, [1, 2].as_slice()), (&job, &[1])] {
        let of_stream = events.iter().filter(|event| event["stream"] == **stream);
        let told: Vec<u64> = of_stream.map(|event| event["version"].as_u64().unwrap()).collect();
        assert_eq!(told, versions);
    }
    let queued = &events[3];
    assert_eq!(queued["event_id"], format!("{}-4", queued["epoch"]));
    assert_eq!(queued["metadata"]["actor"], "token:dev");
    assert_eq!(queued["metadata"]["correlation_id"], job);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_cannot_be_changed_even_by_the_owner() {
    let server = Server::start().await;
    let client = server.client();
    client.job("mari").await;
    let before = client.events().await;
    let owner = sql(&server.database_url()).await;
    let partition = "event_000000";
    for table in ["event", partition] {
        for statement in [
            format!("UPDATE {table} SET body = '' WHERE position = 1"),
            format!("UPDATE {table} SET position = position + 1"),
            format!("DELETE FROM {table} WHERE position = 1"),
            format!("DELETE FROM {table} WHERE false"),
            format!("TRUNCATE {table}"),
            format!(
                "INSERT INTO {table} SELECT * FROM {table} ON CONFLICT (position) DO UPDATE SET body = ''"
            ),
        ] {
            let error = owner.batch_execute(&statement).await.unwrap_err();
            let error = error.as_db_error().unwrap();
            assert!(error.message().contains("append-only"), "{statement}: {}", error.message());
            assert_eq!(error.code().code(), "42501", "{statement}");
        }
    }
    // Under the server's own role not even the question arises.
    owner.batch_execute("SET ROLE milepost_app").await.unwrap();
    for statement in [
        "UPDATE event SET body = ''",
        "DELETE FROM event",
        "TRUNCATE event",
        "ALTER TABLE event DISABLE TRIGGER ALL",
        "DROP TABLE event",
        "UPDATE event_000000 SET body = ''",
    ] {
        assert!(owner.batch_execute(statement).await.is_err(), "{statement}");
    }
    assert_eq!(client.events().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_events_cannot_have_one_place() {
    let server = Server::start().await;
    let client = server.client();
    client.agent("mari").await;
    let owner = sql(&server.database_url()).await;
    let copy = |position: &str, version: &str| {
        format!(
            "INSERT INTO event SELECT {position}, stream_id, {version}, type, schema_version, \
             recorded_at, header, body FROM event WHERE position = 1"
        )
    };
    for (statement, constraint) in
        [(copy("1", "2"), "event_000000_pkey"), (copy("2", "1"), "event_000000_stream_version")]
    {
        let error = owner.batch_execute(&statement).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().constraint(), Some(constraint));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_on_two_servers_leave_no_gap() {
    const WRITERS: usize = 64;
    const EACH: usize = 4;
    let first = Server::start().await;
    let second = Server::beside(&first).await;
    let servers = [first, second];
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let client = servers[writer % 2].client();
        writers.spawn(async move {
            let mut answered = Vec::new();
            for number in 0..EACH {
                let job = format!("job {writer} {number}");
                let body = json!({"job_id": job, "status": "provisioning"});
                let (status, answer) = client.callback(&body).await;
                assert_eq!(status, 200, "{answer}");
                answered.push((answer["position"].as_u64().unwrap(), job));
            }
            answered
        });
    }
    let answered: Vec<(u64, String)> = writers.join_all().await.into_iter().flatten().collect();
    let events = servers[0].client().events().await;
    assert_eq!(events.len(), WRITERS * EACH);
    let told: Vec<u64> = events.iter().map(|event| event["position"].as_u64().unwrap()).collect();
    assert_eq!(told, (1..=events.len() as u64).collect::<Vec<_>>());
    for (position, job) in &answered {
        assert_eq!(events[*position as usize - 1]["data"]["job_id"], **job, "what was answered");
    }
    assert_eq!(answered.iter().map(|it| it.0).collect::<HashSet<_>>().len(), events.len());
    let times: Vec<Timestamp> =
        events.iter().map(|event| text(event, "recorded_at").parse().unwrap()).collect();
    assert!(times.is_sorted(), "time never goes back in the log");
    assert_eq!(servers[1].client().events().await, events);
}
