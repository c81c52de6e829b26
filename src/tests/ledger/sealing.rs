//! Sealing as it goes on: its leader, its keys, its epochs.

use std::os::unix::fs::PermissionsExt as _;

use milepost::app::App;
use milepost::config::Config;
use milepost::ledger::note::{Note, open};
use milepost::ledger::verify::{Problem, Trust};
use milepost::log::{AppendError, Appended, Decision, Expected};
use milepost_schemas::event::LogKeyRotated;
use milepost_schemas::{Metadata, StreamId};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{audit, audit_with, checkpoint, key, key_file, log, record, sealed};
use crate::harness::{Client, Options, PATIENCE, Server, database, sql, wait_until};

async fn wait_for_refusal(client: &Client) {
    wait_until("sealing is refused", || async {
        (client.metric("milepost_seal_refused").await == 1).then_some(())
    })
    .await;
}

/// Waits until sealing has ended so often by an error.
async fn wait_for_errors(client: &Client, errors: u64) {
    wait_until("sealing has failed", || async {
        (client.metric("milepost_seal_errors_total").await >= errors).then_some(())
    })
    .await;
}

/// A callback that nothing is in the way of.
fn heartbeat(number: u32) -> Value {
    json!({"job_id": uuid::Uuid::from_u128(7), "type": "heartbeat", "attempt": number})
}

