//! Every setting, its environment name and its default. Secrets have no default.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;

use crate::clients::Sensitive;
use crate::clients::github;
use crate::clients::hetzner::HCLOUD_ENDPOINT;
use crate::clients::tailscale::{Credentials, TAILNET, TAILSCALE_API_URL};
use crate::domain::Limits;
use crate::domain::job::LISTS_RUNS;
use crate::intake::github::{Rules, Secret};
use crate::log::MasterKeys;

/// Who runs attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dispatcher {
    /// Nobody: jobs wait for callbacks that come from elsewhere.
    None,
    /// A child process that plays the workflow over real HTTP; builds no server.
    Rehearsal,
    /// GitHub Actions run the workflow `provision-agent.yml`: jobs of agents.
    Github,
    /// This machine runs `ansible-playbook`: jobs of nodes.
    Ansible,
}

impl Dispatcher {
    /// The name in events and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Rehearsal => "rehearsal",
            Self::Github => LISTS_RUNS,
            Self::Ansible => "ansible",
        }
    }

    fn runs_agents(self) -> bool {
        matches!(self, Self::Rehearsal | Self::Github)
    }

    fn runs_nodes(self) -> bool {
        matches!(self, Self::Rehearsal | Self::Ansible)
    }
}

/// Who runs the attempts that this process claims. It claims none that nobody here runs: other
/// processes on the same database may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dispatchers {
    /// Who runs jobs of agents.
    pub agents: Option<Dispatcher>,
    /// Who runs jobs of nodes.
    pub nodes: Option<Dispatcher>,
}

impl Dispatchers {
    /// Gives each kind of job to whoever runs it.
    ///
    /// # Errors
    /// In words, when two would run the same kind of job, or nobody and somebody are named.
    pub fn new(named: &[Dispatcher]) -> Result<Self, String> {
        if named.len() > 1 && named.contains(&Dispatcher::None) {
            return Err("none stands alone".to_owned());
        }
        Ok(Self {
            agents: only(named, "agents", Dispatcher::runs_agents)?,
            nodes: only(named, "nodes", Dispatcher::runs_nodes)?,
        })
    }

    /// Reads names separated by commas.
    ///
    /// # Errors
    /// In words, for a name that is none, and as [`Self::new`].
    pub fn parse(text: &str) -> Result<Self, String> {
        let named: Vec<Dispatcher> = list(text)
            .iter()
            .map(|name| clap::ValueEnum::from_str(name, false))
            .collect::<Result<_, _>>()?;
        Self::new(&named)
    }

    /// Whether one of them is this one.
    pub fn include(self, dispatcher: Dispatcher) -> bool {
        [self.agents, self.nodes].contains(&Some(dispatcher))
    }
}

fn only(
    named: &[Dispatcher],
    subjects: &str,
    runs: impl Fn(Dispatcher) -> bool,
) -> Result<Option<Dispatcher>, String> {
    let mut running = named.iter().copied().filter(|it| runs(*it));
    match (running.next(), running.next()) {
        (Some(first), Some(second)) => {
            Err(format!("{} and {} both run jobs of {subjects}", first.name(), second.name()))
        }
        (one, _) => Ok(one),
    }
}

/// Where the server listens unless told otherwise: this machine only.
pub const LISTEN: &str = "127.0.0.1:8080";

/// Attempts of agents that one process dispatches at once.
pub const AGENT_DISPATCHES_AT_ONCE: usize = 8;

/// Attempts of nodes that one process dispatches at once: a playbook takes much of one processor,
/// for up to 25 minutes.
pub const NODE_DISPATCHES_AT_ONCE: usize = 8;

