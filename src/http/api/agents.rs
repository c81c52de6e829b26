//! `/api/agents`: make them, list them, order servers for them, see how those come along.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use milepost_projections::Board;
use milepost_projections::answers::{AgentAnswer, AgentRow, InstanceAnswer};
use milepost_projections::board::Boards;
use milepost_schemas::{AgentId, InstanceId, JobId};
use serde::{Deserialize, Serialize};

use super::{Id, json};
use crate::app::App;
use crate::domain::AgentCommand;
use crate::execute;
use crate::http::at::At;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::{views, work};

/// The body of `POST /api/agents`.
#[derive(Debug, Deserialize)]
pub struct NewAgent {
    name: Option<String>,
    region: Option<String>,
}

/// The body of `POST /api/agents/{id}/provision`.
#[derive(Debug, Default, Deserialize)]
pub struct Order {
    region: Option<String>,
}

/// The query of `GET /api/agents`.
#[derive(Debug, Deserialize)]
pub struct Older {
    before: Option<AgentId>,
}

/// A list of agents.
#[derive(Debug, Serialize)]
pub struct Agents {
    agents: Vec<AgentRow>,
}

/// A job was accepted.
#[derive(Debug, Serialize)]
pub struct Accepted {
    /// The job.
    pub job_id: JobId,
}

/// `POST /api/agents`.
///
/// # Errors
/// 400 without a name; 422 for one that will not do.
pub async fn create(
    State(app): State<Arc<App>>,
    actor: Actor,
    request: Request,
) -> Result<(StatusCode, Json<AgentAnswer>), Problem> {
    let NewAgent { name, region } = json(request).await?;
    let name = name.ok_or_else(|| Problem::bad_request("name is missing"))?;
    let agent = make(&app, &actor, name, region).await?;
    let board = board(&app, agent).await?;
    let answer = board.agent.as_ref().map(AgentAnswer::of);
    Ok((StatusCode::CREATED, Json(answer.ok_or_else(|| Problem::not_found("agent"))?)))
}

/// Makes an agent.
///
/// # Errors
/// 422 for a name or region that will not do.
pub async fn make(
    app: &App,
    actor: &Actor,
    name: String,
    region: Option<String>,
) -> Result<AgentId, Problem> {
    let agent_id = AgentId(app.clock.id());
    let name = app.redactor.masked(&name);
    let command = AgentCommand::Create { agent_id, name, region };
    execute::to_agent(app, agent_id, command, actor.metadata(app, agent_id.0)).await?;
    Ok(agent_id)
}

/// `GET /api/agents?before=&at=`.
///
/// # Errors
/// 400 for a place in the log that is none; 404 for one that is still to come; 503 when the view
/// cannot be read.
pub async fn list(
    State(app): State<Arc<App>>,
    _: Actor,
    query: Result<Query<Older>, QueryRejection>,
    at: At,
) -> Result<Json<Agents>, Problem> {
    let Query(Older { before }) = query?;
    let before = before.map(|agent| agent.0);
    let boards = if let Some(past) = at.0 {
        views::past::boards_at(&app.log, past.position, before).await?
    } else {
        let (_, head) = app.log.head().await?;
        app.views.rows::<Boards>(head, before).await?.0
    };
    let now = at.now(&app);
    let answers = boards.iter().filter_map(|board| InstanceAnswer::of(board, now));
    let agents = answers.map(AgentRow::from).collect();
    Ok(Json(Agents { agents }))
}

/// `GET /api/agents/{id}?at=`.
///
/// # Errors
/// 404.
pub async fn show(
    State(app): State<Arc<App>>,
    _: Actor,
    Id(agent): Id<AgentId>,
    at: At,
) -> Result<Json<AgentAnswer>, Problem> {
    let board = board_at(&app, agent, at).await?;
    let answer = board.agent.as_ref().map(AgentAnswer::of);
    answer.map(Json).ok_or_else(|| Problem::not_found("agent"))
}

/// `GET /api/agents/{id}/instance?at=`.
///
/// # Errors
/// 404.
pub async fn instance(
    State(app): State<Arc<App>>,
    _: Actor,
    Id(agent): Id<AgentId>,
    at: At,
) -> Result<Json<InstanceAnswer>, Problem> {
    let board = board_at(&app, agent, at).await?;
    let answer = InstanceAnswer::of(&board, at.now(&app));
    answer.map(Json).ok_or_else(|| Problem::not_found("agent"))
}

/// `POST /api/agents/{id}/provision`.
///
/// # Errors
/// 404; 409 while a job is active; 422 for a region that is none.
pub async fn provision(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(agent): Id<AgentId>,
    request: Request,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let Order { region } = json(request).await?;
    let job_id = order(&app, &actor, agent, region, None, None).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job_id })))
}

/// Orders a server.
///
/// # Errors
/// As [`provision`].
pub async fn order(
    app: &App,
    actor: &Actor,
    agent_id: AgentId,
    region: Option<String>,
    retry_of: Option<JobId>,
    reason: Option<String>,
) -> Result<JobId, Problem> {
    let job_id = JobId(app.clock.id());
    let command = AgentCommand::Provision {
        job_id,
        instance_id: InstanceId(app.clock.id()),
        region,
        max_attempts: app.config.limits.max_attempts(),
        retry_of,
        reason,
    };
    execute::to_agent(app, agent_id, command, actor.metadata(app, job_id.0)).await?;
    Ok(job_id)
}

/// One row of the board, now or as it was.
///
/// # Errors
/// 404.
pub async fn board_at(app: &App, agent: AgentId, at: At) -> Result<Board, Problem> {
    let Some(past) = at.0 else { return board(app, agent).await };
    let board = views::past::board_at(&app.log, agent, past.position).await?;
    board.ok_or_else(|| Problem::not_found("agent"))
}

/// One row of the board, after its job's deadlines have been looked at.
///
/// # Errors
/// 404.
pub async fn board(app: &App, agent: AgentId) -> Result<Board, Problem> {
    let read = || views::read_board(&app.log, agent);
    let board = read().await?.ok_or_else(|| Problem::not_found("agent"))?;
    match &board.job {
        Some(job) if work::tick(app, job).await? => {
            read().await?.ok_or_else(|| Problem::not_found("agent"))
        }
        _ => Ok(board),
    }
}
