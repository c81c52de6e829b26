//! The streams. `Last-Event-ID`, or `?since=` where there is no such header, resumes.

use std::str::FromStr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use milepost_projections::board::agent_of;
use milepost_projections::job::job_of;
use milepost_projections::node::node_of;
use milepost_schemas::{AgentId, JobId, NodeId, StreamId};
use uuid::Uuid;

use super::events::Query;
use super::{Id, agents, jobs};
use crate::app::App;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::log::EventFilter;
use crate::push::serve::respond;
use crate::push::{Cursor, Subscription, WANTS_MAX, Wants};

/// `GET /api/events/stream?stream=&type=`: every event, never left out, never joined.
///
/// # Errors
/// 400 for a filter that makes no sense.
pub async fn events(
    State(app): State<Arc<App>>,
    actor: Actor,
    request: Request<Body>,
) -> Result<Response, Problem> {
    let Query { filter, .. } = Query::parse(request.uri().query().unwrap_or_default())?;
    let wants = Wants { events: Some(filter), ..Wants::default() };
    Ok(stream(&app, &actor, &request, wants))
}

/// `GET /api/agents/{id}/instance/stream`: its state, then each new one.
///
/// # Errors
/// 404.
pub async fn instance(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(agent): Id<AgentId>,
    request: Request<Body>,
) -> Result<Response, Problem> {
    agents::board(&app, agent).await?;
    Ok(stream(&app, &actor, &request, Wants { agents: vec![agent], ..Wants::default() }))
}

/// `GET /api/jobs/{id}/stream`: its state, then each new one.
///
/// # Errors
/// 404.
pub async fn job(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(job): Id<JobId>,
    request: Request<Body>,
) -> Result<Response, Problem> {
    jobs::read(&app, job).await?;
    Ok(stream(&app, &actor, &request, Wants { jobs: vec![job], ..Wants::default() }))
}

/// `GET /api/stream?agent=<id>|all&job=<id>&node=<id>|all&log=<id>&events=<id>|all`: what the pages of one browser need,
/// in one connection. Each parameter may be repeated.
///
/// # Errors
/// 400 for a parameter that names nothing, or more than 64 of them.
pub async fn page(
    State(app): State<Arc<App>>,
    actor: Actor,
    request: Request<Body>,
) -> Result<Response, Problem> {
    let wants = wants(&app, request.uri().query().unwrap_or_default()).await?;
    Ok(stream(&app, &actor, &request, wants))
}

async fn wants(app: &App, query: &str) -> Result<Wants, Problem> {
    let mut wants = Wants { bookmarks: true, ..Wants::default() };
    let mut count = 0;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !matches!(&*name, "agent" | "job" | "node" | "log" | "events") {
            continue;
        }
        count += 1;
        // Before anything is looked up for it.
        if count > WANTS_MAX {
            let detail = format!("at most {WANTS_MAX} things can be watched at once");
            return Err(Problem::bad_request(detail));
        }
        match (&*name, &*value) {
            ("agent", "all") => wants.all_agents = true,
            ("agent", value) => wants.agents.push(named("agent", value)?),
            ("job", value) => wants.jobs.push(named("job", value)?),
            ("log", value) => wants.logs.push(named("log", value)?),
            ("node", "all") => wants.all_nodes = true,
            ("node", value) => wants.nodes.push(named("node", value)?),
            (_, "all") => wants.events = Some(EventFilter::default()),
            (_, value) => {
                let id: Uuid = named("events", value)?;
                // One id, of an agent, a job, a node or a stream of nobody's: the log says which.
                match app.log.read_latest(id.into()).await?.as_ref().map(|it| it.event()) {
                    Some(Ok(event)) if job_of(event) == Some(JobId(id)) => {
                        wants.events_of_jobs.push(JobId(id));
                    }
                    Some(Ok(event)) if node_of(event) == Some(NodeId(id)) => {
                        wants.events_of_nodes.push(NodeId(id));
                    }
                    Some(Ok(event)) if agent_of(event) == Some(AgentId(id)) => {
                        wants.events_of_agents.push(AgentId(id));
                    }
                    Some(Ok(_) | Err(_)) | None => wants.add_stream(StreamId(id)),
                }
            }
        }
    }
    if count == 0 {
        return Err(Problem::bad_request(
            "say what to watch: agent=, job=, node=, log= or events=",
        ));
    }
    Ok(wants)
}

fn named<T: FromStr>(name: &str, value: &str) -> Result<T, Problem> {
    value.parse().map_err(|_| Problem::bad_request(format!("{name}={value} makes no sense")))
}

/// Answers with the stream of what is wanted.
pub(super) fn stream(
    app: &Arc<App>,
    actor: &Actor,
    request: &Request<Body>,
    wants: Wants,
) -> Response {
    let since = since(request);
    let subscription = Subscription::new(Arc::clone(app), wants, since);
    respond(request, subscription, app.access.hold(&actor.holder))
}

/// Where a reader resumes. What is no cursor of any log counts as one of an unknown log.
fn since(request: &Request<Body>) -> Option<Cursor> {
    let header = request.headers().get("last-event-id").and_then(|value| value.to_str().ok());
    let query = request.uri().query().unwrap_or_default();
    let parameter = form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "since")
        .map(|(_, value)| value.into_owned());
    let text = header.map(str::to_owned).or(parameter).filter(|text| !text.is_empty())?;
    let unknown = Cursor { epoch: 0, position: milepost_schemas::Position::START };
    Some(text.parse().unwrap_or(unknown))
}