/// Every setting of a process.
#[derive(Clone)]
pub struct Config {
    /// `DATABASE_URL`: where the log is. No default for `serve`; `dev` brings its own Postgres.
    pub database_url: String,
    /// `MILEPOST_LISTEN`, default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// `MILEPOST_PUBLIC_URL`: how workflows and browsers reach this server; no trailing slash.
    pub public_url: String,
    /// `MILEPOST_TRUSTED_PROXIES`: addresses or networks, separated by commas, whose
    /// `X-Forwarded-For` is believed; none by default. Behind a proxy that is not named here all
    /// log-ins seem to come from one address, and wait for each other's failures.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// `MILEPOST_CALLBACK_SECRETS`: one or several, separated by commas, all in force at once.
    pub callback_secrets: Vec<String>,
    /// `MILEPOST_ACCEPT_X_SIGNATURE`, default `true`; `false` once every workflow signs as
    /// Standard Webhooks.
    pub rules: Rules,
    /// `MILEPOST_REDACT`: further secrets, separated by commas, that must never enter the log.
    pub redact: Vec<String>,
    /// `MILEPOST_MASTER_KEY`: the key that the keys of personal texts are kept under, base64 of 32
    /// bytes; several, separated by commas, while it is changed: the first one wraps, all unwrap.
    /// No default for `serve`; `dev` makes one in its data directory.
    pub master_keys: Vec<String>,
    /// `MILEPOST_DISPATCHER`: `none`, `rehearsal`, `github` (jobs of agents), `ansible` (jobs of
    /// nodes), or `github,ansible`.
    pub dispatchers: Dispatchers,
    /// `MILEPOST_GITHUB_…`: see [`Github`]. Looked at when a job is dispatched, not before.
    pub github: Github,
    /// `MILEPOST_ANSIBLE_…` and what nodes are given: see [`Ansible`]. Looked at when a job is
    /// dispatched.
    pub ansible: Ansible,
    /// `MILEPOST_RETRY_DELAYS`, `MILEPOST_SILENCE`, `MILEPOST_ATTEMPT`, `MILEPOST_LEASE`,
    /// `MILEPOST_CLEAN_UP`, in seconds; the defaults are the product's promise (60,300,900; 900;
    /// 1800; 120; 120).
    pub limits: Limits,
    /// The accounts that servers are made in, and how they are kept tidy: see [`Cloud`]. Without
    /// `HCLOUD_TOKEN` nothing is undone here.
    pub cloud: Option<Cloud>,
    /// `MILEPOST_SEAL_KEY_FILE`: the keys that checkpoints of the log are signed with, made at first
    /// use; without it this process seals nothing. `dev` has it in its data directory. Never in the
    /// database: whoever changes the log there could sign what they changed.
    pub seal_key_file: Option<PathBuf>,
}

/// How often servers and devices are looked through, in seconds.
pub const RECONCILE_SECONDS: u64 = 600;

/// How this server undoes what attempts leave behind.
#[derive(Clone, Debug)]
pub struct Cloud {
    /// `HCLOUD_TOKEN`, `TAILSCALE_…`: the accounts.
    pub accounts: CloudAccounts,
    /// `MILEPOST_RECONCILE`, in seconds, default 600: how often all servers and devices are
    /// compared with the log. Three requests each time, of 3,600 an hour.
    pub reconcile: Duration,
    /// `MILEPOST_REMOVE_ORPHANS`, default `false`: whether those that serve nobody are removed
    /// without being told so, where nothing about them is uncertain.
    pub remove_orphans: bool,
}

impl Cloud {
    /// Reads the settings; `None` without `HCLOUD_TOKEN`. What is wrong with them goes to `wrong`.
    pub fn from_env(
        get: &impl Fn(&str) -> Option<String>,
        wrong: &mut Vec<String>,
    ) -> Option<Self> {
        get("HCLOUD_TOKEN").filter(|token| !token.trim().is_empty())?;
        let reconcile = match get("MILEPOST_RECONCILE") {
            None => Duration::from_secs(RECONCILE_SECONDS),
            Some(text) => {
                let seconds = text.trim().parse().ok();
                let given = seconds.and_then(|it| Duration::try_from_secs_f64(it).ok());
                given.unwrap_or_else(|| {
                    wrong.push(format!("MILEPOST_RECONCILE: {text} is no number of seconds"));
                    Duration::from_secs(RECONCILE_SECONDS)
                })
            }
        };
        let remove_orphans = match get("MILEPOST_REMOVE_ORPHANS").as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                wrong.push(format!("MILEPOST_REMOVE_ORPHANS: {other} is neither true nor false"));
                false
            }
        };
        match CloudAccounts::from_env(get) {
            Ok(accounts) => Some(Self { accounts, reconcile, remove_orphans }),
            Err(error) => {
                wrong.extend(error.0);
                None
            }
        }
    }
}

