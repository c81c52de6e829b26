//! What there was at a position: the same folds over the same events, up to there.
//!
//! One thing is folded from its streams. A list is made of what had been born by then, the newest
//! ids first, and the streams of those: it costs what its rows have lived through, however long the
//! log is, and keeps in memory the events of [`CHUNK`] things at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use milepost_projections::board::{Boards, InstanceStatus};
use milepost_projections::job::{JobStatus, Jobs, job_of};
use milepost_projections::node::{Nodes, address_stream, node_of};
use milepost_projections::steps::COUNT;
use milepost_projections::usual::JOBS_MAX;
use milepost_projections::{
    Board, Job, NodeRow, NodeStatus, Projection, Queue, UsualDuration, usual,
};
use milepost_schemas::{AgentId, Event, JobId, NodeId, Position, StreamId};
use uuid::Uuid;

use super::LIST_ROWS_MAX;
use crate::execute::{ExecuteError, queue_after, unreadable};
use crate::log::{Birth, Committed, DatabaseError, KeyError, Log};

/// Things whose events are in memory at once: some ten thousand events of the largest jobs.
const CHUNK: usize = 50;

/// Agents, jobs and nodes that are counted at a position; more take longer than anybody waits.
pub const COUNTED_MAX: usize = 50_000;

/// Positions whose counts and usual durations are kept: for pages that are turned back and forth.
const KEPT_MAX: usize = 16;

/// Answers by their position, the oldest first.
type Recent<T> = Mutex<VecDeque<(Position, T)>>;

/// What was counted and found usual at the positions that were asked for last. What is past does
/// not change, so nothing of it grows old.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    counts: Arc<Recent<Arc<Counts>>>,
    usual: Arc<Recent<[Option<UsualDuration>; COUNT]>>,
    /// Counting goes through everything: once at a time in a process.
    counting: Arc<tokio::sync::Mutex<()>>,
}

/// What is read of a thing. Its state comes from its latest job alone, as an answer about one thing
/// reads it; the row of a list also counts the events of earlier ones, for it says which was its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Latest,
    Whole,
}

impl Reach {
    fn add(self, streams: &mut Vec<StreamId>, more: &[StreamId]) {
        if self == Self::Latest {
            streams.clear();
        }
        streams.extend(more);
    }
}

/// How many there were of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs by their status.
    pub jobs: HashMap<JobStatus, i64>,
    /// Agents by the status of their instance, `new` before the first order.
    pub agents: HashMap<&'static str, i64>,
    /// Active nodes.
    pub nodes_active: i64,
}

/// Jobs of a list at a position.
#[derive(Debug)]
pub struct JobsFound {
    /// They, the newest first.
    pub jobs: Vec<Job>,
    /// Where to go on, when [`LIST_ROWS_MAX`] jobs were looked at and not all wanted were found.
    pub next_before: Option<JobId>,
}

/// The agents there were, before one if it is given, the newest first; at most [`LIST_ROWS_MAX`].
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn boards_at(
    log: &Log,
    upto: Position,
    before: Option<Uuid>,
) -> Result<Vec<Board>, ExecuteError> {
    let born = log.read_births(Birth::Agent, upto, before, LIST_ROWS_MAX).await?;
    let mut boards = Vec::with_capacity(born.len());
    for chunk in born.chunks(CHUNK) {
        let mut folded = fold_boards(log, chunk, upto, Reach::Whole).await?;
        boards.extend(chunk.iter().filter_map(|agent| folded.remove(&agent.0)));
    }
    Ok(boards)
}

/// The nodes there were, before one if it is given, the newest first; at most [`LIST_ROWS_MAX`].
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn nodes_at(
    log: &Log,
    upto: Position,
    before: Option<Uuid>,
) -> Result<Vec<NodeRow>, ExecuteError> {
    let born = log.read_births(Birth::Node, upto, before, LIST_ROWS_MAX).await?;
    let mut rows = Vec::with_capacity(born.len());
    for chunk in born.chunks(CHUNK) {
        let mut folded = fold_nodes(log, chunk, upto, Reach::Whole).await?;
        rows.extend(chunk.iter().filter_map(|node| folded.remove(&node.0)));
    }
    Ok(rows)
}

