//! `milepost watch`: a job's or an agent's progress in the terminal, from the same stream that
//! pages read.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use serde::de::IgnoredAny;
use serde_json::Value;
use tokio_stream::StreamExt as _;

use super::client::{Client, Server};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// An agent's or a job's id
    id: String,
    /// Stay when it has ended
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    server: Server,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.server.client()?;
    let kind = kind(&client, &args.id).await?;
    let mut messages = std::pin::pin!(client.stream(format!("/api/stream?{kind}={}", args.id)));
    let mut shown = Shown { lines: 0, terminal: io::stdout().is_terminal(), last: String::new() };
    while let Some(message) = messages.next().await {
        let message = message?;
        let (text, ended) = match message.event.as_str() {
            "job" => job(&serde_json::from_str(&message.data)?),
            "instance" => instance(&serde_json::from_str(&message.data)?),
            _ => continue,
        };
        shown.show(&text)?;
        if let Some(ok) = ended.filter(|_| !args.follow) {
            anyhow::ensure!(ok, "it did not succeed");
            return Ok(());
        }
    }
    Ok(())
}

/// What an id is of, as the stream's query names it.
async fn kind(client: &Client, id: &str) -> anyhow::Result<&'static str> {
    for (kind, path) in [("job", format!("/api/jobs/{id}")), ("agent", format!("/api/agents/{id}"))]
    {
        if client.find::<IgnoredAny>(&path).await?.is_some() {
            return Ok(kind);
        }
    }
    anyhow::bail!("there is neither a job nor an agent {id}")
}

/// What stands in the terminal: drawn over in one, printed anew elsewhere.
struct Shown {
    lines: usize,
    terminal: bool,
    last: String,
}

impl Shown {
    fn show(&mut self, text: &str) -> io::Result<()> {
        if text == self.last {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if self.terminal && self.lines > 0 {
            write!(out, "\x1b[{}A\x1b[J", self.lines)?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        self.lines = text.lines().count();
        text.clone_into(&mut self.last);
        Ok(())
    }
}

fn job(job: &Value) -> (String, Option<bool>) {
    let status = job["status"].as_str().unwrap_or_default();
    let attempts = job["timeline"].as_array();
    let attempt = attempts.and_then(|attempts| attempts.last()).unwrap_or(&Value::Null);
    let mut text = format!(
        "job {}  {}  attempt {} of {}\n",
        job["id"].as_str().unwrap_or_default(),
        status.replace('_', " "),
        job["attempt_count"],
        job["max_attempts"],
    );
    steps(&mut text, &attempt["steps"]);
    if status == "running" {
        task(&mut text, &attempt["task"]);
    }
    failure(&mut text, &job["error_message"], &job["run_after"]);
    let ended = match status {
        "succeeded" => Some(true),
        "failed" | "cancelled" => Some(false),
        _ => None,
    };
    (text, ended)
}

fn instance(answer: &Value) -> (String, Option<bool>) {
    let instance = &answer["instance"];
    let status = instance["status"].as_str().unwrap_or("not ordered");
    let mut text = format!(
        "{}  {status}  attempt {} of {}\n",
        answer["agent"]["name"].as_str().unwrap_or_default(),
        instance["attempt"],
        instance["max_attempts"],
    );
    steps(&mut text, &answer["steps"]);
    if instance["job_status"] == "running" {
        task(&mut text, &instance["task"]);
    }
    failure(&mut text, &instance["error"], &instance["retry_at"]);
    let ended = match instance["job_status"].as_str() {
        Some("succeeded") => Some(true),
        Some("failed" | "cancelled") => Some(false),
        _ => None,
    };
    (text, ended)
}

fn steps(text: &mut String, steps: &Value) {
    for step in steps.as_array().into_iter().flatten() {
        let icon = match step["status"].as_str() {
            Some("completed") => '✓',
            Some("active") => '●',
            Some("error") => '✗',
            _ => '○',
        };
        let took = step["duration_ms"].as_i64().map_or(String::new(), |ms| {
            let seconds = ms / 1_000;
            format!("{}:{:02}", seconds / 60, seconds % 60)
        });
        let label = step["label"].as_str().unwrap_or_default();
        writeln!(text, "  {icon} {label:<24}{took:>7}").expect("a string takes every write");
    }
}

fn task(text: &mut String, task: &Value) {
    if let Some(name) = task["task"].as_str() {
        writeln!(text, "    now: TASK [{name}]").expect("a string takes every write");
    }
}

fn failure(text: &mut String, error: &Value, retry_at: &Value) {
    let lines: Vec<&str> = error.as_str().unwrap_or_default().lines().collect();
    for line in &lines[lines.len().saturating_sub(5)..] {
        writeln!(text, "    {line}").expect("a string takes every write");
    }
    if let Some(retry_at) = retry_at.as_str() {
        writeln!(text, "    next attempt at {retry_at}").expect("a string takes every write");
    }
}
