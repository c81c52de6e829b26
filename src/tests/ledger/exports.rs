//! Exports: they stand by themselves, go on where they broke off, and replay.

use std::path::Path;

use milepost::ledger::bundle::{self, BundleError, Format};
use milepost::ledger::verify::{Problem, Trust};
use milepost::log::Database;
use serde_json::Value;

use super::{key, record, sealed};
use crate::harness::{MILEPOST, Server, sql, wait_until};

async fn export(server: &Server, directory: &Path, format: Format) -> bundle::Exported {
    let database = Database::new(&server.database_url()).unwrap();
    bundle::export(&database, directory, format, 2, None).await.unwrap()
}

fn part(directory: &Path, format: &str) -> std::path::PathBuf {
    directory.join(format!("events/00000000000000000001.{format}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_verified_without_a_database_and_without_a_server() {
    for (format, name) in [(Format::Jsonl, "jsonl"), (Format::Cloudevents, "json")] {
        let mut server = Server::start().await;
        record(&server.client(), 300).await;
        let (size, _) = sealed(&server.client()).await;
        let keys = vec![key(&server.client()).await];
        let trust = Trust { keys, secrets: vec![server.secret()], ..Trust::default() };
        let directory = tempfile::tempdir().unwrap();
        let exported = export(&server, directory.path(), format).await;
        assert_eq!((exported.manifest.size, exported.parts_written), (size, 1));
        server.stop().await;
        let report = bundle::verify(directory.path(), trust.clone()).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
        assert_eq!((report.events, report.sealed), (size, size));
        assert_eq!(report.callbacks, 300);

        let path = part(directory.path(), name);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let first = usize::from(format == Format::Cloudevents);
        for (position, change) in [
            (9, lines[first + 8].replace("heartbeat", "heartbeet")),
            (1, lines[first].replacen("unknown_job", "unknown_jab", 1)),
            (300, String::new()),
            (5, "{}".to_owned()),
        ] {
            let mut changed: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            assert_ne!(changed[first + position - 1], change);
            changed[first + position - 1] = change;
            std::fs::write(&path, changed.join("\n") + "\n").unwrap();
            let report = bundle::verify(directory.path(), trust.clone()).unwrap();
            let found = report.first().map(|finding| finding.position);
            assert_eq!(found, Some(position as u64), "{:?}", report.findings);
        }
        // An event and its leaf's hash, changed together: the root tells.
        let mut line: Value = serde_json::from_str(lines[first + 8].trim_end_matches(',')).unwrap();
        let parsed = match format {
            Format::Jsonl => bundle::Line::from_jsonl(&line.to_string()),
            Format::Cloudevents => {
                let (origin, epoch) = (&exported.manifest.origin, exported.manifest.epoch);
                bundle::Line::from_cloudevent(&line.to_string(), origin, epoch)
            }
        };
        let mut parsed = parsed.unwrap();
        parsed.header.push(b' ');
        let hash = parsed.leaf().hash().to_string();
        let header = String::from_utf8(parsed.header).unwrap();
        line["header"] = header.into();
        line[if format == Format::Jsonl { "leaf_hash" } else { "leafhash" }] = hash.into();
        let comma = if format == Format::Jsonl { "" } else { "," };
        let mut changed: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        changed[first + 8] = format!("{line}{comma}");
        std::fs::write(&path, changed.join("\n") + "\n").unwrap();
        let report = bundle::verify(directory.path(), trust.clone()).unwrap();
        let root = report.findings.iter().find(|it| matches!(it.problem, Problem::Root { .. }));
        assert!(root.is_some(), "{:?}", report.findings);
        // Somebody else's key.
        std::fs::write(&path, &text).unwrap();
        let other = milepost::ledger::key::SigningKey::generate().unwrap();
        let other = other.verifier(&exported.manifest.origin);
        let report =
            bundle::verify(directory.path(), Trust { keys: vec![other], ..Trust::default() });
        assert!(!report.unwrap().is_clean());
    }
}

/// Changes `bundle.json`.
fn relabel(directory: &Path, change: impl FnOnce(&mut Value)) {
    let path = directory.join("bundle.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    std::fs::write(path, manifest.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_no_more_and_no_other_than_what_was_signed() {
    let server = Server::start().await;
    record(&server.client(), 20).await;
    let (size, _) = sealed(&server.client()).await;
    let trust = Trust { keys: vec![key(&server.client()).await], ..Trust::default() };
    let whole = tempfile::tempdir().unwrap();
    let manifest = export(&server, whole.path(), Format::Jsonl).await.manifest;
    let directory = whole.path();
    let verify = || bundle::verify(directory, trust.clone());
    let as_written = std::fs::read(directory.join("bundle.json")).unwrap();
    for (label, value) in [
        ("size", (size - 1).into()),
        ("root", Value::from("00".repeat(32))),
        ("origin", "elsewhere/log/1".into()),
        ("epoch", (manifest.epoch + 1).into()),
    ] {
        relabel(directory, |manifest| manifest[label] = value);
        assert!(!verify().unwrap().is_clean(), "{label}");
        std::fs::write(directory.join("bundle.json"), &as_written).unwrap();
    }
    assert!(verify().unwrap().is_clean());

    // A size that no disk holds ends where the files do.
    for size in [1 << 40, 1 << 63, u64::MAX] {
        relabel(directory, |manifest| manifest["size"] = size.into());
        assert!(matches!(verify(), Err(BundleError::Io(..))));
        std::fs::write(directory.join("bundle.json"), &as_written).unwrap();
    }

    // One more event, which nobody has signed, and a checkpoint of an epoch that has no key.
    let path = part(directory, "jsonl");
    let mut text = std::fs::read_to_string(&path).unwrap();
    let mut more = bundle::Line::from_jsonl(text.lines().last().unwrap()).unwrap();
    (more.position, more.version) = (size + 1, more.version + 1);
    more.leaf_hash = more.leaf().hash();
    text.push_str(&(more.to_jsonl() + "\n"));
    std::fs::write(&path, &text).unwrap();
    assert!(!verify().unwrap().is_clean());
    relabel(directory, |manifest| manifest["size"] = (size + 1).into());
    assert!(!verify().unwrap().is_clean());
    let mut tree = milepost::ledger::tree::Tree::default();
    for line in text.lines() {
        tree.push(bundle::Line::from_jsonl(line).unwrap().leaf_hash, drop);
    }
    let (origin, size, root) = (manifest.origin, size + 1, tree.root());
    let forged = milepost::ledger::Checkpoint { origin, size, root };
    let note = milepost::ledger::key::SigningKey::generate().unwrap().sign(&forged);
    let listed = serde_json::json!({"epoch": 1, "size": size, "root": root.to_string(),
        "sealed_at": "2026-01-01T00:00:00Z", "note": note});
    let checkpoints = directory.join("checkpoints.jsonl");
    let genuine = std::fs::read_to_string(&checkpoints).unwrap();
    std::fs::write(&checkpoints, format!("{genuine}{listed}\n")).unwrap();
    std::fs::write(directory.join("checkpoint"), &note).unwrap();
    std::fs::write(directory.join("proofs.jsonl"), "").unwrap();
    relabel(directory, |manifest| manifest["root"] = root.to_string().into());
    let report = verify().unwrap();
    assert_eq!(report.found, 1, "{:?}", report.findings);
    assert!(matches!(report.first().unwrap().problem, Problem::Checkpoint { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_whole_though_its_checkpoint_is_superseded_meanwhile() {
    let mut server = Server::start().await;
    let client = server.client();
    client.job("mari").await;
    sealed(&client).await;
    record(&client, 20).await;
    let (size, _) = sealed(&client).await;
    let trust = Trust { keys: vec![key(&client).await], ..Trust::default() };
    server.stop().await;
    // What the export reads behind its checkpoint has to wait.
    let holder = sql(&server.database_url()).await;
    holder
        .batch_execute("BEGIN; LOCK TABLE archived_range IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (database, path) =
        (Database::new(&server.database_url()).unwrap(), directory.path().to_owned());
    let exporting = tokio::spawn(async move {
        bundle::export(&database, &path, Format::Jsonl, 2, None).await.unwrap()
    });
    let owner = sql(&server.database_url()).await;
    wait_until("the export waits", || async {
        let waiting = "SELECT FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database \
             WHERE NOT l.granted AND l.relation = 'archived_range'::regclass \
             AND d.datname = current_database()";
        owner.query_opt(waiting, &[]).await.unwrap()
    })
    .await;
    // As the sealer does it: the later one takes the place of the one before.
    let supersede = "WITH replaced AS (DELETE FROM checkpoint WHERE NOT kept RETURNING *) \
         INSERT INTO checkpoint SELECT epoch, size + 1, root, note, sealed_at, kept FROM replaced";
    assert_eq!(owner.execute(supersede, &[]).await.unwrap(), 1);
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(exporting.await.unwrap().manifest.size, size);
    let report = bundle::verify(directory.path(), trust).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.sealed, size);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_goes_on_where_it_broke_off() {
    let server = Server::start().await;
    record(&server.client(), 50).await;
    let (size, _) = sealed(&server.client()).await;
    let directory = tempfile::tempdir().unwrap();
    // What a process leaves that was killed while it wrote.
    std::fs::create_dir(directory.path().join("events")).unwrap();
    let torn = directory.path().join("events/00000000000000000001.jsonl.new");
    std::fs::write(torn, "{\"position\":1,").unwrap();
    assert_eq!(export(&server, directory.path(), Format::Jsonl).await.manifest.size, size);
    record(&server.client(), 50).await;
    let (later, _) = sealed(&server.client()).await;
    let again = export(&server, directory.path(), Format::Jsonl).await;
    assert_eq!((again.manifest.size, again.parts_kept), (later, 0));
    let trust = Trust { keys: vec![key(&server.client()).await], ..Trust::default() };
    let report = bundle::verify(directory.path(), trust).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    // What is there in another format, or of another log, is not mixed with it.
    let database = Database::new(&server.database_url()).unwrap();
    let mixed = bundle::export(&database, directory.path(), Format::Cloudevents, 2, None).await;
    assert!(matches!(mixed, Err(BundleError::Other(..))), "{mixed:?}");
    let other = Server::start().await;
    record(&other.client(), 5).await;
    sealed(&other.client()).await;
    let database = Database::new(&other.database_url()).unwrap();
    let mixed = bundle::export(&database, directory.path(), Format::Jsonl, 2, None).await;
    assert!(matches!(mixed, Err(BundleError::Other(..))), "{mixed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_at_a_position_or_time_is_the_same_from_a_server_and_from_an_export() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let started = serde_json::json!({"job_id": job, "status": "provisioning"});
    client.callback(&started).await;
    let step = serde_json::json!({"job_id": job, "status": "provisioning", "step": "vm_created"});
    client.callback(&step).await;
    let (size, _) = sealed(&client).await;
    let directory = tempfile::tempdir().unwrap();
    export(&server, directory.path(), Format::Jsonl).await;
    let run = |arguments: Vec<String>| {
        let (url, token) = (server.url(), client.token.clone());
        async move {
            let output = tokio::process::Command::new(MILEPOST)
                .args(["log", "replay", "--url", &url, "--token", &token])
                .args(arguments)
                .output()
                .await
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(|it| serde_json::from_str(it).unwrap()).collect::<Vec<Value>>()
        }
    };
    let bundle = directory.path().to_str().unwrap().to_owned();
    let events = client.events().await;
    for position in 1..=size {
        let time = events[position as usize - 1]["recorded_at"].as_str().unwrap().to_owned();
        let at = |at: String| {
            [
                "--at".to_owned(),
                at,
                "--stream".into(),
                job.clone(),
                "--stream".into(),
                agent.clone(),
            ]
            .to_vec()
        };
        let from_server = run(at(position.to_string())).await;
        let from_bundle =
            run([at(position.to_string()), vec!["--bundle".into(), bundle.clone()]].concat()).await;
        // A server opens personal texts; an export is sealed.
        assert_eq!(without_names(from_server.clone()), without_names(from_bundle));
        assert_eq!(from_server.last().map(|it| it["position"].clone()), Some(position.into()));
        // Events of one batch have one time; the last of them is what was at that time.
        let at_time = run(at(time)).await;
        assert!(at_time[0]["position"].as_u64().unwrap() >= position);
    }
    let all = run(vec!["--stream".into(), job.clone()]).await;
    assert_eq!((&all[0]["kind"], &all[0]["state"]["status"]), (&"job".into(), &"running".into()));
    let page = run(Vec::new()).await;
    assert_eq!(page[0]["instance"]["current_step"], "vm_created");
}

fn without_names(mut states: Vec<Value>) -> Vec<Value> {
    for state in &mut states {
        if let Some(state) = state["state"].as_object_mut() {
            state.remove("name");
        }
    }
    states
}
