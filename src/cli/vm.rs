//! `milepost vm`: the servers of attempts, as a workflow's steps make and undo them.
//!
//! Exit codes: 0 done; 1 an error that stays; 2 wrong usage; 75 (`EX_TEMPFAIL`) one that trying
//! again may overcome.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use milepost_schemas::{AgentId, Attempt, JobId};
use serde_json::json;

use crate::app::Clock;
use crate::clients::hetzner::Server;
use crate::clients::{Class, Patience};
use crate::config::{
    CloudAccounts, ENROL_TIMEOUT_SECONDS, SERVER_IMAGE, SERVER_TYPE, ServerShape, TAILSCALE_TAG,
};
use crate::domain::{AttemptId, ServerIdentity};
use crate::work::servers::{Output, ServerError, ServerOrder, Servers, Target, Undo, plan};

/// Seconds between two looks: an hour's allowance of requests lasts for two.
const POLL_SECONDS: f64 = 2.0;

/// Seconds there may be between two looks.
const POLL_SECONDS_RANGE: std::ops::RangeInclusive<f64> = 0.01..=60.0;

/// What sysexits.h calls a failure that may be gone later.
const EX_TEMPFAIL: u8 = 75;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make the server of an attempt, or take the one that is there; wait until it has joined
    Create(Create),
    /// Undo the server of an attempt, its key and its device; what is not there is undone
    Destroy(Destroy),
    /// The servers Milepost has made
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct Create {
    /// The job
    #[arg(long)]
    job: JobId,
    /// Its agent
    #[arg(long)]
    agent: AgentId,
    /// The attempt
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    attempt: u32,
    /// Where the server is to stand: eu-central, eu-north, eu-west, us-east or us-west
    #[arg(long)]
    region: String,
    /// Its type
    #[arg(long, env = "MILEPOST_SERVER_TYPE", default_value = SERVER_TYPE)]
    server_type: String,
    /// Its image
    #[arg(long, env = "MILEPOST_SERVER_IMAGE", default_value = SERVER_IMAGE)]
    image: String,
    /// A name or id of an SSH key that may enter; several with commas
    #[arg(long = "ssh-key", env = "MILEPOST_SSH_KEYS", value_delimiter = ',')]
    ssh_keys: Vec<String>,
    /// The id of a firewall before it; several with commas
    #[arg(long = "firewall", env = "MILEPOST_FIREWALLS", value_delimiter = ',')]
    firewalls: Vec<u64>,
    /// A tag of it in the tailnet; several with commas
    #[arg(
        long = "tag",
        env = "TAILSCALE_TAGS",
        value_delimiter = ',',
        default_value = TAILSCALE_TAG,
        value_parser = tag
    )]
    tags: Vec<String>,
    /// Seconds it may take to join the tailnet, from when it runs
    #[arg(long, env = "MILEPOST_ENROL_TIMEOUT", default_value_t = ENROL_TIMEOUT_SECONDS)]
    enrol_timeout: u64,
    /// Where what becomes known is added, as name=value lines; made for `$GITHUB_OUTPUT`
    #[arg(long)]
    output: Option<PathBuf>,
    /// Print the requests and the user-data, and send nothing; needs no credentials
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pace: Pace,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Pace {
    /// Seconds between two looks at what takes its time
    #[arg(long, env = "MILEPOST_POLL", default_value_t = POLL_SECONDS, value_parser = seconds)]
    poll: f64,
}

impl Pace {
    fn patience(self) -> Patience {
        Patience { poll: Duration::from_secs_f64(self.poll), ..Patience::default() }
    }
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["server_id", "job"]))]
pub struct Destroy {
    /// The server
    #[arg(long)]
    server_id: Option<u64>,
    /// The job whose server it is
    #[arg(long, requires = "attempt")]
    job: Option<JobId>,
    /// The attempt whose server it is
    #[arg(long, requires = "job", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: Option<u32>,
    /// Its device in the tailnet, if that is known; it is looked for as well
    #[arg(long)]
    tailscale_device: Option<String>,
    /// Its key, if that is known; it is looked for as well
    #[arg(long)]
    tailscale_key: Option<String>,
    #[command(flatten)]
    pace: Pace,
}

/// Runs one of the commands.
pub async fn run(command: Command) -> anyhow::Result<()> {
    crate::telemetry::start();
    match command {
        Command::Create(args) => create(args).await,
        Command::Destroy(args) => destroy(args).await,
        Command::List { json } => list(json).await,
    }
}

/// The exit code of an error of any command.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    exit_code_of(error.downcast_ref().map_or(Class::Final, ServerError::class))
}

/// The exit code that says whether to try again.
pub fn exit_code_of(class: Class) -> ExitCode {
    match class {
        Class::Retryable => ExitCode::from(EX_TEMPFAIL),
        Class::Final => ExitCode::FAILURE,
    }
}

