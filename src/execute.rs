//! The one write door: load the state, decide, append; and again if somebody got in between.

mod job_log;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use milepost_projections::{Agent, Job};
use milepost_schemas::{AgentId, Event, JobId, Metadata, Position, StreamId};

use crate::app::App;
use crate::domain::agent::AgentRefusal;
use crate::domain::job::{JobDecision, JobRefusal};
use crate::domain::{AgentCommand, JobAnswer, JobCommand, agent, job};
use crate::log::{AppendError, Committed, DatabaseError, Decision, Expected, Log, QueueRow};

pub use job_log::{JobLogCache, to_job_log};

/// How often a decision is made anew because its stream moved on meanwhile.
const CONFLICTS_MAX: u32 = 8;

/// How long a command to a job may take, with its wait for those before it: while the log is out
/// of reach, each of them waits for it. Below the 10 s after which most webhook senders give up.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(9);

/// Jobs whose state is kept in memory; one that is not costs a read of its few events.
const JOBS_CACHED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// No such job.
    #[error("there is no such job")]
    UnknownJob,
    /// The job is not in a state for it.
    #[error(transparent)]
    Job(#[from] JobRefusal),
    /// The agent is not in a state for it.
    #[error(transparent)]
    Agent(#[from] AgentRefusal),
    /// Another job changes the agent now.
    #[error("another job is active for this agent")]
    Busy,
    /// The log cannot be written now.
    #[error("the log cannot be written")]
    Unavailable,
    /// The log cannot be read now.
    #[error("the log cannot be read")]
    Database(#[from] DatabaseError),
    /// An event of the stream cannot be read by this version: it does not guess.
    #[error("{0}")]
    Unreadable(String),
}

/// What a command to a job came to.
#[derive(Debug)]
pub struct JobOutcome {
    /// The decision's answer.
    pub answer: JobAnswer,
    /// Where its first event stands; for a repeat, the first one's.
    pub position: Position,
    /// The agent it concerns.
    pub agent_id: AgentId,
}

/// The states of jobs that were changed lately. Each has a lock: commands to one job go one after
/// the other, so that two callbacks of one run cannot push each other out.
pub struct JobCache(Mutex<LruCache<JobId, Arc<tokio::sync::Mutex<Option<Loaded>>>>>);

struct Loaded {
    version: u32,
    job: Job,
}

impl JobCache {
    /// An empty one.
    pub fn new() -> Self {
        Self(Mutex::new(LruCache::new(JOBS_CACHED_MAX)))
    }

    fn slot(&self, id: JobId) -> Arc<tokio::sync::Mutex<Option<Loaded>>> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cache.get_or_insert(id, Arc::default))
    }

    fn forget(&self, id: JobId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop(&id);
    }
}

impl Default for JobCache {
    fn default() -> Self {
        Self::new()
    }
}

/// Gives a command to a job.
///
/// # Errors
/// [`ExecuteError`]; nothing of it is in the log then, unless the log was `Unavailable`.
pub async fn to_job(
    app: &App,
    id: JobId,
    command: JobCommand,
    metadata: Metadata,
) -> Result<JobOutcome, ExecuteError> {
    let executed = try_to_job(app, id, command, metadata);
    tokio::time::timeout(COMMAND_TIMEOUT, executed).await.unwrap_or(Err(ExecuteError::Unavailable))
}

async fn try_to_job(
    app: &App,
    id: JobId,
    command: JobCommand,
    metadata: Metadata,
) -> Result<JobOutcome, ExecuteError> {
    let slot = app.jobs.slot(id);
    let mut slot = slot.lock().await;
    for _ in 0..CONFLICTS_MAX {
        let loaded = match slot.take() {
            Some(loaded) => loaded,
            None => match load_job(&app.log, id).await {
                Ok(Some(loaded)) => loaded,
                Ok(None) => {
                    app.jobs.forget(id);
                    return Err(ExecuteError::UnknownJob);
                }
                Err(error) => return Err(error),
            },
        };
        let loaded = slot.insert(loaded);
        let agent_id = loaded.job.agent_id;
        let now = app.clock.now();
        let decision = job::decide(&loaded.job, command.clone(), now, &app.config.limits)?;
        if decision.events.is_empty() {
            let position = match decision.answer {
                JobAnswer::Repeated(position, _) => position,
                JobAnswer::Applied | JobAnswer::Kept(_) | JobAnswer::Nothing => loaded.job.position,
            };
            return Ok(JobOutcome { answer: decision.answer, position, agent_id });
        }
        let answer = decision.answer.clone();
        let append = append_of(&loaded.job, loaded.version, decision, metadata.clone());
        match app.log.append(append).await {
            Ok(appended) => {
                let position = appended.position();
                fold(slot.take().expect("it was put there above"), &appended.events, id)
                    .map_or_else(|| app.jobs.forget(id), |folded| *slot = Some(folded));
                return Ok(JobOutcome { answer, position, agent_id });
            }
            Err(AppendError::Conflict(_)) => *slot = None,
            Err(AppendError::AgentBusy) => return Err(ExecuteError::Busy),
            Err(AppendError::Unavailable) => {
                // It may be in the log all the same: the next command reads it anew.
                *slot = None;
                return Err(ExecuteError::Unavailable);
            }
        }
    }
    Err(ExecuteError::Unavailable)
}

