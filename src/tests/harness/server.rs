//! A server process of a test.

use std::path::Path;
use std::process::Stdio;

use milepost::intake::github::Secret;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{Client, MASTER_KEY, MILEPOST, PATIENCE, data_dir, database, text, wait_until};

/// How a test's server differs from the plain one: its own database, no dispatcher.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// On this database instead of a fresh one; several servers may share it.
    pub database_url: Option<String>,
    /// With a private Postgres of its own instead of the shared one.
    pub embedded: bool,
    /// With the rehearsal as dispatcher.
    pub rehearsal: bool,
    /// On this port instead of any.
    pub port: u16,
    /// With these settings in its environment.
    pub env: Vec<(&'static str, String)>,
}

/// A running server; it ends with its owner.
pub struct Server {
    child: Child,
    options: Options,
    dir: TempDir,
    ready: Value,
}

impl Server {
    /// A plain server.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// A server as the options say.
    pub async fn with(options: Options) -> Self {
        Self::start_in(data_dir(), options).await
    }

    /// Another node of the same service: the same database, secrets and settings.
    pub async fn beside(other: &Self) -> Self {
        let dir = data_dir();
        std::fs::copy(other.dir().join("secrets.json"), dir.path().join("secrets.json")).unwrap();
        let (database_url, env) = (Some(other.database_url()), other.options.env.clone());
        Self::start_in(dir, Options { database_url, env, ..Options::default() }).await
    }

    async fn start_in(dir: TempDir, mut options: Options) -> Self {
        if options.database_url.is_none() && !options.embedded {
            options.database_url = Some(database().await);
        }
        let child = spawn(&options, dir.path());
        let ready = read_ready(&dir.path().join("dev.json")).await;
        Self { child, options, dir, ready }
    }

    /// Ends the process at once, as `kill -9` does.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts it again, on the same port, database and secrets.
    pub async fn restart(&mut self) {
        self.options.port = self.url().rsplit_once(':').unwrap().1.parse().unwrap();
        // Left behind by a kill.
        drop(std::fs::remove_file(self.dir.path().join("dev.json")));
        self.child = spawn(&self.options, self.dir.path());
        self.ready = read_ready(&self.dir.path().join("dev.json")).await;
    }

    /// Starts it again on another database, with the same secrets.
    pub async fn move_to(&mut self, database_url: String) {
        self.options.database_url = Some(database_url);
        self.restart().await;
    }

    /// Tells it to end, and waits until it has; returns how long that took.
    pub async fn stop(&mut self) -> std::time::Duration {
        let begun = std::time::Instant::now();
        terminate(&self.child);
        tokio::time::timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        begun.elapsed()
    }

    /// Waits until it has ended by itself; its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap().code()
    }

    /// What it has told its operator.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.dir().join("server.log")).unwrap()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Its address.
    pub fn url(&self) -> String {
        text(&self.ready, "url")
    }

    /// The link it prints that logs in once.
    pub async fn login_link(&self) -> String {
        let printed = self.dir().join("server.out");
        wait_until("the server has greeted", || async {
            let greeting = std::fs::read_to_string(&printed).ok()?;
            greeting.split_whitespace().rfind(|word| word.contains("?once=")).map(str::to_owned)
        })
        .await
    }

    /// Its data directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its database.
    pub fn database_url(&self) -> String {
        text(&self.ready, "database_url")
    }

    /// A field of its `dev.json`.
    pub fn ready(&self, name: &str) -> String {
        text(&self.ready, name)
    }

    /// The secret its workflows sign with.
    pub fn secret(&self) -> Secret {
        Secret::new(&text(&self.ready, "callback_secret")).unwrap()
    }

    /// A client that may do everything.
    pub fn client(&self) -> Client {
        Client::new(self.url(), text(&self.ready, "admin_token"), self.secret())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.id().is_some() {
            terminate(&self.child);
            // A server with its own Postgres needs a moment to end that too.
            if self.options.embedded {
                while matches!(self.child.try_wait(), Ok(None)) {
                    std::thread::yield_now();
                }
            }
        }
    }
}

fn terminate(child: &Child) {
    if let Some(pid) = child.id() {
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
}

fn spawn(options: &Options, dir: &Path) -> Child {
    let asked = options.env.iter().find(|(name, _)| *name == "MILEPOST_DISPATCHER");
    let dispatcher = match asked {
        Some((_, dispatcher)) => dispatcher,
        None if options.rehearsal => "rehearsal",
        None => "none",
    };
    let file = |name| {
        let mut options = std::fs::OpenOptions::new();
        options.create(true).append(true).open(dir.join(name)).unwrap()
    };
    let mut command = Command::new(MILEPOST);
    command
        .arg("dev")
        .args(["--listen", &format!("127.0.0.1:{}", options.port)])
        .arg("--data-dir")
        .arg(dir)
        .args(["--dispatcher", dispatcher])
        .env_remove("DATABASE_URL")
        .env("MILEPOST_MASTER_KEY", MASTER_KEY)
        .envs(options.env.iter().map(|(name, value)| (*name, value.as_str())))
        .stdin(Stdio::null())
        .stdout(file("server.out"))
        .stderr(file("server.log"));
    if let Some(url) = &options.database_url {
        command.env("DATABASE_URL", url);
    }
    command.spawn().unwrap()
}

/// What a server says once it is ready.
pub async fn read_ready(file: &Path) -> Value {
    wait_until("the server is ready", || async {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    })
    .await
}
