//! `milepost doctor`: what there is at Hetzner and in the tailnet against what the log says.
//!
//! Talks to the database itself, as `serve` does, so that it works while no server runs. What is
//! found is recorded, each thing once. Exit codes: 0 nothing is wrong; 1 it cannot be said; 3
//! something was found; 75 it cannot be said now.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use milepost_schemas::event::OrphanReason;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::vm;
use crate::app::App;
use crate::clients::{Class, Patience};
use crate::config::{self, CloudAccounts, Config};
use crate::domain::orphan::{Removal, Standing, Thing, removal};
use crate::execute::ExecuteError;
use crate::work::compensation;
use crate::work::reconcile::{self, MissingServer, ReconcileError, Survey};
use crate::work::servers::Servers;

/// The exit code where something was found.
const FOUND: u8 = 3;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Undo what is due, and remove what serves nobody; never what says of itself what makes no
    /// sense here
    #[arg(long)]
    remove: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Something was found.
#[derive(Debug, thiserror::Error)]
#[error("{0} to look at")]
struct Found(usize);

/// The exit code of what ends a survey; `None` for any other error.
pub fn exit_code(error: &anyhow::Error) -> Option<ExitCode> {
    if error.is::<Found>() {
        return Some(ExitCode::from(FOUND));
    }
    let class = match error.downcast_ref()? {
        ReconcileError::Servers(error) => error.class(),
        ReconcileError::Client(error) => error.class(),
        ReconcileError::Execute(
            ExecuteError::Unavailable | ExecuteError::Database(_) | ExecuteError::Moved,
        ) => Class::Retryable,
        ReconcileError::Execute(_) => Class::Final,
    };
    Some(vm::exit_code_of(class))
}

/// Looks, records, removes where told so, and says what is left.
pub async fn run(args: Args) -> anyhow::Result<()> {
    crate::telemetry::start();
    let env = |name: &str| std::env::var(name).ok();
    let database_url = env("DATABASE_URL").filter(|url| !url.is_empty());
    let database_url = database_url.context("DATABASE_URL is not set")?;
    let accounts = CloudAccounts::from_env(env)?;
    let keys = config::listed(&env, config::MASTER_KEY);
    let config = Config::of_tool(database_url, keys);
    let app = App::open(config, CancellationToken::new()).await?;
    let servers = Servers::new(&accounts, Arc::new(app.clock), Patience::default());
    if args.remove {
        compensation::round(&app, &servers, app.log.feed().head()).await?;
    }
    let head = app.log.feed().head();
    let survey = reconcile::survey(&app, &servers, app.clock.now(), head).await?;
    reconcile::record(&app, &survey).await?;
    let removed = if args.remove {
        reconcile::remove(&app, &servers, &survey, Removal::WhenTold).await?
    } else {
        Vec::new()
    };
    let printed =
        if args.json { say!("{:#}", report(&survey, &removed)) } else { print(&survey, &removed) };
    let found = survey.orphans().count() + survey.missing.len();
    if found == 0 { Ok(printed?) } else { Err(Found(found).into()) }
}

fn print(survey: &Survey, removed: &[Thing]) -> io::Result<()> {
    say!("{:<8}  {:<20}  {:<48}  STANDING", "WHAT", "ID", "NAME")?;
    for (thing, standing) in &survey.things {
        let what = thing.resource.as_str();
        let words = words(thing, *standing, removed);
        say!("{what:<8}  {:<20}  {:<48}  {words}", thing.id, thing.name)?;
    }
    for it in &survey.missing {
        let (id, name) = match &it.server {
            MissingServer::Named(id) => (id.as_str(), "-"),
            MissingServer::Unnamed(name) => ("-", name.as_str()),
        };
        let words = format!("MISSING: agent {} runs on it, and it is gone", it.agent_name);
        say!("{:<8}  {id:<20}  {name:<48}  {words}", "server")?;
    }
    let found = survey.orphans().count() + survey.missing.len();
    if found == 0 {
        say!("\nNothing is wrong: {} things looked at.", survey.things.len())
    } else {
        let left = survey.orphans().count() - removed.len();
        say!("\n{} removed, {left} left, {} missing.", removed.len(), survey.missing.len())
    }
}

/// What to say of a thing to somebody at night.
fn words(thing: &Thing, standing: Standing, removed: &[Thing]) -> String {
    match standing {
        Standing::Serving { agent_id, .. } => format!("serves agent {agent_id}"),
        Standing::UnderWay => "belongs to an attempt under way".to_owned(),
        Standing::AwaitsCompensation => "is about to be undone".to_owned(),
        Standing::Settling => "served an attempt that ended just now; look again soon".to_owned(),
        Standing::Orphan(reason) => {
            let why = why(reason);
            let then = match removal(reason) {
                _ if removed.contains(thing) => "removed",
                Removal::Certain | Removal::WhenTold => "remove it with --remove",
                Removal::ByHand => "if it is to go, remove it by its id",
            };
            format!("ORPHAN: {why}; {then}")
        }
    }
}

fn why(reason: OrphanReason) -> &'static str {
    match reason {
        OrphanReason::Ended => "its job ended without it",
        OrphanReason::Superseded => "a later attempt or a later server of its agent took over",
        OrphanReason::UnknownJob => "this log knows no such job; perhaps another Milepost does",
        OrphanReason::Disagrees => "its job has no such attempt, or is another agent's",
        OrphanReason::Unlabelled => "it is labelled ours, and does not say for which attempt",
    }
}

fn report(survey: &Survey, removed: &[Thing]) -> serde_json::Value {
    let things = survey.things.iter().map(|(thing, standing)| {
        let (standing, reason) = match standing {
            Standing::Serving { .. } => ("serving", None),
            Standing::UnderWay => ("under_way", None),
            Standing::AwaitsCompensation => ("awaits_compensation", None),
            Standing::Settling => ("settling", None),
            Standing::Orphan(reason) => ("orphan", Some(reason.as_str())),
        };
        json!({
            "resource": thing.resource.as_str(),
            "id": thing.id,
            "name": thing.name,
            "job_id": thing.attempt().map(|id| id.job_id),
            "attempt": thing.attempt().map(|id| id.attempt),
            "standing": standing,
            "reason": reason,
            "removed": removed.contains(thing),
        })
    });
    let missing = survey.missing.iter().map(|it| {
        let (server_id, name) = match &it.server {
            MissingServer::Named(id) => (Some(id), None),
            MissingServer::Unnamed(name) => (None, Some(name)),
        };
        json!({
            "agent_id": it.agent_id,
            "agent_name": it.agent_name,
            "instance_id": it.instance_id,
            "job_id": it.job_id,
            "server_id": server_id,
            "name": name,
        })
    });
    json!({"things": things.collect::<Vec<_>>(), "missing": missing.collect::<Vec<_>>()})
}
