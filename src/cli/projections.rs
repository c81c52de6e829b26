//! `milepost projections`: how the views stand, rebuilds, verifications.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::client::{Client, Server};

/// How often the server is asked how far an order is.
const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// How every view stands
    List {
        /// As JSON, with all there is to know
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Fill a view anew from the log, beside the rows that are read, and follow it
    Rebuild {
        /// The view
        name: String,
        /// Let the new rows take over whatever differs, and not only where nothing does
        #[arg(long)]
        switch: bool,
        /// Why
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Let the new rows of a rebuild that waits take over
    Switch {
        /// The view
        name: String,
        #[command(flatten)]
        server: Server,
    },
    /// Fold the log again and compare, byte for byte; exit 0 equal, 1 different
    Verify {
        /// The view
        name: String,
        #[command(flatten)]
        server: Server,
    },
    /// Let the former rows of a view take over again
    Rollback {
        /// The view
        name: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Take back what is ordered of a view
    Cancel {
        /// The view
        name: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Fold a view anew with an event that it stopped at, after an upgrade
    Retry {
        /// The view
        name: String,
        /// The event
        position: u64,
        #[command(flatten)]
        server: Server,
    },
    /// Fold a view anew without an event that it stopped at
    Skip {
        /// The view
        name: String,
        /// The event
        position: u64,
        /// Why
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        server: Server,
    },
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List { json, server } => list(json, &server).await,
        Command::Rebuild { name, switch, reason, server } => {
            let switch = if switch { "always" } else { "when_equal" };
            follow(&server, &name, "rebuild", &json!({"switch": switch, "reason": reason})).await
        }
        Command::Switch { name, server } => order(&server, &name, "switch", &json!({})).await,
        Command::Verify { name, server } => follow(&server, &name, "verify", &json!({})).await,
        Command::Rollback { name, reason, server } => {
            follow(&server, &name, "rollback", &json!({"reason": reason})).await
        }
        Command::Cancel { name, reason, server } => {
            order(&server, &name, "cancel", &json!({"reason": reason})).await
        }
        Command::Retry { name, position, server } => {
            follow(&server, &name, "retry", &json!({"position": position})).await
        }
        Command::Skip { name, position, reason, server } => {
            let body = json!({"position": position, "reason": reason});
            follow(&server, &name, "skip", &body).await
        }
    }
}

async fn list(as_json: bool, server: &Server) -> anyhow::Result<()> {
    let answer: Value = server.client()?.get("/api/projections").await?;
    if as_json {
        say!("{}", serde_json::to_string_pretty(&answer)?)?;
        return Ok(());
    }
    for view in answer["projections"].as_array().into_iter().flatten() {
        say!(
            "{:<14} v{} generation {}  at {} of {}  {} events, {:.1} s behind  {:.0} events/s{}",
            text(&view["name"]),
            view["version"],
            view["generation"],
            view["position"],
            view["head"],
            view["lag_events"],
            view["lag_seconds"].as_f64().unwrap_or(0.0),
            view["events_per_second"].as_f64().unwrap_or(0.0),
            view["order"]["kind"].as_str().map(|kind| format!("  {kind}")).unwrap_or_default(),
        )?;
        for poison in view["poison"].as_array().into_iter().flatten() {
            say!(
                "    stopped at event {} of stream {}: {}",
                poison["position"],
                text(&poison["stream"]),
                text(&poison["error"])
            )?;
        }
    }
    Ok(())
}

async fn order(server: &Server, name: &str, what: &str, body: &Value) -> anyhow::Result<()> {
    let answer = server.client()?.post(&format!("/api/projections/{name}/{what}"), body).await?;
    say!("{answer}")?;
    Ok(())
}

/// Gives an order and prints what it comes to.
async fn follow(server: &Server, name: &str, what: &str, body: &Value) -> anyhow::Result<()> {
    let client = server.client()?;
    let ordered = client.post(&format!("/api/projections/{name}/{what}"), body).await?;
    // A skip is two events, of which the order is the second.
    let position = ordered["position"].as_u64().context("the answer names no position")?;
    let mut printed = String::new();
    loop {
        let view: Value = client.get(&format!("/api/projections/{name}")).await?;
        if view["order"]["position"].as_u64().is_none_or(|at| at < position) {
            return ended(&client, name, what).await;
        }
        let line = progress(&view["progress"]);
        if line != printed {
            eprintln!("{line}");
            printed = line;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn ended(client: &Client, name: &str, what: &str) -> anyhow::Result<()> {
    let view: Value = client.get(&format!("/api/projections/{name}")).await?;
    let end = if what == "verify" { &view["verified"] } else { &view["ended"] };
    let printed = say!("{end}");
    match end["outcome"].as_str() {
        Some("switched" | "equal") => Ok(printed?),
        Some("different") => {
            bail!("{} rows differ, the first is {}", end["differing"], end["first_difference"])
        }
        Some(_) | None => bail!("{}", text(&end["error"])),
    }
}

fn progress(progress: &Value) -> String {
    if progress.is_null() {
        return "waits for the process that runs the views".to_owned();
    }
    let mut line = format!(
        "{}: {} of {} events, {:.0}/s",
        text(&progress["phase"]).replace('_', " "),
        progress["events"],
        progress["target"],
        progress["events_per_second"].as_f64().unwrap_or(0.0)
    );
    if let Some(left) = progress["remaining_ms"].as_u64() {
        let _ = write!(line, ", {:.1} s to go", left as f64 / 1_000.0);
    }
    if let Some(difference) = progress["difference"].as_object() {
        let _ = write!(
            line,
            "; at {}: {} of {} rows differ from those that are read, first {}; SHA-256 {} and {}",
            difference["position"],
            difference["differing"],
            difference["rows_new"],
            difference["first"],
            text(&difference["checksum_old"]),
            text(&difference["checksum_new"]),
        );
    }
    if progress["phase"] == "waiting" {
        line += "; say `milepost projections switch` or `cancel`";
    }
    line
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}
