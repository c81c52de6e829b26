//! `/api/jobs`: what was ordered, how it goes, and how to end or repeat it.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use milepost_projections::answers::JobAnswer;
use milepost_projections::{Job, JobStatus, Subject};
use milepost_schemas::JobId;
use serde::{Deserialize, Serialize};

use super::agents::Accepted;
use super::nodes::Order;
use super::{Id, agents, json, nodes};
use crate::app::App;
use crate::domain::JobCommand;
use crate::domain::job::said;
use crate::domain::node::DECOMMISSION_NODE;
use crate::execute;
use crate::http::at::At;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::views::past::{JobsFound, job_at, jobs_at};
use crate::work;

/// Jobs in a list unless more are asked for.
const LIST_DEFAULT: usize = 100;

/// The query of `GET /api/jobs`.
#[derive(Debug, Deserialize)]
pub struct Filter {
    status: Option<JobStatus>,
    before: Option<JobId>,
    limit: Option<usize>,
}

/// A list of jobs, newest first.
#[derive(Debug, Serialize)]
pub struct Jobs {
    jobs: Vec<JobAnswer>,
    /// Where to go on, at a position where too many jobs would have to be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_before: Option<JobId>,
}

/// The body of `POST /api/jobs/{id}/cancel` and `/retry`.
#[derive(Debug, Default, Deserialize)]
pub struct Reason {
    reason: Option<String>,
}

/// The body of `POST /api/jobs/{id}/priority`.
#[derive(Debug, Deserialize)]
pub struct Priority {
    priority: Option<i16>,
    reason: Option<String>,
}

/// `GET /api/jobs?status=&before=&limit=&at=`.
///
/// # Errors
/// 400 for a filter that makes no sense; 404 for a place in the log that is still to come.
pub async fn list(
    State(app): State<Arc<App>>,
    _: Actor,
    query: Result<Query<Filter>, QueryRejection>,
    at: At,
) -> Result<Json<Jobs>, Problem> {
    let Query(Filter { status, before, limit }) = query?;
    let limit = limit.unwrap_or(LIST_DEFAULT);
    let found = if let Some(past) = at.0 {
        jobs_at(&app.log, past.position, status, before, limit).await?
    } else {
        let (_, head) = app.log.head().await?;
        let jobs = app.views.jobs(head, status, before, limit).await?;
        JobsFound { jobs, next_before: None }
    };
    let jobs = found.jobs.iter().map(JobAnswer::of).collect();
    Ok(Json(Jobs { jobs, next_before: found.next_before }))
}

/// `GET /api/jobs/{id}?at=`.
///
/// # Errors
/// 404.
pub async fn show(
    State(app): State<Arc<App>>,
    _: Actor,
    Id(job): Id<JobId>,
    at: At,
) -> Result<Json<JobAnswer>, Problem> {
    let job = read_at(&app, job, at).await?;
    Ok(Json(JobAnswer::of(&job)))
}

/// `POST /api/jobs/{id}/cancel`.
///
/// # Errors
/// 404; 409 when it has ended.
pub async fn cancel(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(job_id): Id<JobId>,
    request: Request,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let Reason { reason } = json(request).await?;
    end(&app, &actor, job_id, reason).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job_id })))
}

/// Ends a job.
///
/// # Errors
/// As [`cancel`].
pub async fn end(
    app: &App,
    actor: &Actor,
    job_id: JobId,
    reason: Option<String>,
) -> Result<(), Problem> {
    let reason = masked(app, reason);
    let command = JobCommand::Cancel { by: actor.name.clone(), reason };
    execute::to_job(app, job_id, command, actor.metadata(app, job_id.0)).await?;
    Ok(())
}

/// `POST /api/jobs/{id}/priority`.
///
/// # Errors
/// 400 without a priority; 404; 409 when the job has ended; 422 for a priority that is none.
pub async fn priority(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(job_id): Id<JobId>,
    request: Request,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let Priority { priority, reason } = json(request).await?;
    let priority = priority.ok_or_else(|| Problem::bad_request("priority is missing"))?;
    prioritise(&app, &actor, job_id, priority, reason).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job_id })))
}

/// Moves a job up or down the queue.
///
/// # Errors
/// As [`priority`].
pub async fn prioritise(
    app: &App,
    actor: &Actor,
    job_id: JobId,
    priority: i16,
    reason: Option<String>,
) -> Result<(), Problem> {
    let (by, reason) = (actor.name.clone(), masked(app, reason));
    let command = JobCommand::Prioritise { priority, by, reason };
    execute::to_job(app, job_id, command, actor.metadata(app, job_id.0)).await?;
    Ok(())
}

fn masked(app: &App, reason: Option<String>) -> Option<String> {
    reason.map(|reason| app.redactor.masked(&reason))
}

/// `POST /api/jobs/{id}/retry`: a new job with `retry_of`.
///
/// # Errors
/// 404; 409 while this or another job of its agent or node is active, or when it has succeeded.
pub async fn retry(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(job): Id<JobId>,
    request: Request,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let Reason { reason } = json(request).await?;
    let job_id = again(&app, &actor, job, reason).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job_id })))
}

/// Repeats an ended job as a new one.
///
/// # Errors
/// As [`retry`].
pub async fn again(
    app: &App,
    actor: &Actor,
    job_id: JobId,
    reason: Option<String>,
) -> Result<JobId, Problem> {
    let job = read(app, job_id).await?;
    if !matches!(job.status, JobStatus::Failed | JobStatus::Cancelled) {
        let detail = format!(
            "The job is {}: only a failed or cancelled one can be repeated",
            job.status.as_str()
        );
        return Err(Problem::conflict("job-status", detail));
    }
    let (retry_of, reason) = (Some(job_id), masked(app, reason).as_deref().and_then(said));
    match job.subject {
        Subject::Agent { agent_id, region, .. } => {
            agents::order(app, actor, agent_id, Some(region), retry_of, reason).await
        }
        Subject::Node { node_id } => {
            let decommission = job.job_type == DECOMMISSION_NODE;
            let what = if decommission { Order::Decommission } else { Order::Provision };
            nodes::order(app, actor, node_id, what, retry_of, reason).await
        }
    }
}

/// One job, now or as it was.
///
/// # Errors
/// 404.
pub async fn read_at(app: &App, job_id: JobId, at: At) -> Result<Job, Problem> {
    let Some(past) = at.0 else { return read(app, job_id).await };
    let job = job_at(&app.log, job_id, past.position).await?;
    job.ok_or_else(|| Problem::not_found("job"))
}

/// One job, after its deadlines have been looked at.
///
/// # Errors
/// 404.
pub async fn read(app: &App, job_id: JobId) -> Result<Job, Problem> {
    let read = || execute::read_job(&app.log, job_id);
    let job = read().await?.ok_or_else(|| Problem::not_found("job"))?;
    if work::tick(app, &job).await? {
        return read().await?.ok_or_else(|| Problem::not_found("job"));
    }
    Ok(job)
}
