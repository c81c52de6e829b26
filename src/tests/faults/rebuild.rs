//! Views rebuilt while callbacks arrive, while servers are killed, and on several nodes.

use serde_json::{Value, json};
use tokio_postgres::Client as Sql;

use super::{Follower, Load};
use crate::harness::{Client, Options, Server, database, sql, wait_until};

const VIEWS: [&str; 4] = ["board", "jobs", "nodes", "compensations"];

/// Copies of one agent's story that a seeded log holds: enough that a rebuild takes a while.
const COPIES: u32 = 1_500;

pub(super) async fn view(client: &Client, name: &str) -> Value {
    client.read(&format!("/api/projections/{name}")).await
}

/// Gives an order that is taken.
pub(super) async fn order(client: &Client, name: &str, what: &str, body: Value) {
    let (status, answer) = client.post(&format!("/api/projections/{name}/{what}"), &body).await;
    assert_eq!(status.as_u16(), 202, "{answer}");
}

/// Waits until nothing is ordered of a view; what came of the last order.
pub(super) async fn settled(client: &Client, name: &str, end: &str) -> Value {
    wait_until("the order has ended", || async {
        let view = view(client, name).await;
        view["order"].is_null().then(|| view[end].clone())
    })
    .await
}

/// The rows that are read are what the log says.
pub(super) async fn verified(client: &Client, name: &str) -> Value {
    order(client, name, "verify", json!({})).await;
    let end = settled(client, name, "verified").await;
    assert_eq!(end["outcome"], "equal", "{name}: {end}");
    end
}

/// Every table of rows belongs to a generation, and of each view one is read.
async fn nothing_is_left_over(client: &Sql) {
    let row = client
        .query_one(
            "SELECT \
             (SELECT array_agg(relname::text ORDER BY relname) FROM pg_class \
              WHERE relkind = 'r' AND relname ~ '^view_[a-z]+_[0-9]+$'), \
             (SELECT array_agg(view_table(projection, generation) \
              ORDER BY view_table(projection, generation)) \
              FROM view_generation WHERE state <> 'dropped'), \
             (SELECT count(*) FROM view_generation WHERE state = 'active'), \
             (SELECT count(*) FROM view_generation WHERE state = 'filling')",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, Vec<String>>(0), row.get::<_, Vec<String>>(1));
    assert_eq!(row.get::<_, i64>(2), VIEWS.len() as i64);
    assert_eq!(row.get::<_, i64>(3), 0);
}

