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
        #[command(flatten)]
        server: Server,
    },
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List { status, server } => list(status, &server).await,
        Command::Cancel { job_id, reason, server } => {
            let path = format!("/api/jobs/{job_id}/cancel");
            println!("{}", server.client()?.post(&path, &json!({"reason": reason})).await?);
            Ok(())
        }
        Command::Log(args) => job_log::run(args).await,
        Command::Retry { job_id, server } => {
            let path = format!("/api/jobs/{job_id}/retry");
            println!("{}", server.client()?.post(&path, &json!({})).await?);
            Ok(())
        }
    }
}

async fn list(status: Option<String>, server: &Server) -> anyhow::Result<()> {
    let path = match status {
        Some(status) => format!("/api/jobs?status={status}"),
        None => "/api/jobs".to_owned(),
    };
    let answer: Value = server.client()?.get(&path).await?;
    for job in answer["jobs"].as_array().into_iter().flatten() {
        let text = |name: &str| job[name].as_str().unwrap_or("-").to_owned();
        println!(
            "{}  {:<15}  attempt {} of {}  {}  {}",
            text("id"),
            text("status"),
            job["attempt_count"],
            job["max_attempts"],
            text("updated_at"),
            text("error_code"),
        );
    }
    Ok(())
}
