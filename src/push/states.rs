//! Follows the log and keeps the states that somebody watches, folded and rendered once each.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use milepost_projections::answers::{InstanceAnswer, JobAnswer, NodeAnswer};
use milepost_projections::board::agent_of;
use milepost_projections::job::job_of;
use milepost_projections::node::node_of;
use milepost_projections::{Board, Job, NodeRow};
use milepost_schemas::{AgentId, Event, EventType, JobId, NodeId, Position};
use serde::Serialize;

use super::encode;
use super::hub::Topic;
use crate::app::App;
use crate::execute::{self, ExecuteError};
use crate::log::{Committed, DatabaseError, Escape, EventFilter, READ_EVENTS_MAX, Since};
use crate::views;

/// States kept between changes; one that is not costs a read of its few events.
const STATES_CACHED_MAX: NonZeroUsize = NonZeroUsize::new(4_096).expect("it is not zero");

/// Events folded before what came of them is shown.
const ROUND_EVENTS_MAX: usize = 4_096;

/// How far the states follow behind the log while nobody watches: to wake for each event takes a
/// tenth of the time in which a callback is answered.
const WATCHED_BY_NOBODY: Duration = Duration::from_millis(5);

/// How long to wait before the database is asked again.
const AFTER_ERROR: Duration = Duration::from_millis(200);

/// Starts to follow; runs until shutdown.
pub fn start(app: Arc<App>) {
    tokio::spawn(async move {
        let shutdown = app.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow(app) => {}
        }
    });
}

