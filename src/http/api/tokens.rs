//! `/api/tokens`: what programs come in with.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use milepost_schemas::{Right, TokenId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::accounts::{given, role_of};
use super::{Id, json as read_json};
use crate::accounts::{self, NewToken, TokenRow};
use crate::app::App;
use crate::http::auth::Actor;
use crate::http::problem::Problem;

/// A list of tokens.
#[derive(Debug, Serialize)]
pub struct Tokens {
    tokens: Vec<TokenRow>,
}

/// A token that was made. Its secret is told here, and never again.
#[derive(Debug, Serialize)]
pub struct Made {
    /// Its id.
    pub id: TokenId,
    /// What the program sends as `Authorization: Bearer …`.
    pub secret: String,
}

/// The body of `POST /api/tokens`.
#[derive(Deserialize)]
pub struct NewTokenBody {
    name: Option<String>,
    role: Option<String>,
    #[serde(default)]
    scopes: Vec<String>,
    expires_at: Option<Timestamp>,
}

/// `GET /api/tokens`.
///
/// # Errors
/// 503 when the database cannot be asked.
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<Tokens>, Problem> {
    Ok(Json(Tokens { tokens: accounts::list_tokens(app.log.database()).await? }))
}

/// `POST /api/tokens {name,role,scopes?,expires_at?}`.
///
/// # Errors
/// 400 for what is missing or unknown; 409 while one of that name is in force; 422.
pub async fn create(
    State(app): State<Arc<App>>,
    actor: Actor,
    request: Request,
) -> Result<(StatusCode, Json<Made>), Problem> {
    let NewTokenBody { name, role, scopes, expires_at } = read_json(request).await?;
    let (name, role) = (given("name", name)?, role_of(role)?);
    let new = NewToken { name, role, scopes: scopes_of(&scopes)?, expires_at };
    Ok((StatusCode::CREATED, Json(make(&app, &actor, new).await?)))
}

/// Makes a token.
///
/// # Errors
/// As [`create`].
pub async fn make(app: &App, actor: &Actor, new: NewToken) -> Result<Made, Problem> {
    let (id, now) = (TokenId(app.clock.id()), app.clock.now());
    let metadata = actor.metadata(app, id.0);
    let secret = accounts::create_token(app.log.database(), id, new, now, &metadata).await?;
    Ok(Made { id, secret })
}

/// `POST /api/tokens/{id}/revoke`.
///
/// # Errors
/// 404.
pub async fn revoke(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(token): Id<TokenId>,
) -> Result<Json<Value>, Problem> {
    end(&app, &actor, token).await?;
    Ok(Json(json!({"success": true})))
}

/// Revokes a token.
///
/// # Errors
/// As [`revoke`].
pub async fn end(app: &App, actor: &Actor, token: TokenId) -> Result<(), Problem> {
    let metadata = actor.metadata(app, token.0);
    let revoked = accounts::revoke_token(app.log.database(), token, &metadata).await?;
    if revoked { Ok(()) } else { Err(Problem::not_found("token")) }
}

/// The rights that words name.
///
/// # Errors
/// 400 for a word that names none.
pub fn scopes_of(words: &[String]) -> Result<Vec<Right>, Problem> {
    let right = |word: &String| {
        word.parse().map_err(|_| Problem::bad_request(format!("{word} is no scope")))
    };
    words.iter().map(right).collect()
}