/// The type of an agent's server.
pub const SERVER_TYPE: &str = "cpx11";

/// The image an agent's server starts from.
pub const SERVER_IMAGE: &str = "ubuntu-24.04";

/// What an agent's server is in the tailnet.
pub const TAILSCALE_TAG: &str = "tag:agent";

/// How long a server may take to join the tailnet, in seconds: its clock may take three minutes,
/// its packages as long.
pub const ENROL_TIMEOUT_SECONDS: u64 = 600;

/// The accounts that servers are made in. Secrets come from the environment only, never from a
/// command line.
#[derive(Clone, Debug)]
pub struct CloudAccounts {
    /// `HCLOUD_TOKEN`: a token of the Hetzner project that may read and write. No default.
    pub hcloud_token: Sensitive,
    /// `HCLOUD_ENDPOINT`, default `https://api.hetzner.cloud/v1`.
    pub hcloud_endpoint: String,
    /// `TAILSCALE_OAUTH_CLIENT_ID`, `TAILSCALE_OAUTH_CLIENT_SECRET`: an OAuth client with the
    /// scopes `auth_keys` and `devices:core` and the tag of the servers. No default.
    pub tailscale: Credentials,
    /// `TAILSCALE_TAILNET`, default `-`: the one the OAuth client belongs to.
    pub tailnet: String,
    /// `TAILSCALE_API_URL`, default `https://api.tailscale.com`.
    pub tailscale_api_url: String,
}

/// What the servers of agents are like.
#[derive(Clone, Debug)]
pub struct ServerShape {
    /// `MILEPOST_SERVER_TYPE`, default `cpx11`.
    pub server_type: String,
    /// `MILEPOST_SERVER_IMAGE`, default `ubuntu-24.04`. Ubuntu or Debian: Tailscale is installed
    /// from its packages for these.
    pub image: String,
    /// `MILEPOST_SSH_KEYS`: names or ids of Hetzner's SSH keys that may enter, separated by
    /// commas; none by default, and then Hetzner makes a root password that nobody is told.
    pub ssh_keys: Vec<String>,
    /// `MILEPOST_FIREWALLS`: ids of Hetzner's firewalls, separated by commas; none by default.
    pub firewalls: Vec<u64>,
    /// `TAILSCALE_TAGS`, default `tag:agent`, separated by commas.
    pub tailscale_tags: Vec<String>,
}

impl Default for ServerShape {
    fn default() -> Self {
        Self {
            server_type: SERVER_TYPE.to_owned(),
            image: SERVER_IMAGE.to_owned(),
            ssh_keys: Vec::new(),
            firewalls: Vec::new(),
            tailscale_tags: vec![TAILSCALE_TAG.to_owned()],
        }
    }
}