async fn follow(app: Arc<App>) {
    let mut states = States {
        boards: LruCache::new(STATES_CACHED_MAX),
        jobs: LruCache::new(STATES_CACHED_MAX),
        nodes: LruCache::new(STATES_CACHED_MAX),
    };
    let mut head = app.log.feed().watch();
    loop {
        let position = app.hub.position();
        match next_events(&app, position).await {
            Ok(events) if events.is_empty() => {
                if head.changed().await.is_err() {
                    return;
                }
            }
            Ok(events) => {
                states.round(&app, &events).await;
                if app.hub.is_idle() {
                    tokio::time::sleep(WATCHED_BY_NOBODY).await;
                }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "states cannot follow");
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
}

async fn next_events(app: &App, after: Position) -> Result<Vec<Arc<Committed>>, ExecuteError> {
    match app.log.feed().since(after, ROUND_EVENTS_MAX) {
        Since::Events(events) => Ok(events),
        Since::Older(upto) => {
            let all = EventFilter::default();
            let events = app.log.read(&all, after, upto, READ_EVENTS_MAX).await?;
            Ok(events.into_iter().map(Arc::new).collect())
        }
    }
}

struct States {
    boards: LruCache<AgentId, Board>,
    jobs: LruCache<JobId, Option<Job>>,
    nodes: LruCache<NodeId, NodeRow>,
}

impl States {
    /// Folds a round of events, renders each state they changed once, and publishes.
    async fn round(&mut self, app: &App, events: &[Arc<Committed>]) {
        let upto = events.last().map_or(app.hub.position(), |event| event.position);
        if app.hub.is_idle() {
            self.boards.clear();
            self.jobs.clear();
            self.nodes.clear();
            return app.hub.publish(Vec::new(), [], upto, &[]);
        }
        let all_agents = app.hub.is_watched(Topic::AllAgents);
        let all_nodes = app.hub.is_watched(Topic::AllNodes);
        let mut watched = HashMap::new();
        let mut is_watched =
            |topic| *watched.entry(topic).or_insert_with(|| app.hub.is_watched(topic));
        let mut agents = HashSet::new();
        let mut jobs = HashSet::new();
        let mut logs = HashSet::new();
        let mut nodes = HashSet::new();
        for event in events {
            let Ok(recorded) = event.recorded() else { continue };
            if let Event::JobLogRecorded(printed) = recorded.event {
                logs.insert(printed.job_id);
            }
            if let Some(agent) = agent_of(recorded.event) {
                if let Some(board) = self.boards.get_mut(&agent)
                    && recorded.position > board.position
                {
                    board.fold(&recorded);
                }
                if all_agents || is_watched(Topic::Agent(agent)) {
                    agents.insert(agent);
                }
            }
            if let Some(node) = node_of(recorded.event) {
                if let Some(row) = self.nodes.get_mut(&node)
                    && recorded.position > row.position
                {
                    row.fold(&recorded);
                }
                if all_nodes || is_watched(Topic::Node(node)) {
                    nodes.insert(node);
                }
            }
            if let Some(id) = job_of(recorded.event) {
                if let Some(job) = self.jobs.get_mut(&id)
                    && job.as_ref().is_some_and(|job| recorded.position > job.position)
                {
                    Job::apply(job, &recorded);
                }
                if is_watched(Topic::Job(id)) {
                    jobs.insert(id);
                }
            }
        }
        if events.iter().any(|event| event.code == EventType::PersonalDataErased.code()) {
            // What was opened before is shown no longer: each state is rendered anew.
            for topic in app.hub.shown() {
                match topic {
                    Topic::Agent(agent) => drop(agents.insert(agent)),
                    Topic::Job(job) => drop(jobs.insert(job)),
                    Topic::Node(node) => drop(nodes.insert(node)),
                    Topic::Log(_) | Topic::AllAgents | Topic::AllNodes => {}
                }
            }
        }
        let mut topics = Vec::with_capacity(agents.len() + jobs.len() + nodes.len());
        let mut states = Vec::with_capacity(topics.capacity());
        let mut keep = |topic, state: Option<State>| {
            if let Some(state) = state {
                topics.push(topic);
                states.push(state);
            }
        };
        for agent in agents {
            keep(Topic::Agent(agent), self.agent(app, agent).await);
        }
        for job in jobs {
            keep(Topic::Job(job), self.job(app, job).await);
        }
        for node in nodes {
            keep(Topic::Node(node), self.node(app, node).await);
        }
        let frames = once_readable(|| render(app, &states)).await.unwrap_or_default();
        let states = topics.into_iter().zip(frames).collect();
        let whole = [(Topic::AllAgents, all_agents), (Topic::AllNodes, all_nodes)];
        let whole: Vec<Topic> =
            whole.into_iter().filter(|(_, whole)| *whole).map(|(topic, _)| topic).collect();
        app.hub.publish(states, logs, upto, &whole);
    }

    async fn agent(&mut self, app: &App, id: AgentId) -> Option<State> {
        if !self.boards.contains(&id) {
            let board = once_readable(|| views::read_board(&app.log, id)).await??;
            self.boards.put(id, board);
        }
        instance_state(app, self.boards.get(&id)?)
    }

    async fn node(&mut self, app: &App, id: NodeId) -> Option<State> {
        if !self.nodes.contains(&id) {
            let row = once_readable(|| views::read_node(&app.log, id)).await??;
            self.nodes.put(id, row);
        }
        node_state(self.nodes.get(&id)?)
    }

    async fn job(&mut self, app: &App, id: JobId) -> Option<State> {
        if !self.jobs.contains(&id) {
            let job = once_readable(|| execute::read_job(&app.log, id)).await?;
            self.jobs.put(id, job);
        }
        Some(job_state(self.jobs.get(&id)?.as_ref()?))
    }
}

/// The state of an agent's instance, as it is to be rendered.
pub(super) fn instance_state(app: &App, board: &Board) -> Option<State> {
    Some(State::of("instance", &InstanceAnswer::of(board, app.clock.now())?))
}

/// The state of a node, as it is to be rendered.
pub(super) fn node_state(row: &NodeRow) -> Option<State> {
    Some(State::of("node", &NodeAnswer::of(row)?))
}

/// The state of a job, as it is to be rendered.
pub(super) fn job_state(job: &Job) -> State {
    State::of("job", &JobAnswer::of(job))
}

/// A state as JSON, its personal texts sealed.
pub(super) struct State {
    name: &'static str,
    json: Vec<u8>,
}

impl State {
    fn of(name: &'static str, answer: &impl Serialize) -> Self {
        Self { name, json: serde_json::to_vec(answer).expect("an answer is plain data") }
    }
}

/// States as one message each, but for its id, with their personal texts opened.
///
/// # Errors
/// [`ExecuteError::Database`] when a key cannot be read.
pub(super) async fn render(app: &App, states: &[State]) -> Result<Vec<Bytes>, ExecuteError> {
    let texts = states.iter().map(|state| state.json.as_slice());
    let opener = app.log.keys().opener(texts).await?;
    let message = |state: &State| {
        encode::message_without_id(state.name, &opener.open(&state.json, Escape::Json))
    };
    Ok(states.iter().map(message).collect())
}

/// Reads a state, however long the database is out of reach: whoever watches it would not be told
/// of it again. `None` where it cannot be read at all.
async fn once_readable<T, F: Future<Output = Result<T, ExecuteError>>>(
    read: impl Fn() -> F,
) -> Option<T> {
    loop {
        let error = match read().await {
            Ok(state) => return Some(state),
            Err(error) => error,
        };
        tracing::warn!(error = &error as &dyn std::error::Error, "a state cannot be read");
        match error {
            ExecuteError::Database(DatabaseError::Pool(_) | DatabaseError::Postgres(_)) => {
                tokio::time::sleep(AFTER_ERROR).await;
            }
            _ => return None,
        }
    }
}
