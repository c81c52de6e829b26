//! The whole log, fast and in order: ranges of positions by binary COPY over several connections.
//!
//! Reader `n` of `m` takes the ranges `n`, `n + m`, `n + 2m`, … and each keeps its own order, so
//! taking from them in turn is the order of the log: nothing is sorted, and what is in flight is
//! bounded by their channels. Postgres sends a row a message; a row keeps that message as it came
//! and knows where its parts lie.

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use std::{io, thread};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use jiff::Timestamp;
use milepost_schemas::{EventType, Position, StreamId};
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::{Committed, Database, DatabaseError, floor};

/// Connections one scan reads over at the most: beyond this Postgres has no processor left.
pub const SCAN_CONNECTIONS_MAX: usize = 8;

/// Positions read in one statement: short, for its snapshot stops the pruning of the head row;
/// long enough that asking costs little beside it.
pub const RANGE_EVENTS: u64 = 16_384;

/// Events one chunk holds at the most.
pub const CHUNK_EVENTS_MAX: usize = 4_096;

/// Bytes of rows after which a chunk is full, whatever it holds: rows may be 64 KiB and more.
pub const CHUNK_BYTES_MAX: usize = 4 << 20;

/// What each connection has ready beyond the chunk that it reads and the one that is taken.
pub const CHUNKS_AHEAD: usize = 2;

/// What every binary COPY begins with, before its flags.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// What stands at the front of a row, in the order that [`Row::parse`] takes it; the header and the
/// body come behind.
const PLACE: &str = "position, stream_id, version, type, schema_version, recorded_at";

/// How many columns that makes.
const COLUMNS_COUNT: i16 = 8;

/// Microseconds from 1970, where our time begins, to 2000, where Postgres's does.
const POSTGRES_EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

/// What a scan brings of each event. Every event comes, whatever is brought of it, so that one which
/// is missing is noticed.
#[derive(Clone, Copy, Debug)]
pub enum Parts {
    /// All of it.
    All,
    /// What a fold looks at: no header, and no body where the type is one of these.
    BodiesBut(&'static [EventType]),
}

impl Parts {
    fn columns(self) -> String {
        match self {
            Self::All => format!("{PLACE}, header, body"),
            Self::BodiesBut(passed_over) => {
                let codes = passed_over.iter().map(|kind| kind.code().to_string());
                let codes = codes.collect::<Vec<_>>().join(",");
                format!(
                    "{PLACE}, ''::bytea, \
                     CASE WHEN type = ANY ('{{{codes}}}'::smallint[]) THEN ''::bytea ELSE body END"
                )
            }
        }
    }
}

/// Some successive events of the log; never none.
#[derive(Debug)]
pub struct Chunk {
    /// The events, in order and without a gap.
    pub rows: Vec<Row>,
    bytes: usize,
}

/// An event as it is stored.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its place in the whole log.
    pub position: Position,
    /// Its stream.
    pub stream: StreamId,
    /// Its place there, from 1.
    pub version: u32,
    /// Its type's code.
    pub code: i16,
    /// The version of its type.
    pub schema_version: i16,
    /// When the log took it.
    pub recorded_at: Timestamp,
    message: Bytes,
    header: Range<usize>,
    body: Range<usize>,
}

impl Row {
    /// The metadata as JSON.
    pub fn header(&self) -> &[u8] {
        &self.message[self.header.clone()]
    }

    /// The fact as JSON.
    pub fn body(&self) -> &[u8] {
        &self.message[self.body.clone()]
    }

    /// The event as other reads of the log give it; its bytes are shared, not copied.
    pub fn committed(&self, epoch: i64) -> Committed {
        Committed {
            epoch,
            position: self.position,
            stream: self.stream,
            version: self.version,
            code: self.code,
            schema_version: self.schema_version,
            recorded_at: self.recorded_at,
            header: self.message.slice(self.header.clone()),
            body: self.message.slice(self.body.clone()),
            event: OnceLock::new(),
            delivery_id: OnceLock::new(),
            rendered: OnceLock::new(),
            opened: Mutex::default(),
        }
    }