impl CloudAccounts {
    /// Reads the accounts from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is missing, all at once.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let required = [
            ("HCLOUD_TOKEN", "a token of the Hetzner project that may read and write"),
            ("TAILSCALE_OAUTH_CLIENT_ID", "an OAuth client of the tailnet"),
            ("TAILSCALE_OAUTH_CLIENT_SECRET", "its secret"),
        ];
        let is_set = |name| get(name).is_some_and(|value| !value.trim().is_empty());
        let missing = required.iter().filter(|(name, _)| !is_set(name));
        let missing: Vec<_> = missing.map(|(name, what)| format!("{name}: {what}")).collect();
        if missing.is_empty() { Ok(Self::read(&get)) } else { Err(ConfigError(missing)) }
    }

    fn secrets(&self) -> impl Iterator<Item = &str> {
        [&self.hcloud_token, &self.tailscale.client_secret].into_iter().map(Sensitive::expose)
    }

    /// The accounts without their secrets, to show what would be sent.
    pub fn masked(get: impl Fn(&str) -> Option<String>) -> Self {
        let mut accounts = Self::read(&get);
        accounts.hcloud_token = Sensitive::new(Sensitive::MASK);
        accounts.tailscale.client_secret = Sensitive::new(Sensitive::MASK);
        accounts
    }

    fn read(get: &impl Fn(&str) -> Option<String>) -> Self {
        let text = |name: &str, default: &str| {
            let value = get(name).map(|value| value.trim().to_owned());
            value.filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
        };
        Self {
            hcloud_token: Sensitive::new(text("HCLOUD_TOKEN", "")),
            hcloud_endpoint: text("HCLOUD_ENDPOINT", HCLOUD_ENDPOINT),
            tailscale: Credentials {
                client_id: text("TAILSCALE_OAUTH_CLIENT_ID", ""),
                client_secret: Sensitive::new(text("TAILSCALE_OAUTH_CLIENT_SECRET", "")),
            },
            tailnet: text("TAILSCALE_TAILNET", TAILNET),
            tailscale_api_url: text("TAILSCALE_API_URL", TAILSCALE_API_URL),
        }
    }
}

/// How GitHub Actions are used. None of it is looked at before a job is to be dispatched: what is
/// missing then keeps the job waiting, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Github {
    /// Where the workflow is and how to get at it: `MILEPOST_GITHUB_REPOSITORY` (`owner/name`);
    /// `MILEPOST_GITHUB_TOKEN`, or of a GitHub App `MILEPOST_GITHUB_APP_ID`,
    /// `MILEPOST_GITHUB_APP_INSTALLATION_ID` and `MILEPOST_GITHUB_APP_PRIVATE_KEY` (PEM);
    /// `MILEPOST_GITHUB_API_URL`, default `https://api.github.com`; `MILEPOST_GITHUB_WORKFLOW`,
    /// default `provision-agent.yml`; `MILEPOST_GITHUB_REF`, default `main`.
    pub settings: github::Settings,
    /// `MILEPOST_GITHUB_SETTLE`, in seconds, default 60: how long a run is looked for whose
    /// dispatch nobody answered. Well below the lease of a claim.
    pub settle: Duration,
    /// `MILEPOST_GITHUB_POLL`, in seconds, default 30: how often GitHub is asked for the runs of
    /// jobs under way. Two requests a minute, of 5,000 an hour.
    pub poll: Duration,
    /// `MILEPOST_GITHUB_BACK_OFF`, in seconds, default 10: how long a job waits after its first
    /// dispatch that was refused; twice as long after each further one, up to 10 minutes.
    pub back_off: Duration,
}

impl Default for Github {
    fn default() -> Self {
        Self::from_env(&|_| None)
    }
}

impl Github {
    /// Reads the settings; a time that is none counts as not given.
    pub fn from_env(get: &impl Fn(&str) -> Option<String>) -> Self {
        let given = |name: &str| get(name).filter(|value| !value.is_empty());
        let or = |name: &str, default: &str| given(name).unwrap_or_else(|| default.to_owned());
        let seconds = |name: &str, default| seconds(get, name, default);
        let settings = github::Settings {
            api_url: or("MILEPOST_GITHUB_API_URL", github::API_URL)
                .trim_end_matches('/')
                .to_owned(),
            repository: given("MILEPOST_GITHUB_REPOSITORY"),
            workflow: or("MILEPOST_GITHUB_WORKFLOW", github::WORKFLOW),
            reference: or("MILEPOST_GITHUB_REF", github::REFERENCE),
            token: given("MILEPOST_GITHUB_TOKEN").map(Sensitive::new),
            app_id: given("MILEPOST_GITHUB_APP_ID"),
            app_installation_id: given("MILEPOST_GITHUB_APP_INSTALLATION_ID"),
            app_private_key: given("MILEPOST_GITHUB_APP_PRIVATE_KEY").map(Sensitive::new),
            timeout: seconds("MILEPOST_GITHUB_TIMEOUT", github::ANSWER_TIMEOUT),
        };
        Self {
            settings,
            settle: seconds("MILEPOST_GITHUB_SETTLE", Duration::from_mins(1)),
            poll: seconds("MILEPOST_GITHUB_POLL", Duration::from_secs(30)),
            back_off: seconds("MILEPOST_GITHUB_BACK_OFF", Duration::from_secs(10)),
        }
    }

