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
async fn of_an_agent_and_a_stream_that_are_named_both_must_hold() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let (other, others) = client.job("liis").await;
    let found = async |query: &str| {
        let answer = client.read(&format!("/api/events?{query}")).await;
        (positions(&answer), answer["looked_to"].as_u64().unwrap())
    };
    let (of_job, _) = found(&format!("stream={job}")).await;
    assert_eq!(found(&format!("agent={agent}&stream={job}")).await.0, of_job);
    assert_eq!(found(&format!("agent={agent}&stream={job}&stream={others}")).await.0, of_job);
    let head = client.read("/api/events?limit=0").await["head"].as_u64().unwrap();
    assert_eq!(found(&format!("agent={agent}&stream={others}")).await, (vec![], head));
    assert_eq!(found(&format!("agent={agent}&node={other}")).await, (vec![], head));
    assert_eq!(found(&format!("agent={agent}&stream={others}&before=3")).await, (vec![], 1));
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

#[tokio::test(flavor = "multi_thread")]
async fn events_are_found_by_actor_text_time_and_range_both_ways() {
    let server = Server::start().await;
    let client = server.client();
    let (mari, job) = client.job("Mari's \"first\"").await;
    client.job("juno").await;
    let step = json!({"job_id": job, "status": "provisioning", "step": "vm_created"});
    let at = client.callback(&step).await.1["position"].as_u64().unwrap();
    let all = positions(&client.read("/api/events?limit=1000").await);
    let head = *all.last().unwrap();

    let actor = text(&client.read(&format!("/api/events/{at}")).await["metadata"], "actor");
    let path = format!("/api/events?actor={}", actor.replace(':', "%3A"));
    assert_eq!(positions(&client.read(&path).await), [at]);
    assert_eq!(positions(&client.read("/api/events?actor=workflow").await), [0; 0]);
    // Small and capital letters, and what JSON writes in another way.
    for said in ["VM_Created", "vm_c"] {
        assert_eq!(positions(&client.read(&format!("/api/events?text={said}")).await), [at]);
    }
    let quoted = client.read("/api/events?text=%22first%22&type=AgentCreated").await;
    assert_eq!(quoted["events"][0]["stream"], mari.as_str());
    assert_eq!(positions(&client.read("/api/events?text=%25").await), [0; 0], "% is no wildcard");

    let back = client.read(&format!("/api/events?before={}&limit=2", head + 1)).await;
    assert_eq!(positions(&back), [head, head - 1]);
    assert_eq!(back["looked_to"], head - 1);
    let between = client.read(&format!("/api/events?from={}&to={}", at - 1, at)).await;
    assert_eq!(positions(&between), [at - 1, at]);
    let time = text(&client.read(&format!("/api/events/{at}")).await, "recorded_at");
    assert_eq!(positions(&client.read(&format!("/api/events?from={time}")).await)[0], at);
    let upto = positions(&client.read(&format!("/api/events?to={time}")).await);
    assert_eq!(upto.last(), Some(&at));

    let of_mari = positions(&client.read(&format!("/api/events?agent={mari}")).await);
    assert!(of_mari.contains(&at) && of_mari.len() < all.len(), "{of_mari:?} of {all:?}");
    for wrong in ["after=1&before=2", "from=x", "to=-1", "agent=1", "before=x"] {
        assert_eq!(client.get(&format!("/api/events?{wrong}")).await.0, 400, "{wrong}");
    }
    assert_eq!(client.get(&format!("/api/events?to={}", head + 1)).await.0, 404);
    assert_eq!(client.get(&format!("/api/events?text={}", "x".repeat(513))).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_has_its_own_address_and_nothing_else_has() {
    let server = Server::start().await;
    let client = server.client();
    client.agent("mari").await;
    let listed = client.read("/api/events?limit=1").await["events"][0].clone();
    assert_eq!(client.read("/api/events/1").await, listed);
    for path in ["/api/events/0", "/api/events/999999", "/api/events/x", "/api/events/-1"] {
        assert_eq!(client.get(path).await.0, 404, "{path}");
    }
}