/// The jobs there were, the newest first: those of a status, if one is given, and those before a
/// job, if one is.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn jobs_at(
    log: &Log,
    upto: Position,
    status: Option<JobStatus>,
    before: Option<JobId>,
    limit: usize,
) -> Result<JobsFound, ExecuteError> {
    let limit = limit.min(LIST_ROWS_MAX);
    // Without a status every job is wanted.
    let looked_at = if status.is_some() { LIST_ROWS_MAX } else { limit };
    let born = log.read_births(Birth::Job, upto, before.map(|job| job.0), looked_at).await?;
    let mut found = Vec::new();
    for chunk in born.chunks(CHUNK) {
        let mut folded = fold_jobs(log, chunk, upto).await?;
        let jobs = chunk.iter().filter_map(|job| folded.remove(&job.0).flatten());
        found.extend(jobs.filter(|job| status.is_none_or(|status| job.status == status)));
        if found.len() >= limit {
            found.truncate(limit);
            return Ok(JobsFound { jobs: found, next_before: None });
        }
    }
    let more = status.is_some() && born.len() == LIST_ROWS_MAX;
    let next_before = born.last().filter(|_| more).map(|job| JobId(job.0));
    Ok(JobsFound { jobs: found, next_before })
}

/// One agent's row of the board as it was; `None` where there was no such agent yet.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn board_at(
    log: &Log,
    id: AgentId,
    upto: Position,
) -> Result<Option<Board>, ExecuteError> {
    let board = fold_boards(log, &[id.stream()], upto, Reach::Latest).await?.remove(&id.0);
    Ok(board.filter(|board| board.agent.is_some()))
}

/// One node with its latest job as it was; `None` where there was no such node yet.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn node_at(
    log: &Log,
    id: NodeId,
    upto: Position,
) -> Result<Option<NodeRow>, ExecuteError> {
    let row = fold_nodes(log, &[id.stream()], upto, Reach::Latest).await?.remove(&id.0);
    Ok(row.filter(|row| row.node.is_some()))
}

/// One job as it was; `None` where there was no such job yet.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn job_at(log: &Log, id: JobId, upto: Position) -> Result<Option<Job>, ExecuteError> {
    Ok(fold_jobs(log, &[id.stream()], upto).await?.remove(&id.0).flatten())
}

/// Whether the queue was stopped, by whom and why.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn queue_at(log: &Log, upto: Position) -> Result<Queue, ExecuteError> {
    let Some(latest) = log.read_latest_upto(StreamId::QUEUE, upto).await? else {
        return Ok(Queue::default());
    };
    queue_after(log, latest).await
}

/// How many there were of everything; `None` when there were more than [`COUNTED_MAX`].
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn counts_at(
    log: &Log,
    kept: &Kept,
    upto: Position,
) -> Result<Option<Arc<Counts>>, ExecuteError> {
    let _one_at_a_time = kept.counting.lock().await;
    if let Some(counts) = find(&kept.counts, upto) {
        return Ok(Some(counts));
    }
    let Some(counts) = count(log, upto).await? else { return Ok(None) };
    let counts = Arc::new(counts);
    keep(&kept.counts, upto, Arc::clone(&counts));
    Ok(Some(counts))
}

/// How long each step usually took then: by the jobs that had succeeded lately.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn usual_at(
    log: &Log,
    kept: &Kept,
    upto: Position,
) -> Result<[Option<UsualDuration>; COUNT], ExecuteError> {
    if let Some(usual) = find(&kept.usual, upto) {
        return Ok(usual);
    }
    let born = log.read_births(Birth::SucceededJob, upto, None, JOBS_MAX).await?;
    let mut jobs = Vec::with_capacity(born.len());
    for chunk in born.chunks(CHUNK) {
        match fold_jobs(log, chunk, upto).await {
            Ok(folded) => jobs.extend(folded.into_values().flatten()),
            // The newest ones are here, the oldest ones are archived.
            Err(ExecuteError::Database(DatabaseError::Archived { .. })) => break,
            Err(error) => return Err(error),
        }
    }
    let usual = usual(jobs.iter().filter(|job| job.subject.agent_id().is_some()));
    keep(&kept.usual, upto, usual);
    Ok(usual)
}

async fn count(log: &Log, upto: Position) -> Result<Option<Counts>, ExecuteError> {
    let mut counts = Counts::default();
    let mut counted = 0;
    for birth in [Birth::Agent, Birth::Job, Birth::Node] {
        let mut before = None;
        loop {
            let born = log.read_births(birth, upto, before, CHUNK).await?;
            let Some(last) = born.last() else { break };
            before = Some(last.0);
            counted += born.len();
            if counted > COUNTED_MAX {
                return Ok(None);
            }
            count_some(log, birth, &born, upto, &mut counts).await?;
        }
    }
    Ok(Some(counts))
}

