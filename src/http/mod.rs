//! HTTP: routes, who may use them, their limits, and their answers.

pub mod access;
pub mod api;
pub mod at;
pub mod auth;
mod open;
pub mod pages;
pub mod problem;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use http_body_util::LengthLimitError;
use milepost_schemas::Right::{Administer, Audit, Events, Operate, See};

use crate::app::App;
use access::Needs::{self, Nobody, Right, Somebody};
use access::Table;
use problem::Problem;

/// The largest body of a request that is no webhook, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What pages may do: nothing but what this server itself sends them.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; \
     base-uri 'none'";

/// What pages never need, no script of theirs may ask for.
const PERMISSIONS_POLICY: &str = "accelerometer=(), browsing-topics=(), camera=(), \
     display-capture=(), geolocation=(), gyroscope=(), magnetometer=(), microphone=(), midi=(), \
     payment=(), publickey-credentials-get=(), usb=()";

/// Where browsers reach this server by HTTPS, they do not try without it for a year.
const STRICT_TRANSPORT: &str = "max-age=31536000";

const SEE: Needs = Right(See);
const EVENTS: Needs = Right(Events);
const AUDIT: Needs = Right(Audit);
const OPERATE: Needs = Right(Operate);
const ADMINISTER: Needs = Right(Administer);

/// Every route there is for programs, and what each method takes; `domain::access` says which role
/// has it. A route without a row lets nobody through, and a test finds it.
/// `schemas/openapi.json` describes those under `/api`; a test compares.
#[rustfmt::skip]
pub const ROUTES: &Table = &[
    ("/api/webhooks/github", &[("post", Nobody)]),
    ("/api/agents", &[("get", SEE), ("post", OPERATE)]),
    ("/api/agents/{id}", &[("get", SEE)]),
    ("/api/agents/{id}/provision", &[("post", OPERATE)]),
    ("/api/agents/{id}/instance", &[("get", SEE)]),
    ("/api/agents/{id}/instance/stream", &[("get", SEE)]),
    ("/api/jobs", &[("get", SEE)]),
    ("/api/jobs/{id}", &[("get", SEE)]),
    ("/api/jobs/{id}/cancel", &[("post", OPERATE)]),
    ("/api/jobs/{id}/priority", &[("post", OPERATE)]),
    ("/api/jobs/{id}/retry", &[("post", OPERATE)]),
    ("/api/jobs/{id}/stream", &[("get", SEE)]),
    ("/api/jobs/{id}/log", &[("get", SEE)]),
    ("/api/jobs/{id}/log.txt", &[("get", SEE)]),
    ("/api/jobs/{id}/log/stream", &[("get", SEE)]),
    ("/api/nodes", &[("get", SEE), ("post", OPERATE)]),
    ("/api/nodes/{id}", &[("get", SEE)]),
    ("/api/nodes/{id}/provision", &[("post", OPERATE)]),
    ("/api/nodes/{id}/decommission", &[("post", OPERATE)]),
    ("/api/queue", &[("get", SEE)]),
    ("/api/queue/pause", &[("post", OPERATE)]),
    ("/api/queue/resume", &[("post", OPERATE)]),
    ("/api/projections", &[("get", SEE)]),
    ("/api/projections/{name}", &[("get", SEE)]),
    ("/api/projections/{name}/rebuild", &[("post", OPERATE)]),
    ("/api/projections/{name}/switch", &[("post", OPERATE)]),
    ("/api/projections/{name}/cancel", &[("post", OPERATE)]),
    ("/api/projections/{name}/rollback", &[("post", OPERATE)]),
    ("/api/projections/{name}/verify", &[("post", OPERATE)]),
    ("/api/projections/{name}/retry", &[("post", OPERATE)]),
    ("/api/projections/{name}/skip", &[("post", OPERATE)]),
    ("/api/diff", &[("get", SEE)]),
    ("/api/events", &[("get", EVENTS)]),
    ("/api/events/{position}", &[("get", EVENTS)]),
    ("/api/events/stream", &[("get", EVENTS)]),
    ("/api/stream", &[("get", SEE)]),
    ("/api/proofs/inclusion", &[("get", EVENTS)]),
    ("/api/proofs/consistency", &[("get", SEE)]),
    ("/api/privacy/erase", &[("post", ADMINISTER)]),
    ("/api/metrics", &[("get", SEE)]),
    ("/api/login", &[("post", Nobody)]),
    ("/api/logout", &[("post", Nobody)]),
    ("/api/session", &[("get", Somebody)]),
    ("/api/account", &[("get", Somebody)]),
    ("/api/account/password", &[("post", Somebody)]),
    ("/api/account/sessions/{id}/revoke", &[("post", Somebody)]),
    ("/api/accounts", &[("get", AUDIT), ("post", ADMINISTER)]),
    ("/api/accounts/{id}/role", &[("post", ADMINISTER)]),
    ("/api/accounts/{id}/disable", &[("post", ADMINISTER)]),
    ("/api/accounts/{id}/enable", &[("post", ADMINISTER)]),
    ("/api/accounts/{id}/password", &[("post", ADMINISTER)]),
    ("/api/tokens", &[("get", AUDIT), ("post", ADMINISTER)]),
    ("/api/tokens/{id}/revoke", &[("post", ADMINISTER)]),
    ("/api/sessions", &[("get", ADMINISTER)]),
    ("/api/sessions/{id}/revoke", &[("post", ADMINISTER)]),
    ("/log/checkpoint", &[("get", Nobody)]),
    ("/log/keys", &[("get", Nobody)]),
    ("/log/tile/{*path}", &[("get", Nobody)]),
    ("/log/tile/entries/{*path}", &[("get", EVENTS)]),
    ("/healthz", &[("get", Nobody)]),
    ("/readyz", &[("get", Nobody)]),
    ("/metrics", &[("get", SEE)]),
];

