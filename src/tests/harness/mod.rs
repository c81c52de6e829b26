//! What tests stand on: one Postgres for the whole run, a database and a server a test.
//!
//! A test owns its database, for NOTIFY and advisory locks reach every session of one. Whatever
//! is started here ends with the test, or with the test process should that be killed.

mod client;
pub mod documents;
mod server;

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::OnceCell;

pub use client::{Answer, Client, Message, Messages};
pub use server::{Options, Server};

/// The program under test.
pub const MILEPOST: &str = env!("CARGO_BIN_EXE_milepost");

/// The master key of every server and tool, unless a test gives it another.
pub const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// How long a state may take to come about on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a state, never for a time: asks until the answer is there.
pub async fn wait_until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// The Postgres of this run.
struct Cluster {
    /// The URL of its maintenance database.
    url: String,
    /// Ends everything when this process's end of its standard input closes.
    _guardian: Child,
}

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// The database that new ones are copied from.
const TEMPLATE: &str = "migrated";

async fn cluster() -> &'static Cluster {
    CLUSTER.get_or_init(Cluster::start).await
}

impl Cluster {
    async fn start() -> Self {
        let dir = data_dir();
        let path = dir.path().to_owned();
        // The guardian removes it; a process that is killed runs no destructors.
        let _ = dir.keep();
        let script = r#""$0" dev --listen 127.0.0.1:0 --data-dir "$1" --dispatcher none &
            pid=$!; cat; kill -TERM $pid; wait $pid; rm -rf "$1""#;
        let guardian = Command::new("sh")
            .args(["-c", script, MILEPOST])
            .arg(&path)
            .env_remove("DATABASE_URL")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let ready = server::read_ready(&path.join("dev.json")).await;
        let url = text(&ready, "database_url");
        let cluster = Self { url, _guardian: guardian };
        cluster.run(&format!("CREATE DATABASE {TEMPLATE}")).await;
        let status = tokio::process::Command::new(MILEPOST)
            .arg("migrate")
            .env("DATABASE_URL", cluster.url_of(TEMPLATE))
            .stdout(Stdio::null())
            .status()
            .await
            .unwrap();
        assert!(status.success());
        cluster
    }

    async fn run(&self, sql: &str) {
        let (client, connection) =
            tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap();
    }

    fn url_of(&self, database: &str) -> String {
        let (head, _) = self.url.rsplit_once('/').unwrap();
        format!("{head}/{database}")
    }
}

/// The URL of a fresh, migrated database; it goes with the cluster.
pub async fn database() -> String {
    let cluster = cluster().await;
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    cluster.run(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}")).await;
    cluster.url_of(&name)
}

/// A connection as the database's owner, for what no API does.
pub async fn sql(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A directory that Postgres can enter when it runs as another user than the tests.
pub fn data_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let permissions = std::fs::Permissions::from_mode(0o755);
    tempfile::Builder::new().prefix("milepost-").permissions(permissions).tempdir().unwrap()
}

/// A field that is a string.
pub fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}
