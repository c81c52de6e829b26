//! What proves the log: that tampering is found, that others accept our proofs, that a log set back
//! is noticed, and that an export stands by itself.

mod archives;
mod drill;
mod exports;
mod proofs;
mod sealing;
mod tampering;

use std::path::Path;

use jiff::Timestamp;
use milepost::app::Clock;
use milepost::ledger::verify::{self, Report, Trust};
use milepost::ledger::{KeyFile, VerifierKey};
use milepost::log::Database;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Client, MILEPOST, Server, wait_until};

/// Connections an audit of a test reads over.
const CONNECTIONS: usize = 2;

/// Records so many callbacks of jobs that nobody knows, and then one job with its agent.
async fn record(client: &Client, callbacks: usize) {
    const AT_ONCE: usize = 32;
    for first in (0..callbacks).step_by(AT_ONCE) {
        let numbers = first..callbacks.min(first + AT_ONCE);
        let posts = numbers.map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                // Some streams have one event, some have many; of nobody's jobs.
                let job = uuid::Uuid::from_u128(1 + number as u128 % 50);
                let body = json!({"job_id": job, "type": "heartbeat", "attempt": number + 1});
                let (status, answer) = client.callback(&body).await;
                assert_eq!(status, 200, "{answer}");
            })
        });
        for post in posts.collect::<Vec<_>>() {
            post.await.unwrap();
        }
    }
    client.job("mari").await;
}

/// The latest checkpoint, once it covers the whole log: its size and the note.
pub(crate) async fn sealed(client: &Client) -> (u64, String) {
    let head = client.read("/api/events?limit=0").await["head"].as_u64().unwrap();
    wait_until("the log is sealed", || async {
        let (size, note) = checkpoint(client).await?;
        (size >= head).then_some((size, note))
    })
    .await
}

/// The latest checkpoint, if there is one.
async fn checkpoint(client: &Client) -> Option<(u64, String)> {
    let answer = client.send(client.request(Method::GET, "/log/checkpoint")).await;
    if answer.status != 200 {
        return None;
    }
    let note = answer.text().to_owned();
    Some((note.lines().nth(1)?.parse().ok()?, note))
}

/// The public key in force.
pub(crate) async fn key(client: &Client) -> VerifierKey {
    let answer = client.send(client.request(Method::GET, "/log/keys")).await;
    let keys: Value = serde_json::from_slice(&answer.body).unwrap();
    let last = keys["keys"].as_array().unwrap().last().unwrap();
    last["verifier_key"].as_str().unwrap().parse().unwrap()
}

/// The keys of a server, as they are on its machine.
fn key_file(directory: &Path) -> KeyFile {
    KeyFile::new(directory.join("seal-key.pem"))
}

/// An audit with the keys of a server's machine.
async fn audit(server: &Server) -> Report {
    let keys = key_file(server.dir()).read().unwrap();
    let keys = keys.iter().map(|key| key.verifier("")).collect();
    audit_with(server, Trust { keys, ..Trust::default() }).await
}

/// Runs a subcommand of `milepost log` on a server's database and keys; its exit code and output.
pub(crate) async fn log(server: &Server, arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(server, arguments).output().await.unwrap();
    let words = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(words).unwrap())
}

fn command(server: &Server, arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(MILEPOST);
    command
        .arg("log")
        .args(arguments)
        .arg("--data-dir")
        .arg(server.dir())
        .env("DATABASE_URL", server.database_url())
        .env_remove("MILEPOST_SEAL_KEY_FILE");
    command
}

async fn audit_with(server: &Server, trust: Trust) -> Report {
    audit_at(server, trust, Clock.now()).await
}

async fn audit_at(server: &Server, trust: Trust, now: Timestamp) -> Report {
    let database = Database::new(&server.database_url()).unwrap();
    verify::database(&database, trust, CONNECTIONS, now).await.unwrap()
}
