//! `/api/jobs/{id}/log`: what a job's runs have printed, in pages, as a file, and live.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, Request, header};
use axum::response::Response;
use milepost_schemas::JobId;
use serde::Deserialize;

use super::{Id, streams};
use crate::app::App;
use crate::execute::read_job;
use crate::http::at::At;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::intake::plain;
use crate::push::Wants;
use crate::views::past::job_at;
use crate::views::{LogPage, RowRange, read_log_end, read_log_rows, read_log_text};

/// Rows in an answer unless more are asked for.
const ROWS_DEFAULT: usize = 200;

/// The query of `GET /api/jobs/{id}/log`.
#[derive(Debug, Deserialize)]
pub struct Range {
    after: Option<u64>,
    before: Option<u64>,
    limit: Option<usize>,
}

/// `GET /api/jobs/{id}/log?after=|before=&limit=&at=`: rows after one or before one, else the last.
///
/// # Errors
/// 400 for a range that makes no sense; 404.
pub async fn list(
    State(app): State<Arc<App>>,
    _: Actor,
    Id(job): Id<JobId>,
    query: Result<Query<Range>, QueryRejection>,
    at: At,
) -> Result<Json<LogPage>, Problem> {
    let Query(query) = query?;
    exists(&app, job, at).await?;
    let range = match (query.after, query.before) {
        (Some(line), None) => RowRange::After(line),
        (None, Some(line)) => RowRange::Before(line),
        (None, None) => RowRange::Newest,
        (Some(_), Some(_)) => return Err(Problem::bad_request("say after= or before=, not both")),
    };
    let limit = query.limit.unwrap_or(ROWS_DEFAULT);
    Ok(Json(read_log_rows(&app.log, job, range, limit, at.position()).await?))
}

/// `GET /api/jobs/{id}/log.txt?at=`: all of it, without colours, a row a line.
///
/// # Errors
/// 404.
pub async fn text(
    State(app): State<Arc<App>>,
    _: Actor,
    Id(job): Id<JobId>,
    at: At,
) -> Result<Response, Problem> {
    exists(&app, job, at).await?;
    let end = read_log_end(&app.log, job, at.position()).await?;
    let lines = read_log_text(app.log.clone(), job, end, |line| plain(line).into_owned());
    let mut response = Response::new(Body::from_stream(lines));
    let headers = response.headers_mut();
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, text);
    let name = format!("attachment; filename=\"job-{job}.log.txt\"");
    let name = HeaderValue::from_str(&name).expect("an id is made of digits and dashes");
    headers.insert(header::CONTENT_DISPOSITION, name);
    Ok(response)
}

/// `GET /api/jobs/{id}/log/stream`: what is printed from now on, or from a message on.
///
/// # Errors
/// 404.
pub async fn stream(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(job): Id<JobId>,
    request: Request<Body>,
) -> Result<Response, Problem> {
    exists(&app, job, At(None)).await?;
    let wants = Wants { logs: vec![job], ..Wants::default() };
    Ok(streams::stream(&app, &actor, &request, wants))
}

async fn exists(app: &App, job: JobId, at: At) -> Result<(), Problem> {
    let job = match at.0 {
        Some(past) => job_at(&app.log, job, past.position).await?,
        None => read_job(&app.log, job).await?,
    };
    job.map(drop).ok_or_else(|| Problem::not_found("job"))
}
