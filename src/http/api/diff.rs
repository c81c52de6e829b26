//! `GET /api/diff`: what changed between two positions.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use jiff::Timestamp;
use milepost_projections::job::job_of;
use milepost_projections::node::node_of;
use milepost_schemas::{AgentId, JobId, NodeId, Position, StreamId};
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::http::at::Past;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::views::diff::{self, Changed, Thing};

/// The query of `GET /api/diff` and `GET /diff`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Between {
    /// A position or a time.
    pub at: Option<String>,
    /// Another; the log's head unless given.
    pub against: Option<String>,
    /// Only this agent.
    pub agent: Option<AgentId>,
    /// Only this job.
    pub job: Option<JobId>,
    /// Only this node.
    pub node: Option<NodeId>,
    /// Only what this stream is about.
    pub stream: Option<StreamId>,
}

/// The answer of `GET /api/diff`.
#[derive(Debug, Serialize)]
pub struct DiffAnswer {
    /// Which log.
    epoch: i64,
    /// The earlier of the two.
    pub old: Side,
    /// The later one.
    pub new: Side,
    /// Events between them.
    pub events: u64,
    /// Everything up to here has been looked at; `new.position` unless too much has happened.
    pub looked_to: Position,
    /// What changed.
    pub things: Vec<Changed>,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Its position.
    pub position: Position,
    /// When that was recorded.
    pub recorded_at: Timestamp,
}

impl DiffAnswer {
    /// What changed from one place to a later one.
    pub fn new(
        epoch: i64,
        (old, new): (Side, Side),
        looked_to: Position,
        things: Vec<Changed>,
    ) -> Self {
        let events = new.position.0.saturating_sub(old.position.0);
        Self { epoch, old, new, events, looked_to, things }
    }
}

/// `GET /api/diff?at=&against=&agent=|job=|node=|stream=`.
///
/// # Errors
/// 400 without `at`, for a place that is none, and for a stream that is about no agent, job, node
/// or the queue; 404 for a place that is still to come.
pub async fn show(
    State(app): State<Arc<App>>,
    _: Actor,
    query: Result<Query<Between>, QueryRejection>,
) -> Result<Json<DiffAnswer>, Problem> {
    let Query(query) = query?;
    let (answer, _) = read(&app, &query).await?;
    Ok(Json(answer))
}

/// What changed, and what was compared if that was one thing.
///
/// # Errors
/// As [`show`].
pub async fn read(app: &App, query: &Between) -> Result<(DiffAnswer, Option<Thing>), Problem> {
    let at = query.at.as_deref().ok_or_else(|| Problem::bad_request("at is missing"))?;
    let at = Past::find(app, "at", at).await?;
    let against = match query.against.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => Past::find(app, "against", text).await?,
        None => Past::find(app, "against", &at.head.to_string()).await?,
    };
    // Whichever is given first: what is earlier is the old one.
    let (old, new) = if at.position <= against.position { (at, against) } else { (against, at) };
    let only = only(app, query).await?;
    let difference = diff::between(&app.log, old.position, new.position, only).await?;
    let side = |past: Past| Side { position: past.position, recorded_at: past.recorded_at };
    let (sides, things) = ((side(old), side(new)), difference.things);
    let answer = DiffAnswer::new(app.log.feed().epoch(), sides, difference.looked_to, things);
    Ok((answer, only))
}

async fn only(app: &App, query: &Between) -> Result<Option<Thing>, Problem> {
    let named = [
        query.agent.map(Thing::Agent),
        query.job.map(Thing::Job),
        query.node.map(Thing::Node),
        match query.stream {
            Some(stream) => Some(thing_of(app, stream).await?),
            None => None,
        },
    ];
    let mut named = named.into_iter().flatten();
    let first = named.next();
    if named.next().is_some() {
        return Err(Problem::bad_request("say agent=, job=, node= or stream=, not two of them"));
    }
    Ok(first)
}

/// What a stream is about: the log says.
async fn thing_of(app: &App, stream: StreamId) -> Result<Thing, Problem> {
    if stream == StreamId::QUEUE {
        return Ok(Thing::Queue);
    }
    let latest = app.log.read_latest(stream).await?;
    let event = latest.as_ref().and_then(|latest| latest.event().ok());
    let (job, node) = (event.and_then(job_of), event.and_then(node_of));
    let agent = event.and_then(milepost_projections::board::agent_of);
    let thing = match (job, node, agent) {
        (Some(job), _, _) if job.stream() == stream => Some(Thing::Job(job)),
        (_, Some(node), _) => Some(Thing::Node(node)),
        (_, _, Some(agent)) => Some(Thing::Agent(agent)),
        _ => None,
    };
    let detail = format!("stream={stream} is about no agent, job or node, nor the queue");
    thing.ok_or_else(|| Problem::bad_request(detail))
}
