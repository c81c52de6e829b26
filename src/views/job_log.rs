//! Reads of what a job's runs have printed: ranges of rows, from the log itself.
//!
//! Each event of a log says the number of its first row, so the one that holds a row is found by
//! bisection over the versions of the stream, whatever its length.

use milepost_projections::JobLog;
use milepost_projections::job_log::{LogRow, rows};
use milepost_schemas::event::JobLogRecorded;
use milepost_schemas::{Event, JobId, Position};
use serde::Serialize;

use crate::execute::{ExecuteError, unreadable};
use crate::log::{Committed, Log};

/// Rows one answer holds at the most: 4 MiB of the longest lines.
pub const LOG_ROWS_MAX: usize = 1_000;

/// Events read at once: what an answer or a download keeps in memory, 2 MiB of the largest.
const READ_EVENTS: usize = 32;

/// Which rows are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowRange {
    /// Those after this one, ascending.
    After(u64),
    /// The last ones before this one.
    Before(u64),
    /// The last ones there are.
    Newest,
}

/// Some rows of a job's log: `GET /api/jobs/{id}/log`.
#[derive(Debug, Serialize)]
pub struct LogPage {
    /// The job.
    pub job_id: JobId,
    /// The rows, in order.
    pub lines: Vec<LogRow<'static>>,
    /// Rows there are in all.
    pub total: u64,
    /// The log's epoch, for a stream to go on from here.
    pub epoch: i64,
    /// Where the last event of the log stands that `total` counts; 0 before the first.
    pub position: Position,
}

/// The end of a job's log, as a reader finds it.
#[derive(Debug)]
pub struct LogEnd {
    /// Versions of its stream.
    version: u32,
    /// Where it stands.
    pub log: JobLog,
}

/// Where a job's log ends, or ended at a position.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn read_log_end(
    log: &Log,
    job: JobId,
    upto: Option<Position>,
) -> Result<LogEnd, ExecuteError> {
    let last = match upto {
        Some(upto) => log.read_latest_upto(job.log_stream(), upto).await?,
        None => log.read_latest(job.log_stream()).await?,
    };
    let Some(last) = last else {
        return Ok(LogEnd { version: 0, log: JobLog::default() });
    };
    let state = JobLog::after(printed(&last)?, last.position);
    Ok(LogEnd { version: last.version, log: state })
}

/// Reads up to `limit` rows of a job's log, as it is or as it was at a position.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn read_log_rows(
    log: &Log,
    job: JobId,
    range: RowRange,
    limit: usize,
    upto: Option<Position>,
) -> Result<LogPage, ExecuteError> {
    let end = read_log_end(log, job, upto).await?;
    let limit = limit.min(LOG_ROWS_MAX) as u64;
    let total = end.log.total;
    let (first, last) = match range {
        RowRange::After(line) => (line.saturating_add(1), line.saturating_add(limit).min(total)),
        RowRange::Before(line) => {
            let last = line.saturating_sub(1).min(total);
            (last.saturating_sub(limit) + 1, last)
        }
        RowRange::Newest => (total.saturating_sub(limit) + 1, total),
    };
    let mut lines = Vec::new();
    if first <= last {
        let mut version = version_of_row(log, job, &end, first).await?;
        while version <= end.version && lines.len() < (last - first + 1) as usize {
            let events = read_some(log, job, version, &end).await?;
            version += events.len() as u32;
            for event in &events {
                let wanted = |row: &LogRow<'_>| (first..=last).contains(&row.line);
                lines.extend(rows(printed(event)?, event.recorded_at).filter(wanted).map(owned));
            }
        }
    }
    let epoch = log.feed().epoch();
    Ok(LogPage { job_id: job, lines, total, epoch, position: end.log.position })
}

/// The next events of a log up to its end, from a version on; never none.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
async fn read_some(
    log: &Log,
    job: JobId,
    version: u32,
    end: &LogEnd,
) -> Result<Vec<Committed>, ExecuteError> {
    let left = (end.version + 1 - version) as usize;
    let events = log.read_versions(job.log_stream(), version, left.min(READ_EVENTS)).await?;
    if events.is_empty() { Err(ExecuteError::Unavailable) } else { Ok(events) }
}

/// A job's log as text, its lines opened, in pieces: as many as there are when it begins.
pub fn read_log_text(
    log: Log,
    job: JobId,
    end: LogEnd,
    plain: impl Fn(&str) -> String + Send + 'static,
) -> impl futures_util::Stream<Item = Result<Vec<u8>, ExecuteError>> + Send {
    async_stream::try_stream! {
        let mut version = 1;
        while version <= end.version {
            let events = read_some(&log, job, version, &end).await?;
            version += events.len() as u32;
            let opener = log.keys().opener(events.iter().flat_map(Committed::texts)).await?;
            let mut text = Vec::new();
            for event in &events {
                for row in rows(printed(event)?, event.recorded_at) {
                    text.extend_from_slice(plain(&opener.text(&row.text)).as_bytes());
                    text.push(b'\n');
                }
            }
            yield text;
        }
    }
}

/// The version of the event that holds a row; there is one.
async fn version_of_row(
    log: &Log,
    job: JobId,
    end: &LogEnd,
    row: u64,
) -> Result<u32, ExecuteError> {
    let (mut low, mut high) = (1, end.version + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let events = log.read_versions(job.log_stream(), middle, 1).await?;
        let event = events.first().ok_or(ExecuteError::Unavailable)?;
        if printed(event)?.first_row <= row {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// An event of a job's log as its followers get it: its rows, and how many there are by now.
pub fn log_message(event: &Committed) -> Option<Vec<u8>> {
    #[derive(Serialize)]
    struct Message<'a> {
        job_id: JobId,
        lines: Vec<LogRow<'a>>,
        total: u64,
    }
    let printed = printed(event).ok()?;
    let total = JobLog::after(printed, event.position).total;
    let lines = rows(printed, event.recorded_at).collect();
    let message = Message { job_id: printed.job_id, lines, total };
    Some(serde_json::to_vec(&message).expect("rows are plain data"))
}

fn printed(event: &Committed) -> Result<&JobLogRecorded, ExecuteError> {
    match event.event().map_err(|error| unreadable(event, error))? {
        Event::JobLogRecorded(printed) => Ok(printed),
        other => Err(ExecuteError::Unreadable(format!(
            "event {} is a {} in a log of printed lines",
            event.position,
            other.event_type().name()
        ))),
    }
}

fn owned(row: LogRow<'_>) -> LogRow<'static> {
    LogRow { text: row.text.into_owned().into(), ..row }
}
