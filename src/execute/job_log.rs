//! Printed lines go to the end of their job's log, a stream of its own.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use milepost_projections::JobLog;
use milepost_schemas::{
    AgentId, Attempt, Callback, CallbackKind, Event, JobId, Metadata, NodeId, Position,
};
use tokio::time::{Instant, timeout_at};

use super::{
    CONFLICTS_MAX, ExecuteError, JobOutcome, command_deadline, load_job, try_to_job, unreadable,
};
use crate::app::App;
use crate::domain::job_log::{PrintedLines, decide};
use crate::domain::{JobAnswer, JobCommand, job};
use crate::log::{AppendError, Committed, DatabaseError, Decision, Expected, Log};

/// Logs whose end is kept in memory; one that is not costs a read of its last event.
const LOGS_CACHED_MAX: NonZeroUsize = NonZeroUsize::new(4_096).expect("it is not zero");

/// Events read at once on the way back to the one that first brought a repeated line.
const LOOK_BACK_EVENTS: u32 = 16;

/// Where the logs of jobs stand that were written lately. Each has a lock, as jobs have: lines of
/// one run go in one behind the other.
pub struct JobLogCache(Mutex<LruCache<JobId, Arc<tokio::sync::Mutex<Option<End>>>>>);

/// What a job changes, as events name it.
type Subject = (Option<AgentId>, Option<NodeId>);

/// The end of a log.
struct End {
    version: u32,
    log: JobLog,
}

impl Default for JobLogCache {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(LOGS_CACHED_MAX)))
    }
}

impl JobLogCache {
    fn slot(&self, id: JobId) -> Arc<tokio::sync::Mutex<Option<End>>> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cache.get_or_insert(id, Arc::default))
    }
}

/// Takes a *log* callback.
///
/// # Errors
/// [`ExecuteError`]; nothing of it is in the log then, unless the log was `Unavailable`.
pub async fn to_job_log(
    app: &App,
    id: JobId,
    callback: Arc<Callback>,
    metadata: Arc<Metadata>,
) -> Result<JobOutcome, ExecuteError> {
    let deadline = command_deadline();
    let executed = try_to_job_log(app, id, callback, metadata, deadline);
    timeout_at(deadline, executed).await.unwrap_or(Err(ExecuteError::Unavailable))
}

async fn try_to_job_log(
    app: &App,
    id: JobId,
    callback: Arc<Callback>,
    metadata: Arc<Metadata>,
    deadline: Instant,
) -> Result<JobOutcome, ExecuteError> {
    let Some((subject, attempt)) = speaker(app, id, &callback).await? else {
        // Of an attempt that has not begun: the job keeps that it came.
        return try_to_job(app, id, JobCommand::Record(callback), metadata, None).await;
    };
    let CallbackKind::Log { from, lines } = &callback.kind else {
        return try_to_job(app, id, JobCommand::Record(callback), metadata, None).await;
    };
    let printed = PrintedLines { job_id: id, subject, attempt, from: *from, lines };
    let stream = id.log_stream();
    let slot = app.job_logs.slot(id);
    let mut slot = slot.lock().await;
    for _ in 0..CONFLICTS_MAX {
        let end = match slot.take() {
            Some(end) => end,
            None => load_end(&app.log, id).await?,
        };
        let Some(event) = decide(&end.log, &printed) else {
            let position = first_answer(&app.log, id, &end, attempt, *from).await?;
            *slot = Some(end);
            return Ok(JobOutcome { answer: JobAnswer::Repeated(position, None), position });
        };
        let decision = Decision {
            events: vec![(stream, event.into())],
            expected: vec![(stream, Expected::Version(end.version))],
            metadata: Arc::clone(&metadata),
            queue: None,
        };
        match app.log.append(decision, deadline).await {
            Ok(appended) => {
                *slot = appended.events.first().map(|event| end_at(event)).transpose()?;
                let position = appended.position();
                return Ok(JobOutcome { answer: JobAnswer::Applied, position });
            }
            Err(AppendError::Conflict(_)) => {}
            // It may be in the log all the same: the next lines read its end anew.
            Err(AppendError::Busy | AppendError::Unavailable) => {
                return Err(ExecuteError::Unavailable);
            }
        }
    }
    Err(ExecuteError::Unavailable)
}

/// What a job changes and the attempt that some lines belong to; `None` for an attempt that has not begun.
async fn speaker(
    app: &App,
    id: JobId,
    callback: &Callback,
) -> Result<Option<(Subject, Attempt)>, ExecuteError> {
    let slot = app.jobs.slot(id);
    let mut slot = slot.lock().await;
    // Another node may have begun an attempt that is not known here: who names none is told of the
    // one under way by the log alone.
    for known in [slot.take(), None] {
        let stands = known.is_none() || callback.attempt.is_some();
        let loaded = match known {
            Some(loaded) => Some(loaded),
            None => load_job(&app.log, id).await?,
        };
        let Some(loaded) = loaded else {
            app.jobs.forget(id);
            return Err(ExecuteError::UnknownJob);
        };
        let attempt = job::attempt_of(&loaded.job, callback);
        let (subject, current) = (loaded.job.subject.ids(), loaded.job.attempt().number);
        *slot = Some(loaded);
        if stands && attempt <= current {
            return Ok(Some((subject, attempt)));
        }
    }
    Ok(None)
}

async fn load_end(log: &Log, id: JobId) -> Result<End, ExecuteError> {
    let Some(last) = log.read_latest(id.log_stream()).await? else {
        return Ok(End { version: 0, log: JobLog::default() });
    };
    end_at(&last)
}

/// The end of a log whose last event this is.
fn end_at(last: &Committed) -> Result<End, ExecuteError> {
    let log = match last.event().map_err(|error| unreadable(last, error))? {
        Event::JobLogRecorded(event) => JobLog::after(event, last.position),
        _ => JobLog::default(),
    };
    Ok(End { version: last.version, log })
}

/// Where the line stands that is said again. Senders repeat what they said last, so this looks
/// from the end.
async fn first_answer(
    log: &Log,
    id: JobId,
    end: &End,
    attempt: Attempt,
    from: u64,
) -> Result<Position, DatabaseError> {
    let mut before = end.version + 1;
    while before > 1 {
        let first = before.saturating_sub(LOOK_BACK_EVENTS).max(1);
        let count = (before - first) as usize;
        let events = log.read_versions(id.log_stream(), first, count).await?;
        let holds = |event: &&Committed| match event.event() {
            Ok(Event::JobLogRecorded(printed)) => {
                let end = printed.from + printed.lines.len() as u64;
                // A line that was lost gets the answer of the gap.
                printed.attempt == attempt && (printed.from - printed.lost..end).contains(&from)
            }
            _ => false,
        };
        if let Some(event) = events.iter().rev().find(holds) {
            return Ok(event.position);
        }
        before = first;
    }
    Ok(end.log.position)
}