    /// Reads a row that begins at `start` in a message; says where it ends. `None` where it is
    /// torn, or is no row of the log.
    fn parse(message: &Bytes, start: usize) -> Option<(Self, usize)> {
        let mut fields = Fields { message, at: start + size_of::<i16>() };
        let position = u64::try_from(i64::from_be_bytes(fields.fixed()?)).ok()?;
        let stream = StreamId(Uuid::from_bytes(fields.fixed()?));
        let version = u32::try_from(i32::from_be_bytes(fields.fixed()?)).ok()?;
        let code = i16::from_be_bytes(fields.fixed()?);
        let schema_version = i16::from_be_bytes(fields.fixed()?);
        let recorded_at = i64::from_be_bytes(fields.fixed()?);
        let recorded_at = recorded_at.checked_add(POSTGRES_EPOCH_MICROSECONDS)?;
        let header = fields.variable()?;
        let body = fields.variable()?;
        let row = Self {
            position: Position(position),
            stream,
            version,
            code,
            schema_version,
            recorded_at: Timestamp::from_microsecond(recorded_at).ok()?,
            message: message.clone(),
            header,
            body,
        };
        Some((row, fields.at))
    }
}

/// The fields of a row, from left to right: each its length, then its bytes.
struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let range = self.variable()?;
        self.message[range].try_into().ok()
    }

    /// Where the next field lies; `None` where the message ends before it, or where it is null.
    fn variable(&mut self) -> Option<Range<usize>> {
        let (length, _) = self.message.get(self.at..)?.split_first_chunk()?;
        let start = self.at + length.len();
        let end = start + usize::try_from(i32::from_be_bytes(*length)).ok()?;
        self.at = end;
        (end <= self.message.len()).then_some(start..end)
    }
}

/// Reads `parts` of every event after `after` up to `upto`, in chunks in order of position. `work` is
/// done with each chunk on a thread beside the one that reads, for it takes longer than reading and
/// would hold up streams and callbacks; its results come out in order. At the most
/// `CHUNKS_AHEAD + 2` chunks a connection are in memory.
///
/// # Errors
/// [`DatabaseError::Missing`], [`DatabaseError::Torn`] and [`DatabaseError::Twice`] for the first event
/// that is not there, not whole or not alone, [`DatabaseError::Archived`] where it has left the
/// database, and others when the database cannot be read; nothing comes after an error.
/// Source: `migrations/V1__log.sql`.
pub fn scan<T, F>(
    database: &Database,
    after: Position,
    upto: Position,
    connections: usize,
    parts: Parts,
    work: F,
) -> impl Stream<Item = Result<T, DatabaseError>> + Send + use<T, F>
where
    T: Send + 'static,
    F: Fn(Chunk) -> T + Send + Sync + 'static,
{
    let connections = connections.clamp(1, SCAN_CONNECTIONS_MAX);
    let (database, work) = (database.clone(), Arc::new(work));
    let columns: Arc<str> = parts.columns().into();
    async_stream::try_stream! {
        let mut taken = Vec::with_capacity(connections);
        for first in 0..connections as u64 {
            let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
            let (database, work) = (database.clone(), Arc::clone(&work));
            let columns = Arc::clone(&columns);
            let ranges = ranges(after, upto).skip(first as usize).step_by(connections);
            let workers = Workers { work, runtime: Handle::current() };
            spawn_reader(read(database, columns, ranges, sender, workers))?;
            taken.push(receiver);
        }
        for (index, _) in ranges(after, upto).enumerate() {
            let receiver = &mut taken[index % connections];
            loop {
                match receiver.recv().await {
                    Some(Read::Worked(at_work)) => yield at_work.await.map_err(|_| stopped())?,
                    Some(Read::EndOfRange) => break,
                    Some(Read::Failed(error)) => Err(error)?,
                    None => Err(stopped())?,
                }
            }
        }
    }
}

