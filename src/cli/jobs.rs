//! `milepost jobs`: what operators do at night, without a browser.

use serde_json::{Value, json};

use super::client::Server;
use super::job_log;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The newest jobs
    List {
        /// Only those with this status
        #[arg(long)]
        status: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// End a job
    Cancel {
        /// The job
        job_id: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Print what a job's runs have printed
    Log(job_log::Args),
    /// Repeat an ended job as a new one
    Retry {
        /// The job
        job_id: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Move a job up or down the queue
    Prioritise {
        /// The job
        job_id: String,
        /// From -100 to 100; the highest is claimed first
        #[arg(allow_negative_numbers = true)]
        priority: i16,
        /// Why
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Claim nothing more; what runs goes on
    Pause {
        /// Why
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        server: Server,
    },
    /// Let the queue go on
    Resume {
        /// Why
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: Server,
    },
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List { status, server } => list(status, &server).await,
        Command::Cancel { job_id, reason, server } => {
            order(&server, &format!("/api/jobs/{job_id}/cancel"), &json!({"reason": reason})).await
        }
        Command::Log(args) => job_log::run(args).await,
        Command::Retry { job_id, reason, server } => {
            order(&server, &format!("/api/jobs/{job_id}/retry"), &json!({"reason": reason})).await
        }
        Command::Prioritise { job_id, priority, reason, server } => {
            let body = json!({"priority": priority, "reason": reason});
            order(&server, &format!("/api/jobs/{job_id}/priority"), &body).await
        }
        Command::Pause { reason, server } => {
            order(&server, "/api/queue/pause", &json!({"reason": reason})).await
        }
        Command::Resume { reason, server } => {
            order(&server, "/api/queue/resume", &json!({"reason": reason})).await
        }
    }
}

async fn order(server: &Server, path: &str, body: &Value) -> anyhow::Result<()> {
    say!("{}", server.client()?.post(path, body).await?)?;
    Ok(())
}

async fn list(status: Option<String>, server: &Server) -> anyhow::Result<()> {
    let path = match status {
        Some(status) => format!("/api/jobs?status={status}"),
        None => "/api/jobs".to_owned(),
    };
    let answer: Value = server.client()?.get(&path).await?;
    for job in answer["jobs"].as_array().into_iter().flatten() {
        let text = |name: &str| job[name].as_str().unwrap_or("-").to_owned();
        say!(
            "{}  {:<17}  {:<15}  priority {}  attempt {} of {}  {}  {}",
            text("id"),
            text("job_type"),
            text("status"),
            job["priority"],
            job["attempt_count"],
            job["max_attempts"],
            text("updated_at"),
            text("error_code"),
        )?;
    }
    Ok(())
}