/// Nothing is acknowledged, and the server says why.
async fn assert_takes_nothing(client: &Client) {
    assert_eq!(client.callback(&heartbeat(1)).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (status, problem) = client.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(problem["detail"].as_str().unwrap().contains("set back"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_servers_one_seals_and_the_other_takes_over() {
    let mut first = Server::start().await;
    record(&first.client(), 20).await;
    sealed(&first.client()).await;
    // Another machine that has the same key.
    let dir = first.dir().join("seal-key.pem");
    let second = Server::beside(&first).await;
    std::fs::copy(&dir, second.dir().join("seal-key.pem")).unwrap();
    record(&second.client(), 20).await;
    let (size, _) = sealed(&second.client()).await;
    first.kill().await;
    record(&second.client(), 20).await;
    let (later, note) = sealed(&second.client()).await;
    assert!(later > size);
    assert_eq!(open(&note, &[key(&second.client()).await]).unwrap().size, later);
    let report = audit(&second).await;
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_stopped_leaves_nothing_unsealed() {
    let mut server = Server::start().await;
    let client = server.client();
    record(&client, 5).await;
    sealed(&client).await;
    // Far within the second until the next checkpoint.
    record(&client, 1).await;
    server.stop().await;
    let owner = sql(&server.database_url()).await;
    let sizes = "SELECT h.size, max(c.size) FROM log_head AS h, checkpoint AS c GROUP BY h.size";
    let row = owner.query_one(sizes, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_another_key_refuses_to_seal() {
    let mut first = Server::start().await;
    record(&first.client(), 5).await;
    let (_, note) = sealed(&first.client()).await;
    first.stop().await;
    let second = Server::beside(&first).await;
    key_file(second.dir()).add().unwrap();
    record(&second.client(), 5).await;
    wait_for_refusal(&second.client()).await;
    assert_eq!(checkpoint(&second.client()).await.unwrap().1, note);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_made_at_first_use_and_is_nowhere_in_the_database() {
    let server = Server::start().await;
    let client = server.client();
    let file = server.dir().join("seal-key.pem");
    assert!(!file.exists());
    client.job("mari").await;
    sealed(&client).await;
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let owner = sql(&server.database_url()).await;
    let rows = owner.query("SELECT verifier_key FROM sealing_key", &[]).await.unwrap();
    let listed: String = rows[0].get(0);
    assert_eq!((rows.len(), listed), (1, key(&client).await.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_rotated_by_both_and_the_log_says_so() {
    let mut server = Server::start().await;
    let client = server.client();
    record(&client, 10).await;
    sealed(&client).await;
    let former = key(&client).await;
    let (code, words) = log(&server, &["rotate-key"]).await;
    assert_eq!(code, Some(0), "{words}");
    let new = wait_until("the new key signs", || async {
        Some(key(&client).await).filter(|key| *key != former)
    })
    .await;
    let events = client.read("/api/events?type=LogKeyRotated").await;
    assert_eq!(events["events"][0]["data"]["key"], new.to_string());
    assert_eq!(events["events"][0]["data"]["former_key"], former.to_string());
    let (_, note) = sealed(&client).await;
    let both = [former.clone(), new.clone()];
    assert_eq!(Note::parse(&note).unwrap().signers(&both).unwrap().len(), 2);
    record(&client, 10).await;
    let (_, note) = sealed(&client).await;
    assert!(open(&note, std::slice::from_ref(&new)).is_ok());
    assert!(open(&note, std::slice::from_ref(&former)).is_err());
    let answer = client.send(client.request(Method::GET, "/log/keys")).await;
    let keys: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(keys["keys"][0]["to_size"], keys["keys"][1]["from_size"]);
    // Who trusts the first key trusts the second by it.
    let trust = Trust { keys: vec![former.clone()], ..Trust::default() };
    let report = audit_with(&server, trust.clone()).await;
    assert!(report.is_clean(), "{:?}", report.findings);
    // What was signed before the second key, that one has signed again.
    let later = Trust { keys: vec![new.clone()], ..Trust::default() };
    let report = audit_with(&server, later).await;
    assert!(report.is_clean(), "{:?}", report.findings);
    // Without the signature of the first one it is only a key.
    server.stop().await;
    let owner = sql(&server.database_url()).await;
    let cut = "UPDATE checkpoint SET note = regexp_replace(note, E'\\n— [^\\n]+\\n—', E'\\n—') \
         WHERE size = (SELECT max(from_size) FROM sealing_key)";
    assert_eq!(owner.execute(cut, &[]).await.unwrap(), 1);
    let report = audit_with(&server, trust).await;
    assert!(report.findings.iter().any(|it| matches!(it.problem, Problem::Key { .. })));
}

/// Takes the log back to a size, as a restore from a backup would.
const SET_BACK: &str = "ALTER TABLE event_000000 DISABLE TRIGGER ALL; \
     ALTER TABLE event DISABLE TRIGGER ALL; \
     DELETE FROM event WHERE position > 12; \
     DELETE FROM checkpoint WHERE size > 12; \
     UPDATE log_head SET size = 12; \
     DELETE FROM queue; \
     ALTER TABLE event_000000 ENABLE ALWAYS TRIGGER event_is_append_only; \
     ALTER TABLE event ENABLE ALWAYS TRIGGER event_is_append_only;";

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_set_back_is_not_sealed_until_a_new_epoch_says_why() {
    let mut server = Server::start().await;
    let client = server.client();
    record(&client, 10).await;
    sealed(&client).await;
    record(&client, 10).await;
    let (lost, note) = sealed(&client).await;
    let first_key = key(&client).await;
    server.stop().await;
    let owner = sql(&server.database_url()).await;
    owner.batch_execute(SET_BACK).await.unwrap();
    server.restart().await;
    wait_for_refusal(&server.client()).await;
    assert_takes_nothing(&server.client()).await;
    server.stop().await;
    // Nor is it sealed when it has grown past what was signed, by a machine that has signed nothing.
    let mut other = Server::beside(&server).await;
    record(&other.client(), 20).await;
    other.stop().await;
    server.restart().await;
    wait_for_refusal(&server.client()).await;
    assert!(checkpoint(&server.client()).await.is_none_or(|(size, _)| size <= 12));

    let (code, words) = log(&server, &["new-epoch", "--reason", "restored"]).await;
    assert_eq!(code, Some(1), "while a server runs: {words}");
    server.stop().await;
    let (code, words) = log(&server, &["new-epoch", "--reason", "restored"]).await;
    assert_eq!(code, Some(0), "{words}");
    server.restart().await;
    let client = server.client();
    record(&client, 3).await;
    let (size, newer) = sealed(&client).await;
    let begun = client.read("/api/events?type=LogEpochBegun").await;
    let begun = &begun["events"][0]["data"];
    assert_eq!((&begun["reason"], &begun["signed_size"]), (&"restored".into(), &lost.into()));
    let origin = |note: &str| note.lines().next().unwrap().to_owned();
    assert_ne!(origin(&note), origin(&newer));
    assert!(origin(&newer).ends_with(&begun["epoch"].to_string()));
    let report = audit(&server).await;
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.sealed, size);
    // Everybody is told that it was begun: whether that was meant stands in no database.
    let (code, words) = log(&server, &["verify", "--json"]).await;
    let told: Value = serde_json::from_str(&words).unwrap();
    let told = &told["epochs"][0];
    assert_eq!((code, &told["epoch"]), (Some(0), &begun["epoch"]), "{words}");
    for name in ["former_epoch", "size", "signed_size", "reason"] {
        assert_eq!((&told[name], told[name].is_null()), (&begun[name], false), "{name}");
    }
    let (_, words) = log(&server, &["verify"]).await;
    let line = format!("Epoch {} was begun at position {}", told["epoch"], told["position"]);
    assert!(words.contains(&line), "{words}");
    // Who kept a note of what was lost is told what became of it.
    let trust = Trust { keys: vec![first_key], notes: vec![note], ..Trust::default() };
    let report = audit_with(&server, trust).await;
    let told = report.first().map(|first| first.problem.clone());
    assert!(
        matches!(told, Some(Problem::Lost { .. } | Problem::Root { .. })),
        "{:?}",
        report.findings
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_beneath_which_the_log_is_set_back_ends_and_the_next_one_takes_nothing() {
    let mut server = Server::start().await;
    let client = server.client();
    record(&client, 20).await;
    sealed(&client).await;
    let epoch = client.read("/readyz").await["epoch"].as_i64().unwrap();
    let owner = sql(&server.database_url()).await;
    owner.batch_execute(SET_BACK).await.unwrap();
    assert_eq!(server.ended().await, Some(1));
    let said = server.said();
    assert!(said.contains("the log was set back while this process ran"), "{said}");
    server.restart().await;
    assert_takes_nothing(&server.client()).await;
    let told = || server.said().matches("nothing is taken over a log that has lost events").count();
    let before = told();
    assert_takes_nothing(&server.client()).await;
    assert_eq!(told(), before, "once is enough");
    server.stop().await;
    let (code, words) = log(&server, &["new-epoch", "--reason", "restored"]).await;
    assert_eq!(code, Some(0), "{words}");
    server.restart().await;
    let client = server.client();
    assert_eq!(client.read("/readyz").await["position"], 13);
    let (status, answer) = client.callback(&heartbeat(1)).await;
    assert_eq!((status, &answer["position"]), (StatusCode::OK, &14.into()), "{answer}");
    let mut stream = client.stream("/api/events/stream", Some(&format!("{epoch}-12"))).await;
    assert_eq!(stream.next().await.unwrap().event, "reset");
    sealed(&client).await;
    assert!(audit(&server).await.is_clean());
}

async fn append(app: &App) -> Result<Appended, AppendError> {
    let event = LogKeyRotated { former_key: "one".to_owned(), key: "another".to_owned() };
    let decision = Decision {
        events: vec![(StreamId::LEDGER, event.into())],
        expected: vec![(StreamId::LEDGER, Expected::Any)],
        metadata: std::sync::Arc::new(Metadata {
            actor: "system:test".to_owned(),
            correlation_id: StreamId::LEDGER.0,
            causation_id: None,
            callback: None,
        }),
        queue: None,
    };
    app.log.append(decision, Instant::now() + PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_appended_to_a_log_that_is_smaller_than_its_process_knows() {
    let url = database().await;
    let shutdown = CancellationToken::new();
    let config = Config::of_tool(url.clone(), Vec::new());
    let app = App::open(config, shutdown.clone()).await.unwrap();
    for _ in 0..20 {
        append(&app).await.unwrap();
    }
    let owner = sql(&url).await;
    owner.batch_execute(SET_BACK).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(append(&app).await, Err(AppendError::Unavailable)));
    }
    let row = owner.query_one("SELECT size, (SELECT count(*) FROM event) FROM log_head", &[]).await;
    let row = row.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (12, 12));
    tokio::time::timeout(PATIENCE, shutdown.cancelled()).await.unwrap();
    assert!(app.log.feed().is_set_back());
}

/// What somebody does who may do everything in the database, and has not the key.
const FORGE_EPOCH: &str = "UPDATE log_head SET epoch = epoch + 1; \
     SELECT append_event('00000000-0000-0000-0000-000000000000', 111::smallint, 1::smallint, \
         convert_to('{\"actor\":\"system:new-epoch\",\"correlation_id\":\"00000000-0000-0000-0000-000000000000\"}', 'UTF8'), \
         convert_to(json_build_object('former_epoch', epoch - 1, 'epoch', epoch, 'size', 0, \
             'begun_by', 'root', 'reason', 'none')::text, 'UTF8')) FROM log_head; \
     TRUNCATE tree_tile";

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_nobody_has_agreed_to_beside_the_key_is_not_signed() {
    let mut server = Server::start().await;
    record(&server.client(), 20).await;
    let (_, note) = sealed(&server.client()).await;
    server.stop().await;
    let owner = sql(&server.database_url()).await;
    let forge =
        FORGE_EPOCH.replace(&uuid::Uuid::nil().to_string(), &StreamId::LEDGER.0.to_string());
    owner.batch_execute(&forge).await.unwrap();
    server.restart().await;
    wait_for_refusal(&server.client()).await;
    assert_eq!(checkpoint(&server.client()).await, None);
    server.stop().await;

    // One that was begun where the key is not takes a word on the machine that has it.
    let elsewhere = server.dir().join("elsewhere/seal-key.pem");
    let arguments =
        ["new-epoch", "--reason", "restored", "--key-file", elsewhere.to_str().unwrap()];
    let (code, words) = log(&server, &arguments).await;
    assert_eq!(code, Some(0), "{words}");
    let row = owner.query_one("SELECT epoch FROM log_head", &[]).await.unwrap();
    let epoch: i64 = row.get(0);
    assert!(words.contains(&format!("echo {epoch} > seal-key.epoch")), "{words}");
    server.restart().await;
    wait_for_refusal(&server.client()).await;
    let why = server.said();
    assert!(why.contains(&format!("write {epoch} into")), "{why}");
    std::fs::write(server.dir().join("seal-key.epoch"), format!("{epoch}\n")).unwrap();
    let (_, newer) = sealed(&server.client()).await;
    assert!(newer.lines().next().unwrap().ends_with(&epoch.to_string()));
    assert_ne!(note.lines().next(), newer.lines().next());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_its_machine_cannot_remember_is_not_given_out() {
    let server = Server::start().await;
    let client = server.client();
    record(&client, 10).await;
    let (size, note) = sealed(&client).await;
    // In the way of the next note.
    let way = server.dir().join("seal-key.checkpoint.new");
    std::fs::create_dir(&way).unwrap();
    record(&client, 10).await;
    wait_for_refusal(&client).await;
    assert_eq!(checkpoint(&client).await, Some((size, note)));
    std::fs::remove_dir(&way).unwrap();
    assert!(sealed(&client).await.0 > size);
    assert!(audit(&server).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_whose_checkpoint_cannot_be_signed_is_told_once() {
    let server = Server::start().await;
    let client = server.client();
    record(&client, 10).await;
    sealed(&client).await;
    let former = key(&client).await;
    let owner = sql(&server.database_url()).await;
    let full = "CREATE FUNCTION refuse_key() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE 'the disk is full'; END $$; \
         CREATE TRIGGER refuse_key BEFORE INSERT ON sealing_key \
         FOR EACH ROW EXECUTE FUNCTION refuse_key()";
    owner.batch_execute(full).await.unwrap();
    let (code, words) = log(&server, &["rotate-key"]).await;
    assert_eq!(code, Some(0), "{words}");
    wait_for_errors(&client, 3).await;
    owner.batch_execute("DROP TRIGGER refuse_key ON sealing_key").await.unwrap();
    wait_until("the new key signs", || async { (key(&client).await != former).then_some(()) })
        .await;
    let told = client.read("/api/events?type=LogKeyRotated").await;
    assert_eq!(told["events"].as_array().unwrap().len(), 1, "{told}");
    assert!(audit(&server).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn sealing_goes_on_after_a_row_that_cannot_be_read() {
    let mut server = Server::start().await;
    record(&server.client(), 10).await;
    let (size, _) = sealed(&server.client()).await;
    server.stop().await;
    let owner = sql(&server.database_url()).await;
    owner.batch_execute("UPDATE checkpoint SET sealed_at = 'infinity'").await.unwrap();
    server.restart().await;
    let client = server.client();
    wait_for_errors(&client, 2).await;
    owner.batch_execute("UPDATE checkpoint SET sealed_at = now()").await.unwrap();
    record(&client, 10).await;
    assert!(sealed(&client).await.0 > size);
}

#[tokio::test(flavor = "multi_thread")]
async fn tampered_tiles_are_not_sealed_over() {
    let mut server = Server::start().await;
    record(&server.client(), 20).await;
    sealed(&server.client()).await;
    server.stop().await;
    let owner = sql(&server.database_url()).await;
    let change = "UPDATE tree_tile SET hashes = set_byte(hashes, 3, get_byte(hashes, 3) # 1)";
    // A tile only grows, unless somebody takes that away.
    assert!(owner.batch_execute(change).await.is_err());
    owner.batch_execute("ALTER TABLE tree_tile DISABLE TRIGGER ALL").await.unwrap();
    owner.batch_execute(change).await.unwrap();
    server.restart().await;
    record(&server.client(), 5).await;
    wait_for_refusal(&server.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_a_key_is_not_sealed_and_the_audit_says_so() {
    let env = vec![("MILEPOST_SEAL_KEY_FILE", String::new())];
    let server = Server::with(Options { env, ..Options::default() }).await;
    record(&server.client(), 5).await;
    let report = audit(&server).await;
    // `dev` always has its key; before its first checkpoint nothing proves anything.
    if !report.is_clean() {
        assert!(matches!(report.first().unwrap().problem, Problem::Unsealed { .. }));
    }
    sealed(&server.client()).await;
    assert!(audit(&server).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_by_its_exit_code_what_it_found() {
    let mut server = Server::start().await;
    record(&server.client(), 20).await;
    let (_, note) = sealed(&server.client()).await;
    let secret = server.ready("callback_secret");
    let verify = ["verify", "--json", "--callback-secrets", &secret];
    let (code, words) = log(&server, &verify).await;
    let report: Value = serde_json::from_str(&words).unwrap();
    assert_eq!((code, &report["verified"]), (Some(0), &true.into()), "{words}");
    assert_eq!((&report["callbacks"], &report["keys_pinned"]), (&20.into(), &true.into()));
    let kept = server.dir().join("kept");
    std::fs::write(&kept, &note).unwrap();
    let (code, words) = log(&server, &["verify", "--checkpoint", kept.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{words}");
    // Of another secret no signature can be checked; with the wrong text for the right id it fails.
    server.stop().await;
    let owner = sql(&server.database_url()).await;
    let disable = "ALTER TABLE event_000000 DISABLE TRIGGER ALL; \
         ALTER TABLE event DISABLE TRIGGER ALL";
    owner.batch_execute(disable).await.unwrap();
    let forge = "UPDATE event SET header = \
         convert_to(replace(convert_from(header, 'UTF8'), 'heartbeat', 'heartbeet'), 'UTF8') \
         WHERE position = 9";
    owner.batch_execute(forge).await.unwrap();
    let (code, words) = log(&server, &verify).await;
    let report: Value = serde_json::from_str(&words).unwrap();
    assert_eq!((code, &report["findings"][0]["position"]), (Some(3), &9.into()), "{words}");
    let problems = report["findings"].to_string();
    assert!(problems.contains("signature") && problems.contains("was sealed"), "{problems}");
    let (code, words) = log(&server, &["verify", "--bundle", "/nowhere"]).await;
    assert_eq!(code, Some(1), "{words}");
}