/// Every page and every form, likewise. A form takes what its route for programs takes.
#[rustfmt::skip]
pub const PAGES: &Table = &[
    ("/", &[("get", SEE)]),
    ("/agents", &[("post", OPERATE)]),
    ("/agents/{id}", &[("get", SEE)]),
    ("/agents/{id}/provision", &[("post", OPERATE)]),
    ("/agents/{id}/erase", &[("post", ADMINISTER)]),
    ("/jobs/{id}", &[("get", SEE)]),
    ("/jobs/{id}/cancel", &[("post", OPERATE)]),
    ("/jobs/{id}/priority", &[("post", OPERATE)]),
    ("/jobs/{id}/retry", &[("post", OPERATE)]),
    ("/nodes", &[("get", SEE), ("post", OPERATE)]),
    ("/nodes/{id}", &[("get", SEE)]),
    ("/nodes/{id}/provision", &[("post", OPERATE)]),
    ("/nodes/{id}/decommission", &[("post", OPERATE)]),
    ("/nodes/{id}/erase", &[("post", ADMINISTER)]),
    ("/queue/pause", &[("post", OPERATE)]),
    ("/queue/resume", &[("post", OPERATE)]),
    ("/projections", &[("get", SEE)]),
    ("/projections/{name}/{order}", &[("post", OPERATE)]),
    ("/events", &[("get", EVENTS)]),
    ("/events/{position}", &[("get", EVENTS)]),
    ("/diff", &[("get", SEE)]),
    ("/integrity", &[("get", EVENTS)]),
    ("/account", &[("get", Somebody)]),
    ("/account/password", &[("post", Somebody)]),
    ("/account/sessions/{id}/revoke", &[("post", Somebody)]),
    ("/accounts", &[("get", AUDIT), ("post", ADMINISTER)]),
    ("/accounts/{id}/role", &[("post", ADMINISTER)]),
    ("/accounts/{id}/disable", &[("post", ADMINISTER)]),
    ("/accounts/{id}/enable", &[("post", ADMINISTER)]),
    ("/tokens", &[("post", ADMINISTER)]),
    ("/tokens/{id}/revoke", &[("post", ADMINISTER)]),
    ("/sessions/{id}/revoke", &[("post", ADMINISTER)]),
    ("/login", &[("get", Nobody), ("post", Nobody)]),
    ("/logout", &[("post", Nobody)]),
    ("/assets/{*path}", &[("get", Nobody)]),
];

