//! Coming and going: `/api/login`, `/api/logout`, `/api/session`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::json as read_json;
use crate::accounts;
use crate::app::App;
use crate::http::auth::{Actor, COOKIE_NAME, refuse_cross_origin, session_token};
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
/// 401.
pub async fn log_in(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    refuse_cross_origin(request.method(), request.headers())?;
    let LogIn { email, password } = read_json(request).await?;
    let token = check(&app, &email, &password).await?;
    let mut response = Json(json!({"success": true})).into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie(&app, &token));
    Ok(response)
}

/// Begins a session for whoever knows the password.
///
/// # Errors
/// 401.
pub async fn check(app: &App, email: &str, password: &str) -> Result<String, Problem> {
    let wrong = || Problem::unauthorised("The address or the password is wrong");
    if password.len() > accounts::PASSWORD_BYTES_MAX {
        return Err(wrong());
    }
    let session = accounts::log_in(app.log.database(), email, password, app.clock.now()).await?;
    session.ok_or_else(wrong)
}

/// `POST /api/logout`.
///
/// # Errors
/// 403 from another site.
pub async fn log_out(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    refuse_cross_origin(request.method(), request.headers())?;
    leave(&app, request.headers()).await?;
    let mut response = Json(json!({"success": true})).into_response();
    response.headers_mut().insert(header::SET_COOKIE, no_cookie());
    Ok(response)
}

/// Ends the session of a request, if it has one.
///
/// # Errors
/// 503 when the database cannot be asked.
pub async fn leave(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    if let Some(token) = session_token(headers) {
        accounts::log_out(app.log.database(), token).await?;
    }
    Ok(())
}

/// `GET /api/session`: who am I.
pub async fn show(actor: Actor) -> Json<Value> {
    Json(json!({"actor": actor.name, "expires_at": actor.expires_at}))
}

/// The cookie of a new session.
pub fn cookie(app: &App, token: &str) -> HeaderValue {
    let secure = if app.config.is_https() { "; Secure" } else { "" };
    let seconds = accounts::SESSION_DURATION.as_secs();
    let text =
        format!("{COOKIE_NAME}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}");
    text.parse().expect("a hex token is fit for a header")
}

/// What removes it.
pub fn no_cookie() -> HeaderValue {
    format!("{COOKIE_NAME}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0")
        .parse()
        .expect("a name is fit for a header")
}