/// Gives a command to an agent.
///
/// # Errors
/// [`ExecuteError`]; nothing of it is in the log then, unless the log was `Unavailable`.
pub async fn to_agent(
    app: &App,
    id: AgentId,
    command: AgentCommand,
    metadata: Metadata,
) -> Result<Position, ExecuteError> {
    for _ in 0..CONFLICTS_MAX {
        let (version, state) = load_agent(&app.log, id).await?;
        let events = agent::decide(state.as_ref(), id, command.clone())?;
        let queue = events.iter().find_map(|event| queued(event, app.clock.now()));
        let streams: Vec<StreamId> = events.iter().map(|event| stream_of(event, id)).collect();
        let expected = streams
            .iter()
            .map(|stream| {
                let own = *stream == id.stream();
                (*stream, Expected::Version(if own { version } else { 0 }))
            })
            .collect();
        let events = streams.into_iter().zip(events).collect();
        match app.log.append(Decision { events, expected, metadata: metadata.clone(), queue }).await
        {
            Ok(appended) => return Ok(appended.position()),
            Err(AppendError::Conflict(_)) => {}
            Err(AppendError::AgentBusy) => return Err(ExecuteError::Busy),
            Err(AppendError::Unavailable) => return Err(ExecuteError::Unavailable),
        }
    }
    Err(ExecuteError::Unavailable)
}

/// Reads a job's state from the log, as fresh as the database is.
///
/// # Errors
/// [`ExecuteError::Database`] or [`ExecuteError::Unreadable`].
pub async fn read_job(log: &Log, id: JobId) -> Result<Option<Job>, ExecuteError> {
    Ok(load_job(log, id).await?.map(|loaded| loaded.job))
}

async fn load_job(log: &Log, id: JobId) -> Result<Option<Loaded>, ExecuteError> {
    let events = log.read_streams(&[id.stream()]).await?;
    let version = events.last().map_or(0, |event| event.version);
    let mut job = None;
    for event in &events {
        let recorded = event.recorded().map_err(|error| unreadable(event, error))?;
        Job::apply(&mut job, &recorded);
    }
    Ok(job.map(|job| Loaded { version, job }))
}

async fn load_agent(log: &Log, id: AgentId) -> Result<(u32, Option<Agent>), ExecuteError> {
    let events = log.read_streams(&[id.stream()]).await?;
    let version = events.last().map_or(0, |event| event.version);
    let mut agent = None;
    for event in &events {
        let recorded = event.recorded().map_err(|error| unreadable(event, error))?;
        Agent::apply(&mut agent, &recorded);
    }
    Ok((version, agent))
}

/// An event this version cannot read, in words.
pub fn unreadable(event: &Committed, error: &milepost_schemas::DecodeError) -> ExecuteError {
    ExecuteError::Unreadable(format!("event {} cannot be read: {error}", event.position))
}

fn fold(mut loaded: Loaded, events: &[Arc<Committed>], id: JobId) -> Option<Loaded> {
    let mut job = Some(loaded.job);
    for event in events.iter().filter(|event| event.stream == id.stream()) {
        Job::apply(&mut job, &event.recorded().ok()?);
        loaded.version = event.version;
    }
    loaded.job = job?;
    Some(loaded)
}

fn append_of(job: &Job, version: u32, decision: JobDecision, metadata: Metadata) -> Decision {
    let queue = decision.queue.map(|(state, due_at)| QueueRow {
        job_id: job.id,
        job_type: job.job_type.clone(),
        agent_id: Some(job.agent_id.0),
        state: state.as_str(),
        due_at,
    });
    let mut expected = vec![(job.id.stream(), Expected::Version(version))];
    let mut events = Vec::with_capacity(decision.events.len());
    for event in decision.events {
        let stream = stream_of(&event, job.agent_id);
        if stream != job.id.stream() {
            // What follows for the instance and the agent is decided here, by the job.
            expected.push((stream, Expected::Any));
        }
        events.push((stream, event));
    }
    Decision { events, expected, metadata, queue }
}

fn queued(event: &Event, now: jiff::Timestamp) -> Option<QueueRow> {
    let Event::JobQueued(job) = event else { return None };
    Some(QueueRow {
        job_id: job.job_id,
        job_type: job.job_type.clone(),
        agent_id: Some(job.agent_id.0),
        state: crate::domain::QueueState::Queued.as_str(),
        due_at: now,
    })
}

/// The stream an event of a decision belongs to.
fn stream_of(event: &Event, agent: AgentId) -> StreamId {
    match event {
        Event::InstanceRequested(event) => event.instance_id.stream(),
        Event::InstanceStarted(event) => event.instance_id.stream(),
        Event::AgentCreated(_)
        | Event::ProvisioningRequested(_)
        | Event::AgentActivated(_)
        | Event::ProvisioningEnded(_) => agent.stream(),
        other => {
            milepost_projections::job::job_of(other).map_or_else(|| agent.stream(), JobId::stream)
        }
    }
}
