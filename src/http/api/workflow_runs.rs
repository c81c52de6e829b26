//! `POST /api/webhooks/github` with `X-GitHub-Event`: what GitHub itself tells of runs.
//!
//! A run that concerns a job goes through the same command as what is found by asking GitHub, so
//! whoever comes first records it, and the other adds nothing. What does not concern any job
//! (other events, repositories, workflows, jobs of another Milepost) is answered with 204 and not
//! kept: GitHub sends it unasked, for every run of the repository.

use axum::Json;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use milepost_schemas::Metadata;

use super::webhooks::{Received, refuse};
use crate::app::App;
use crate::domain::JobAnswer;
use crate::domain::job::RunSeen;
use crate::execute::ExecuteError;
use crate::http::problem::Problem;
use crate::http::read_body;
use crate::intake::workflow_run::{BODY_BYTES_MAX, verify};
use crate::log::DatabaseError;
use crate::work::runs::{observe, parse_name};

/// Takes one webhook.
///
/// # Errors
/// 400, 401, 413, 415: nothing is recorded. 503: the log cannot be written.
pub async fn take(app: &App, request: Request) -> Result<Response, Problem> {
    let (Parts { headers, .. }, body) = request.into_parts();
    let body = read_body(&headers, body, BODY_BYTES_MAX).await?;
    let settings = &app.config.github.settings;
    let (repository, workflow) = (settings.repository.as_deref(), settings.workflow.as_str());
    let verified = verify(&app.config.rules, repository, workflow, &headers, &body)
        .map_err(|error| refuse(app, &error))?;
    let Some(verified) = verified else { return Ok(StatusCode::NO_CONTENT.into_response()) };
    let run = verified.value;
    let Some((job_id, attempt)) = parse_name(&run.display_title) else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let seen = RunSeen {
        attempt,
        workflow_run_id: run.id.to_string(),
        run_url: Some(run.html_url),
        run_attempt: run.run_attempt,
        status: run.status,
        conclusion: run.conclusion,
    };
    let metadata = Metadata {
        actor: format!("workflow:{}", verified.evidence.key_id),
        correlation_id: job_id.0,
        causation_id: Some(format!("request:{}", app.clock.id())),
        callback: Some(verified.evidence),
    };
    match observe(app, job_id, seen, metadata).await {
        Ok(outcome) => {
            let applied = outcome.answer == JobAnswer::Applied;
            let reason = (!applied).then_some("no_news");
            Ok(Json(Received::new(outcome.position, reason)).into_response())
        }
        // Nothing is to be learned of a job that nobody knows, or that is over and archived.
        Err(ExecuteError::UnknownJob | ExecuteError::Database(DatabaseError::Archived { .. })) => {
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Err(error) => Err(error.into()),
    }
}
