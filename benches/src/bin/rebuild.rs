//! A view rebuilt from a long log, beside a plain read of the same rows.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use clap::{Parser, Subcommand};
use futures_util::{SinkExt as _, StreamExt as _};
use milepost_benches::callback::Signer;
use milepost_benches::http::Target;
use milepost_benches::milepost::{DevFile, Milepost};
use milepost_benches::process::{exit, memory_bytes, processor_time};
use milepost_benches::story::Stories;
use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

/// How often the server is asked how far it is, and how much memory it has.
const TICK: Duration = Duration::from_millis(20);

/// Longer than any rebuild of a log that is worth measuring.
const PATIENCE: Duration = Duration::from_mins(10);

/// Bytes of rows sent to Postgres at once.
const COPY_BYTES: usize = 1 << 20;

/// Columns of an event, in the order of both the plain read and the seed.
const COLUMNS: &str =
    "position, stream_id, version, type, schema_version, recorded_at, header, body";

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
    /// `dev.json` of a running `milepost dev`.
    #[arg(long, global = true, default_value = "data/dev.json")]
    dev: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Fill the log up to so many events, by COPY into its table: jobs of agents from their order
    /// to their end, interleaved.
    Seed {
        /// The log's size afterwards.
        #[arg(long, default_value_t = 1_000_000)]
        events: u64,
    },
    /// Read the log by `COPY … TO STDOUT (FORMAT binary)` to nowhere.
    Read {
        /// Connections, each with its share of the positions.
        #[arg(long, default_value_t = 1)]
        connections: u64,
        #[arg(long)]
        json: bool,
    },
    /// Rebuild a view of the running server.
    Rebuild {
        /// The view.
        #[arg(long, default_value = "jobs")]
        view: String,
        /// The server, whose memory and processor time are measured.
        #[arg(long)]
        pid: u32,
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    exit(run())
}

fn run() -> Result<()> {
    let options = Options::parse();
    let dev = DevFile::read(&options.dev)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        match options.command {
            Command::Seed { events } => seed(&dev, events).await,
            Command::Read { connections, json } => print(json, &read(&dev, connections).await?),
            Command::Rebuild { view, pid, json } => print(json, &rebuild(&dev, &view, pid).await?),
        }
    })
}

fn print(json: bool, result: &Value) -> Result<()> {
    if json {
        println!("{result}");
    } else {
        println!("{}", serde_json::to_string_pretty(result)?);
    }
    Ok(())
}

