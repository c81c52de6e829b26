//! The one write door: load the state, decide, append; and again if somebody got in between.

mod job_log;
mod privacy;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use milepost_projections::compensation::orphan_stream;
use milepost_projections::job::job_of;
use milepost_projections::node::{address_stream, node_of};
use milepost_projections::upkeep::upkeep_stream;
use milepost_projections::{Agent, Job, Node, NodeStatus, Queue, Upkeep};
use milepost_schemas::event::NotApplied;
use milepost_schemas::{AgentId, CallbackKind, Event, JobId, Metadata, NodeId, Position, StreamId};

use tokio::time::{Instant, timeout_at};

use crate::app::App;
use crate::domain::agent::AgentRefusal;
use crate::domain::job::{JobDecision, JobRefusal};
use crate::domain::node::{Host, NodeRefusal};
use crate::domain::queue::QueueRefusal;
use crate::domain::upkeep::UpkeepRefusal;
use crate::domain::{
    AgentCommand, JobAnswer, JobCommand, NodeCommand, QueueCommand, UpkeepCommand, agent, job,
    node, queue, upkeep,
};
use crate::log::{
    AppendError, Committed, DatabaseError, Decision, Expected, KeyError, Log, QueueRow,
};

pub use job_log::{JobLogCache, to_job_log};
pub use privacy::erase_personal_data;

/// How often a decision is made anew because its stream moved on meanwhile.
const CONFLICTS_MAX: u32 = 8;

