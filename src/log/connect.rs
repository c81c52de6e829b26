//! Connections to Postgres: a pool for everybody, and single ones for the appender and tailer.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use milepost_schemas::Position;
use tokio_postgres::{AsyncMessage, Client, NoTls};

/// Connections a process keeps for reads, views and accounts, beside its appender and tailer.
pub const POOL_CONNECTIONS_MAX: usize = 16;

/// A reader that waits longer than this for a connection is told to come back.
const POOL_WAIT: Duration = Duration::from_secs(5);

/// A connection attempt that takes longer has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a session of ours may at most do: a node that vanishes never holds the log. Plans are
/// made once: arrays of any length look the same to them, and planning the look-up of a stream's
/// version over all partitions anew takes longer than doing it.
const SESSION: &str = "SET lock_timeout = '5s'; \
     SET idle_in_transaction_session_timeout = '10s'; \
     SET statement_timeout = '30s'; \
     SET synchronous_commit = on; \
     SET plan_cache_mode = force_generic_plan; \
     SET TIME ZONE 'UTC'; \
     SET ROLE milepost_app";

/// The database cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// No connection could be had.
    #[error("no connection to the database")]
    Pool(#[from] deadpool_postgres::PoolError),
    /// A statement failed.
    #[error("the database refused a statement")]
    Postgres(#[from] tokio_postgres::Error),
    /// The server accepted a connection and then said nothing.
    #[error("the database does not answer")]
    Silent,
    /// The URL is none.
    #[error("the database URL cannot be read")]
    Url(#[source] tokio_postgres::Error),
    /// An event is not where it must be: positions have no gap.
    #[error("event {0} is missing from the log")]
    Missing(Position),
    /// Events that are asked for have left the database for an archive.
    #[error(
        "events up to position {floor} are archived: what is asked for is not here any more. Bring \
         them back with milepost log restore, or read the archive"
    )]
    Archived {
        /// The last position that is archived.
        floor: Position,
    },
    /// A view has no rows yet: this version of its fold is filling them for the first time.
    #[error("the rows of {0} are being filled for the first time")]
    NotFilled(&'static str),
    /// An event is not whole.
    #[error("event {0} cannot be read from the log: its row is torn")]
    Torn(Position),
    /// Two events have one position.
    #[error("event {0} is in the log twice")]
    Twice(Position),
    /// A stored value makes no sense.
    #[error("the database holds something unexpected: {0}")]
    Unexpected(String),
}

/// Where the log is, and a pool of connections to it; cheap to clone.
#[derive(Clone)]
pub struct Database {
    config: Arc<tokio_postgres::Config>,
    pool: Pool,
}

impl Database {
    /// Prepares a pool; connects nothing yet.
    ///
    /// # Errors
    /// [`DatabaseError::Url`] when `url` is no Postgres connection string.
    pub fn new(url: &str) -> Result<Self, DatabaseError> {
        let mut config: tokio_postgres::Config = url.parse().map_err(DatabaseError::Url)?;
        config
            .application_name("milepost")
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(20));
        let manager = Manager::from_config(
            config.clone(),
            NoTls,
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(POOL_CONNECTIONS_MAX)
            .wait_timeout(Some(POOL_WAIT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .runtime(deadpool_postgres::Runtime::Tokio1)
            .post_create(Hook::async_fn(|client, _| {
                Box::pin(
                    async move { client.batch_execute(SESSION).await.map_err(HookError::Backend) },
                )
            }))
            .build()
            .expect("a pool with a runtime can be built");
        Ok(Self { config: Arc::new(config), pool })
    }

    /// A connection for a short read or write.
    ///
    /// # Errors
    /// [`DatabaseError::Pool`] when none is free in 5 s, or none can be made.
    pub async fn get(&self) -> Result<Object, DatabaseError> {
        Ok(self.pool.get().await?)
    }

    /// A connection of one's own, with what the server says unasked (notifications).
    ///
    /// # Errors
    /// [`DatabaseError`] when it cannot be made, or when the server takes too long over it.
    pub async fn dedicated(
        &self,
    ) -> Result<(Client, tokio::sync::mpsc::Receiver<AsyncMessage>), DatabaseError> {
        // A stopped server, or a stuck proxy, accepts a connection and then says nothing.
        let made = tokio::time::timeout(CONNECT_TIMEOUT, self.make_dedicated()).await;
        made.unwrap_or_else(|_| Err(DatabaseError::Silent))
    }

    async fn make_dedicated(
        &self,
    ) -> Result<(Client, tokio::sync::mpsc::Receiver<AsyncMessage>), DatabaseError> {
        let (client, mut connection) = self.config.connect(NoTls).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(1024);
        tokio::spawn(async move {
            loop {
                match std::future::poll_fn(|context| connection.poll_message(context)).await {
                    // A full channel only means that the reader has a wake-up waiting already.
                    Some(Ok(message)) => drop(sender.try_send(message)),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "a database connection broke");
                        return;
                    }
                    None => return,
                }
            }
        });
        client.batch_execute(SESSION).await?;
        Ok((client, receiver))
    }

    /// A connection as the owner of the schema, for migrations.
    ///
    /// # Errors
    /// [`DatabaseError::Postgres`] when it cannot be made.
    pub async fn owner(&self) -> Result<Client, DatabaseError> {
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(%error, "the migration's connection broke");
            }
        });
        Ok(client)
    }
}
