//! The embedded default: a private Postgres started as a child process.
//!
//! The cluster lives under `data_dir/postgres`:
//!
//! ```text
//! data_dir/postgres.lock       held (flock) by the Milepost that owns the cluster
//! data_dir/postgres/           or a symbolic link, see "As root"
//!   cluster/                   Postgres's data directory
//!   milepost.conf              the settings, rewritten by every start
//!   socket/                    mode 0700, the only way in: there is no TCP port
//!   log/                       four files of 16 MB at most
//!   start.log                  what the latest postmaster said before it opened its log
//! ```
//!
//! **Who may connect.** Local authentication is `trust`, and the socket's directory lets nobody in
//! but its owner and root.
//!
//! **As root**, Postgres refuses to run, so it runs as the user `postgres` (else `nobody`), or as
//! the owner of the cluster when there is one already. If that user cannot reach the data directory
//! (`/root` is closed to it), the cluster goes to `/var/lib/milepost/postgres-<n>` and
//! `data_dir/postgres` becomes a link to it.
//!
//! **Deaths.** Postgres outlives its parent, however that ends, unless [`Embedded::stop`] is called;
//! the next start takes it over. Milepost outlives Postgres: a postmaster that ends unasked is
//! replaced at once, or by whatever postmaster somebody else (`pg_ctl restart`) put in its place. To
//! keep Postgres down, stop Milepost.

mod binaries;
mod cluster;
mod place;
mod settings;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use cluster::{Cluster, Postmaster};

pub use binaries::BIN_VARIABLE;
pub use place::lock;

/// Held by whoever owns the cluster of a data directory.
const LOCK_FILE: &str = "postgres.lock";

/// The role Milepost connects as, and the name of its database.
const NAME: &str = "milepost";

/// A postmaster that has said nothing at all for this long will not.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// A postmaster that says "not yet" is replaying its log, of which `max_wal_size` bounds the length.
const RECOVERY_TIMEOUT: Duration = Duration::from_mins(10);
/// One attempt to connect to a local socket; longer means that nobody accepts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_INTERVAL: Duration = Duration::from_millis(50);

/// The pause before a postmaster is started again that ended soon after its start.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A postmaster that lived for this long did not die of its start.
const STEADY_AFTER: Duration = Duration::from_secs(10);
/// `pg_ctl restart` looks ten times a second whether the old postmaster has gone.
const SUCCESSOR_GRACE: Duration = Duration::from_millis(500);

/// A running private Postgres, kept running until [`Embedded::stop`].
///
/// Dropped without a stop, it lets go of Postgres without ending it; the next
/// [`Embedded::start`] takes it over.
#[derive(Debug)]
pub struct Embedded {
    database_url: String,
    stop: oneshot::Sender<()>,
    supervisor: JoinHandle<Result<(), EmbeddedError>>,
    // Held, not read: the kernel releases it when this process dies, however it dies.
    _lock: File,
}

impl Embedded {
    /// Starts (or takes over) the cluster under `data_dir/postgres`, making it (and `data_dir`)
    /// when there is none, and returns when it answers and has the database `milepost`.
    ///
    /// Takes about a second for a new cluster, a tenth of that for an old one, and as long as crash
    /// recovery takes (ten minutes at most) for one whose machine died.
    ///
    /// # Errors
    ///
    /// See [`EmbeddedError`]. After an error no postmaster of this call is left running; one that
    /// was found running is left alone.
    pub async fn start(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let data_dir = place::make_data_dir(data_dir)?;
        let held = lock(&data_dir, LOCK_FILE)?;
        let owner = place::owner(&data_dir)?;
        let home = place::home(&data_dir, owner.as_ref()).await?;
        let major = place::cluster_major(&home)?;
        let binaries = binaries::find(major, &home).await?;
        let cluster = Cluster::open(home, owner, binaries);
        if major.is_none() {
            cluster.initialise().await?;
        }
        cluster.configure()?;
        let postmaster = start_postmaster(&cluster).await?;

        let (stop, stopped) = oneshot::channel();
        Ok(Self {
            database_url: cluster.url(),
            stop,
            supervisor: tokio::spawn(supervise(cluster, postmaster, stopped)),
            _lock: held,
        })
    }

