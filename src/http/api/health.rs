//! Is the process alive; is it of use.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::app::App;
use crate::http::problem::Problem;

/// `GET /healthz`: the process answers.
pub async fn alive() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /readyz`: the log can be read and was not set back, and this process is not ending.
///
/// # Errors
/// 503 otherwise.
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    if app.shutdown.is_cancelled() {
        return Err(Problem::unavailable());
    }
    let least = app.log.least();
    let (epoch, head) = app.log.head().await?;
    if head < least {
        return Err(Problem::set_back());
    }
    Ok(Json(json!({"status": "ok", "epoch": epoch, "position": head})))
}