    fn secrets(&self) -> impl Iterator<Item = &str> {
        [&self.settings.token, &self.settings.app_private_key]
            .into_iter()
            .flatten()
            .map(Sensitive::expose)
    }
}

/// How `ansible-playbook` is run for the jobs of nodes. What is missing or wrong keeps a job
/// waiting, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ansible {
    /// `MILEPOST_ANSIBLE_PLAYBOOK`, default `ansible-playbook`: a name on the `PATH`, or a whole
    /// path. ansible-core 2.16 or later.
    pub playbook_program: String,
    /// `MILEPOST_ANSIBLE_DIR`: where `ansible.cfg` and the playbooks are; by default the directory
    /// `ansible` beside this program, and where there is none, in the working directory.
    pub directory: PathBuf,
    /// `MILEPOST_SSH_PRIVATE_KEY_FILE`: the key that opens nodes; by default those that `ssh` finds
    /// by itself.
    pub private_key_file: Option<String>,
    /// `MILEPOST_NODE_SSH_KEYS`: public keys that let one in as the owner of a node's sites,
    /// separated by commas; none by default, and then nobody is let in.
    pub node_ssh_keys: Vec<String>,
    /// `MILEPOST_ANSIBLE_TIMEOUT`, in seconds, default 1,500: how long a run may take. Shorter than
    /// an attempt, which would end it without Ansible's own words.
    pub timeout: Duration,
    /// `MILEPOST_ANSIBLE_GRACE`, in seconds, default 10: how long the processes of a run that is
    /// ended may take to put their things away before they are killed. With the 15 s that killing
    /// may take no more than a quarter of a lease, or a node is free before its run has ended.
    pub grace: Duration,
}

impl Ansible {
    /// Reads the settings; a time that is none counts as not given.
    pub fn from_env(get: &impl Fn(&str) -> Option<String>) -> Self {
        let given = |name: &str| get(name).filter(|value| !value.is_empty());
        let directory = given("MILEPOST_ANSIBLE_DIR").map(PathBuf::from);
        Self {
            playbook_program: given("MILEPOST_ANSIBLE_PLAYBOOK")
                .unwrap_or_else(|| "ansible-playbook".to_owned()),
            directory: directory.unwrap_or_else(playbooks),
            private_key_file: given("MILEPOST_SSH_PRIVATE_KEY_FILE"),
            node_ssh_keys: list(&given("MILEPOST_NODE_SSH_KEYS").unwrap_or_default()),
            timeout: seconds(get, "MILEPOST_ANSIBLE_TIMEOUT", Duration::from_mins(25)),
            grace: seconds(get, "MILEPOST_ANSIBLE_GRACE", Duration::from_secs(10)),
        }
    }
}

/// Where the playbooks are when nobody says.
fn playbooks() -> PathBuf {
    let program = std::env::current_exe().ok();
    let beside = program.and_then(|program| Some(program.parent()?.join("ansible")));
    beside.filter(|directory| directory.is_dir()).unwrap_or_else(|| PathBuf::from("ansible"))
}

fn seconds(get: &impl Fn(&str) -> Option<String>, name: &str, default: Duration) -> Duration {
    let seconds = get(name).and_then(|text| text.parse().ok());
    seconds.and_then(|it| Duration::try_from_secs_f64(it).ok()).unwrap_or(default)
}

