//! A generation filled from the log: read in ranges, decoded where it is read, folded in memory in
//! parallel by key, written by COPY in the order of its keys.
//!
//! Memory is bounded: by the chunks in flight, and by [`ROWS_IN_MEMORY_MAX`]. Beyond that, rows
//! that have not changed for longest are written early, and fetched again should they change.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use milepost_projections::{Projection, Recorded};
use milepost_schemas::{Event, Position, StreamId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use uuid::Uuid;

use super::generation::Generation;
use crate::log::{Chunk, Database, DatabaseError, Parts, scan};

/// Rows folded in memory at once, all folders together: 100 to 400 MB of jobs.
pub const ROWS_IN_MEMORY_MAX: usize = 131_072;

/// Chunks of events that may wait for a folder.
const CHUNKS_WAITING: usize = 2;

/// Many rows are one statement; and an autovacuum of the table is waited for.
pub const UNHURRIED: &str = "SET statement_timeout = 0; SET lock_timeout = 0";

/// Bytes of rows sent to Postgres at once.
const COPY_BYTES: usize = 256 * 1024;

/// What is filled, and how.
pub struct Filling {
    /// Where.
    pub generation: Generation,
    /// Up to where.
    pub upto: Position,
    /// Connections the log is read over, and folders.
    pub parallel: usize,
    /// Events that are passed over.
    pub skipped: HashSet<Position>,
    /// Rows held in memory at the most; [`ROWS_IN_MEMORY_MAX`] but in tests.
    pub rows_max: usize,
    /// Events folded so far, for whoever watches.
    pub folded: Arc<AtomicU64>,
}

/// An event a generation stops a stream at.
#[derive(Clone, Debug)]
pub struct Poison {
    /// The event.
    pub position: Position,
    /// Its stream.
    pub stream: StreamId,
    /// Why.
    pub error: String,
}

/// An event that belongs to a row.
struct Ready {
    key: Uuid,
    position: Position,
    stream: StreamId,
    version: u32,
    recorded_at: Timestamp,
    event: Event,
}

/// A chunk as its reader leaves it: by folder, in order.
struct Decoded {
    upto: Position,
    shares: Vec<Vec<Ready>>,
    poison: Vec<Poison>,
}

/// Fills a generation up to a position; gives back what it stopped at. The checkpoint is left to
/// the caller, who commits it with the poison.
///
/// # Errors
/// [`DatabaseError`] when the log cannot be read whole, or the rows cannot be written.
pub async fn fill<P: Projection>(
    database: &Database,
    filling: &Filling,
    written: impl FnOnce(),
) -> Result<Vec<Poison>, DatabaseError> {
    let folders = filling.parallel.max(1);
    let rows_max = (filling.rows_max / folders).max(1);
    let mut tasks = JoinSet::new();
    let mut senders = Vec::with_capacity(folders);
    for _ in 0..folders {
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
        let folder = Folder::<P>::open(database, filling.generation.clone(), rows_max).await?;
        tasks.spawn(folder.run(receiver));
        senders.push(sender);
    }
    let skipped = filling.skipped.clone();
    let work = move |chunk: Chunk| decode::<P>(&chunk, folders, &skipped);
    let (after, parts) = (Position::START, Parts::BodiesBut(P::PASSES_OVER));
    let mut chunks =
        std::pin::pin!(scan(database, after, filling.upto, filling.parallel, parts, work));
    let mut halted: HashMap<StreamId, Position> = HashMap::new();
    let mut poison = Vec::new();
    while let Some(decoded) = chunks.next().await {
        let mut decoded = decoded?;
        for found in decoded.poison {
            if halted.insert(found.stream, found.position).is_none() {
                poison.push(found);
            }
        }
        for (sender, mut share) in senders.iter().zip(decoded.shares.drain(..)) {
            if !halted.is_empty() {
                share.retain(|it| halted.get(&it.stream).is_none_or(|at| it.position < *at));
            }
            if sender.send(share).await.is_err() {
                // Its task says why.
                break;
            }
        }
        filling.folded.store(decoded.upto.0, Ordering::Relaxed);
        if let Some(ended) = tasks.try_join_next() {
            ended.expect("a folder does not panic")?;
        }
    }
    written();
    drop(senders);
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a folder does not panic")?;
    }
    Ok(poison)
}

fn decode<P: Projection>(chunk: &Chunk, folders: usize, skipped: &HashSet<Position>) -> Decoded {
    let room = chunk.rows.len() / folders + 1;
    let mut shares: Vec<Vec<Ready>> =
        std::iter::repeat_with(|| Vec::with_capacity(room)).take(folders).collect();
    let (mut poison, mut upto) = (Vec::<Poison>::new(), Position::START);
    for row in &chunk.rows {
        upto = row.position;
        if !P::folds(row.code) || skipped.contains(&row.position) {
            continue;
        }
        let event = match Event::decode(row.code, row.schema_version, row.body()) {
            Ok(event) => event,
            Err(error) => {
                if !poison.iter().any(|known| known.stream == row.stream) {
                    let (position, stream) = (row.position, row.stream);
                    poison.push(Poison { position, stream, error: error.to_string() });
                }
                continue;
            }
        };
        let Some(key) = P::key(&event) else { continue };
        shares[share_of(key, folders)].push(Ready {
            key,
            position: row.position,
            stream: row.stream,
            version: row.version,
            recorded_at: row.recorded_at,
            event,
        });
    }
    Decoded { upto, shares, poison }
}

