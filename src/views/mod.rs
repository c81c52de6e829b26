//! What the log means, kept ready in tables for lists; and read from the log itself for one
//! thing, so that an answer about one agent or job is as fresh as the database on every node.

mod compare;
pub mod diff;
mod fill;
mod generation;
mod job_log;
mod orders;
pub mod past;
mod runner;
mod status;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use milepost_projections::board::{Boards, InstanceStatus};
use milepost_projections::job::{JobStatus, Jobs};
use milepost_projections::steps::COUNT;
use milepost_projections::usual::JOBS_MAX;
use milepost_projections::{Board, Job, NodeRow, Projection, UsualDuration, usual};
use milepost_schemas::{AgentId, Event, JobId, NodeId, Position, StreamId};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::execute::{ExecuteError, unreadable};
use crate::log::{Committed, Database, DatabaseError, Log};

pub use compare::DIFFERENCES_NAMED;
pub use fill::{Filling, Poison, ROWS_IN_MEMORY_MAX, fill};
pub use generation::{Difference, FORMER_KEPT, Generation, Phase, Progress};
pub use job_log::{
    LOG_ROWS_MAX, LogEnd, LogPage, RowRange, log_message, read_log_end, read_log_rows,
    read_log_text,
};
pub use runner::start;
pub use status::{
    GenerationStatus, Lag, PROJECTIONS, PoisonEvent, ProjectionStatus, RebuildStatus, lags,
    may_roll_back, may_try_again, statuses,
};

/// Rows a list holds at the most.
pub const LIST_ROWS_MAX: usize = 1_000;

/// How long a list waits for its view to reach the log's head before it answers with what it has.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a node that does not run the views looks how far they are.
const CATCH_UP_POLL: Duration = Duration::from_millis(20);

/// How often rows are looked for again that were dropped under a reader.
const READS_MAX: usize = 3;

/// How long the usual durations are good for.
const USUAL_AGE_MAX: Duration = Duration::from_secs(5);

/// The usual durations, and when they were read.
type KeptUsual = (Instant, [Option<UsualDuration>; COUNT]);

/// Where an agent may need a person: it has failed, or what is under way is late or silent.
const UNSETTLED: [InstanceStatus; 3] =
    [InstanceStatus::Failed, InstanceStatus::Provisioning, InstanceStatus::Pending];

/// Agents for one page.
#[derive(Debug)]
pub struct Overview {
    /// The newest [`LIST_ROWS_MAX`], and as many older ones of each status that may need a person.
    pub boards: Vec<Board>,
    /// Up to where they are whole.
    pub position: Position,
    /// How many agents there are.
    pub total: usize,
}

/// The views' tables; cheap to clone.
#[derive(Clone)]
pub struct Views {
    database: Database,
    wanted: Arc<watch::Sender<Position>>,
    usual: Arc<Mutex<Option<KeptUsual>>>,
    /// What was counted at positions of the past.
    pub kept: past::Kept,
}

impl Views {
    /// A handle on the tables.
    pub fn new(database: Database) -> Self {
        Self {
            database,
            wanted: Arc::default(),
            usual: Arc::default(),
            kept: past::Kept::default(),
        }
    }

    /// The newest agents, and of older ones those that may need a person; at least as new as
    /// `at_least` if the view gets there in 1 s, and up to where they are whole.
    ///
    /// # Errors
    /// [`ExecuteError::Database`] when the view cannot be read, or has no rows yet.
    pub async fn overview(&self, at_least: Position) -> Result<Overview, ExecuteError> {
        let (newest, position) =
            self.rows_before::<Boards>(at_least, Uuid::max(), LIST_ROWS_MAX).await?;
        let mut boards: BTreeMap<Uuid, Board> = newest.into_iter().collect();
        let mut total = boards.len();
        if total == LIST_ROWS_MAX {
            for status in UNSETTLED {
                let some = self.labelled::<Boards>(at_least, status.as_str(), Uuid::nil()).await?;
                for (key, board) in some {
                    boards.entry(key).or_insert(board);
                }
            }
            let counts = self.counts::<Boards>(at_least).await?;
            total = counts.iter().map(|(_, count)| *count as usize).sum();
        }
        Ok(Overview { boards: boards.into_values().collect(), position, total })
    }

    /// The newest rows of a view, before a key if one is given, at least as new as `at_least` if it
    /// gets there in 1 s; and up to where they are whole.
    ///
    /// # Errors
    /// [`ExecuteError::Database`] when the view cannot be read, or has no rows yet.
    pub async fn rows<P: Projection>(
        &self,
        at_least: Position,
        before: Option<Uuid>,
    ) -> Result<(Vec<P::State>, Position), ExecuteError> {
        let before = before.unwrap_or(Uuid::max());
        let (rows, position) = self.rows_before::<P>(at_least, before, LIST_ROWS_MAX).await?;
        Ok((rows.into_iter().map(|(_, state)| state).collect(), position))
    }