/// What `serve` cannot start without, or cannot read; one line each.
#[derive(Debug, thiserror::Error)]
#[error("these settings are missing or wrong:\n{}", .0.iter().map(|it| format!("  {it}")).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads the settings of a production server. Nothing that is a secret has a default.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is missing or wrong, all at once.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut wrong = Vec::new();
        let mut require = |name: &str, what: &str| {
            get(name).filter(|value| !value.is_empty()).unwrap_or_else(|| {
                wrong.push(format!("{name}: {what}"));
                String::new()
            })
        };
        let database_url = require("DATABASE_URL", "postgres://user:password@host/database");
        let public_url = require("MILEPOST_PUBLIC_URL", "https://milepost.example.com");
        let secrets = require("MILEPOST_CALLBACK_SECRETS", "the secret workflows sign with");
        let master_key = "base64 of 32 random bytes (openssl rand -base64 32)";
        let master_keys = list(&require("MILEPOST_MASTER_KEY", master_key));
        let listen = get("MILEPOST_LISTEN").unwrap_or_else(|| LISTEN.to_owned());
        let listen = listen
            .parse()
            .map_err(|_| wrong.push(format!("MILEPOST_LISTEN: {listen} is no address and port")));
        let dispatchers = Dispatchers::parse(&get("MILEPOST_DISPATCHER").unwrap_or_default())
            .map_err(|error| wrong.push(format!("MILEPOST_DISPATCHER: {error}")))
            .unwrap_or_default();
        let accept = match get("MILEPOST_ACCEPT_X_SIGNATURE").as_deref() {
            None | Some("true") => true,
            Some("false") => false,
            Some(other) => {
                wrong.push(format!(
                    "MILEPOST_ACCEPT_X_SIGNATURE: {other} is neither true nor false"
                ));
                true
            }
        };
        let callback_secrets = list(&secrets);
        let rules = rules(&callback_secrets, accept)
            .map_err(|error| wrong.push(format!("MILEPOST_CALLBACK_SECRETS: {error}")));
        let trusted_proxies = trusted_proxies(&get, &mut wrong);
        if let Err(error) = MasterKeys::parse(&master_keys) {
            wrong.push(format!("MILEPOST_MASTER_KEY: {error}"));
        }
        let limits = limits(&get, &mut wrong);
        let cloud = Cloud::from_env(&get, &mut wrong);
        let redact = list(&get("MILEPOST_REDACT").unwrap_or_default());
        match (listen, rules) {
            (Ok(listen), Ok(rules)) if wrong.is_empty() => Ok(Self {
                database_url,
                listen,
                public_url: public_url.trim_end_matches('/').to_owned(),
                trusted_proxies,
                callback_secrets,
                rules,
                redact,
                master_keys,
                dispatchers,
                github: Github::from_env(&get),
                ansible: Ansible::from_env(&get),
                limits,
                cloud,
                seal_key_file: get("MILEPOST_SEAL_KEY_FILE")
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from),
            }),
            _ => Err(ConfigError(wrong)),
        }
    }

    /// The settings of a tool that reads and writes the log of a database, and serves nobody. Without
    /// master keys it writes nothing personal.
    pub fn of_tool(database_url: String, master_keys: Vec<String>) -> Self {
        Self {
            database_url,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            public_url: String::new(),
            trusted_proxies: Vec::new(),
            callback_secrets: Vec::new(),
            rules: Rules { secrets: Vec::new(), accept_x_signature: false },
            redact: Vec::new(),
            master_keys,
            dispatchers: Dispatchers::default(),
            github: Github::default(),
            ansible: Ansible::from_env(&|_| None),
            limits: Limits::default(),
            cloud: None,
            seal_key_file: None,
        }
    }

    /// Whether browsers reach this server by HTTPS, so that cookies must not travel without it.
    pub fn is_https(&self) -> bool {
        self.public_url.starts_with("https://")
    }

    /// How a process on this machine reaches this server.
    pub fn loopback_url(&self) -> String {
        let ip = match self.listen.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        format!("http://{}", SocketAddr::new(ip, self.listen.port()))
    }

    /// Everything that must never enter the log.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let own = self.callback_secrets.iter().chain(&self.redact).chain(&self.master_keys);
        let own = own.map(String::as_str);
        let cloud = self.cloud.iter().flat_map(|cloud| cloud.accounts.secrets());
        own.chain(self.github.secrets()).chain(cloud)
    }
}

