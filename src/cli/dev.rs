//! `milepost dev`: everything on this machine, with nothing to set up.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::rehearse;
use super::serve::{listen, serve, shutdown_on_signal};
use crate::accounts;
use crate::app::{App, Clock};
use crate::config::{self, Config, Dispatcher, Dispatchers, LISTEN};
use crate::domain::{AgentCommand, agent};
use crate::execute;
use crate::ledger::durable::write_private;
use crate::log::{Database, MasterKey};
use crate::migrate::migrate;
use crate::postgres::{self, Embedded};
use crate::telemetry;
use crate::work::dispatch;
use milepost_schemas::{AccountId, AgentId, InstanceId, JobId, Metadata, Position};

/// The account that `dev` makes.
const ADMIN_EMAIL: &str = "admin@localhost";

/// The token that `dev` makes.
const ADMIN_TOKEN_NAME: &str = "dev";

/// Held by the `dev` of a data directory.
const LOCK_FILE: &str = "dev.lock";

/// What the first rehearsal is for.
const FIRST_AGENT: &str = "rehearsal-1";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port; port 0 takes any that is free
    #[arg(long, env = "MILEPOST_LISTEN", default_value = LISTEN)]
    listen: SocketAddr,
    /// Where the private Postgres and the secrets live
    #[arg(long, default_value = "data")]
    data_dir: PathBuf,
    /// Who runs jobs: none, rehearsal, github (those of agents), ansible (those of nodes), or
    /// github,ansible
    #[arg(long, value_parser = Dispatchers::parse, default_value = "rehearsal")]
    #[arg(env = "MILEPOST_DISPATCHER")]
    dispatcher: Dispatchers,
}

/// Secrets made at the first start and kept.
#[derive(Debug, Serialize, Deserialize)]
struct Secrets {
    admin_password: String,
    admin_token: String,
    callback_secret: String,
}

/// What scripts read once everything is ready.
#[derive(Serialize)]
struct Ready<'a> {
    url: &'a str,
    database_url: &'a str,
    admin_email: &'a str,
    #[serde(flatten)]
    secrets: &'a Secrets,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::start();
    rehearse::check_faults()?;
    std::fs::create_dir_all(&args.data_dir)
        .with_context(|| format!("cannot make {}", args.data_dir.display()))?;
    // Also where the database is another's: `dev.json` is of one process.
    let _lock = postgres::lock(&args.data_dir, LOCK_FILE)?;
    let ready_file = args.data_dir.join("dev.json");
    // Whoever waits for this file waits for this start, not for an earlier one.
    drop(std::fs::remove_file(&ready_file));
    let shutdown = shutdown_on_signal()?;
    let given = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
    let embedded = match given {
        Some(_) => None,
        None => Some(Embedded::start(&args.data_dir).await?),
    };
    let database_url =
        given.unwrap_or_else(|| embedded.as_ref().map_or("", Embedded::database_url).to_owned());
    let served = start(&args, &database_url, &ready_file, shutdown).await;
    drop(std::fs::remove_file(&ready_file));
    if let Some(embedded) = embedded {
        embedded.stop().await?;
    }
    served
}

async fn start(
    args: &Args,
    database_url: &str,
    ready_file: &Path,
    shutdown: tokio_util::sync::CancellationToken,
) -> anyhow::Result<()> {
    let secrets = secrets(&args.data_dir.join("secrets.json"))?;
    let master_keys = master_keys(&args.data_dir.join("master.key"))?;
    let database = Database::new(database_url)?;
    migrate(&database).await?;
    let mut config = config(args, database_url, &secrets, master_keys)?;
    let listener = listen(&config)?;
    config.listen = listener.local_addr()?;
    let url = config.loopback_url();
    // A tunnel: GitHub's machines have to reach this one.
    let public_url = std::env::var("MILEPOST_PUBLIC_URL").ok().filter(|url| !url.is_empty());
    config.public_url =
        public_url.map_or_else(|| url.clone(), |url| url.trim_end_matches('/').to_owned());
    let admin = AccountId(Clock.id());
    accounts::ensure_admin(&database, admin, ADMIN_EMAIL, &secrets.admin_password).await?;
    accounts::ensure_token(&database, ADMIN_TOKEN_NAME, &secrets.admin_token).await?;
    let link = accounts::make_link(&database, ADMIN_EMAIL, Clock.now()).await?;
    let app = App::open(config, shutdown).await?;
    if app.log.feed().head() == Position::START
        && args.dispatcher.agents == Some(Dispatcher::Rehearsal)
    {
        rehearse_first(&app).await?;
    }
    let ready = Ready { url: &url, database_url, admin_email: ADMIN_EMAIL, secrets: &secrets };
    let serving = tokio::spawn(serve(Arc::clone(&app), listener));
    write_private(ready_file, &serde_json::to_vec_pretty(&ready)?)?;
    // It serves whether or not somebody reads the greeting.
    drop(greet(&url, &link, &secrets, args));
    for missing in missing(&app).await {
        drop(say!("  Jobs will wait until this is set right: {missing}\n"));
    }
    serving.await?
}