/// Fills a log with copies of a story that a server recorded, each with ids of its own, and all at
/// the same time; the log's size.
pub(super) async fn seeded(url: &str) -> u64 {
    let mut server =
        Server::with(Options { database_url: Some(url.to_owned()), ..Options::default() }).await;
    let client = server.client();
    let (_, job) = client.job("copied").await;
    for body in [
        json!({"job_id": job, "status": "provisioning"}),
        json!({"job_id": job, "status": "provisioning", "step": "vm_created"}),
        json!({"job_id": job, "type": "heartbeat"}),
        json!({"job_id": job, "status": "provisioning", "step": "ansible_started"}),
        json!({"job_id": job, "status": "running"}),
    ] {
        assert_eq!(client.callback(&body).await.0.as_u16(), 200);
    }
    server.stop().await;
    let sql = sql(url).await;
    let insert = format!(
        "WITH story AS (SELECT * FROM event WHERE stream_id IN ( \
             SELECT stream_id FROM event GROUP BY stream_id)), \
         ids AS (SELECT DISTINCT stream_id::text AS old FROM story), \
         copies AS (SELECT s.position, n, s.version, s.type, s.schema_version, s.header, \
             md5(s.stream_id || ' ' || n)::uuid AS stream_id, \
             (SELECT string_agg(part, '' ORDER BY at) FROM ( \
                SELECT at, CASE WHEN EXISTS (SELECT FROM ids WHERE old = word) \
                    THEN md5(word || ' ' || n)::uuid::text ELSE word END AS part \
                FROM regexp_split_to_table( \
                    regexp_replace(convert_from(s.body, 'UTF8'), \
                    '([0-9a-f]{{8}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{12}})', \
                    E'\\x01\\\\1\\x01', 'g'), E'\\x01') WITH ORDINALITY AS t (word, at)) AS p) AS body \
             FROM story AS s, generate_series(1, {COPIES}) AS n), \
         numbered AS (SELECT *, row_number() OVER (ORDER BY position, n) AS place FROM copies) \
         INSERT INTO event SELECT (SELECT size FROM log_head) + place, stream_id, version, type, \
             schema_version, (SELECT recorded_at FROM log_head), header, convert_to(body, 'UTF8') \
         FROM numbered"
    );
    let added = sql.execute(&insert, &[]).await.unwrap();
    let head = sql
        .query_one("UPDATE log_head SET size = size + $1 RETURNING size", &[&(added as i64)])
        .await
        .unwrap();
    head.get::<_, i64>(0) as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_is_rebuilt_while_callbacks_arrive() {
    let url = database().await;
    let size = seeded(&url).await;
    let server =
        Server::with(Options { database_url: Some(url.clone()), ..Options::default() }).await;
    let client = server.client();
    let follower = Follower::start(&client).await;
    let load = Load::start(std::slice::from_ref(&client), 200).await;
    load.more(100).await;
    for name in VIEWS {
        let before = view(&client, name).await;
        order(&client, name, "rebuild", json!({})).await;
        // Lists and their streams go on meanwhile: a read is never of rows that are half there.
        let mut rows = 0;
        let end = loop {
            let now = view(&client, name).await;
            if now["order"].is_null() {
                break now["ended"].clone();
            }
            let listed = client.read("/api/agents").await["agents"].as_array().unwrap().len();
            assert!(listed >= 1_000 && listed >= rows, "{listed} of {rows}");
            rows = listed;
        };
        assert_eq!(end["outcome"], "switched", "{name}: {end}");
        assert_eq!(end["differing"], 0, "{name}: {end}");
        assert!(end["position"].as_u64().unwrap() > size, "{end}");
        let after = view(&client, name).await;
        assert!(after["generation"].as_i64() > before["generation"].as_i64(), "{after}");
        load.more(50).await;
        let end = verified(&client, name).await;
        println!("{name}: equal at {} with {} rows", end["position"], end["rows"]);
    }
    let answered = load.stop().await;
    let total = client.events().await.len() as u64;
    assert!(total > size + answered.len() as u64);
    assert_eq!(follower.read_up_to(total).await, 1);
    for name in VIEWS {
        verified(&client, name).await;
    }
    nothing_is_left_over(&sql(&url).await).await;
}

/// What is seen in the database when a server is killed.
const MOMENTS: [&str; 6] = [
    "state = 'filling'",
    "state = 'filling' AND progress IS NOT NULL",
    "state = 'filling' AND position > 0",
    "state = 'filling' AND progress ->> 'phase' = 'comparing'",
    "state = 'filling' AND progress ->> 'phase' = 'switching'",
    "state = 'active' AND order_position IS NOT NULL",
];

/// Kills after so many callbacks at the most, whatever the rebuild is at.
const KILLS: usize = 5;
const CALLBACKS_BEFORE_A_KILL_MAX: u64 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_survives_kills_at_every_moment() {
    let url = database().await;
    seeded(&url).await;
    let mut server =
        Server::with(Options { database_url: Some(url.clone()), ..Options::default() }).await;
    let client = server.client();
    let watcher = sql(&url).await;
    let load = Load::start(std::slice::from_ref(&client), 0).await;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for moment in MOMENTS.map(Some).into_iter().chain([None; KILLS]) {
        let before = settled(&client, "board", "ended").await;
        order(&client, "board", "rebuild", json!({"switch": "always"})).await;
        if let Some(moment) = moment {
            let seen = format!(
                "SELECT EXISTS \
                 (SELECT FROM view_generation WHERE projection = 'board' AND {moment})"
            );
            wait_until("the moment has come", || async {
                watcher.query_one(&seen, &[]).await.unwrap().get::<_, bool>(0).then_some(())
            })
            .await;
        } else {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            load.more(random % CALLBACKS_BEFORE_A_KILL_MAX).await;
        }
        server.kill().await;
        server.restart().await;
        let end = settled(&client, "board", "ended").await;
        assert_eq!(end["outcome"], "switched", "{moment:?}: {end}");
        assert_ne!(end["position"], before["position"], "{moment:?}");
        verified(&client, "board").await;
    }
    drop(load.stop().await);
    verified(&client, "board").await;
    nothing_is_left_over(&watcher).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_make_one_rebuild() {
    let url = database().await;
    seeded(&url).await;
    let mut first =
        Server::with(Options { database_url: Some(url.clone()), ..Options::default() }).await;
    let second = Server::beside(&first).await;
    let (one, other) = (first.client(), second.client());
    let (path, body) = ("/api/projections/board/rebuild", json!({}));
    let (a, b) = tokio::join!(one.post(path, &body), other.post(path, &body));
    let mut statuses = [a.0.as_u16(), b.0.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [202, 409], "{} {}", a.1, b.1);
    settled(&other, "board", "ended").await;
    let watcher = sql(&url).await;
    let made = "SELECT count(*) FROM view_generation \
                WHERE projection = 'board' AND state <> 'dropped'";
    let row = watcher.query_one(made, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 2, "the first rows, and one rebuild");

    // The node that makes it goes, and the other makes it.
    order(&other, "board", "rebuild", json!({})).await;
    first.kill().await;
    let end = settled(&other, "board", "ended").await;
    assert_eq!(end["outcome"], "switched", "{end}");
    verified(&other, "board").await;
    nothing_is_left_over(&watcher).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_changed_by_hand_is_named_and_repaired() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, _) = client.job("wrong").await;
    client.job("right").await;
    verified(&client, "board").await;
    let sql = sql(&server.database_url()).await;
    let change = "UPDATE view_board_1 SET state = replace(convert_from(state, 'UTF8'), 'eu-central', \
                  'us-west')::bytea WHERE key = $1";
    let key: uuid::Uuid = agent.parse().unwrap();
    assert_eq!(sql.execute(change, &[&key]).await.unwrap(), 1);

    order(&client, "board", "verify", json!({})).await;
    let end = settled(&client, "board", "verified").await;
    assert_eq!((&end["outcome"], &end["differing"]), (&json!("different"), &json!(1)), "{end}");
    assert_eq!(end["first_difference"], agent.as_str());

    // A rebuild shows what differs, and waits for somebody to look at it.
    order(&client, "board", "rebuild", json!({"reason": "repair"})).await;
    let waiting = wait_until("the rebuild waits", || async {
        let view = view(&client, "board").await;
        (view["progress"]["phase"] == "waiting").then_some(view)
    })
    .await;
    let difference = &waiting["progress"]["difference"];
    assert_eq!((&difference["differing"], &difference["rows_old"]), (&json!(1), &json!(2)));
    assert_ne!(difference["checksum_old"], difference["checksum_new"]);
    assert_eq!(waiting["generation"], 1);
    order(&client, "board", "switch", json!({})).await;
    assert_eq!(settled(&client, "board", "ended").await["outcome"], "switched");
    verified(&client, "board").await;
    let names = client.read("/api/agents").await;
    assert!(names.to_string().contains("wrong") && !names.to_string().contains("us-west"));

    // And back to the former rows: what is wrong with them is wrong again, but they are up to date.
    let (newer, _) = client.job("newer").await;
    order(&client, "board", "rollback", json!({"reason": "an exercise"})).await;
    assert_eq!(settled(&client, "board", "ended").await["outcome"], "switched");
    let names = client.read("/api/agents").await;
    assert!(names.to_string().contains("us-west") && names.to_string().contains(&newer));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_rebuild_leaves_what_is_read_alone() {
    let server = Server::start().await;
    let client = server.client();
    client.job("one").await;
    verified(&client, "board").await;
    let sql = sql(&server.database_url()).await;
    sql.batch_execute("UPDATE view_board_1 SET label = 'wrong'").await.unwrap();
    order(&client, "board", "rebuild", json!({})).await;
    wait_until("the rebuild waits", || async {
        let view = view(&client, "board").await;
        (view["progress"]["phase"] == "waiting").then_some(())
    })
    .await;
    order(&client, "board", "cancel", json!({"reason": "not now"})).await;
    let end = settled(&client, "board", "ended").await;
    assert!(end["outcome"].is_null(), "{end}");
    assert!(end["error"].as_str().unwrap().ends_with(": not now"), "{end}");
    let view = wait_until("what was filled is gone", || async {
        let view = view(&client, "board").await;
        (view["generations"].as_array().unwrap().len() == 1).then_some(view)
    })
    .await;
    assert_eq!((&view["generation"], &view["progress"]), (&json!(1), &Value::Null));
    nothing_is_left_over(&sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_the_future_stops_its_stream_until_it_is_skipped() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("ahead").await;
    let (_, other) = client.job("beside").await;
    let sql = sql(&server.database_url()).await;
    let header = format!(r#"{{"actor":"system:future","correlation_id":"{job}"}}"#);
    let row = sql
        .query_one(
            "WITH head AS (UPDATE log_head SET size = size + 1 RETURNING size, recorded_at) \
             INSERT INTO event SELECT size, $1, 99, 999, 1, recorded_at, $2, '{}' FROM head \
             RETURNING position",
            &[&job.parse::<uuid::Uuid>().unwrap(), &header.as_bytes()],
        )
        .await
        .unwrap();
    let position = row.get::<_, i64>(0);
    let stopped = wait_until("the view stops the stream", || async {
        let view = view(&client, "board").await;
        (view["poisoned"] == 1).then_some(view)
    })
    .await;
    let poison = &stopped["poison"][0];
    assert_eq!((&poison["position"], &poison["stream"]), (&json!(position), &json!(job)));
    assert_eq!(poison["error"], "event type 999 is not known to this version");
    let metric = "milepost_view_poisoned_streams{view=\"board\"}";
    assert_eq!(client.metric(metric).await, 1);
    let page = client.read("/api/agents").await;
    assert!(page.to_string().contains(&agent), "the view goes on with what it has");

    // The rest of the log goes on.
    let body = json!({"job_id": other, "status": "provisioning", "step": "vm_created"});
    assert_eq!(client.callback(&body).await.0.as_u16(), 200);
    verified(&client, "jobs").await;

    let path = "/api/projections/board";
    let at = |position: i64| json!({"position": position, "reason": "a test of ours"});
    for (what, body, status) in [
        ("retry", at(position), 409),
        ("retry", at(position + 1), 409),
        ("skip", at(position - 1), 409),
        ("skip", json!({"position": position}), 400),
        ("skip", json!({"reason": "which?"}), 400),
        ("rollback", json!({}), 409),
        ("switch", json!({}), 409),
        ("cancel", json!({}), 409),
    ] {
        let (given, answer) = client.post(&format!("{path}/{what}"), &body).await;
        assert_eq!(given.as_u16(), status, "{what} {body}: {answer}");
    }
    let (status, _) = client.post("/api/projections/none/rebuild", &json!({})).await;
    assert_eq!(status.as_u16(), 404);

    order(&client, "board", "skip", at(position)).await;
    assert_eq!(settled(&client, "board", "ended").await["outcome"], "switched");
    let view = view(&client, "board").await;
    assert_eq!((&view["poisoned"], &view["skipped"][0]["position"]), (&json!(0), &json!(position)));
    verified(&client, "board").await;
    // Who did what is in the log.
    let events = client.events().await;
    let skip = events.iter().find(|it| it["type"] == "ProjectionEventSkipped").unwrap();
    assert_eq!(skip["data"]["reason"], "a test of ours");
    assert_eq!(skip["metadata"]["actor"], skip["data"]["skipped_by"]);
}
