//! HTTP: routes, who may use them, their limits, and their answers.

pub mod api;
pub mod auth;
mod open;
pub mod pages;
pub mod problem;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};

use crate::app::App;
use problem::Problem;

/// The largest body of a request that is no webhook, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What pages may do: nothing but what this server itself sends them.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; \
     base-uri 'none'";

/// Every route there is. `schemas/openapi.json` describes those under `/api`; a test compares.
pub const ROUTES: &[(&str, &[&str])] = &[
    ("/api/webhooks/github", &["post"]),
    ("/api/agents", &["get", "post"]),
    ("/api/agents/{id}", &["get"]),
    ("/api/agents/{id}/provision", &["post"]),
    ("/api/agents/{id}/instance", &["get"]),
    ("/api/agents/{id}/instance/stream", &["get"]),
    ("/api/jobs", &["get"]),
    ("/api/jobs/{id}", &["get"]),
    ("/api/jobs/{id}/cancel", &["post"]),
    ("/api/jobs/{id}/priority", &["post"]),
    ("/api/jobs/{id}/retry", &["post"]),
    ("/api/jobs/{id}/stream", &["get"]),
    ("/api/jobs/{id}/log", &["get"]),
    ("/api/jobs/{id}/log.txt", &["get"]),
    ("/api/jobs/{id}/log/stream", &["get"]),
    ("/api/nodes", &["get", "post"]),
    ("/api/nodes/{id}", &["get"]),
    ("/api/nodes/{id}/provision", &["post"]),
    ("/api/nodes/{id}/decommission", &["post"]),
    ("/api/queue", &["get"]),
    ("/api/queue/pause", &["post"]),
    ("/api/queue/resume", &["post"]),
    ("/api/events", &["get"]),
    ("/api/events/stream", &["get"]),
    ("/api/stream", &["get"]),
    ("/api/privacy/erase", &["post"]),
    ("/api/metrics", &["get"]),
    ("/api/login", &["post"]),
    ("/api/logout", &["post"]),
    ("/api/session", &["get"]),
    ("/healthz", &["get"]),
    ("/readyz", &["get"]),
    ("/metrics", &["get"]),
];

/// The router of a process.
pub fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/api/agents", get(api::agents::list).post(api::agents::create))
        .route("/api/agents/{id}", get(api::agents::show))
        .route("/api/agents/{id}/provision", post(api::agents::provision))
        .route("/api/agents/{id}/instance", get(api::agents::instance))
        .route("/api/agents/{id}/instance/stream", get(api::streams::instance))
        .route("/api/jobs", get(api::jobs::list))
        .route("/api/jobs/{id}", get(api::jobs::show))
        .route("/api/jobs/{id}/cancel", post(api::jobs::cancel))
        .route("/api/jobs/{id}/priority", post(api::jobs::priority))
        .route("/api/jobs/{id}/retry", post(api::jobs::retry))
        .route("/api/jobs/{id}/stream", get(api::streams::job))
        .route("/api/jobs/{id}/log", get(api::job_log::list))
        .route("/api/jobs/{id}/log.txt", get(api::job_log::text))
        .route("/api/jobs/{id}/log/stream", get(api::job_log::stream))
        .route("/api/nodes", get(api::nodes::list).post(api::nodes::create))
        .route("/api/nodes/{id}", get(api::nodes::show))
        .route("/api/nodes/{id}/provision", post(api::nodes::provision))
        .route("/api/nodes/{id}/decommission", post(api::nodes::decommission))
        .route("/api/queue", get(api::queue::show))
        .route("/api/queue/pause", post(api::queue::pause))
        .route("/api/queue/resume", post(api::queue::resume))
        .route("/api/events", get(api::events::list))
        .route("/api/events/stream", get(api::streams::events))
        .route("/api/stream", get(api::streams::page))
        .route("/api/privacy/erase", post(api::privacy::erase))
        .route("/api/metrics", get(api::metrics::counts))
        .route("/api/login", post(api::session::log_in))
        .route("/api/logout", post(api::session::log_out))
        .route("/api/session", get(api::session::show))
        .route("/healthz", get(api::health::alive))
        .route("/readyz", get(api::health::ready))
        .route("/metrics", get(api::metrics::prometheus))
        .merge(pages::routes())
        .fallback(pages::not_found)
        .method_not_allowed_fallback(pages::not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), open::personal))
        .layer(middleware::map_response(secure));
    // Webhooks go without the layers that browsers need.
    Router::new()
        .route("/api/webhooks/github", post(api::webhooks::github))
        .method_not_allowed_fallback(pages::not_allowed)
        .merge(api)
        .with_state(app)
}

/// Headers that every answer to a browser carries.
async fn secure(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Reads a body of at most `bytes_max` bytes; nothing larger is taken in.
///
/// # Errors
/// 413, before reading where the sender says the size; 400 when the sender breaks off.
pub async fn read_body(request: Request, bytes_max: usize) -> Result<bytes::Bytes, Problem> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length: Option<usize> = length.and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length| length > bytes_max) {
        return Err(Problem::too_large(bytes_max));
    }
    let body: Body = request.into_body();
    match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, bytes_max)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_length_limit(&error) => Err(Problem::too_large(bytes_max)),
        Ok(Err(_)) => Err(Problem::bad_request("The body broke off")),
        Err(_) => Err(Problem::bad_request("The body did not arrive in time")),
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
        .any(|error| error.to_string().contains("length limit"))
}