fn config(
    args: &Args,
    database_url: &str,
    secrets: &Secrets,
    master_keys: Vec<String>,
) -> anyhow::Result<Config> {
    let mut wrong = Vec::new();
    let env = |name: &str| std::env::var(name).ok();
    let limits = config::limits(&env, &mut wrong);
    let trusted_proxies = config::trusted_proxies(&env, &mut wrong);
    let cloud = config::Cloud::from_env(&env, &mut wrong);
    let github = config::Github::from_env(&env, &mut wrong);
    // The one in `dev.json` is the first: rehearsals sign with that.
    let given = config::listed(&env, config::CALLBACK_SECRETS);
    let callback_secrets = [vec![secrets.callback_secret.clone()], given].concat();
    let accept_x_signature = config::accept_x_signature(&env, &mut wrong);
    let rules = config::rules(&callback_secrets, accept_x_signature, &mut wrong);
    anyhow::ensure!(wrong.is_empty(), config::ConfigError(wrong));
    let own = vec![secrets.admin_password.clone(), secrets.admin_token.clone()];
    Ok(Config {
        database_url: database_url.to_owned(),
        listen: args.listen,
        public_url: String::new(),
        trusted_proxies,
        rules,
        callback_secrets,
        redact: [own, config::listed(&env, config::REDACT)].concat(),
        master_keys,
        dispatchers: args.dispatcher,
        github,
        ansible: config::Ansible::from_env(&env),
        limits,
        cloud,
        seal_key_file: config::seal_key_file(&env).or_else(|| Some(seal_key_file(&args.data_dir))),
    })
}

/// Where the keys that seal the log are, of a data directory.
pub fn seal_key_file(data_dir: &Path) -> PathBuf {
    data_dir.join("seal-key.pem")
}

/// The secrets of this data directory; made at the first start.
fn secrets(file: &Path) -> anyhow::Result<Secrets> {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} cannot be read", file.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secrets = Secrets {
                admin_password: accounts::secret("")[..24].to_owned(),
                admin_token: accounts::secret("mp_"),
                callback_secret: accounts::secret(""),
            };
            write_private(file, &serde_json::to_vec_pretty(&secrets)?)?;
            Ok(secrets)
        }
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", file.display())),
    }
}

/// The master keys: those of the environment, else the one of this data directory, made at the first
/// start.
fn master_keys(file: &Path) -> anyhow::Result<Vec<String>> {
    let given = config::listed(&|name| std::env::var(name).ok(), config::MASTER_KEY);
    if !given.is_empty() {
        return Ok(given);
    }
    match std::fs::read_to_string(file) {
        Ok(key) => Ok(vec![key.trim().to_owned()]),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = MasterKey::random();
            write_private(file, key.as_bytes())?;
            Ok(vec![key])
        }
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", file.display())),
    }
}

/// With nothing in the log yet, there is something to see all the same.
async fn rehearse_first(app: &App) -> anyhow::Result<()> {
    let agent_id = AgentId(app.clock.id());
    let metadata = |correlation_id| Metadata {
        actor: "system:dev".to_owned(),
        correlation_id,
        causation_id: None,
        callback: None,
    };
    let region = Some(agent::DEFAULT_REGION.to_owned());
    let create = AgentCommand::Create { agent_id, name: FIRST_AGENT.to_owned(), region };
    execute::to_agent(app, agent_id, create, metadata(agent_id.0)).await?;
    let job_id = JobId(app.clock.id());
    let provision = AgentCommand::Provision {
        job_id,
        instance_id: InstanceId(app.clock.id()),
        region: None,
        max_attempts: app.config.limits.max_attempts(),
        retry_of: None,
        reason: None,
    };
    execute::to_agent(app, agent_id, provision, metadata(job_id.0)).await?;
    Ok(())
}

/// What the dispatchers lack. Each job says so itself too, when its turn comes.
async fn missing(app: &App) -> Vec<String> {
    let Config { dispatchers, ansible, public_url, .. } = &app.config;
    let mut missing = Vec::new();
    if dispatchers.include(Dispatcher::Github) {
        missing.extend(app.github.wrong_settings().map(str::to_owned));
        if *public_url == app.config.loopback_url() {
            let why = "GitHub's machines must reach this server";
            missing.push(format!("MILEPOST_PUBLIC_URL is not set, and {why}"));
        }
    }
    if dispatchers.include(Dispatcher::Ansible) {
        missing.extend(dispatch::unready(ansible).await);
    }
    missing
}

fn greet(url: &str, link: &str, secrets: &Secrets, args: &Args) -> io::Result<()> {
    let agents = match args.dispatcher.agents {
        Some(Dispatcher::Rehearsal) => "jobs are rehearsed: signed callbacks, no server is built",
        Some(Dispatcher::Github) => "GitHub Actions run the jobs of agents, and build real servers",
        Some(Dispatcher::Ansible | Dispatcher::None) | None => "nobody here runs jobs of agents",
    };
    let nodes = match args.dispatcher.nodes {
        Some(Dispatcher::Rehearsal) => "",
        Some(Dispatcher::Ansible) => "; this machine runs Ansible for the jobs of nodes",
        Some(Dispatcher::Github | Dispatcher::None) | None => "; nobody here runs those of nodes",
    };
    say!(
        "\n  Milepost is running: {agents}{nodes}\n\n  \
         Open once     {url}/login?once={link}\n  \
         Log in        {ADMIN_EMAIL} / {}\n  \
         API token     {}\n  \
         Secrets       {}\n\n  \
         Ctrl-C ends it; everything is kept in {}.\n",
        secrets.admin_password,
        secrets.admin_token,
        args.data_dir.join("dev.json").display(),
        args.data_dir.display(),
    )
}