/// How long a command may take, with its wait for those before it to the same job: while the log
/// is out of reach, each of them waits for it. Below the 10 s after which `curl` as workflows call
/// it and most webhook senders give up.
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
    /// The node is not in a state for it.
    #[error(transparent)]
    Node(#[from] NodeRefusal),
    /// No such agent, node or stream.
    #[error("there is no such agent, node or stream")]
    UnknownSubject,
    /// Personal data in this stream is another's.
    #[error("its personal data is that of {0} {1}: erase that")]
    OfSubject(&'static str, StreamId),
    /// The queue is not in a state for it.
    #[error(transparent)]
    Queue(#[from] QueueRefusal),
    /// The view is not in a state for it.
    #[error(transparent)]
    Upkeep(#[from] UpkeepRefusal),
    /// What the command depends on has changed meanwhile.
    #[error("it has changed meanwhile")]
    Moved,
    /// Another job changes the same agent or node now.
    #[error("another job is active for this {0}")]
    Busy(&'static str),
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
    metadata: impl Into<Arc<Metadata>>,
) -> Result<JobOutcome, ExecuteError> {
    try_to_job(app, id, command, metadata.into(), None).await
}

/// As [`to_job`], but only while the queue's own stream has the version it was read at: nothing
/// is claimed once a pause is in the log.
///
/// # Errors
/// [`ExecuteError::Moved`] when it has another one; else as [`to_job`].
pub async fn to_job_in_queue(
    app: &App,
    id: JobId,
    command: JobCommand,
    metadata: impl Into<Arc<Metadata>>,
    queue_version: u32,
) -> Result<JobOutcome, ExecuteError> {
    try_to_job(app, id, command, metadata.into(), Some(queue_version)).await
}

async fn try_to_job(
    app: &App,
    id: JobId,
    command: JobCommand,
    metadata: Arc<Metadata>,
    queue_version: Option<u32>,
) -> Result<JobOutcome, ExecuteError> {
    let deadline = command_deadline();
    let slot = app.jobs.slot(id);
    let mut slot = match slot.try_lock() {
        Ok(slot) => slot,
        Err(_) => timeout_at(deadline, slot.lock()).await.map_err(|_| ExecuteError::Unavailable)?,
    };
    for _ in 0..CONFLICTS_MAX {
        // Out of its slot: should nobody wait for this any more, the next command reads it anew.
        let mut loaded = slot.take();
        let cached = loaded.is_some();
        if !cached {
            let read = timeout_at(deadline, load_job(&app.log, id)).await;
            loaded = read.unwrap_or(Err(ExecuteError::Unavailable))?;
        }
        let Some(loaded) = loaded else {
            app.jobs.forget(id);
            return Err(ExecuteError::UnknownJob);
        };
        let (now, subject) = (app.clock.now(), loaded.job.subject.word());
        let decision = job::decide(&loaded.job, command.clone(), now, &app.config.limits);
        if cached && !stands(&command, &decision) {
            continue;
        }
        let decision = match decision {
            Ok(decision) => decision,
            Err(refusal) => {
                *slot = Some(loaded);
                return Err(refusal.into());
            }
        };
        if decision.events.is_empty() {
            let position = match decision.answer {
                JobAnswer::Repeated(position, _) => position,
                JobAnswer::Applied | JobAnswer::Kept(_) | JobAnswer::Nothing => loaded.job.position,
            };
            *slot = Some(loaded);
            return Ok(JobOutcome { answer: decision.answer, position });
        }
        let answer = decision.answer.clone();
        let mut append = append_of(&loaded.job, loaded.version, decision, Arc::clone(&metadata));
        let queue = queue_version.map(|version| (StreamId::QUEUE, Expected::Version(version)));
        append.expected.extend(queue);
        match app.log.append(append, deadline).await {
            Ok(appended) => {
                let position = appended.position();
                fold(loaded, &appended.events, id)
                    .map_or_else(|| app.jobs.forget(id), |folded| *slot = Some(folded));
                return Ok(JobOutcome { answer, position });
            }
            Err(AppendError::Conflict(StreamId::QUEUE)) => return Err(ExecuteError::Moved),
            Err(AppendError::Conflict(_)) => {}
            Err(AppendError::Busy) => return Err(ExecuteError::Busy(subject)),
            // It may be in the log all the same: the next command reads it anew.
            Err(AppendError::Unavailable) => return Err(ExecuteError::Unavailable),
        }
    }
    Err(ExecuteError::Unavailable)
}

/// Whether a decision on a state that was kept in memory needs no look at the log. Events are
/// checked against it when they are appended. What adds none is checked by nobody, and another node
/// may have moved the job on; it stands only where no later event can change it: a repeat of what
/// the job has seen, in an attempt that is told by the callback and not by the state. The gate for a
/// *started* can still close, and an attempt that had not begun may have (`.github/decisions/0032`).
fn stands(command: &JobCommand, decision: &Result<JobDecision, JobRefusal>) -> bool {
    let Ok(JobDecision { events, answer, .. }) = decision else { return false };
    if !events.is_empty() {
        return true;
    }
    let (JobCommand::Record(callback), JobAnswer::Repeated(_, reason)) = (command, answer) else {
        return false;
    };
    let kind = &callback.kind;
    let told = callback.attempt.is_some() || callback.delivery_id.is_some() && !kind.is_numbered();
    told && !matches!(kind, CallbackKind::Started) && *reason != Some(NotApplied::AttemptNotBegun)
}

/// Gives a command to an agent.
///
/// # Errors
/// [`ExecuteError`]; nothing of it is in the log then, unless the log was `Unavailable`.
pub async fn to_agent(
    app: &App,
    id: AgentId,
    command: AgentCommand,
    metadata: impl Into<Arc<Metadata>>,
) -> Result<Position, ExecuteError> {
    let (metadata, deadline) = (metadata.into(), command_deadline());
    for _ in 0..CONFLICTS_MAX {
        let (version, state) = load_agent(&app.log, id).await?;
        let events = agent::decide(state.as_ref(), id, command.clone())?;
        match order(app, id.stream(), version, events, &metadata, deadline).await {
            Err(AppendError::Conflict(_)) => {}
            Err(AppendError::Busy) => return Err(ExecuteError::Busy("agent")),
            appended => return Ok(appended?),
        }
    }
    Err(ExecuteError::Unavailable)
}

/// When a command that comes in now must be answered.
pub fn command_deadline() -> Instant {
    Instant::now() + COMMAND_TIMEOUT
}

/// Gives a command to a node.
///
/// # Errors
/// [`ExecuteError`]; nothing of it is in the log then, unless the log was `Unavailable`.
pub async fn to_node(
    app: &App,
    id: NodeId,
    command: NodeCommand,
    metadata: impl Into<Arc<Metadata>>,
) -> Result<Position, ExecuteError> {
    let (metadata, deadline) = (metadata.into(), command_deadline());
    for _ in 0..CONFLICTS_MAX {
        let (version, state) = load_node(&app.log, id).await?;
        let events = node::decide(state.as_ref(), id, command.clone())?;
        match order(app, id.stream(), version, events, &metadata, deadline).await {
            Err(AppendError::Conflict(_)) => {}
            Err(AppendError::Busy) => return Err(ExecuteError::Busy("node")),
            appended => return Ok(appended?),
        }
    }
    Err(ExecuteError::Unavailable)
}

/// Makes a node known. Its host name and its address each have a stream that says whose they are,
/// so that two nodes cannot take one at once, on whatever server they are registered. Such a stream
/// is named by a keyed hash; earlier ones, by one that anybody can try, are still looked at.
///
/// # Errors
/// [`ExecuteError`]; nothing of it is in the log then, unless the log was `Unavailable`.
pub async fn register_node(
    app: &App,
    id: NodeId,
    host: &Host,
    metadata: impl Into<Arc<Metadata>>,
) -> Result<Position, ExecuteError> {
    let (metadata, deadline) = (metadata.into(), command_deadline());
    for _ in 0..CONFLICTS_MAX {
        let mut taken_by = Vec::new();
        let mut expected = vec![(id.stream(), Expected::Version(0))];
        let mut streams = Vec::new();
        for address in host.addresses() {
            let stream = app.log.keys().address_stream(&address).await;
            let stream = stream.map_err(KeyError::into_database)?;
            for stream in [stream, address_stream(&address)] {
                let (version, holder) = load_holder(&app.log, stream).await?;
                taken_by.extend(holder);
                expected.push((stream, Expected::Version(version)));
            }
            streams.push((address, stream));
        }
        let command = NodeCommand::Register { host: host.clone(), taken_by };
        let events = node::decide(None, id, command)?;
        let of = |event: &Event| match event {
            Event::NodeAddressTaken(taken) => {
                streams.iter().find(|(address, _)| *address == taken.address).map(|(_, it)| *it)
            }
            _ => None,
        };
        let events = events
            .into_iter()
            .map(|event| (of(&event).unwrap_or_else(|| stream_of(&event)), event));
        let events = events.collect();
        let decision = Decision { events, expected, metadata: Arc::clone(&metadata), queue: None };
        match app.log.append(decision, deadline).await {
            Err(AppendError::Conflict(_)) => {}
            appended => return Ok(appended?.position()),
        }
    }
    Err(ExecuteError::Unavailable)
}

/// The node that a host name or an address belongs to; one that was given up has none.
async fn load_holder(log: &Log, stream: StreamId) -> Result<(u32, Option<NodeId>), ExecuteError> {
    let Some(latest) = log.read_latest(stream).await? else { return Ok((0, None)) };
    let event = latest.event().map_err(|error| unreadable(&latest, error))?;
    let Event::NodeAddressTaken(taken) = event else { return Ok((latest.version, None)) };
    let (_, node) = load_node(log, taken.node_id).await?;
    let holder = node.filter(|node| node.status != NodeStatus::Decommissioned);
    Ok((latest.version, holder.map(|node| node.id)))
}

/// Gives a command to the queue itself.
///
/// # Errors
/// [`ExecuteError`]; nothing of it is in the log then, unless the log was `Unavailable`.
pub async fn to_queue(
    app: &App,
    command: QueueCommand,
    metadata: impl Into<Arc<Metadata>>,
) -> Result<Position, ExecuteError> {
    let (metadata, deadline) = (metadata.into(), command_deadline());
    for _ in 0..CONFLICTS_MAX {
        let (version, queue) = read_queue(&app.log).await?;
        let events = vec![queue::decide(&queue, command.clone())?];
        match order(app, StreamId::QUEUE, version, events, &metadata, deadline).await {
            Err(AppendError::Conflict(_)) => {}
            appended => return Ok(appended?),
        }
    }
    Err(ExecuteError::Unavailable)
}

/// Reads the queue's own state from the log, and the version of its stream.
///
/// # Errors
/// [`ExecuteError::Database`] or [`ExecuteError::Unreadable`].
pub async fn read_queue(log: &Log) -> Result<(u32, Queue), ExecuteError> {
    let Some(latest) = log.read_latest(StreamId::QUEUE).await? else {
        return Ok((0, Queue::default()));
    };
    Ok((latest.version, queue_after(log, latest).await?))
}

/// The queue after an event of its stream.
///
/// # Errors
/// [`ExecuteError::Database`] or [`ExecuteError::Unreadable`].
pub async fn queue_after(log: &Log, event: Committed) -> Result<Queue, ExecuteError> {
    let mut latest = Some(event);
    while let Some(event) = latest {
        let recorded = event.recorded().map_err(|error| unreadable(&event, error))?;
        if let Some(queue) = Queue::after(&recorded) {
            return Ok(queue);
        }
        // That its personal data was erased, which happens once, says nothing of the queue.
        let Some(before) = event.version.checked_sub(1).filter(|before| *before > 0) else { break };
        latest = log.read_versions(StreamId::QUEUE, before, 1).await?.pop();
    }
    Ok(Queue::default())
}

/// Gives a command to a view.
///
/// # Errors
/// [`ExecuteError`]; nothing of it is in the log then, unless the log was `Unavailable`.
pub async fn to_projection(
    app: &App,
    projection: &str,
    command: UpkeepCommand,
    metadata: impl Into<Arc<Metadata>>,
) -> Result<Position, ExecuteError> {
    let (metadata, deadline) = (metadata.into(), command_deadline());
    let stream = upkeep_stream(projection);
    for _ in 0..CONFLICTS_MAX {
        let (version, state) = read_upkeep(&app.log, projection).await?;
        let events = upkeep::decide(&state, projection, &metadata.actor, command.clone())?;
        match order(app, stream, version, events, &metadata, deadline).await {
            Err(AppendError::Conflict(_)) => {}
            appended => return Ok(appended?),
        }
    }
    Err(ExecuteError::Unavailable)
}

/// Reads what was ordered of a view from the log, and the version of its stream.
///
/// # Errors
/// [`ExecuteError::Database`] or [`ExecuteError::Unreadable`].
pub async fn read_upkeep(log: &Log, projection: &str) -> Result<(u32, Upkeep), ExecuteError> {
    let events = log.read_streams(&[upkeep_stream(projection)]).await?;
    let mut upkeep = Upkeep::default();
    for event in &events {
        upkeep.apply(&event.recorded().map_err(|error| unreadable(event, error))?);
    }
    Ok((events.last().map_or(0, |event| event.version), upkeep))
}

/// Records a fact of which its stream holds one; whether it is new.
///
/// # Errors
/// [`ExecuteError`]; it is not in the log then, unless the log was `Unavailable`.
pub async fn record_once(
    app: &App,
    event: Event,
    metadata: impl Into<Arc<Metadata>>,
) -> Result<bool, ExecuteError> {
    let (metadata, deadline) = (metadata.into(), command_deadline());
    let (stream, code) = (stream_of(&event), event.event_type().code());
    for _ in 0..CONFLICTS_MAX {
        let known = app.log.read_streams(&[stream]).await?;
        if known.iter().any(|known| known.code == code) {
            return Ok(false);
        }
        let version = known.last().map_or(0, |known| known.version);
        let decision = Decision {
            events: vec![(stream, event.clone())],
            expected: vec![(stream, Expected::Version(version))],
            metadata: Arc::clone(&metadata),
            queue: None,
        };
        match app.log.append(decision, deadline).await {
            Err(AppendError::Conflict(_)) => {}
            appended => return Ok(appended.map(|_| true)?),
        }
    }
    Err(ExecuteError::Unavailable)
}

/// Appends what an order to one stream does; the other streams it begins are new.
async fn order(
    app: &App,
    own: StreamId,
    version: u32,
    events: Vec<Event>,
    metadata: &Arc<Metadata>,
    deadline: Instant,
) -> Result<Position, AppendError> {
    let queue = events.iter().find_map(|event| queued(event, app.clock.now()));
    let events: Vec<_> = events.into_iter().map(|event| (stream_of(&event), event)).collect();
    let expected = events
        .iter()
        .map(|(stream, _)| (*stream, Expected::Version(if *stream == own { version } else { 0 })))
        .collect();
    let decision = Decision { events, expected, metadata: Arc::clone(metadata), queue };
    Ok(app.log.append(decision, deadline).await?.position())
}

impl From<AppendError> for ExecuteError {
    fn from(error: AppendError) -> Self {
        match error {
            // Of a conflict one decides anew; who has not is told to come back.
            AppendError::Busy | AppendError::Conflict(_) | AppendError::Unavailable => {
                Self::Unavailable
            }
        }
    }
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

/// Reads an agent's state from the log, as fresh as the database is.
///
/// # Errors
/// [`ExecuteError::Database`] or [`ExecuteError::Unreadable`].
pub async fn read_agent(log: &Log, id: AgentId) -> Result<Option<Agent>, ExecuteError> {
    Ok(load_agent(log, id).await?.1)
}

/// Reads a node's state from the log, as fresh as the database is.
///
/// # Errors
/// [`ExecuteError::Database`] or [`ExecuteError::Unreadable`].
pub async fn read_node(log: &Log, id: NodeId) -> Result<Option<Node>, ExecuteError> {
    Ok(load_node(log, id).await?.1)
}

async fn load_node(log: &Log, id: NodeId) -> Result<(u32, Option<Node>), ExecuteError> {
    let events = log.read_streams(&[id.stream()]).await?;
    let version = events.last().map_or(0, |event| event.version);
    let mut node = None;
    for event in &events {
        let recorded = event.recorded().map_err(|error| unreadable(event, error))?;
        Node::apply(&mut node, &recorded);
    }
    Ok((version, node))
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

fn append_of(job: &Job, version: u32, decision: JobDecision, metadata: Arc<Metadata>) -> Decision {
    let changed = decision.events.iter().find_map(|event| {
        if let Event::JobPriorityChanged(event) = event { Some(event.priority) } else { None }
    });
    let priority = changed.unwrap_or(job.priority);
    let queue = decision.queue.map(|(state, due_at)| QueueRow {
        job_id: job.id,
        job_type: job.job_type.clone(),
        agent_id: job.subject.agent_id(),
        node_id: job.subject.node_id(),
        state: state.as_str(),
        due_at,
        priority,
        claim_ordinal: None,
    });
    let mut expected = vec![(job.id.stream(), Expected::Version(version))];
    let mut events = Vec::with_capacity(decision.events.len());
    for event in decision.events {
        let stream = stream_of(&event);
        if stream != job.id.stream() {
            // What follows for what the job changes is decided here, by the job.
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
        agent_id: job.agent_id,
        node_id: job.node_id,
        state: crate::domain::QueueState::Queued.as_str(),
        due_at: now,
        priority: 0,
        claim_ordinal: None,
    })
}

/// The stream an event of a decision belongs to.
fn stream_of(event: &Event) -> StreamId {
    match event {
        Event::AgentCreated(event) => event.agent_id.stream(),
        Event::ProvisioningRequested(event) => event.agent_id.stream(),
        Event::AgentActivated(event) => event.agent_id.stream(),
        Event::ProvisioningEnded(event) => event.agent_id.stream(),
        Event::InstanceRequested(event) => event.instance_id.stream(),
        Event::InstanceStarted(event) => event.instance_id.stream(),
        Event::NodeAddressTaken(event) => address_stream(&event.address),
        Event::InstanceServerMissing(event) => event.instance_id.stream(),
        Event::InstanceServerNotFound(event) => event.instance_id.stream(),
        Event::OrphanFound(event) => orphan_stream(event.resource, &event.resource_id),
        Event::OrphanRemoved(event) => orphan_stream(event.resource, &event.resource_id),
        Event::QueuePaused(_) | Event::QueueResumed(_) => StreamId::QUEUE,
        Event::LogKeyRotated(_)
        | Event::LogEpochBegun(_)
        | Event::LogRangeArchived(_)
        | Event::LogRangeRestored(_) => StreamId::LEDGER,
        Event::ProjectionRebuildRequested(event) => upkeep_stream(&event.projection),
        Event::ProjectionRollbackRequested(event) => upkeep_stream(&event.projection),
        Event::ProjectionVerifyRequested(event) => upkeep_stream(&event.projection),
        Event::ProjectionSwitchRequested(event) => upkeep_stream(&event.projection),
        Event::ProjectionOrderCancelled(event) => upkeep_stream(&event.projection),
        Event::ProjectionOrderEnded(event) => upkeep_stream(&event.projection),
        Event::ProjectionEventSkipped(event) => upkeep_stream(&event.projection),
        Event::PersonalDataErased(event) => event.subject,
        other => match (job_of(other), node_of(other)) {
            (Some(job), _) => job.stream(),
            (None, node) => node.expect("all others are of a job or a node").stream(),
        },
    }
}