/// Ranges of positions: after the first, up to the second.
fn ranges(after: Position, upto: Position) -> impl Iterator<Item = (Position, Position)> + Send {
    let end = move |start: u64| (start + RANGE_EVENTS).min(upto.0);
    (after.0..upto.0)
        .step_by(RANGE_EVENTS as usize)
        .map(move |start| (Position(start), Position(end(start))))
}

fn stopped() -> DatabaseError {
    DatabaseError::Unexpected("a reader of the log stopped".into())
}

/// What is done with chunks, and where.
struct Workers<F> {
    work: Arc<F>,
    runtime: Handle,
}

/// What a reader hands over.
enum Read<T> {
    Worked(JoinHandle<T>),
    EndOfRange,
    Failed(DatabaseError),
}

/// How long a reader that has read all there is lets rows gather in the socket. Postgres sends eight
/// kilobytes at a time, and to wake for each of them takes both sides longer than to make and to read
/// the dozen rows in it; after twice this time the socket is full, and Postgres would wait.
const LET_GATHER: Duration = Duration::from_micros(150);

#[expect(clippy::disallowed_methods, reason = "nobody else is on this thread")]
fn let_gather() {
    thread::sleep(LET_GATHER);
}

/// Reads on a thread of its own: rows go from the socket to their chunk without waking another.
fn spawn_reader(reading: impl Future<Output = ()> + Send + 'static) -> Result<(), DatabaseError> {
    let cannot =
        |error: io::Error| DatabaseError::Unexpected(format!("no thread to read with: {error}"));
    let mut runtime = Builder::new_current_thread();
    runtime.enable_all().on_thread_park(let_gather);
    let runtime = runtime.build().map_err(cannot)?;
    let reader = thread::Builder::new().name("log-reader".into());
    reader.spawn(move || runtime.block_on(reading)).map_err(cannot)?;
    Ok(())
}