/// Reads whose word on where a request comes from is believed.
pub fn trusted_proxies(
    get: &impl Fn(&str) -> Option<String>,
    wrong: &mut Vec<String>,
) -> Vec<ipnet::IpNet> {
    let mut networks = Vec::new();
    for text in list(&get("MILEPOST_TRUSTED_PROXIES").unwrap_or_default()) {
        let address = text.parse::<IpAddr>().map(ipnet::IpNet::from);
        match address.or_else(|_| text.parse()) {
            Ok(network) => networks.push(network),
            Err(_) => wrong.push(format!("MILEPOST_TRUSTED_PROXIES: {text} is no network")),
        }
    }
    networks
}

/// Reads the limits from the environment; each has its default.
pub fn limits(get: &impl Fn(&str) -> Option<String>, wrong: &mut Vec<String>) -> Limits {
    let mut limits = Limits::default();
    let mut seconds = |name: &str| {
        let text = get(name)?;
        let parsed: Option<Vec<SignedDuration>> = text
            .split(',')
            .map(|part| {
                let seconds: f64 = part.trim().parse().ok()?;
                SignedDuration::try_from_secs_f64(seconds).ok().filter(SignedDuration::is_positive)
            })
            .collect();
        if parsed.is_none() {
            wrong.push(format!("{name}: {text} is no number of seconds"));
        }
        parsed
    };
    if let Some(delays) = seconds("MILEPOST_RETRY_DELAYS") {
        limits.retry_delays = delays;
    }
    for (name, limit) in [
        ("MILEPOST_SILENCE", &mut limits.silence),
        ("MILEPOST_ATTEMPT", &mut limits.attempt),
        ("MILEPOST_LEASE", &mut limits.lease),
        ("MILEPOST_CLEAN_UP", &mut limits.clean_up),
    ] {
        if let Some([value]) = seconds(name).as_deref() {
            *limit = *value;
        }
    }
    limits
}

/// The master keys that the environment names.
pub fn master_keys(get: &impl Fn(&str) -> Option<String>) -> Vec<String> {
    list(&get("MILEPOST_MASTER_KEY").unwrap_or_default())
}

