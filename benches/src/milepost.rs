//! The few calls of Milepost's API that a measurement needs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::callback::{CALLBACK_PATH, Signer};
use crate::http::{Connection, Target};

/// Jobs are made through this many connections at once.
const SETUP_CONNECTIONS: usize = 16;

/// What `milepost dev` writes into its data directory.
#[derive(Clone, Debug, Deserialize)]
pub struct DevFile {
    /// Where it listens.
    pub url: String,
    /// Its database.
    pub database_url: String,
    /// A bearer token that may do everything.
    pub admin_token: String,
    /// The key of the callbacks' signature.
    pub callback_secret: String,
}

impl DevFile {
    /// Reads `dev.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is malformed", path.display()))
    }
}

/// A Milepost server and what it takes to be let in.
#[derive(Clone, Debug)]
pub struct Milepost {
    /// Where it listens.
    pub target: Target,
    /// A bearer token.
    pub token: String,
    /// The callbacks' key.
    pub signer: Signer,
}

impl Milepost {
    /// Creates `count` agents, provisions each, and starts the job, so that every job takes steps.
    pub async fn start_jobs(&self, count: usize, run: &str) -> Result<Vec<String>> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for _ in 0..SETUP_CONNECTIONS.min(count) {
            let (milepost, next, run) = (self.clone(), Arc::clone(&next), run.to_owned());
            workers.spawn(async move {
                let mut connection = Connection::open(&milepost.target).await?;
                let mut jobs = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return Ok(jobs);
                    }
                    let name = format!("bench-{run}-{index}");
                    jobs.push(milepost.start_job(&mut connection, &name).await?);
                }
            });
        }
        let mut jobs = Vec::with_capacity(count);
        while let Some(worker) = workers.join_next().await {
            let started: Result<Vec<String>> = worker?;
            jobs.extend(started?);
        }
        Ok(jobs)
    }

    async fn start_job(&self, connection: &mut Connection, name: &str) -> Result<String> {
        let agent = json!({ "name": name, "region": "eu-central" });
        let created = self.call(connection, "POST", "/api/agents", Some(&agent)).await?;
        let agent_id = created["id"].as_str().context("a created agent has an id")?;
        let path = format!("/api/agents/{agent_id}/provision");
        let accepted = self.call(connection, "POST", &path, Some(&json!({}))).await?;
        let job_id = accepted["job_id"].as_str().context("an accepted job has an id")?.to_owned();
        self.send_started(connection, &job_id).await?;
        Ok(job_id)
    }

    async fn send_started(&self, connection: &mut Connection, job_id: &str) -> Result<()> {
        let body = json!({ "job_id": job_id, "status": "provisioning" }).to_string();
        let signature = self.signer.signature(body.as_bytes());
        let signature = std::str::from_utf8(&signature).expect("hex digits are ASCII");
        let headers = format!("Content-Type: application/json\r\nX-Signature: {signature}\r\n");
        let head = self.target.head("POST", CALLBACK_PATH, &headers, body.len());
        let response = connection.ask_in_time((head + &body).as_bytes()).await?;
        let answer = String::from_utf8_lossy(response.body);
        ensure!(response.status == 200, "started callback: {} {answer}", response.status);
        Ok(())
    }

    /// Reads what a path of the API answers.
    pub async fn read(&self, path: &str) -> Result<Value> {
        let mut connection = Connection::open(&self.target).await?;
        self.call(&mut connection, "GET", path, None).await
    }

    /// Gives an order.
    pub async fn order(&self, path: &str, body: &Value) -> Result<Value> {
        let mut connection = Connection::open(&self.target).await?;
        self.call(&mut connection, "POST", path, Some(body)).await
    }

    /// The highest position of the log.
    pub async fn head(&self) -> Result<u64> {
        let mut connection = Connection::open(&self.target).await?;
        let page = self.call(&mut connection, "GET", "/api/events?after=0&limit=1", None).await?;
        page["head"].as_u64().context("a page of events has a head")
    }

    /// The epoch of the log, which stands before the position in every id.
    pub async fn epoch(&self) -> Result<String> {
        let mut connection = Connection::open(&self.target).await?;
        let page = self.call(&mut connection, "GET", "/api/events?after=0&limit=1", None).await?;
        if let Some(id) = page["events"][0]["id"].as_str()
            && let Some((epoch, _)) = id.rsplit_once('-')
        {
            return Ok(epoch.to_owned());
        }
        match &page["epoch"] {
            Value::String(epoch) => Ok(epoch.clone()),
            Value::Number(epoch) => Ok(epoch.to_string()),
            _ => bail!("the epoch is neither in an event's id nor beside the head; give --epoch"),
        }
    }

    async fn call(
        &self,
        connection: &mut Connection,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let headers = format!(
            "Authorization: Bearer {}\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\n",
            self.token
        );
        let request = self.target.head(method, path, &headers, body.len()) + &body;
        let response = connection.ask_in_time(request.as_bytes()).await?;
        let text = String::from_utf8_lossy(response.body);
        ensure!(
            (200..300).contains(&response.status),
            "{method} {path}: {} {text}",
            response.status
        );
        serde_json::from_str(&text).with_context(|| format!("{method} {path}: {text}"))
    }
}

/// A name no other run of a tool has had: the time in milliseconds and the process id, in hex.
pub fn run_name() -> String {
    #[expect(clippy::disallowed_methods, reason = "a run's name differs from every earlier run's")]
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}{:x}", since.as_millis(), std::process::id())
}