async fn read<T: Send + 'static>(
    database: Database,
    columns: Arc<str>,
    ranges: impl Iterator<Item = (Position, Position)> + Send,
    sender: mpsc::Sender<Read<T>>,
    workers: Workers<impl Fn(Chunk) -> T + Send + Sync + 'static>,
) {
    let reading = async {
        let (client, _) = database.dedicated().await?;
        for (after, upto) in ranges {
            let read = read_range(&client, &columns, (after, upto), &sender, &workers).await;
            match read {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(()),
                Err(DatabaseError::Missing(missing)) => {
                    let floor = floor(&client).await?;
                    let archived = DatabaseError::Archived { floor };
                    let missing = DatabaseError::Missing(missing);
                    return Err(if after < floor { archived } else { missing });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    tokio::select! {
        // The stream was dropped.
        () = sender.closed() => {}
        read = reading => if let Err(error) = read {
            // Nobody may be there any more to hear of it.
            drop(sender.send(Read::Failed(error)).await);
        }
    }
}

/// Reads one range. Who takes the chunks may take them slowly: a statement that was cancelled
/// meanwhile is made anew for what is left.
async fn read_range<T: Send + 'static>(
    client: &Client,
    columns: &str,
    (after, upto): (Position, Position),
    sender: &mpsc::Sender<Read<T>>,
    workers: &Workers<impl Fn(Chunk) -> T + Send + Sync + 'static>,
) -> Result<ControlFlow<()>, DatabaseError> {
    use ControlFlow::{Break, Continue};
    let hand_over = async |chunk| {
        let work = Arc::clone(&workers.work);
        let at_work = workers.runtime.spawn_blocking(move || work(chunk));
        sender.send(Read::Worked(at_work)).await.is_ok()
    };
    let mut read_to = after;
    while read_to < upto {
        let begun_at = read_to;
        let mut copy = Copy::default();
        let sql = format!(
            "COPY (SELECT {columns} FROM event WHERE position > {read_to} AND position <= {upto} \
             ORDER BY position) TO STDOUT (FORMAT binary)"
        );
        let mut messages = std::pin::pin!(client.copy_out(&sql).await?);
        loop {
            match messages.next().await {
                Some(Ok(message)) => copy.take(&message, read_to)?,
                Some(Err(error)) if may_go_on(&error) && read_to > begun_at => break,
                Some(Err(error)) => return Err(error.into()),
                None if copy.last(read_to) == upto => break,
                None => return Err(DatabaseError::Missing(copy.last(read_to).next())),
            }
            if copy.is_full() {
                read_to = copy.last(read_to);
                if !hand_over(copy.chunk()).await {
                    return Ok(Break(()));
                }
            }
        }
        if !copy.rows.is_empty() {
            read_to = copy.last(read_to);
            if !hand_over(copy.chunk()).await {
                return Ok(Break(()));
            }
        }
    }
    let taken = sender.send(Read::EndOfRange).await;
    Ok(if taken.is_ok() { Continue(()) } else { Break(()) })
}

/// Whether the statement took too long, and nothing is wrong otherwise.
fn may_go_on(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::QUERY_CANCELED)
}

/// One COPY as far as it was read.
#[derive(Default)]
struct Copy {
    begun: bool,
    rows: Vec<Row>,
    bytes: usize,
}

impl Copy {
    /// The last position that was read.
    fn last(&self, read_to: Position) -> Position {
        self.rows.last().map_or(read_to, |row| row.position)
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= CHUNK_EVENTS_MAX || self.bytes >= CHUNK_BYTES_MAX
    }

    fn chunk(&mut self) -> Chunk {
        let room = self.rows.len();
        let rows = std::mem::replace(&mut self.rows, Vec::with_capacity(room));
        Chunk { rows, bytes: std::mem::take(&mut self.bytes) }
    }

    /// Takes the rows of one message. Messages end where rows do.
    fn take(&mut self, message: &Bytes, read_to: Position) -> Result<(), DatabaseError> {
        let mut at = 0;
        if !self.begun {
            let next = self.last(read_to).next();
            at = preamble(message).ok_or(DatabaseError::Torn(next))?;
            self.begun = true;
        }
        while at < message.len() {
            let next = self.last(read_to).next();
            let count = message[at..].first_chunk().map(|count| i16::from_be_bytes(*count));
            if count == Some(-1) {
                return Ok(());
            }
            let row = (count == Some(COLUMNS_COUNT)).then(|| Row::parse(message, at)).flatten();
            let (row, end) = row.ok_or(DatabaseError::Torn(next))?;
            if row.position < next {
                return Err(DatabaseError::Twice(row.position));
            }
            if row.position > next {
                return Err(DatabaseError::Missing(next));
            }
            self.rows.push(row);
            at = end;
        }
        self.bytes += message.len();
        Ok(())
    }
}

/// Where the first row lies in a first message: behind the signature, the flags and an extension.
fn preamble(message: &[u8]) -> Option<usize> {
    let rest = message.strip_prefix(SIGNATURE)?;
    let (_flags, rest) = rest.split_first_chunk::<4>()?;
    let (extension, rest) = rest.split_first_chunk::<4>()?;
    let extension = usize::try_from(i32::from_be_bytes(*extension)).ok()?;
    Some(message.len() - rest.get(extension..)?.len())
}

impl Chunk {
    /// Bytes of its rows, as they came.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row as Postgres sends it.
    fn encoded(position: i64, header: &[u8], body: &[u8]) -> Vec<u8> {
        let mut row = COLUMNS_COUNT.to_be_bytes().to_vec();
        let mut field = |bytes: &[u8]| {
            row.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
            row.extend_from_slice(bytes);
        };
        field(&position.to_be_bytes());
        field(&[7; 16]);
        field(&3_i32.to_be_bytes());
        field(&15_i16.to_be_bytes());
        field(&1_i16.to_be_bytes());
        field(&1_500_000_i64.to_be_bytes());
        field(header);
        field(body);
        row
    }

    fn begun(rows: &[Vec<u8>]) -> Vec<u8> {
        let mut message = SIGNATURE.to_vec();
        message.extend_from_slice(&[0; 8]);
        message.extend(rows.concat());
        message
    }

    #[test]
    fn rows_are_read_as_they_were_sent() {
        let mut copy = Copy::default();
        let first = Bytes::from(begun(&[encoded(1, b"{}", b"{\"a\":1}")]));
        copy.take(&first, Position::START).unwrap();
        let two = [encoded(2, b"", b"b"), encoded(3, b"h", b""), (-1_i16).to_be_bytes().to_vec()];
        copy.take(&Bytes::from(two.concat()), Position::START).unwrap();

        let rows = copy.chunk().rows;
        assert_eq!(rows.iter().map(|row| row.position.0).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((rows[0].header(), rows[0].body()), (&b"{}"[..], &b"{\"a\":1}"[..]));
        assert_eq!((rows[2].header(), rows[2].body()), (&b"h"[..], &b""[..]));
        assert_eq!(rows[0].stream, StreamId(Uuid::from_bytes([7; 16])));
        assert_eq!((rows[0].version, rows[0].code, rows[0].schema_version), (3, 15, 1));
        assert_eq!(rows[0].recorded_at.to_string(), "2000-01-01T00:00:01.5Z");
    }

    #[test]
    fn a_torn_row_is_named_wherever_it_is_torn() {
        let whole = begun(&[encoded(1, b"{}", b"{\"a\":1}")]);
        for length in 1..whole.len() {
            let mut copy = Copy::default();
            let torn = copy.take(&Bytes::copy_from_slice(&whole[..length]), Position::START);
            let empty = length == SIGNATURE.len() + 8;
            match torn {
                Ok(()) => assert!(empty && copy.rows.is_empty(), "{length}"),
                Err(error) => assert!(matches!(error, DatabaseError::Torn(Position(1)))),
            }
        }
    }

    #[test]
    fn a_null_and_an_impossible_length_are_torn_rows() {
        for length in [-1, -2, i32::MAX, i32::MIN] {
            let mut row = encoded(1, b"{}", b"{}");
            row[2..6].copy_from_slice(&i32::to_be_bytes(length));
            let taken = Copy::default().take(&Bytes::from(begun(&[row])), Position::START);
            assert!(matches!(taken, Err(DatabaseError::Torn(Position(1)))), "{length}");
        }
    }

    #[test]
    fn a_gap_is_named() {
        let mut copy = Copy::default();
        let message = Bytes::from(begun(&[encoded(5, b"", b""), encoded(7, b"", b"")]));
        let taken = copy.take(&message, Position(4));
        assert!(matches!(taken, Err(DatabaseError::Missing(Position(6)))));
    }

    #[test]
    fn a_doubled_position_is_named_in_a_chunk_and_behind_one() {
        let mut copy = Copy::default();
        let rows = [encoded(5, b"", b"a"), encoded(6, b"", b"a"), encoded(6, b"", b"b")];
        let taken = copy.take(&Bytes::from(begun(&rows)), Position(4));
        assert!(matches!(taken, Err(DatabaseError::Twice(Position(6)))), "{taken:?}");
        // Its first row went with the chunk before.
        let mut copy = Copy::default();
        let taken = copy.take(&Bytes::from(begun(&[encoded(6, b"", b"b")])), Position(6));
        assert!(matches!(taken, Err(DatabaseError::Twice(Position(6)))), "{taken:?}");
    }

    #[test]
    fn ranges_join_and_end_where_they_should() {
        let all = |after, upto| -> Vec<(u64, u64)> {
            ranges(Position(after), Position(upto)).map(|(a, b)| (a.0, b.0)).collect()
        };
        assert_eq!(all(0, 0), []);
        assert_eq!(all(5, 3), []);
        assert_eq!(all(3, 4), [(3, 4)]);
        let two = RANGE_EVENTS + 1;
        assert_eq!(all(0, two), [(0, RANGE_EVENTS), (RANGE_EVENTS, two)]);
    }
}