/// The callback secrets, ready to check with.
///
/// # Errors
/// What is wrong with one of them.
pub fn rules(secrets: &[String], accept_x_signature: bool) -> Result<Rules, String> {
    let secrets = secrets.iter().map(|secret| Secret::new(secret)).collect::<Result<_, _>>()?;
    Ok(Rules { secrets, accept_x_signature })
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    const REQUIRED: [(&str, &str); 4] = [
        ("MILEPOST_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ("DATABASE_URL", "postgres:///x"),
        ("MILEPOST_PUBLIC_URL", "https://m.example/"),
        ("MILEPOST_CALLBACK_SECRETS", "old-secret, new-secret"),
    ];

    #[test]
    fn everything_missing_is_listed_at_once() {
        let error = Config::from_env(|_| None).map(|_| ()).unwrap_err();
        assert_eq!(error.0.len(), REQUIRED.len());
        for (name, _) in REQUIRED {
            assert!(error.to_string().contains(name), "{name}");
        }
    }

    #[test]
    fn the_promised_limits_are_the_defaults() {
        let config = Config::from_env(env(&REQUIRED)).unwrap();
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.limits.max_attempts(), 4);
        assert_eq!(config.rules.secrets.len(), 2);
        assert_eq!(config.public_url, "https://m.example");
        assert!(config.is_https() && config.rules.accept_x_signature);
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let mut pairs = REQUIRED.to_vec();
        pairs.extend([
            ("MILEPOST_LISTEN", "nowhere"),
            ("MILEPOST_SILENCE", "-3"),
            ("MILEPOST_DISPATCHER", "magic"),
            ("MILEPOST_TRUSTED_PROXIES", "10.0.0.0/8, everybody"),
        ]);
        pairs[0].1 = "hunter2";
        let error = Config::from_env(env(&pairs)).map(|_| ()).unwrap_err();
        assert_eq!(error.0.len(), 5, "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn proxies_are_addresses_and_networks() {
        let mut pairs = REQUIRED.to_vec();
        pairs.push(("MILEPOST_TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8, 2001:db8::/32"));
        let config = Config::from_env(env(&pairs)).unwrap();
        let text: Vec<_> = config.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["127.0.0.1/32", "10.0.0.0/8", "2001:db8::/32"]);
    }

    #[test]
    fn how_servers_are_compared_is_a_setting_and_a_wrong_one_is_named() {
        let read = |reconcile: Option<&str>, remove: Option<&str>| {
            let get = |name: &str| match name {
                "HCLOUD_TOKEN" | "TAILSCALE_OAUTH_CLIENT_ID" | "TAILSCALE_OAUTH_CLIENT_SECRET" => {
                    Some("given".to_owned())
                }
                "MILEPOST_RECONCILE" => reconcile.map(str::to_owned),
                "MILEPOST_REMOVE_ORPHANS" => remove.map(str::to_owned),
                _ => None,
            };
            let mut wrong = Vec::new();
            (Cloud::from_env(&get, &mut wrong), wrong)
        };
        let (cloud, wrong) = read(None, None);
        let cloud = cloud.unwrap();
        assert_eq!((cloud.reconcile, cloud.remove_orphans), (Duration::from_mins(10), false));
        assert!(wrong.is_empty(), "{wrong:?}");
        let (cloud, _) = read(Some("2.5"), Some("true"));
        let cloud = cloud.unwrap();
        assert_eq!((cloud.reconcile, cloud.remove_orphans), (Duration::from_millis(2_500), true));
        for (reconcile, remove, name) in [
            ("often", "true", "MILEPOST_RECONCILE"),
            ("-1", "true", "MILEPOST_RECONCILE"),
            ("1", "yes", "MILEPOST_REMOVE_ORPHANS"),
        ] {
            let (_, wrong) = read(Some(reconcile), Some(remove));
            assert!(matches!(&wrong[..], [one] if one.starts_with(name)), "{wrong:?}");
        }
    }

    #[test]
    fn each_kind_of_job_is_run_by_one_dispatcher() {
        let both = |agents, nodes| Ok(Dispatchers { agents, nodes });
        let (github, ansible) = (Some(Dispatcher::Github), Some(Dispatcher::Ansible));
        let rehearsal = Some(Dispatcher::Rehearsal);
        for (text, expected) in [
            ("", both(None, None)),
            ("none", both(None, None)),
            ("github", both(github, None)),
            ("ansible", both(None, ansible)),
            ("ansible, github", both(github, ansible)),
            ("rehearsal", both(rehearsal, rehearsal)),
        ] {
            assert_eq!(Dispatchers::parse(text), expected, "{text}");
        }
        for text in ["magic", "rehearsal,ansible", "github,rehearsal", "none,github", "Github"] {
            assert!(Dispatchers::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn accounts_come_from_the_environment_and_hide_their_secrets() {
        let error = CloudAccounts::from_env(|_| None).map(|_| ()).unwrap_err();
        assert_eq!(error.0.len(), 3, "{error}");
        let pairs = [
            ("HCLOUD_TOKEN", "hunter2\n"),
            ("TAILSCALE_OAUTH_CLIENT_ID", "k1"),
            ("TAILSCALE_OAUTH_CLIENT_SECRET", "hunter3"),
        ];
        let accounts = CloudAccounts::from_env(env(&pairs)).unwrap();
        assert_eq!(accounts.hcloud_token.expose(), "hunter2");
        assert_eq!(accounts.hcloud_endpoint, "https://api.hetzner.cloud/v1");
        assert_eq!(accounts.tailscale_api_url, "https://api.tailscale.com");
        assert_eq!(accounts.tailnet, "-");
        let masked = CloudAccounts::masked(env(&pairs));
        for shown in [format!("{accounts:?}"), format!("{masked:?}")] {
            assert!(!shown.contains("hunter"), "{shown}");
        }
        assert_eq!(masked.hcloud_token.expose(), Sensitive::MASK);
    }

    #[test]
    fn servers_are_by_default_what_the_contract_says() {
        let shape = ServerShape::default();
        assert_eq!(shape.server_type, "cpx11");
        assert_eq!(shape.image, "ubuntu-24.04");
        assert_eq!(shape.tailscale_tags, ["tag:agent"]);
    }
}
