//! Views when something is in their way: a row, a lock, another version, the end of memory.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use milepost::log::Database;
use milepost::views::{Filling, Generation, ROWS_IN_MEMORY_MAX, fill};
use milepost_projections::job::Jobs;
use milepost_schemas::Position;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_postgres::Client as Sql;

use super::rebuild::{order, seeded, settled, verified, view};
use crate::harness::{Client, Options, Server, database, sql, wait_until};

/// Waits until a rebuild waits for somebody to look; how the view stands then.
async fn waits(client: &Client, name: &str) -> Value {
    wait_until("the rebuild waits", || async {
        let view = view(client, name).await;
        (view["progress"]["phase"] == "waiting").then_some(view)
    })
    .await
}

/// Waits until somebody waits for a lock on a table.
async fn is_waited_for(client: &Sql, table: &str) {
    let waiting = "SELECT EXISTS (SELECT FROM pg_locks \
                   WHERE relation = $1::text::regclass AND NOT granted)";
    wait_until("somebody waits for the lock", || async {
        client.query_one(waiting, &[&table]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

/// Appends the next attempt of a job that has failed, as a version that writes it so would; its
/// position.
async fn retried(client: &Sql, agent: &str, job: &str, schema_version: i16) -> i64 {
    let header = format!(r#"{{"actor":"system:test","correlation_id":"{job}"}}"#);
    let body = json!({"job_id": job, "agent_id": agent, "attempt": 2}).to_string();
    let stream: uuid::Uuid = job.parse().unwrap();
    let row = client
        .query_one(
            "WITH head AS (UPDATE log_head SET size = size + 1 RETURNING size, recorded_at) \
             INSERT INTO event SELECT size, $1, \
                 (SELECT max(version) + 1 FROM event WHERE stream_id = $1), 19, $2, recorded_at, \
                 $3, $4 FROM head RETURNING position",
            &[&stream, &schema_version, &header.as_bytes(), &body.as_bytes()],
        )
        .await
        .unwrap();
    row.get(0)
}

async fn failed_job(client: &Client) -> (String, String) {
    let (agent, job) = client.job("failed").await;
    for body in [
        json!({"job_id": job, "status": "provisioning"}),
        json!({"job_id": job, "status": "failed", "error": "no"}),
    ] {
        assert_eq!(client.callback(&body).await.0.as_u16(), 200);
    }
    (agent, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_wait_hold_each_event_once_when_they_take_over() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = failed_job(&client).await;
    verified(&client, "jobs").await;
    let (one, mut other) = (sql(&server.database_url()).await, sql(&server.database_url()).await);
    one.batch_execute("UPDATE view_jobs_1 SET label = 'wrong'").await.unwrap();
    order(&client, "jobs", "rebuild", json!({})).await;
    let rows = waits(&client, "jobs").await["progress"]["generation"].as_i64().unwrap();

    // The order to take over comes while an event is folded that cannot be written yet.
    let table = format!("view_jobs_{rows}");
    let lock = other.transaction().await.unwrap();
    lock.batch_execute(&format!("LOCK TABLE {table} IN SHARE MODE")).await.unwrap();
    retried(&one, &agent, &job, 1).await;
    is_waited_for(&one, &table).await;
    order(&client, "jobs", "switch", json!({})).await;
    // Once a list shows what came later, the order has been heard.
    let later = client.agent("later").await;
    wait_until("the board shows what came later", || async {
        client.read("/api/agents").await.to_string().contains(&later).then_some(())
    })
    .await;
    lock.commit().await.unwrap();
    assert_eq!(settled(&client, "jobs", "ended").await["outcome"], "switched");
    verified(&client, "jobs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_stops_its_view_alone_until_a_rebuild() {
    let mut server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("broken").await;
    verified(&client, "jobs").await;
    // No process has the row in memory any more.
    server.stop().await;
    let sql = sql(&server.database_url()).await;
    sql.batch_execute("UPDATE view_jobs_1 SET state = 'no row'").await.unwrap();
    server.restart().await;
    let client = server.client();
    let body = json!({"job_id": job, "status": "provisioning"});
    assert_eq!(client.callback(&body).await.0.as_u16(), 200);

    let head = client.read("/readyz").await["position"].as_u64();
    for name in ["board", "nodes", "compensations"] {
        wait_until("the others follow the log", || async {
            (view(&client, name).await["position"].as_u64() >= head).then_some(())
        })
        .await;
        verified(&client, name).await;
    }
    let lag = view(&client, "jobs").await["lag_events"].as_u64().unwrap();
    assert!(lag > 0);
    assert_eq!(client.metric("milepost_view_lag_events{view=\"jobs\"}").await, lag);

    // Nothing can be compared with what stands still: somebody has to say that it may go.
    order(&client, "jobs", "rebuild", json!({})).await;
    assert!(waits(&client, "jobs").await["progress"]["difference"].is_null());
    order(&client, "jobs", "switch", json!({})).await;
    assert_eq!(settled(&client, "jobs", "ended").await["outcome"], "switched");
    verified(&client, "jobs").await;
    assert!(client.read("/api/jobs").await.to_string().contains(&job));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_dropped_hold_up_nothing_and_are_dropped_later() {
    let server = Server::start().await;
    let client = server.client();
    client.job("one").await;
    verified(&client, "board").await;
    let (one, mut other) = (sql(&server.database_url()).await, sql(&server.database_url()).await);
    one.batch_execute("UPDATE view_board_1 SET label = 'wrong'").await.unwrap();
    order(&client, "board", "rebuild", json!({})).await;
    let rows = waits(&client, "board").await["progress"]["generation"].as_i64().unwrap();
    one.batch_execute("UPDATE view_board_1 SET label = 'queued'").await.unwrap();

    // As a dump holds every table until it is through.
    let table = format!("view_board_{rows}");
    let dump = other.transaction().await.unwrap();
    dump.batch_execute(&format!("LOCK TABLE {table} IN ACCESS SHARE MODE")).await.unwrap();
    order(&client, "board", "cancel", json!({})).await;
    is_waited_for(&one, &table).await;
    let later = client.agent("later").await;
    wait_until("the view follows the log", || async {
        client.read("/api/agents").await.to_string().contains(&later).then_some(())
    })
    .await;
    order(&client, "board", "rebuild", json!({"switch": "always"})).await;
    assert_eq!(settled(&client, "board", "ended").await["outcome"], "switched");
    assert!(one.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.is_ok());

    dump.commit().await.unwrap();
    wait_until("the rows are dropped", || async {
        let sql = "SELECT to_regclass($1::text) IS NULL";
        one.query_one(sql, &[&table]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    verified(&client, "board").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn former_rows_that_the_archive_has_overtaken_are_not_offered_and_go() {
    let server = Server::start().await;
    let client = server.client();
    client.job("one").await;
    order(&client, "board", "rebuild", json!({})).await;
    assert_eq!(settled(&client, "board", "ended").await["outcome"], "switched");
    let listed = |view: Value| view["generations"].as_array().unwrap().len();
    assert_eq!(listed(view(&client, "board").await), 2);
    let sql = sql(&server.database_url()).await;
    sql.batch_execute(
        "INSERT INTO archived_range \
             (first_position, last_position, partition_name, location, kept_events, kept_root) \
         SELECT 1, position + 1, 'event_000000', 'nowhere', position + 1, '' \
         FROM view_generation WHERE projection = 'board' AND state = 'former'",
    )
    .await
    .unwrap();
    assert_eq!(listed(view(&client, "board").await), 1);
    let (status, answer) = client.post("/api/projections/board/rollback", &json!({})).await;
    assert_eq!(status.as_u16(), 409, "{answer}");

    // They go with the next order to any view.
    order(&client, "jobs", "verify", json!({})).await;
    wait_until("the former rows are dropped", || async {
        let former = "SELECT count(*) FROM view_generation \
                      WHERE projection = 'board' AND state = 'former'";
        (sql.query_one(former, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_without_rows_says_so_and_shows_no_empty_list() {
    let mut server = Server::start().await;
    let (agent, _) = server.client().job("there").await;
    verified(&server.client(), "board").await;
    server.stop().await;
    // As if the rows were of the version before, and another node had yet to fill those of this one.
    let other = sql(&server.database_url()).await;
    let mine = "SELECT version::int FROM view_generation WHERE projection = 'board' LIMIT 1";
    let version: i32 = other.query_one(mine, &[]).await.unwrap().get(0);
    let before = "UPDATE view_generation SET version = version - 1 WHERE projection = 'board'";
    other.batch_execute(before).await.unwrap();
    let lock = "SELECT pg_advisory_lock(hashtext('view board'), $1)";
    other.execute(lock, &[&version]).await.unwrap();
    // That others run other versions is nothing to this one.
    other.execute("SELECT pg_advisory_lock(hashtext('view jobs'), 0)", &[]).await.unwrap();
    server.restart().await;
    let client = server.client();

    let asked = client.request(Method::GET, "/api/agents").bearer_auth(&client.token);
    let answer = client.send(asked).await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "2"));
    let (_, problem) = answer.into_json();
    assert!(problem["detail"].as_str().unwrap().contains("board"), "{problem}");
    assert_eq!(client.read(&format!("/api/agents/{agent}")).await["name"], "there");
    verified(&client, "jobs").await;

    other.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    wait_until("the rows are filled", || async {
        let (status, list) = client.get("/api/agents").await;
        (status == 200 && list.to_string().contains(&agent)).then_some(())
    })
    .await;
    let view = view(&client, "board").await;
    let states: Vec<&Value> =
        view["generations"].as_array().unwrap().iter().map(|it| &it["state"]).collect();
    assert_eq!(states, ["active", "active"], "code of before goes on with its own");
}

/// Fills a generation of the jobs with so many rows in memory; its table.
async fn filled(url: &str, upto: u64, rows_max: usize) -> String {
    let database = Database::new(url).unwrap();
    let (mut client, _) = database.dedicated().await.unwrap();
    let filling = Filling {
        generation: Generation::create::<Jobs>(&mut client).await.unwrap(),
        upto: Position(upto),
        parallel: 2,
        skipped: HashSet::new(),
        rows_max,
        folded: Arc::default(),
    };
    assert!(fill::<Jobs>(&database, &filling, || ()).await.unwrap().is_empty());
    assert_eq!(AtomicU64::load(&filling.folded, Ordering::Relaxed), upto);
    filling.generation.table()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_do_not_fit_into_memory_become_the_same() {
    let url = database().await;
    let upto = seeded(&url).await;
    let (roomy, narrow) =
        (filled(&url, upto, ROWS_IN_MEMORY_MAX).await, filled(&url, upto, 50).await);
    let differing = format!(
        "SELECT (SELECT count(*) FROM {roomy}), (SELECT count(*) FROM ( \
         (TABLE {roomy} EXCEPT TABLE {narrow}) UNION ALL (TABLE {narrow} EXCEPT TABLE {roomy})) AS d)"
    );
    let row = sql(&url).await.query_one(&differing, &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 1_000);
    assert_eq!(row.get::<_, i64>(1), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_stream_goes_on_once_its_event_can_be_read() {
    let server =
        Server::with(Options { database_url: Some(database().await), ..Options::default() }).await;
    let client = server.client();
    let (agent, job) = failed_job(&client).await;
    let sql = sql(&server.database_url()).await;
    let position = retried(&sql, &agent, &job, 9).await;
    wait_until("the view stops the stream", || async {
        (view(&client, "jobs").await["poisoned"] == 1).then_some(())
    })
    .await;
    let body = json!({"position": position});
    let (status, answer) = client.post("/api/projections/jobs/retry", &body).await;
    assert_eq!(status.as_u16(), 409, "{answer}");

    // A version that can read it would be started; here the event becomes one that this one can.
    sql.batch_execute(&format!(
        "ALTER TABLE event DISABLE TRIGGER ALL; ALTER TABLE event_000000 DISABLE TRIGGER ALL; \
         UPDATE event SET schema_version = 1 WHERE position = {position}"
    ))
    .await
    .unwrap();
    order(&client, "jobs", "retry", body).await;
    let end = settled(&client, "jobs", "ended").await;
    assert_eq!((&end["outcome"], &end["differing"]), (&json!("switched"), &json!(1)), "{end}");
    assert_eq!(view(&client, "jobs").await["poisoned"], 0);
    verified(&client, "jobs").await;
    let jobs = client.read("/api/jobs?status=queued").await;
    assert!(jobs.to_string().contains(&job), "{jobs}");
}
