//! The door by which answers leave: personal texts, sealed until here, are opened for those who may
//! see them.
//!
//! Who that is, the request's actor says: without one nothing is opened, so that no page for
//! everybody gives anything away. What an error says may be what the request brought with it, and so
//! may a page whose address holds a sealed text: neither is opened, and nobody has a text opened by
//! sending it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::auth::Actor;
use super::problem::Problem;
use crate::app::App;
use crate::log::{Escape, has_token};

/// Opens the personal texts of an answer that succeeded, within JSON and within pages. Streams and
/// files open their own, message by message and line by line.
pub(super) async fn personal(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    let may_see = request.extensions().get::<Actor>().is_some();
    let brought = brings_token(request.uri().query().unwrap_or_default());
    let response = next.run(request).await;
    if brought || !may_see {
        return response;
    }
    let Some(escape) = escape(&response) else { return response };
    match open(&app, response, escape).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

fn brings_token(query: &str) -> bool {
    let holds = |text: &str| has_token(text.as_bytes());
    holds(query)
        || form_urlencoded::parse(query.as_bytes())
            .any(|(name, value)| holds(&name) || holds(&value))
}

/// How texts stand in an answer; `None` where none is opened here.
fn escape(response: &Response) -> Option<Escape> {
    if !response.status().is_success() {
        return None;
    }
    let media_type = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    match media_type.split(';').next()?.trim() {
        "application/json" => Some(Escape::Json),
        "text/html" => Some(Escape::Html),
        _ => None,
    }
}

async fn open(app: &App, response: Response, escape: Escape) -> Result<Response, Problem> {
    let (mut head, body) = response.into_parts();
    // It is whole in memory already: handlers bound what they answer.
    let body = axum::body::to_bytes(body, usize::MAX).await;
    let body = body.map_err(|_| Problem::unavailable())?;
    let opened = app.log.keys().open(body, escape).await?;
    head.headers.remove(CONTENT_LENGTH);
    Ok(Response::from_parts(head, Body::from(opened)))
}
