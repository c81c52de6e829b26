//! The API: one file a resource.

pub mod accounts;
pub mod agents;
pub mod diff;
pub mod events;
pub mod health;
pub mod job_log;
pub mod jobs;
pub mod metrics;
pub mod nodes;
pub mod privacy;
pub mod projections;
pub mod proofs;
pub mod queue;
pub mod receipt;
pub mod session;
pub mod streams;
pub mod tiles;
pub mod tokens;
pub mod webhooks;
pub mod workflow_runs;

use axum::extract::{FromRequestParts, Path, Request};
use axum::http::header;
use axum::http::request::Parts;
use milepost_schemas::{AccountId, AgentId, JobId, NodeId, SessionId, TokenId};
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::{BODY_BYTES_MAX, read_body};

/// The id in a path; what is none names nothing, and is not found.
pub struct Id<T>(pub T);

/// What an id in a path can stand for.
pub trait Named: std::str::FromStr {
    /// In words.
    const NAME: &'static str;
}

impl Named for AgentId {
    const NAME: &'static str = "agent";
}

impl Named for NodeId {
    const NAME: &'static str = "node";
}

impl Named for JobId {
    const NAME: &'static str = "job";
}

impl Named for AccountId {
    const NAME: &'static str = "account";
}

impl Named for SessionId {
    const NAME: &'static str = "session";
}

impl Named for TokenId {
    const NAME: &'static str = "token";
}

/// What a view is called in a path.
pub struct ProjectionName(pub String);

impl std::str::FromStr for ProjectionName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl Named for ProjectionName {
    const NAME: &'static str = "projection";
}

impl<T: Named, S: Send + Sync> FromRequestParts<S> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let id = text.ok().and_then(|Path(text)| text.parse().ok());
        id.map(Self).ok_or_else(|| Problem::not_found(T::NAME))
    }
}

/// Reads a JSON body; an empty one counts as `{}`, so that `curl -X POST` works.
async fn json<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let (Parts { headers, .. }, body) = request.into_parts();
    let body = read_body(&headers, body, BODY_BYTES_MAX).await?;
    if body.iter().all(u8::is_ascii_whitespace) {
        return serde_json::from_slice(b"{}").map_err(|error| wrong(&error));
    }
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !media_type
        .unwrap_or_default()
        .split(';')
        .next()
        .is_some_and(|it| it.trim().eq_ignore_ascii_case("application/json"))
    {
        return Err(Problem::not_json());
    }
    // serde would read an array as the members in order.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Problem::bad_request("The body is not a JSON object"));
    }
    serde_json::from_slice(&body).map_err(|error| wrong(&error))
}

fn wrong(error: &serde_json::Error) -> Problem {
    Problem::bad_request(error.to_string())
}