async fn create(args: Create) -> anyhow::Result<()> {
    let attempt = AttemptId { job_id: args.job, attempt: Attempt(args.attempt) };
    let order = ServerOrder {
        identity: ServerIdentity { agent_id: args.agent, attempt },
        region: args.region,
        shape: ServerShape {
            server_type: args.server_type,
            image: args.image,
            ssh_keys: args.ssh_keys,
            firewalls: args.firewalls,
            tailscale_tags: args.tags,
        },
        enrol_timeout: Duration::from_secs(args.enrol_timeout),
    };
    if args.dry_run {
        let accounts = CloudAccounts::masked(env);
        let plan = plan(&servers(&accounts, args.pace), &accounts.tailscale.client_id, &order)?;
        io::stdout().write_all(plan.as_bytes())?;
        return Ok(());
    }
    let accounts = CloudAccounts::from_env(env)?;
    let mut outputs = Outputs::open(args.output.as_deref())?;
    servers(&accounts, args.pace).create(&order, |output| outputs.write(&output)).await?;
    Ok(())
}

async fn destroy(args: Destroy) -> anyhow::Result<()> {
    let target = match (args.server_id, args.job, args.attempt) {
        (Some(id), _, _) => Target::Id(id),
        (None, Some(job_id), Some(attempt)) => {
            Target::Attempt(AttemptId { job_id, attempt: Attempt(attempt) })
        }
        (None, _, _) => anyhow::bail!("which server? Give --server-id, or --job and --attempt"),
    };
    // A workflow passes on what it knows, which may be nothing.
    let known = |id: Option<String>| id.filter(|id| !id.is_empty());
    let (device_id, key_id) = (known(args.tailscale_device), known(args.tailscale_key));
    let accounts = CloudAccounts::from_env(env)?;
    let undone = servers(&accounts, args.pace).destroy(&Undo { target, device_id, key_id }).await?;
    for id in &undone.servers {
        say!("server {id} is gone")?;
    }
    for id in &undone.devices {
        say!("device {id} is gone")?;
    }
    for id in &undone.keys {
        say!("key {id} is gone")?;
    }
    if undone.servers.is_empty() {
        say!("there was no server")?;
    }
    Ok(())
}

async fn list(as_json: bool) -> anyhow::Result<()> {
    let accounts = CloudAccounts::from_env(env)?;
    let list = servers(&accounts, Pace { poll: POLL_SECONDS }).list().await?;
    if as_json {
        let list: Vec<_> = list.iter().map(entry).collect();
        say!("{:#}", json!({"servers": list}))?;
        return Ok(());
    }
    say!("{:<12}  {:<48}  {:<12}  {:<15}  {:<25}", "ID", "NAME", "STATUS", "IP", "CREATED")?;
    for server in &list {
        let ip = server.ip().map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        say!(
            "{:<12}  {:<48}  {:<12}  {:<15}  {:<25}",
            server.id,
            server.name,
            server.status,
            ip,
            server.created
        )?;
    }
    Ok(())
}

fn entry(server: &Server) -> serde_json::Value {
    json!({
        "id": server.id,
        "name": server.name,
        "status": server.status,
        "ip": server.ip(),
        "server_type": server.server_type.name,
        "location": server.location.as_ref().map(|location| &location.name),
        "created": server.created,
        "labels": server.labels,
    })
}

fn servers(accounts: &CloudAccounts, pace: Pace) -> Servers {
    Servers::new(accounts, Arc::new(Clock), pace.patience())
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| POLL_SECONDS_RANGE.contains(seconds));
    seconds.ok_or_else(|| format!("a number of seconds within {POLL_SECONDS_RANGE:?}"))
}

/// A tag as Tailscale takes it.
fn tag(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("tag:").unwrap_or_default();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_tag =
        name.starts_with(|first: char| first.is_ascii_alphabetic()) && name.bytes().all(is_name);
    is_tag.then(|| text.to_owned()).ok_or_else(|| "a tag is tag:NAME".to_owned())
}

/// Where what becomes known is written.
struct Outputs(Option<File>);

impl Outputs {
    fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.with_context(|| format!("{} cannot be written", path.display()))
        };
        Ok(Self(path.map(open).transpose()?))
    }

    /// Writes one line, and returns once it is on the disk: the next thing that happens to this
    /// machine may be its end. Prints it as well, for whoever reads along.
    fn write(&mut self, output: &Output) -> io::Result<()> {
        let line = format!("{output}\n");
        let printed = io::stdout().lock().write_all(line.as_bytes());
        let Some(file) = &mut self.0 else { return printed };
        file.write_all(line.as_bytes())?;
        file.flush()?;
        match file.sync_all() {
            // A pipe or a terminal has no disk behind it.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_a_prefix_and_a_name() {
        assert!(tag("tag:agent").is_ok() && tag("tag:team-7").is_ok());
        for wrong in ["agent", "tag:", "tag:7", "tag:a b", "tag:a\"", "tag:-a"] {
            assert!(tag(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn outputs_are_added_to_what_is_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "earlier=1\n").unwrap();
        let mut outputs = Outputs::open(Some(file.path())).unwrap();
        outputs.write(&Output::ServerId(42)).unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "earlier=1\nserver_id=42\n");
    }
}
