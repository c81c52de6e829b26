//! `/api/nodes`: make them known, list them, have them made ready or given up.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use milepost_projections::answers::NodeAnswer;
use milepost_projections::{NodeRow, node::Nodes as View};
use milepost_schemas::{JobId, NodeId};
use serde::{Deserialize, Serialize};

use super::agents::Accepted;
use super::{Id, json};
use crate::app::App;
use crate::domain::NodeCommand;
use crate::domain::node::{Host, NewNode, NodeOrder};
use crate::execute::{self, ExecuteError};
use crate::http::at::At;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::{views, work};

/// The body of `POST /api/nodes`.
#[derive(Debug, Deserialize)]
pub struct Registration {
    hostname: Option<String>,
    public_ip: Option<String>,
    ssh_user: Option<String>,
    ssh_port: Option<u16>,
}

/// The query of `GET /api/nodes`.
#[derive(Debug, Deserialize)]
pub struct Older {
    before: Option<NodeId>,
}

/// A list of nodes, newest first.
#[derive(Debug, Serialize)]
pub struct Nodes {
    nodes: Vec<NodeAnswer>,
}

/// What a node is ordered to do.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// To be made ready.
    Provision,
    /// To be given up.
    Decommission,
}

/// `POST /api/nodes`.
///
/// # Errors
/// 400 without a host name or an address; 409 for one that another node has; 422 for what is none.
pub async fn create(
    State(app): State<Arc<App>>,
    actor: Actor,
    request: Request,
) -> Result<(StatusCode, Json<NodeAnswer>), Problem> {
    let Registration { hostname, public_ip, ssh_user, ssh_port } = json(request).await?;
    let hostname = hostname.ok_or_else(|| Problem::bad_request("hostname is missing"))?;
    let public_ip = public_ip.ok_or_else(|| Problem::bad_request("public_ip is missing"))?;
    let new = NewNode { hostname, public_ip, ssh_user, ssh_port };
    let node = register(&app, &actor, new).await?;
    let row = row(&app, node).await?;
    Ok((StatusCode::CREATED, Json(answer(&row)?)))
}

/// Makes a node known.
///
/// # Errors
/// As [`create`].
pub async fn register(app: &App, actor: &Actor, mut new: NewNode) -> Result<NodeId, Problem> {
    // A masked name is no host name, and is refused.
    new.hostname = app.redactor.masked(&new.hostname);
    new.ssh_user = new.ssh_user.map(|user| app.redactor.masked(&user));
    let host = Host::parse(new).map_err(ExecuteError::from)?;
    let node_id = NodeId(app.clock.id());
    execute::register_node(app, node_id, &host, actor.metadata(app, node_id.0)).await?;
    Ok(node_id)
}

/// `GET /api/nodes?before=&at=`.
///
/// # Errors
/// 400 for a place in the log that is none; 404 for one that is still to come; 503 when the view
/// cannot be read.
pub async fn list(
    State(app): State<Arc<App>>,
    _: Actor,
    query: Result<Query<Older>, QueryRejection>,
    at: At,
) -> Result<Json<Nodes>, Problem> {
    let Query(Older { before }) = query?;
    let before = before.map(|node| node.0);
    let rows = if let Some(past) = at.0 {
        views::past::nodes_at(&app.log, past.position, before).await?
    } else {
        let (_, head) = app.log.head().await?;
        app.views.rows::<View>(head, before).await?.0
    };
    Ok(Json(Nodes { nodes: rows.iter().filter_map(NodeAnswer::of).collect() }))
}

/// `GET /api/nodes/{id}?at=`.
///
/// # Errors
/// 404.
pub async fn show(
    State(app): State<Arc<App>>,
    _: Actor,
    Id(node): Id<NodeId>,
    at: At,
) -> Result<Json<NodeAnswer>, Problem> {
    let row = row_at(&app, node, at).await?;
    Ok(Json(answer(&row)?))
}

/// `POST /api/nodes/{id}/provision`.
///
/// # Errors
/// 404; 409 while a job is active, or once it is decommissioned.
pub async fn provision(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(node): Id<NodeId>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job_id = order(&app, &actor, node, Order::Provision, None, None).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job_id })))
}

/// `POST /api/nodes/{id}/decommission`.
///
/// # Errors
/// 404; 409 while a job is active, or once it is decommissioned.
pub async fn decommission(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(node): Id<NodeId>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job_id = order(&app, &actor, node, Order::Decommission, None, None).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job_id })))
}

/// Orders a change of a node.
///
/// # Errors
/// As [`provision`].
pub async fn order(
    app: &App,
    actor: &Actor,
    node: NodeId,
    what: Order,
    retry_of: Option<JobId>,
    reason: Option<String>,
) -> Result<JobId, Problem> {
    let job_id = JobId(app.clock.id());
    let max_attempts = app.config.limits.max_attempts();
    let order = NodeOrder { job_id, max_attempts, retry_of, reason };
    let command = match what {
        Order::Provision => NodeCommand::Provision(order),
        Order::Decommission => NodeCommand::Decommission(order),
    };
    execute::to_node(app, node, command, actor.metadata(app, job_id.0)).await?;
    Ok(job_id)
}

/// One node with its latest job, now or as it was.
///
/// # Errors
/// 404.
pub async fn row_at(app: &App, node: NodeId, at: At) -> Result<NodeRow, Problem> {
    let Some(past) = at.0 else { return row(app, node).await };
    let row = views::past::node_at(&app.log, node, past.position).await?;
    row.ok_or_else(|| Problem::not_found("node"))
}

/// One node with its latest job, after that job's deadlines have been looked at.
///
/// # Errors
/// 404.
pub async fn row(app: &App, node: NodeId) -> Result<NodeRow, Problem> {
    let read = || views::read_node(&app.log, node);
    let row = read().await?.ok_or_else(|| Problem::not_found("node"))?;
    match &row.job {
        Some(job) if work::tick(app, job).await? => {
            read().await?.ok_or_else(|| Problem::not_found("node"))
        }
        _ => Ok(row),
    }
}

/// As programs and pages read it.
///
/// # Errors
/// 404 for a row without a node.
pub fn answer(row: &NodeRow) -> Result<NodeAnswer, Problem> {
    NodeAnswer::of(row).ok_or_else(|| Problem::not_found("node"))
}
