//! What the same machine does with the same request and less: one INSERT a request, or none.

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt;
use axum::{Json, Router};
use clap::{Args, Parser};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use milepost_benches::callback::{CALLBACK_PATH, Signer};
use milepost_benches::milepost::DevFile;
use milepost_benches::process::{exit, raise_open_files_limit};
use milepost_benches::stats::Latencies;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio_postgres::NoTls;
use uuid::Uuid;

/// The product's limit of a callback's body.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The event row of Milepost with its indexes, in one plain table.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS event (
    position       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream_id      uuid        NOT NULL,
    version        integer     NOT NULL,
    type           smallint    NOT NULL,
    schema_version smallint    NOT NULL,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    header         bytea       NOT NULL,
    body           bytea       NOT NULL
);
CREATE INDEX IF NOT EXISTS event_stream_id_version ON event (stream_id, version);
";

const INSERT: &str = "
INSERT INTO event (stream_id, version, type, schema_version, header, body)
VALUES ($1, $2, $3, $4, $5, $6)
RETURNING position
";

/// References that Milepost's intake is measured beside.
#[derive(Parser)]
enum Options {
    /// Checks the signature, parses, and stores each callback with an INSERT of its own.
    Insert {
        #[command(flatten)]
        listen: Listen,
        /// The Postgres server, as a URL.
        #[arg(long, required_unless_present = "dev")]
        database_url: Option<String>,
        /// The database on it, made if it is missing.
        #[arg(long, default_value = "milepost_reference")]
        database: String,
        /// Connections to Postgres. The best number depends on what a flush costs; measure a few.
        #[arg(long, default_value_t = 16)]
        pool: usize,
    },
    /// What one durable write costs on this disk, at this moment: 8 KiB in place, and a flush.
    Flush {
        /// A directory on the disk.
        #[arg(long)]
        directory: PathBuf,
        /// Seconds.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Checks the signature, parses, and stores nothing.
    Signature {
        #[command(flatten)]
        listen: Listen,
    },
}

#[derive(Args)]
struct Listen {
    /// Where to listen.
    #[arg(long = "listen", default_value = "127.0.0.1:8090")]
    address: SocketAddr,
    /// The callbacks' HMAC secret.
    #[arg(long, default_value = "secret")]
    secret: String,
    /// Reads secret and database URL from the `dev.json` of `milepost dev`.
    #[arg(long)]
    dev: Option<PathBuf>,
}

/// What is parsed of a body: the fields that every kind of callback may have.
#[derive(Deserialize)]
struct Callback<'a> {
    job_id: Uuid,
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "step")]
    _step: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "delivery_id")]
    _delivery_id: Option<Cow<'a, str>>,
    #[serde(rename = "attempt")]
    _attempt: Option<u32>,
    #[serde(borrow, rename = "metadata")]
    _metadata: Option<&'a RawValue>,
}

#[derive(Clone)]
struct Reference {
    signer: Arc<Signer>,
    store: Store,
}

#[derive(Clone)]
enum Store {
    Postgres { pool: Pool, version: Arc<AtomicI64> },
    Nothing { position: Arc<AtomicI64> },
}

#[tokio::main]
async fn main() -> ExitCode {
    exit(run().await)
}

async fn run() -> Result<()> {
    raise_open_files_limit()?;
    match Options::parse() {
        Options::Insert { listen, database_url, database, pool } => {
            let dev = listen.dev.as_deref().map(DevFile::read).transpose()?;
            let url = database_url.or_else(|| dev.map(|dev| dev.database_url));
            let pool = open(&url.unwrap_or_default(), &database, pool).await?;
            serve(listen, Store::Postgres { pool, version: Arc::default() }).await
        }
        Options::Flush { directory, seconds } => flush(&directory, seconds),
        Options::Signature { listen } => {
            serve(listen, Store::Nothing { position: Arc::default() }).await
        }
    }
}