async fn connect(dev: &DevFile) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(&dev.database_url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn size_of(client: &Client) -> Result<u64> {
    Ok(client.query_one("SELECT size FROM log_head", &[]).await?.get::<_, i64>(0) as u64)
}

async fn seed(dev: &DevFile, events: u64) -> Result<()> {
    let mut client = connect(dev).await?;
    let size = size_of(&client).await?;
    if size >= events {
        return Ok(());
    }
    let tx = client.transaction().await?;
    tx.execute("SELECT size FROM log_head FOR UPDATE", &[]).await?;
    tx.execute("SELECT ensure_partitions($1)", &[&(events as i64)]).await?;
    let sql = format!("COPY event ({COLUMNS}) FROM STDIN (FORMAT binary)");
    let mut sink = std::pin::pin!(tx.copy_in::<_, Bytes>(&sql).await?);
    let mut buffer = BytesMut::with_capacity(2 * COPY_BYTES);
    buffer.put_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    let stories = Stories::new().skip(size as usize);
    for (position, it) in (size + 1..=events).zip(stories) {
        let kind = it.event.event_type();
        buffer.put_i16(8);
        field(&mut buffer, &(position as i64).to_be_bytes());
        field(&mut buffer, it.stream.0.as_bytes());
        field(&mut buffer, &it.version.to_be_bytes());
        field(&mut buffer, &kind.code().to_be_bytes());
        field(&mut buffer, &kind.schema_version().to_be_bytes());
        // From noon of the 29th of July 2026 on, a callback each millisecond.
        field(&mut buffer, &(838_641_600_000_000 + position as i64 * 1_000).to_be_bytes());
        field(&mut buffer, &serde_json::to_vec(&it.metadata)?);
        field(&mut buffer, &serde_json::to_vec(&it.event)?);
        if buffer.len() >= COPY_BYTES {
            sink.send(buffer.split().freeze()).await?;
            buffer.reserve(2 * COPY_BYTES);
        }
    }
    buffer.put_i16(-1);
    sink.send(buffer.freeze()).await?;
    sink.finish().await?;
    tx.execute(
        "UPDATE log_head SET size = $1, recorded_at = greatest(recorded_at, \
         (SELECT recorded_at FROM event WHERE position = $1))",
        &[&(events as i64)],
    )
    .await?;
    tx.commit().await?;
    // As a log that has been there for a while: its pages are marked visible, and on disk.
    client.execute("VACUUM ANALYZE event", &[]).await?;
    client.execute("CHECKPOINT", &[]).await?;
    Ok(())
}

fn field(buffer: &mut BytesMut, bytes: &[u8]) {
    buffer.put_i32(bytes.len() as i32);
    buffer.put_slice(bytes);
}

async fn read(dev: &DevFile, connections: u64) -> Result<Value> {
    let client = connect(dev).await?;
    let events = size_of(&client).await?;
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(connect(dev).await?);
    }
    let begun = Instant::now();
    let shares = (0..connections).zip(clients).map(|(index, client)| {
        let share = (index * events / connections, (index + 1) * events / connections);
        tokio::spawn(read_share(client, share))
    });
    let mut bytes = 0;
    for share in shares.collect::<Vec<_>>() {
        bytes += share.await??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(json!({
        "measure": "read",
        "target": "copy",
        "connections": connections,
        "events": events,
        "seconds": seconds,
        "per_second": events as f64 / seconds,
        "bytes_per_event": bytes as f64 / events as f64,
    }))
}

async fn read_share(client: Client, (after, upto): (u64, u64)) -> Result<u64> {
    let sql = format!(
        "COPY (SELECT {COLUMNS} FROM event WHERE position > {after} AND position <= {upto}) \
         TO STDOUT (FORMAT binary)"
    );
    let mut messages = std::pin::pin!(client.copy_out(&sql).await?);
    let mut bytes = 0;
    while let Some(message) = messages.next().await {
        bytes += message?.len() as u64;
    }
    Ok(bytes)
}

async fn rebuild(dev: &DevFile, view: &str, pid: u32) -> Result<Value> {
    let milepost = Milepost {
        target: Target::parse(&dev.url)?,
        token: dev.admin_token.clone(),
        signer: Signer::new(&dev.callback_secret),
    };
    let path = format!("/api/projections/{view}");
    let settling = Instant::now();
    while milepost.read("/api/projections").await?["projections"]
        .as_array()
        .is_none_or(|views| views.iter().any(|view| view["lag_events"] != 0))
    {
        ensure!(settling.elapsed() < PATIENCE, "the views do not catch up with the log");
        tokio::time::sleep(TICK).await;
    }
    let before = memory_bytes(&[pid])?;
    let processor_before = processor_time(&[pid])?;
    let begun = Instant::now();
    milepost.order(&format!("{path}/rebuild"), &json!({"switch": "always"})).await?;
    let (mut peak, mut progress) = (before, Value::Null);
    let (seconds, end) = loop {
        ensure!(begun.elapsed() < PATIENCE, "the rebuild does not end");
        let now = milepost.read(&path).await?;
        peak = peak.max(memory_bytes(&[pid])?);
        if !now["progress"]["written_ms"].is_null() {
            progress = now["progress"].clone();
        }
        if now["order"].is_null() {
            break (begun.elapsed().as_secs_f64(), now["ended"].clone());
        }
        tokio::time::sleep(TICK).await;
    };
    if end["outcome"] != "switched" || end["differing"] != 0 {
        bail!("the rebuild came to {end}");
    }
    let events = progress["target"].as_u64().context("the rebuild was over unseen")?;
    let of = |name: &str| progress[name].as_f64().context("the rebuild was over unseen");
    let per_second = |name| Ok::<_, anyhow::Error>(events as f64 * 1_000.0 / of(name)?);
    Ok(json!({
        "measure": "rebuild",
        "target": view,
        "events": events,
        "rows": end["rows"],
        "folded_per_second": per_second("folded_ms")?,
        "per_second": per_second("written_ms")?,
        "seconds": of("written_ms")? / 1_000.0,
        "seconds_with_comparison": seconds,
        "memory_before_bytes": before,
        "memory_peak_bytes": peak,
        "memory_bytes": peak - before,
        "server_processor_seconds": processor_time(&[pid])?.saturating_sub(processor_before).as_secs_f64(),
    }))
}
