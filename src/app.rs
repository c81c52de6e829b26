//! What every part of a process shares.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::accounts::{Access, Refusals};
use crate::clients;
use crate::clients::github::Github;
use crate::config::Config;
use crate::execute::{JobCache, JobLogCache};
use crate::intake::Redactor;
use crate::ledger::{self, KeyFile};
use crate::log::{Database, DatabaseError, Keys, Log, MasterKeys, Signed};
use crate::metrics::Metrics;
use crate::push::{self, Hub};
use crate::views::{self, Views};
use crate::work;

/// The state of a process; shared by reference.
pub struct App {
    /// Every setting.
    pub config: Config,
    /// The time and fresh ids.
    pub clock: Clock,
    /// The event log.
    pub log: Log,
    /// The states of jobs that were changed lately.
    pub jobs: JobCache,
    /// Where the logs of jobs stand that were written lately.
    pub job_logs: JobLogCache,
    /// The subscribers.
    pub hub: Arc<Hub>,
    /// The views' tables.
    pub views: Views,
    /// What must not be stored.
    pub redactor: Redactor,
    /// GitHub Actions.
    pub github: Github,
    /// Who is here, and until when.
    pub access: Arc<Access>,
    /// Who asked for what they may not do.
    pub refusals: Refusals,
    /// What operators watch.
    pub metrics: Arc<Metrics>,
    /// The attempts that this process runs itself: at the end they are waited for.
    pub attempts: TaskTracker,
    /// What is done behind an answer that must not wait for it: at the end it is waited for.
    pub behind_answers: TaskTracker,
    /// What seals the log: at the end it is waited for.
    pub sealing: TaskTracker,
    /// Says when to end.
    pub shutdown: CancellationToken,
    /// Says that this process has ended all else, and appends no more.
    pub drained: CancellationToken,
}

impl App {
    /// Opens the log of a migrated database and makes everything that hangs on it. Nothing runs
    /// yet but the log itself, which cancels `shutdown` should it be set back.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be reached, is not migrated, or has its keys under
    /// other master keys.
    pub async fn open(
        mut config: Config,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, DatabaseError> {
        config.limits.listening_since = Some(Clock.now());
        let metrics = Metrics::new();
        let database = Database::new(&config.database_url)?;
        let writer = Clock.id().to_string();
        let masters = MasterKeys::parse(&config.master_keys);
        let masters = masters.map_err(DatabaseError::Unexpected)?;
        let keys = Arc::new(Keys::new(database.clone(), masters));
        let signed = signed(&config)?;
        let ends = shutdown.clone();
        let log =
            Log::open(database.clone(), Arc::clone(&metrics), writer, keys, signed, ends).await?;
        Ok(Arc::new(Self {
            clock: Clock,
            jobs: JobCache::new(),
            job_logs: JobLogCache::default(),
            hub: Hub::new(log.feed().head()),
            views: Views::new(database),
            redactor: Redactor::new(config.secrets()),
            github: Github::new(config.github.settings.clone()),
            access: Arc::default(),
            refusals: Refusals::new(),
            log,
            metrics,
            attempts: TaskTracker::new(),
            behind_answers: TaskTracker::new(),
            sealing: TaskTracker::new(),
            shutdown,
            drained: CancellationToken::new(),
            config,
        }))
    }

    /// Starts what goes on beside requests: states, views, seals, work.
    pub fn start(self: &Arc<Self>) {
        let (access, clock) = (Arc::clone(&self.access), self.clock);
        let database = self.log.database().clone();
        tokio::spawn(access.follow(database, move || clock.now(), self.shutdown.clone()));
        push::start_states(Arc::clone(self));
        views::start(Arc::clone(self));
        if let Some(path) = &self.config.seal_key_file {
            ledger::seal::start(Arc::clone(self), KeyFile::new(path.clone()));
        } else {
            tracing::info!("MILEPOST_SEAL_KEY_FILE is not set: this process does not seal the log");
        }
        work::start(Arc::clone(self), format!("{}@{}", std::process::id(), self.config.listen));
    }
}

/// How far this machine has signed the log, where it seals.
fn signed(config: &Config) -> Result<Option<Signed>, DatabaseError> {
    let Some(path) = &config.seal_key_file else { return Ok(None) };
    let signed = KeyFile::new(path.clone()).signed();
    signed.map_err(|error| DatabaseError::Unexpected(error.to_string()))
}

/// The only place that reads the clock and draws ids.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Now, in microseconds as the log keeps time.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn now(self) -> Timestamp {
        let now = Timestamp::now();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    /// A fresh id; ids made later sort later, so that hot streams share index pages.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn id(self) -> Uuid {
        Uuid::now_v7()
    }
}

impl clients::Time for Clock {
    fn now(&self) -> Timestamp {
        Self::now(*self)
    }

    fn passed(&self) -> Duration {
        static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
        BEGUN.elapsed()
    }

    fn random(&self) -> f64 {
        // The low bits of a version 7 UUID are random.
        f64::from(self.id().as_u128() as u32) / f64::from(u32::MAX)
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(duration))
    }
}