async fn count_some(
    log: &Log,
    birth: Birth,
    born: &[StreamId],
    upto: Position,
    counts: &mut Counts,
) -> Result<(), ExecuteError> {
    match birth {
        Birth::Agent => {
            for board in fold_boards(log, born, upto, Reach::Latest).await?.values() {
                let label = board.status().map_or("new", InstanceStatus::as_str);
                *counts.agents.entry(label).or_default() += 1;
            }
        }
        Birth::Job | Birth::SucceededJob => {
            for job in fold_jobs(log, born, upto).await?.into_values().flatten() {
                *counts.jobs.entry(job.status).or_default() += 1;
            }
        }
        Birth::Node => {
            let rows = fold_nodes(log, born, upto, Reach::Latest).await?;
            let nodes = rows.values().filter_map(|row| row.node.as_ref());
            let active = nodes.filter(|node| node.status == NodeStatus::Active);
            counts.nodes_active += active.count() as i64;
        }
    }
    Ok(())
}

/// Agents with their orders.
async fn fold_boards(
    log: &Log,
    agents: &[StreamId],
    upto: Position,
    reach: Reach,
) -> Result<HashMap<Uuid, Board>, ExecuteError> {
    let mut events = log.read_streams_upto(agents, upto).await?;
    let mut orders: HashMap<StreamId, Vec<StreamId>> = HashMap::new();
    for event in &events {
        if let Ok(Event::ProvisioningRequested(order)) = event.event() {
            let streams = [order.job_id.stream(), order.instance_id.stream()];
            reach.add(orders.entry(event.stream).or_default(), &streams);
        }
    }
    let others: Vec<StreamId> = orders.into_values().flatten().collect();
    events.extend(log.read_streams_upto(&others, upto).await?);
    fold::<Boards>(events)
}

/// Nodes with their jobs.
async fn fold_nodes(
    log: &Log,
    nodes: &[StreamId],
    upto: Position,
    reach: Reach,
) -> Result<HashMap<Uuid, NodeRow>, ExecuteError> {
    let mut events = log.read_streams_upto(nodes, upto).await?;
    let mut jobs: HashMap<StreamId, Vec<StreamId>> = HashMap::new();
    let mut others = Vec::new();
    for event in &events {
        let job = match event.event() {
            Ok(Event::NodeProvisioningRequested(order)) => order.job_id,
            Ok(Event::NodeDecommissionRequested(order)) => order.job_id,
            Ok(Event::NodeRegistered(node)) if reach == Reach::Whole => {
                others.extend(address_streams(log, [&node.hostname, &node.public_ip]).await?);
                continue;
            }
            _ => continue,
        };
        reach.add(jobs.entry(event.stream).or_default(), &[job.stream()]);
    }
    others.extend(jobs.into_values().flatten());
    events.extend(log.read_streams_upto(&others, upto).await?);
    fold::<Nodes>(events)
}

/// The streams that say whose these addresses are: by the key of now, and as they were before there
/// was one.
async fn address_streams(
    log: &Log,
    addresses: [&String; 2],
) -> Result<Vec<StreamId>, ExecuteError> {
    let mut streams = Vec::new();
    for sealed in addresses {
        let address = log.keys().open_text(sealed).await?;
        let keyed = log.keys().address_stream(&address).await.map_err(KeyError::into_database)?;
        streams.extend([keyed, address_stream(&address)]);
    }
    Ok(streams)
}

async fn fold_jobs(
    log: &Log,
    jobs: &[StreamId],
    upto: Position,
) -> Result<HashMap<Uuid, Option<Job>>, ExecuteError> {
    fold::<Jobs>(log.read_streams_upto(jobs, upto).await?)
}

/// Folds events by position, each into the row it belongs to.
fn fold<P: Projection>(
    mut events: Vec<Committed>,
) -> Result<HashMap<Uuid, P::State>, ExecuteError> {
    events.sort_unstable_by_key(|event| event.position);
    let mut rows: HashMap<Uuid, P::State> = HashMap::new();
    for event in &events {
        let recorded = event.recorded().map_err(|error| unreadable(event, error))?;
        if let Some(key) = P::key(recorded.event) {
            P::apply(rows.entry(key).or_default(), &recorded);
        }
    }
    Ok(rows)
}

/// The agent, the job and the node whose state an event may have changed.
pub fn touched_by(event: &Event) -> (Option<AgentId>, Option<JobId>, Option<NodeId>) {
    (milepost_projections::board::agent_of(event), job_of(event), node_of(event))
}

fn find<T: Clone>(kept: &Recent<T>, at: Position) -> Option<T> {
    let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.iter().find(|(position, _)| *position == at).map(|(_, value)| value.clone())
}

fn keep<T>(kept: &Recent<T>, at: Position, value: T) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.push_back((at, value));
    if kept.len() > KEPT_MAX {
        kept.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_what_is_kept_makes_room() {
        let kept = Mutex::default();
        for position in 0..=KEPT_MAX as u64 {
            keep(&kept, Position(position), position);
        }
        assert_eq!(find(&kept, Position(0)), None);
        assert_eq!(find(&kept, Position(1)), Some(1));
        assert_eq!(kept.lock().unwrap().len(), KEPT_MAX);
    }
}
