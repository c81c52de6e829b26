//! The restore drill of the README, carried out: a backup is brought back that is older than what
//! was signed and acknowledged, part of it archived.

use std::process::Stdio;

use milepost::ledger::verify::{Problem, Trust};
use serde_json::json;

use super::archives::two_jobs;
use super::{audit, audit_with, checkpoint, key, key_file, log, record, sealed};
use crate::harness::{Options, Server, database, sql, text, wait_until};

/// Where Debian keeps what is not linked on `PATH`.
const POSTGRES_BIN: &str = "/usr/lib/postgresql/15/bin";

/// Runs a shell command that gets two database URLs as $1 and $2.
async fn shell(script: &str, one: &str, two: &str) {
    let path = format!("{POSTGRES_BIN}:{}", std::env::var("PATH").unwrap_or_default());
    let output = tokio::process::Command::new("bash")
        .args(["-c", script, "drill", one, two])
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An empty database beside another one, for its dump.
async fn empty_beside(url: &str) -> String {
    let (_, name) = url.rsplit_once('/').unwrap();
    let create = format!("CREATE DATABASE {name}_restored TEMPLATE template0");
    sql(url).await.batch_execute(&create).await.unwrap();
    format!("{url}_restored")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_restore_drill_loses_and_doubles_nothing_that_is_acknowledged_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("archive");
    let url = database().await;
    sql(&url).await.batch_execute("SELECT set_partition_width(256)").await.unwrap();
    let mut server =
        Server::with(Options { database_url: Some(url.clone()), ..Options::default() }).await;
    let client = server.client();
    two_jobs(&client).await;
    record(&client, 300).await;
    let (archived_size, _) = sealed(&client).await;
    let owner = sql(&url).await;
    wait_until("the views have folded everything", || async {
        let row = owner
            .query_one("SELECT min(position) FROM view_generation WHERE state = 'active'", &[])
            .await
            .unwrap();
        (row.get::<_, i64>(0) as u64 >= archived_size).then_some(())
    })
    .await;
    let to = archive.to_str().unwrap();
    let (code, words) = log(&server, &["archive", "--before", "256", "--to", to]).await;
    assert_eq!(code, Some(0), "{words}");
    let (_, job) = client.job("before").await;
    let (backed_up, _) = sealed(&client).await;
    let first_key = key(&client).await;

    // The backup; then more, which is acknowledged, signed, and lost.
    let dump = directory.path().join("dump");
    let dump = dump.to_str().unwrap();
    shell("pg_dump --format=plain --file \"$2\" \"$1\"", &url, dump).await;
    record(&client, 40).await;
    let (_, lost_job) = client.job("lost").await;
    let (lost, note) = sealed(&client).await;
    let epoch = client.read("/api/events?limit=0").await["epoch"].as_i64().unwrap();
    server.stop().await;

    // What stood there is put aside, and the backup in its place.
    let restored = empty_beside(&url).await;
    shell("psql --quiet --no-psqlrc -v ON_ERROR_STOP=1 -f \"$2\" \"$1\"", &restored, dump).await;
    server.move_to(restored.clone()).await;
    let client = server.client();
    assert!(client.read("/api/events?limit=0").await["head"].as_u64().unwrap() < lost);
    // Nothing is taken: it would get positions that were given before.
    let body = json!({"job_id": job, "status": "provisioning", "step": "early"});
    assert_eq!(client.callback(&body).await.0, 503);
    assert_eq!(client.get("/readyz").await.0, 503);
    wait_until("sealing is refused", || async {
        (client.metric("milepost_seal_refused").await == 1).then_some(())
    })
    .await;
    assert!(checkpoint(&client).await.is_none_or(|(size, _)| size <= backed_up));
    server.stop().await;

    let (code, words) = log(&server, &["new-epoch", "--reason", "the volume was lost"]).await;
    assert_eq!(code, Some(0), "{words}");
    server.restart().await;
    let client = server.client();

    // Cursors of the former epoch are told, even those whose position is there again.
    let old = format!("{epoch}-{backed_up}");
    let mut stream = client.stream("/api/events/stream", Some(&old)).await;
    let reset = stream.next().await.unwrap();
    assert_eq!(reset.event, "reset");
    let begun = reset.json()["epoch"].as_i64().unwrap();
    assert!(begun > epoch);

    // What was refused is taken when it is said again.
    let (status, answer) = client.callback(&body).await;
    assert_eq!((status.as_u16(), &answer["applied"]), (200, &true.into()), "{answer}");
    let message = stream.next_named("recorded").await;
    assert_eq!(message.id, format!("{begun}-{}", answer["position"]));
    let early = answer["position"].as_u64().unwrap();

    // What is acknowledged from now on is there once, also where it was said before the loss.
    let mut acknowledged = Vec::new();
    for number in 0..60 {
        let body = json!({
            "job_id": job, "status": "provisioning", "step": format!("step_{number}"),
            "delivery_id": format!("drill-{number}"),
        });
        for repeat in [false, true] {
            let (status, answer) = client.callback(&body).await;
            assert_eq!(status, 200, "{answer}");
            let position = answer["position"].as_u64().unwrap();
            if repeat {
                assert_eq!(acknowledged.last(), Some(&position));
            } else {
                acknowledged.push(position);
            }
        }
    }
    let body = json!({"job_id": lost_job, "status": "provisioning", "step": "vm_created"});
    let (status, answer) = client.callback(&body).await;
    assert_eq!((status.as_u16(), &answer["reason"]), (200, &"unknown_job".into()));
    for position in &acknowledged {
        let message = stream.next_named("recorded").await;
        assert_eq!(message.id, format!("{begun}-{position}"));
    }
    let (size, newer) = sealed(&client).await;
    server.stop().await;
    server.restart().await;
    let client = server.client();
    let floor = 255;
    let events = client.read(&format!("/api/events?after={floor}&limit=1000&stream={job}")).await;
    let steps: Vec<u64> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["type"] == "ProvisioningStepRecorded")
        .map(|event| event["position"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [&[early][..], &acknowledged].concat());

    // Checkpoints say the epoch; the log is proven across it, over the archive of before.
    assert!(newer.lines().next().unwrap().ends_with(&format!("/log/{begun}")), "{newer}");
    let report = audit(&server).await;
    assert!(report.is_clean(), "{:?}", report.findings);
    assert!(report.sealed >= size && report.archived > 0);
    let keys = key_file(server.dir()).read().unwrap();
    let keys = keys.iter().map(|key| key.verifier("")).collect();
    let trust = Trust { keys, archive: Some(archive.clone()), ..Trust::default() };
    let report = audit_with(&server, trust).await;
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.archived, 0);
    // Who has kept a checkpoint of what was lost is told what became of it.
    let trust = Trust { keys: vec![first_key], notes: vec![note], ..Trust::default() };
    let report = audit_with(&server, trust).await;
    let told = report.first().map(|first| first.problem.clone());
    let told_so = matches!(told, Some(Problem::Lost { .. } | Problem::Root { .. }));
    assert!(told_so, "{:?}", report.findings);

    // And the archive comes back into the restored log.
    let (code, words) = log(&server, &["restore", "--from", to]).await;
    assert_eq!(code, Some(0), "{words}");
    let begun = client.read("/api/events?type=LogEpochBegun").await;
    assert_eq!(text(&begun["events"][0]["data"], "reason"), "the volume was lost");
}
