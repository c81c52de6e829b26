//! `POST /api/privacy/erase`: personal data, gone for good.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use milepost_schemas::{Position, StreamId};
use serde::{Deserialize, Serialize};

use super::json;
use crate::app::App;
use crate::execute;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::log::vacuum;

/// The body of `POST /api/privacy/erase`.
#[derive(Debug, Deserialize)]
pub struct Erasure {
    subject: Option<StreamId>,
    reason: Option<String>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Erased {
    subject: StreamId,
    /// Where that it was erased is recorded.
    position: Position,
    /// Whether the old version of the key is out of the table's file: false where the server's role
    /// does not own the table, and `milepost privacy rewrap` has to do it.
    vacuumed: bool,
}

/// `POST /api/privacy/erase {"subject","reason"}`.
///
/// # Errors
/// 400 without a subject or a reason; 404; 409 for a job or an instance, whose data is its agent's or
/// its node's.
pub async fn erase(
    State(app): State<Arc<App>>,
    actor: Actor,
    request: Request,
) -> Result<Json<Erased>, Problem> {
    let Erasure { subject, reason } = json(request).await?;
    let subject = subject.ok_or_else(|| Problem::bad_request("subject is missing"))?;
    destroy(&app, &actor, subject, reason.unwrap_or_default()).await.map(Json)
}

/// Erases the personal data of a subject, once; a second time only makes sure that the key is out of
/// the file.
///
/// # Errors
/// As [`erase`].
pub async fn destroy(
    app: &App,
    actor: &Actor,
    subject: StreamId,
    reason: String,
) -> Result<Erased, Problem> {
    let reason = crate::domain::job::said(&app.redactor.masked(&reason));
    let reason = reason.ok_or_else(|| Problem::bad_request("reason is missing"))?;
    let metadata = actor.metadata(app, subject.0);
    let position =
        execute::erase_personal_data(app, subject, &actor.name, &reason, metadata).await?;
    let vacuumed = vacuum(app.log.database()).await.unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "the key's row is not vacuumed");
        Err(error.to_string())
    });
    Ok(Erased { subject, position, vacuumed: vacuumed.is_ok() })
}