    /// The newest `limit` rows of a view whose keys are before `before`, with their keys, newest
    /// first; else as [`Self::rows`].
    ///
    /// # Errors
    /// [`ExecuteError::Database`] when the view cannot be read.
    pub async fn rows_before<P: Projection>(
        &self,
        at_least: Position,
        before: Uuid,
        limit: usize,
    ) -> Result<(Vec<(Uuid, P::State)>, Position), ExecuteError> {
        let limit = limit as i64;
        let which = "WHERE key < $1 ORDER BY key DESC LIMIT $2";
        let (rows, position) =
            self.select::<P>(at_least, "key, state", which, &[&before, &limit]).await?;
        let row = |row: &Row| Ok((row.get(0), stored_state::<P>(row.get(1))?));
        Ok((rows.iter().map(row).collect::<Result<_, DatabaseError>>()?, position))
    }

    /// Rows of a view with a label, by their keys from `after` on: at most [`LIST_ROWS_MAX`], at
    /// least as new as `at_least` if the view gets there in 1 s.
    ///
    /// # Errors
    /// [`ExecuteError::Database`] when the view cannot be read, or has no rows yet.
    pub async fn labelled<P: Projection>(
        &self,
        at_least: Position,
        label: &str,
        after: Uuid,
    ) -> Result<Vec<(Uuid, P::State)>, ExecuteError> {
        let limit = LIST_ROWS_MAX as i64;
        let which = "WHERE label = $1 AND key > $2 ORDER BY key LIMIT $3";
        let (rows, _) =
            self.select::<P>(at_least, "key, state", which, &[&label, &after, &limit]).await?;
        rows.iter().map(|row| Ok((row.get(0), stored_state::<P>(row.get(1))?))).collect()
    }

    /// The newest jobs, by status if one is given, before `before` if one is.
    ///
    /// # Errors
    /// [`ExecuteError::Database`] when the view cannot be read, or has no rows yet.
    pub async fn jobs(
        &self,
        at_least: Position,
        status: Option<JobStatus>,
        before: Option<JobId>,
        limit: usize,
    ) -> Result<Vec<Job>, ExecuteError> {
        let (status, before) = (status.map(JobStatus::as_str), before.map(|job| job.0));
        let limit = limit.min(LIST_ROWS_MAX) as i64;
        let which = "WHERE ($1::text IS NULL OR label = $1) AND ($2::uuid IS NULL OR key < $2) \
                     ORDER BY key DESC LIMIT $3";
        let (rows, _) =
            self.select::<Jobs>(at_least, "state", which, &[&status, &before, &limit]).await?;
        let jobs: Result<Vec<Option<Job>>, _> =
            rows.iter().map(|row| stored_state::<Jobs>(row.get(0))).collect();
        Ok(jobs?.into_iter().flatten().collect())
    }

    /// How many rows a view has of each label.
    ///
    /// # Errors
    /// [`DatabaseError`] when the view cannot be read, or has no rows yet.
    pub async fn counts<P: Projection>(
        &self,
        at_least: Position,
    ) -> Result<Vec<(String, i64)>, DatabaseError> {
        let (rows, _) =
            self.select::<P>(at_least, "label, count(*)", "GROUP BY label", &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Some columns of the rows that are read, all of one generation; and a position up to which
    /// they are whole.
    async fn select<P: Projection>(
        &self,
        at_least: Position,
        columns: &str,
        which: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<(Vec<Row>, Position), DatabaseError> {
        for _ in 0..READS_MAX {
            let generation = self.catch_up(P::NAME, P::VERSION, at_least).await?;
            // Nothing is not the same as nothing yet.
            let Some(generation) = generation else { break };
            let sql = format!("SELECT {columns} FROM {} {which}", generation.table());
            let client = self.database.get().await?;
            let rows = match client.prepare_cached(&sql).await {
                Ok(statement) => client.query(&statement, parameters).await,
                Err(error) => Err(error),
            };
            match rows {
                Ok(rows) => return Ok((rows, generation.position)),
                // Others took over twice since it was named.
                Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(DatabaseError::NotFilled(P::NAME))
    }

    /// How long each step usually takes; at most 5 s old. Of none it is known while there are no
    /// rows yet.
    ///
    /// # Errors
    /// [`ExecuteError::Database`] when the view cannot be read, or has no rows yet.
    pub async fn usual(&self) -> Result<[Option<UsualDuration>; COUNT], ExecuteError> {
        let kept = *self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, usual)) = kept
            && at.elapsed() < USUAL_AGE_MAX
        {
            return Ok(usual);
        }
        let succeeded = Some(JobStatus::Succeeded);
        let jobs = match self.jobs(Position::START, succeeded, None, JOBS_MAX).await {
            Err(ExecuteError::Database(DatabaseError::NotFilled(_))) => Vec::new(),
            jobs => jobs?,
        };
        // What a node's job takes says nothing of a server's.
        let usual = usual(jobs.iter().filter(|job| job.subject.agent_id().is_some()));
        *self.usual.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), usual));
        Ok(usual)
    }

