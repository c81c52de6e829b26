//! Coming and going: `/api/login`, `/api/logout`, `/api/session`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use milepost_schemas::{Metadata, Right};
use serde::Deserialize;
use serde_json::{Value, json};

use super::json as read_json;
use crate::accounts::{self, LogInError, Visit};
use crate::app::App;
use crate::http::auth::{Actor, COOKIE_NAME, session_token, visit};
use crate::http::problem::Problem;

/// The body of `POST /api/login`.
#[derive(Deserialize)]
pub struct LogIn {
    email: String,
    password: String,
}

/// `POST /api/login {email,password}` → `{"success":true}` and the cookie.
///
/// # Errors
/// 401; 429 after too many that failed; 503 while too many are looked at.
pub async fn log_in(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let (headers, extensions) = (request.headers().clone(), request.extensions().clone());
    let LogIn { email, password } = read_json(request).await?;
    let token = check(&app, &email, &password, &visit(&app, &headers, &extensions)).await?;
    let mut response = Json(json!({"success": true})).into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie(&app, &token));
    Ok(response)
}

/// Begins a session for whoever knows the password.
///
/// # Errors
/// As [`log_in`].
pub async fn check(
    app: &App,
    email: &str,
    password: &str,
    visit: &Visit<'_>,
) -> Result<String, Problem> {
    let (database, behind) = (app.log.database(), &app.behind_answers);
    let began = accounts::log_in(database, behind, email, password, visit).await;
    began.map_err(|error| match error {
        LogInError::Wrong => Problem::unauthorised("The address or the password is wrong"),
        LogInError::Wait(left) => Problem::too_many(left),
        LogInError::Busy(_) => Problem::busy(),
        LogInError::Database(error) => error.into(),
    })
}

/// `POST /api/logout`.
///
/// # Errors
/// 503 when the database cannot be asked.
pub async fn log_out(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, Problem> {
    leave(&app, &headers).await?;
    let mut response = Json(json!({"success": true})).into_response();
    response.headers_mut().insert(header::SET_COOKIE, no_cookie(&app));
    Ok(response)
}

/// Ends the session of a request, if it has one.
///
/// # Errors
/// 503 when the database cannot be asked.
pub async fn leave(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(token) = session_token(headers) else { return Ok(()) };
    let id = app.clock.id();
    let metadata = Metadata {
        actor: String::new(),
        correlation_id: id,
        causation_id: Some(format!("request:{id}")),
        callback: None,
    };
    accounts::log_out(app.log.database(), token, app.clock.now(), metadata).await?;
    Ok(())
}

/// `GET /api/session`: who am I, and what may I do.
pub async fn show(actor: Actor) -> Json<Value> {
    let holder = &actor.holder;
    let rights: Vec<_> = Right::ALL.iter().filter(|right| holder.may(**right)).collect();
    Json(json!({
        "actor": actor.name,
        "email": actor.email(),
        "role": holder.role,
        "rights": rights,
        "expires_at": holder.expires_at,
    }))
}

/// The cookie of a new session.
pub fn cookie(app: &App, token: &str) -> HeaderValue {
    set_cookie(app, token, accounts::SESSION_DURATION.as_secs())
}

/// What removes it.
pub fn no_cookie(app: &App) -> HeaderValue {
    set_cookie(app, "", 0)
}

fn set_cookie(app: &App, token: &str, seconds: i64) -> HeaderValue {
    let secure = if app.config.is_https() { "; Secure" } else { "" };
    let text =
        format!("{COOKIE_NAME}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}");
    text.parse().expect("a hex token is fit for a header")
}
