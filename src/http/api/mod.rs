//! The API: one file a resource.

pub mod agents;
pub mod events;
pub mod health;
pub mod jobs;
pub mod metrics;
pub mod session;
pub mod streams;
pub mod webhooks;

use axum::extract::Request;
use axum::http::header;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::{BODY_BYTES_MAX, read_body};

/// Reads a JSON body; an empty one counts as `{}`, so that `curl -X POST` works.
async fn json<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let media_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let body = read_body(request, BODY_BYTES_MAX).await?;
    if body.iter().all(u8::is_ascii_whitespace) {
        return serde_json::from_slice(b"{}").map_err(|error| wrong(&error));
    }
    let media_type = media_type.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !media_type
        .split(';')
        .next()
        .is_some_and(|it| it.trim().eq_ignore_ascii_case("application/json"))
    {
        return Err(Problem::not_json());
    }
    serde_json::from_slice(&body).map_err(|error| wrong(&error))
}

fn wrong(error: &serde_json::Error) -> Problem {
    Problem::bad_request(error.to_string())
}

/// Reads an id out of a path; what is none names nothing.
fn id<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| Problem::not_found(what))
}