/// Parameters with which a route takes another right as well.
pub const PARAMETERS: &[(&str, &str, milepost_schemas::Right)] =
    &[("/api/stream", "events", Events)];

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
        .route("/api/projections", get(api::projections::list))
        .route("/api/projections/{name}", get(api::projections::show))
        .route("/api/projections/{name}/rebuild", post(api::projections::rebuild))
        .route("/api/projections/{name}/switch", post(api::projections::switch))
        .route("/api/projections/{name}/cancel", post(api::projections::cancel))
        .route("/api/projections/{name}/rollback", post(api::projections::roll_back))
        .route("/api/projections/{name}/verify", post(api::projections::verify))
        .route("/api/projections/{name}/retry", post(api::projections::retry))
        .route("/api/projections/{name}/skip", post(api::projections::skip))
        .route("/api/diff", get(api::diff::show))
        .route("/api/events", get(api::events::list))
        .route("/api/events/{position}", get(api::events::show))
        .route("/api/events/stream", get(api::streams::events))
        .route("/api/stream", get(api::streams::page))
        .route("/api/proofs/inclusion", get(api::proofs::inclusion))
        .route("/api/proofs/consistency", get(api::proofs::consistency))
        .route("/api/privacy/erase", post(api::privacy::erase))
        .route("/api/metrics", get(api::metrics::counts))
        .route("/api/login", post(api::session::log_in))
        .route("/api/logout", post(api::session::log_out))
        .route("/api/session", get(api::session::show))
        .route("/log/checkpoint", get(api::tiles::checkpoint))
        .route("/log/keys", get(api::tiles::keys))
        .route("/log/tile/{*path}", get(api::tiles::tile))
        .route("/log/tile/entries/{*path}", get(api::tiles::entries))
        .route("/api/account", get(api::accounts::own))
        .route("/api/account/password", post(api::accounts::own_password))
        .route("/api/account/sessions/{id}/revoke", post(api::accounts::end_own_session))
        .route("/api/accounts", get(api::accounts::list).post(api::accounts::create))
        .route("/api/accounts/{id}/role", post(api::accounts::role))
        .route("/api/accounts/{id}/disable", post(api::accounts::disable))
        .route("/api/accounts/{id}/enable", post(api::accounts::enable))
        .route("/api/accounts/{id}/password", post(api::accounts::password))
        .route("/api/tokens", get(api::tokens::list).post(api::tokens::create))
        .route("/api/tokens/{id}/revoke", post(api::tokens::revoke))
        .route("/api/sessions", get(api::accounts::sessions))
        .route("/api/sessions/{id}/revoke", post(api::accounts::end_session))
        .route("/healthz", get(api::health::alive))
        .route("/readyz", get(api::health::ready))
        .route("/metrics", get(api::metrics::prometheus))
        .merge(pages::routes())
        .fallback(pages::not_found)
        .method_not_allowed_fallback(pages::not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), open::personal))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::gate))
        .layer(middleware::map_response_with_state(Arc::clone(&app), secure));
    // Webhooks prove themselves by a signature, and go without the layers that browsers need.
    Router::new()
        .route("/api/webhooks/github", post(api::webhooks::github))
        .method_not_allowed_fallback(pages::not_allowed)
        .merge(api)
        .with_state(app)
}

/// Headers that every answer to a browser carries.
async fn secure(State(app): State<Arc<App>>, mut response: Response) -> Response {
    let headers = response.headers_mut();
    if app.config.is_https() {
        let strict = HeaderValue::from_static(STRICT_TRANSPORT);
        headers.insert(header::STRICT_TRANSPORT_SECURITY, strict);
    }
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("permissions-policy"), PERMISSIONS_POLICY),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-embedder-policy"), "require-corp"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Whether a path is answered with JSON, whatever happens; pages are answered with pages.
fn is_for_programs(path: &str) -> bool {
    path.starts_with("/api/")
        || path.starts_with("/log/")
        || matches!(path, "/healthz" | "/readyz" | "/metrics")
}

/// Reads a body of at most `bytes_max` bytes; nothing larger is taken in.
///
/// # Errors
/// 413, before reading where the sender says the size; 400 when the sender breaks off.
pub async fn read_body(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<bytes::Bytes, Problem> {
    let length = headers.get(header::CONTENT_LENGTH);
    let length: Option<usize> = length.and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length| length > bytes_max) {
        return Err(Problem::too_large(bytes_max));
    }
    match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, bytes_max)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_length_limit(&error) => Err(Problem::too_large(bytes_max)),
        Ok(Err(_)) => Err(Problem::bad_request("The body broke off")),
        Err(_) => Err(Problem::bad_request("The body did not arrive in time")),
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    matches!(error.source(), Some(source) if source.is::<LengthLimitError>())
}