    /// Waits, a second at the most, until the rows that are read hold everything up to a position;
    /// which they are, and the one they have reached. `None` where there are none yet.
    async fn catch_up(
        &self,
        name: &'static str,
        version: i16,
        at_least: Position,
    ) -> Result<Option<Generation>, DatabaseError> {
        self.wanted.send_if_modified(|wanted| {
            let more = at_least > *wanted;
            *wanted = at_least.max(*wanted);
            more
        });
        let client = self.database.get().await?;
        let statement = client
            .prepare_cached(
                "SELECT generation, position FROM view_generation \
                 WHERE projection = $1 AND version = $2 AND state = 'active'",
            )
            .await?;
        let give_up = Instant::now() + CATCH_UP_TIMEOUT;
        loop {
            let row = client.query_opt(&statement, &[&name, &version]).await?;
            let generation = row.map(|row| Generation {
                projection: name,
                number: row.get(0),
                position: Position(row.get::<_, i64>(1) as u64),
            });
            let there = generation.as_ref().is_some_and(|it| it.position >= at_least);
            if there || Instant::now() >= give_up {
                return Ok(generation);
            }
            tokio::time::sleep(CATCH_UP_POLL).await;
        }
    }
}

/// A row's state as it is stored.
fn stored_state<P: Projection>(bytes: &[u8]) -> Result<P::State, DatabaseError> {
    serde_json::from_slice(bytes).map_err(|error| {
        DatabaseError::Unexpected(format!("a row of {} cannot be read: {error}", P::NAME))
    })
}

/// Reads one agent's row of the board from the log, as fresh as the database is.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn read_board(log: &Log, id: AgentId) -> Result<Option<Board>, ExecuteError> {
    let agent_events = log.read_streams(&[id.stream()]).await?;
    let latest = agent_events.iter().rev().find_map(|event| match event.event() {
        Ok(Event::ProvisioningRequested(order)) => {
            Some([id.stream(), order.job_id.stream(), order.instance_id.stream()])
        }
        _ => None,
    });
    let events = match latest {
        Some(streams) => log.read_streams(&streams).await?,
        None => agent_events,
    };
    let mut board = Board::default();
    for event in &events {
        let recorded = event.recorded().map_err(|error| unreadable(event, error))?;
        board.fold(&recorded);
    }
    Ok(board.agent.is_some().then_some(board))
}

/// Reads one node with its latest job from the log, as fresh as the database is.
///
/// # Errors
/// [`ExecuteError`] when the log cannot be read.
pub async fn read_node(log: &Log, id: NodeId) -> Result<Option<NodeRow>, ExecuteError> {
    let node_events = log.read_streams(&[id.stream()]).await?;
    let events = match jobs_of(&node_events).last() {
        Some(job) => log.read_streams(&[id.stream(), job.stream()]).await?,
        None => node_events,
    };
    let mut row = NodeRow::default();
    for event in &events {
        let recorded = event.recorded().map_err(|error| unreadable(event, error))?;
        row.fold(&recorded);
    }
    Ok(row.node.is_some().then_some(row))
}

/// The streams that tell all about a node: its own, and those of its jobs.
///
/// # Errors
/// [`DatabaseError`] when the log cannot be read.
pub async fn streams_of_node(log: &Log, id: NodeId) -> Result<Vec<StreamId>, DatabaseError> {
    let events = log.read_streams(&[id.stream()]).await?;
    let jobs = jobs_of(&events).into_iter().map(JobId::stream);
    Ok(std::iter::once(id.stream()).chain(jobs).collect())
}

/// The jobs that a node's stream names, in order.
fn jobs_of(events: &[Committed]) -> Vec<JobId> {
    let job = |event: &Committed| match event.event() {
        Ok(Event::NodeProvisioningRequested(order)) => Some(order.job_id),
        Ok(Event::NodeDecommissionRequested(order)) => Some(order.job_id),
        _ => None,
    };
    events.iter().filter_map(job).collect()
}

/// The streams that tell all about an agent: its own, and those of its jobs and instances.
///
/// # Errors
/// [`DatabaseError`] when the log cannot be read.
pub async fn streams_of_agent(log: &Log, id: AgentId) -> Result<Vec<StreamId>, DatabaseError> {
    let mut streams = vec![id.stream()];
    for event in log.read_streams(&[id.stream()]).await? {
        if let Ok(Event::ProvisioningRequested(order)) = event.event() {
            streams.extend([order.job_id.stream(), order.instance_id.stream()]);
        }
    }
    Ok(streams)
}

/// A row's key as its table has it.
type Key = Uuid;