/// The folder a row belongs to: by the low bits of its key, which are random.
fn share_of(key: Uuid, folders: usize) -> usize {
    (key.as_u128() as u64 % folders as u64) as usize
}

/// Folds a share of the rows, and writes them.
struct Folder<P: Projection> {
    client: Client,
    generation: Generation,
    rows: HashMap<Uuid, (Position, P::State)>,
    rows_max: usize,
    /// Whether rows were written before the end: they may have to be fetched again.
    spilled: bool,
}

impl<P: Projection> Folder<P> {
    async fn open(
        database: &Database,
        generation: Generation,
        rows_max: usize,
    ) -> Result<Self, DatabaseError> {
        let (client, _) = database.dedicated().await?;
        // What a crash takes of it is dropped and filled again; the log's own commits are not
        // held up by its flushes.
        client.batch_execute("SET synchronous_commit = off").await?;
        client.batch_execute(UNHURRIED).await?;
        Ok(Self { client, generation, rows: HashMap::new(), rows_max, spilled: false })
    }

    async fn run(mut self, mut shares: mpsc::Receiver<Vec<Ready>>) -> Result<(), DatabaseError> {
        while let Some(share) = shares.recv().await {
            if self.spilled {
                self.fetch(&share).await?;
            }
            for ready in &share {
                let (position, state) = self.rows.entry(ready.key).or_default();
                *position = ready.position;
                P::apply(state, &ready.recorded());
            }
            if self.rows.len() > self.rows_max {
                self.spill().await?;
            }
        }
        let rows = std::mem::take(&mut self.rows).into_iter().collect();
        write::<P>(&self.client, &self.generation, rows).await
    }

    /// Writes the half of the rows that has not changed for longest.
    async fn spill(&mut self) -> Result<(), DatabaseError> {
        let mut positions: Vec<Position> = self.rows.values().map(|(at, _)| *at).collect();
        let middle = positions.len() / 2;
        let (_, median, _) = positions.select_nth_unstable(middle);
        let median = *median;
        let cold = self.rows.extract_if(|_, (position, _)| *position < median).collect();
        write::<P>(&self.client, &self.generation, cold).await?;
        self.spilled = true;
        Ok(())
    }

    /// Takes back rows that were written and change again.
    async fn fetch(&mut self, share: &[Ready]) -> Result<(), DatabaseError> {
        let missing: HashSet<Uuid> =
            share.iter().map(|it| it.key).filter(|key| !self.rows.contains_key(key)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<Uuid> = missing.into_iter().collect();
        let sql = format!(
            "DELETE FROM {} WHERE key = ANY($1) RETURNING key, position, state",
            self.generation.table()
        );
        for row in self.client.query(&sql, &[&missing]).await? {
            let state = super::stored_state::<P>(row.get(2))?;
            self.rows.insert(row.get(0), (Position(row.get::<_, i64>(1) as u64), state));
        }
        Ok(())
    }
}

impl Ready {
    fn recorded(&self) -> Recorded<'_> {
        Recorded {
            position: self.position,
            stream: self.stream,
            version: self.version,
            recorded_at: self.recorded_at,
            // Only decisions ask for it: no row holds it, so no header is read for it.
            delivery_id: None,
            event: &self.event,
        }
    }
}

/// Writes rows by binary COPY, in the order in which their index grows at its end.
async fn write<P: Projection>(
    client: &Client,
    generation: &Generation,
    mut rows: Vec<(Uuid, (Position, P::State))>,
) -> Result<(), DatabaseError> {
    rows.sort_unstable_by_key(|(key, _)| *key);
    let sql = format!(
        "COPY {} (key, position, label, state) FROM STDIN (FORMAT binary)",
        generation.table()
    );
    let sink = client.copy_in::<_, Bytes>(&sql).await?;
    let mut sink = std::pin::pin!(sink);
    let mut buffer = BytesMut::with_capacity(COPY_BYTES * 2);
    // The signature, no flags, no extension.
    buffer.put_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    let mut json = Vec::new();
    for (key, (position, state)) in rows {
        json.clear();
        serde_json::to_writer(&mut json, &state).expect("a row is plain data");
        buffer.put_i16(4);
        put_field(&mut buffer, key.as_bytes());
        put_field(&mut buffer, &(position.0 as i64).to_be_bytes());
        put_field(&mut buffer, P::label(&state).as_bytes());
        put_field(&mut buffer, &json);
        if buffer.len() >= COPY_BYTES {
            sink.send(buffer.split().freeze()).await?;
            buffer.reserve(COPY_BYTES * 2);
        }
    }
    buffer.put_i16(-1);
    sink.send(buffer.freeze()).await?;
    sink.finish().await?;
    Ok(())
}

fn put_field(buffer: &mut BytesMut, bytes: &[u8]) {
    buffer.put_i32(bytes.len() as i32);
    buffer.put_slice(bytes);
}