    /// The URL of the database `milepost`, over the Unix socket, for `tokio-postgres` and `psql`
    /// alike: `postgresql://milepost@<percent-encoded directory>:5432/milepost`. It holds no secret
    /// and stays the same through restarts of Postgres.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// Ends Postgres (a fast shutdown: open transactions are rolled back, everything is flushed) and
    /// waits until it has gone. Its process, socket and pid file go with it; the data and the logs
    /// stay.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::StillRunning`] when neither a fast nor an immediate shutdown ends it.
    pub async fn stop(self) -> Result<(), EmbeddedError> {
        // A supervisor that has gone already says why in its result.
        let _ = self.stop.send(());
        self.supervisor.await.unwrap_or_else(|error| {
            Err(EmbeddedError::Io {
                doing: "supervising Postgres".into(),
                source: io::Error::other(error),
            })
        })
    }
}

/// Why there is no private Postgres.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Neither `PATH` nor the usual places hold a Postgres that is new enough.
    #[error(
        "no Postgres from major {min} on is installed{found}: run `apt-get install -y postgresql` \
         (any major from {min} will do), or set {BIN_VARIABLE} to the directory of its programs",
        min = binaries::MAJOR_MIN,
        found = binaries::list(found, ", only "),
    )]
    NoBinaries {
        /// The majors that were found, all too old.
        found: Vec<u32>,
    },

    /// The cluster was made by another major than those that are installed.
    #[error(
        "the cluster in {} was made by Postgres {major}, which is not installed here{found}: \
         run `apt-get install -y postgresql-{major}`, or move the data to a newer major with \
         `pg_upgrade`",
        cluster.display(),
        found = binaries::list(found, ", only "),
    )]
    WrongMajor {
        /// Postgres's data directory.
        cluster: PathBuf,
        /// The major that made it.
        major: u32,
        /// The majors that were found.
        found: Vec<u32>,
    },

    /// Another Milepost owns the data directory.
    #[error(
        "another Milepost (process {pid}) is running on {}: stop it first, or choose another data \
         directory",
        data_dir.display(),
    )]
    InUse {
        /// The contested directory.
        data_dir: PathBuf,
        /// What the other wrote into the lock file: its process id, or `unknown`.
        pid: String,
    },

    /// Milepost runs as root, Postgres must not, and there is nobody else.
    #[error(
        "Postgres does not run as root, and there is neither a user `postgres` nor `nobody` to run \
         it as: start Milepost as an ordinary user"
    )]
    NoUser,

    /// The user that runs Postgres cannot enter the directory of the cluster.
    #[error(
        "the user `{user}`, who runs Postgres, cannot enter {}: open it and its parent directories to \
         that user (`chmod o+x`), or choose another data directory",
        home.display(),
    )]
    Unreachable {
        /// The directory of the cluster.
        home: PathBuf,
        /// The user that runs Postgres.
        user: String,
    },

    /// The directory for the socket exists and is not private to the user that runs Postgres.
    #[error("{} is not a directory private to the user that runs Postgres: remove it", path.display())]
    SocketDirectory {
        /// The directory in question.
        path: PathBuf,
    },

    /// `initdb` could not make a cluster.
    #[error("`initdb` failed: {output}")]
    Initialise {
        /// What it said.
        output: String,
    },

    /// Postgres ended or stayed silent instead of answering.
    #[error("Postgres did not start; its last words were:\n{log}")]
    NotReady {
        /// The last lines of its log.
        log: String,
    },

    /// Postgres answered, and refused.
    #[error("Postgres refused to make the database `{NAME}`")]
    Database(#[source] tokio_postgres::Error),

    /// Postgres did not end, not even by an immediate shutdown.
    #[error("Postgres (process {pid}) does not end")]
    StillRunning {
        /// The postmaster.
        pid: i32,
    },

    /// A file, a directory or a process could not be used.
    #[error("{doing} failed")]
    Io {
        /// What was being done, and to what.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Brings up a postmaster with the database `milepost`, or leaves none of its own behind.
async fn start_postmaster(cluster: &Cluster) -> Result<Postmaster, EmbeddedError> {
    let mut postmaster = cluster.take_over_or_spawn()?;
    let ready = match wait_until_ready(cluster, &mut postmaster).await {
        Ok(client) => make_database(&client).await,
        Err(error) => Err(error),
    };
    match ready {
        Ok(()) => Ok(postmaster),
        Err(error) => {
            if postmaster.is_child() {
                cluster.shut_down(Some(postmaster)).await?;
            }
            Err(error)
        }
    }
}

async fn wait_until_ready(
    cluster: &Cluster,
    postmaster: &mut Postmaster,
) -> Result<Client, EmbeddedError> {
    let started = Instant::now();
    loop {
        let recovering = match connect(cluster).await {
            Ok(client) => return Ok(client),
            Err(error) => error
                .and_then(|error| error.code().cloned())
                .is_some_and(|code| code == SqlState::CANNOT_CONNECT_NOW),
        };
        let silent_for_long = started.elapsed() > ANSWER_TIMEOUT;
        if postmaster.has_exited(cluster)? {
            if silent_for_long || (postmaster.is_child() && !cluster.was_busy()) {
                return Err(EmbeddedError::NotReady { log: cluster.last_words() });
            }
            *postmaster = cluster.take_over_or_spawn()?;
        } else if silent_for_long && (!recovering || started.elapsed() > RECOVERY_TIMEOUT) {
            return Err(EmbeddedError::NotReady { log: cluster.last_words() });
        }
        sleep(CONNECT_INTERVAL).await;
    }
}

/// Connects to the database every cluster has; `Err(None)` is a time-out.
async fn connect(cluster: &Cluster) -> Result<Client, Option<tokio_postgres::Error>> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(cluster.socket_dir()).port(settings::PORT).user(NAME).dbname("postgres");
    let (client, connection) = timeout(CONNECT_TIMEOUT, config.connect(tokio_postgres::NoTls))
        .await
        .map_err(|_| None)?
        .map_err(Some)?;
    tokio::spawn(connection);
    Ok(client)
}

async fn make_database(client: &Client) -> Result<(), EmbeddedError> {
    let exists = client
        .query_opt("SELECT FROM pg_database WHERE datname = $1", &[&NAME])
        .await
        .map_err(EmbeddedError::Database)?;
    if exists.is_none() {
        let statement = format!("CREATE DATABASE {NAME}");
        client.batch_execute(&statement).await.map_err(EmbeddedError::Database)?;
    }
    Ok(())
}

/// Keeps a postmaster on the cluster until `stop` says so; a dropped `stop` lets go of it.
async fn supervise(
    cluster: Cluster,
    postmaster: Postmaster,
    mut stop: oneshot::Receiver<()>,
) -> Result<(), EmbeddedError> {
    let mut postmaster = Some(postmaster);
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = Instant::now();
        tokio::select! {
            biased;
            asked = &mut stop => return end(&cluster, postmaster, asked.is_ok()).await,
            () = exited(postmaster.as_mut(), &cluster) => {}
            never = cluster.bound_logs() => match never {},
        }
        tracing::warn!(
            log = cluster.last_words(),
            "Postgres has ended unasked, it is started again"
        );

        let pause = if started.elapsed() >= STEADY_AFTER { Duration::ZERO } else { backoff };
        backoff = if pause.is_zero() { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
        tokio::select! {
            biased;
            asked = &mut stop => return end(&cluster, None, asked.is_ok()).await,
            () = wait_for_successor(&cluster, pause) => {}
        }
        postmaster = match cluster.take_over_or_spawn() {
            Ok(postmaster) => Some(postmaster),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "Postgres cannot be started"
                );
                None
            }
        };
    }
}

async fn end(
    cluster: &Cluster,
    postmaster: Option<Postmaster>,
    asked: bool,
) -> Result<(), EmbeddedError> {
    if asked { cluster.shut_down(postmaster).await } else { Ok(()) }
}

async fn exited(postmaster: Option<&mut Postmaster>, cluster: &Cluster) {
    if let Some(postmaster) = postmaster {
        postmaster.exited(cluster).await;
    }
}

/// Waits for `pause`, or until another postmaster has the cluster.
///
/// A postmaster that took its pid file with it was shut down by somebody, perhaps to be restarted:
/// whoever did that gets the time to, or their own start would fail on ours.
async fn wait_for_successor(cluster: &Cluster, pause: Duration) {
    let grace = if cluster.has_pid_file() { Duration::ZERO } else { SUCCESSOR_GRACE };
    let _ = timeout(pause.max(grace), async {
        while cluster.running().is_none() {
            sleep(CONNECT_INTERVAL).await;
        }
    })
    .await;
}
