//! Pages.
use std::sync::Arc;
use axum::Router;
use crate::app::App;
use crate::http::problem::Problem;

/// Their routes.
pub fn routes() -> Router<Arc<App>> { Router::new() }

/// 404.
pub async fn not_found() -> Problem { Problem::not_found("page") }