async fn serve(listen: Listen, store: Store) -> Result<()> {
    let secret = match &listen.dev {
        Some(path) => DevFile::read(path)?.callback_secret,
        None => listen.secret,
    };
    let reference = Reference { signer: Arc::new(Signer::new(&secret)), store };
    let router = Router::new()
        .route(CALLBACK_PATH, post(receive))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(reference);
    let listener = TcpListener::bind(listen.address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        // A connection that cannot be tuned is slower, not wrong.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router)
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}

async fn receive(State(reference): State<Reference>, headers: HeaderMap, body: Bytes) -> Response {
    let signature = headers.get("x-signature").map(axum::http::HeaderValue::as_bytes);
    if !signature.is_some_and(|signature| reference.signer.verifies(&body, signature)) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Ok(callback) = serde_json::from_slice::<Callback<'_>>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    if callback.kind.is_none() && callback.status.is_none() {
        return StatusCode::BAD_REQUEST.into_response();
    }
    match reference.store.keep(callback.job_id, &body).await {
        Ok(position) => {
            Json(json!({ "received": true, "applied": true, "position": position })).into_response()
        }
        Err(error) => {
            eprintln!("{error:#}");
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

impl Store {
    async fn keep(&self, stream_id: Uuid, body: &[u8]) -> Result<i64> {
        match self {
            Store::Nothing { position } => Ok(position.fetch_add(1, Ordering::Relaxed) + 1),
            Store::Postgres { pool, version } => {
                let version = version.fetch_add(1, Ordering::Relaxed) as i32;
                let client = pool.get().await?;
                let insert = client.prepare_cached(INSERT).await?;
                let header: &[u8] = b"x-signature";
                let row = client
                    .query_one(&insert, &[&stream_id, &version, &1_i16, &1_i16, &header, &body])
                    .await?;
                Ok(row.try_get(0)?)
            }
        }
    }
}

/// Opens a pool on the database, which is made with its table first if it is missing.
async fn open(url: &str, database: &str, connections: usize) -> Result<Pool> {
    let mut config: tokio_postgres::Config =
        url.parse().context("the database URL is malformed")?;
    let (server, connection) = config.connect(NoTls).await.context("Postgres does not answer")?;
    tokio::spawn(connection);
    let found =
        server.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&database]).await?;
    if found.is_none() {
        let quoted = database.replace('"', "\"\"");
        server.batch_execute(&format!("CREATE DATABASE \"{quoted}\"")).await?;
    }
    config.dbname(database);
    let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(config, NoTls, manager_config);
    let pool = Pool::builder(manager).max_size(connections).build()?;
    let client = pool.get().await?;
    client.batch_execute(SCHEMA).await?;
    for durable in ["fsync", "synchronous_commit"] {
        let row = client.query_one(&format!("SHOW {durable}"), &[]).await?;
        let setting: String = row.get(0);
        ensure!(setting == "on", "{durable} is {setting}: a comparison needs durable commits");
    }
    Ok(pool)
}

/// Writes and flushes as a write-ahead log does: pages of a file that already has its length.
fn flush(directory: &Path, seconds: f64) -> Result<()> {
    const PAGE: [u8; 8192] = [b'x'; 8192];
    const PAGES: u64 = 2048;
    let path = directory.join(format!("flush-{}", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    // The name goes at once and the space with the process, however it ends.
    std::fs::remove_file(&path)?;
    for page in 0..PAGES {
        file.write_all_at(&PAGE, page * PAGE.len() as u64)?;
    }
    file.sync_all()?;
    let mut latencies = Latencies::default();
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    for page in (0..PAGES).cycle() {
        let start = Instant::now();
        if start >= until {
            break;
        }
        file.write_all_at(&PAGE, page * PAGE.len() as u64)?;
        file.sync_data()?;
        latencies.record(start.elapsed());
    }
    let mut finding = serde_json::to_value(latencies.percentiles())?;
    finding["measure"] = "flush".into();
    finding["target"] = "disk".into();
    println!("{finding}");
    Ok(())
}
