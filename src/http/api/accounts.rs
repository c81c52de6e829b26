//! `/api/accounts`, `/api/sessions`, `/api/account`: who may come in, and who is here.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use milepost_schemas::{AccountId, Role, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Id, json as read_json};
use crate::accounts::{self, AccountRow, LogInError, SessionRow, Visit, Who};
use crate::app::App;
use crate::domain::AccountCommand;
use crate::http::auth::{Actor, visit};
use crate::http::problem::Problem;

/// A list of accounts.
#[derive(Debug, Serialize)]
pub struct Accounts {
    accounts: Vec<AccountRow>,
}

/// A list of sessions.
#[derive(Debug, Serialize)]
pub struct Sessions {
    sessions: Vec<SessionRow>,
}

/// One's own account.
#[derive(Debug, Serialize)]
pub struct Own {
    id: AccountId,
    email: String,
    role: Role,
    sessions: Vec<SessionRow>,
}

/// The body of `POST /api/accounts`.
#[derive(Deserialize)]
pub struct NewAccount {
    email: Option<String>,
    password: Option<String>,
    role: Option<String>,
}

/// The body of `POST /api/accounts/{id}/role`.
#[derive(Deserialize)]
pub struct NewRole {
    role: Option<String>,
}

/// The body of `POST /api/accounts/{id}/password`, and of one's own with the one of now.
#[derive(Deserialize)]
pub struct NewPassword {
    current: Option<String>,
    password: Option<String>,
}

/// `GET /api/accounts`.
///
/// # Errors
/// 503 when the database cannot be asked.
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<Accounts>, Problem> {
    Ok(Json(Accounts { accounts: accounts::list_accounts(app.log.database()).await? }))
}

/// `POST /api/accounts {email,password,role}`.
///
/// # Errors
/// 400 for what is missing; 409 where the address has one; 422 for what will not do.
pub async fn create(
    State(app): State<Arc<App>>,
    actor: Actor,
    request: Request,
) -> Result<(StatusCode, Json<AccountRow>), Problem> {
    let NewAccount { email, password, role } = read_json(request).await?;
    let (email, password) = (given("email", email)?, given("password", password)?);
    let id = make(&app, &actor, &email, &password, role_of(role)?).await?;
    Ok((StatusCode::CREATED, Json(row(&app, id).await?)))
}

/// Makes an account.
///
/// # Errors
/// As [`create`].
pub async fn make(
    app: &App,
    actor: &Actor,
    email: &str,
    password: &str,
    role: Role,
) -> Result<AccountId, Problem> {
    let id = AccountId(app.clock.id());
    let metadata = actor.metadata(app, id.0);
    accounts::create(app.log.database(), id, email, password, role, &metadata).await?;
    Ok(id)
}

/// `POST /api/accounts/{id}/role {role}`: the account's sessions end.
///
/// # Errors
/// 404; 409 for the last admin, and for the role it has.
pub async fn role(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(account): Id<AccountId>,
    request: Request,
) -> Result<Json<AccountRow>, Problem> {
    let NewRole { role } = read_json(request).await?;
    change(&app, &actor, account, AccountCommand::Role(role_of(role)?)).await?;
    row(&app, account).await.map(Json)
}

/// `POST /api/accounts/{id}/disable`: the account's sessions end.
///
/// # Errors
/// 404; 409 for the last admin, and where it is so already.
pub async fn disable(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(account): Id<AccountId>,
) -> Result<Json<AccountRow>, Problem> {
    change(&app, &actor, account, AccountCommand::Disable).await?;
    row(&app, account).await.map(Json)
}

/// `POST /api/accounts/{id}/enable`.
///
/// # Errors
/// 404; 409 where it is so already.
pub async fn enable(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(account): Id<AccountId>,
) -> Result<Json<AccountRow>, Problem> {
    change(&app, &actor, account, AccountCommand::Enable).await?;
    row(&app, account).await.map(Json)
}

/// Gives an order to an account.
///
/// # Errors
/// As [`role`], [`disable`] and [`enable`].
pub async fn change(
    app: &App,
    actor: &Actor,
    account: AccountId,
    command: AccountCommand,
) -> Result<(), Problem> {
    let metadata = actor.metadata(app, account.0);
    let now = app.clock.now();
    Ok(accounts::change(app.log.database(), account, command, now, &metadata).await?)
}

/// `POST /api/accounts/{id}/password {password}`: the account's sessions end.
///
/// # Errors
/// 400; 404; 422 for a password that will not do.
pub async fn password(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(account): Id<AccountId>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let NewPassword { password, .. } = read_json(request).await?;
    let password = given("password", password)?;
    let metadata = actor.metadata(&app, account.0);
    accounts::set_password(app.log.database(), account, &password, None, &metadata).await?;
    Ok(Json(json!({"success": true})))
}

/// `GET /api/sessions`: everybody's.
///
/// # Errors
/// 503 when the database cannot be asked.
pub async fn sessions(State(app): State<Arc<App>>) -> Result<Json<Sessions>, Problem> {
    let sessions = accounts::list_sessions(app.log.database(), None, app.clock.now()).await?;
    Ok(Json(Sessions { sessions }))
}

/// `POST /api/sessions/{id}/revoke`.
///
/// # Errors
/// 404.
pub async fn end_session(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(session): Id<SessionId>,
) -> Result<Json<Value>, Problem> {
    end(&app, &actor, session, None).await?;
    Ok(Json(json!({"success": true})))
}

/// `GET /api/account`: one's own.
///
/// # Errors
/// 404 for a program.
pub async fn own(State(app): State<Arc<App>>, actor: Actor) -> Result<Json<Own>, Problem> {
    let Who::Person { account, email, .. } = actor.holder.who else {
        return Err(Problem::not_found("account"));
    };
    let (database, now) = (app.log.database(), app.clock.now());
    let sessions = accounts::list_sessions(database, Some(account), now).await?;
    Ok(Json(Own { id: account, email, role: actor.holder.role, sessions }))
}

/// `POST /api/account/password {current,password}`: one's other sessions end.
///
/// # Errors
/// 400; 404 for a program; 422 for a password that is wrong or will not do; 429.
pub async fn own_password(
    State(app): State<Arc<App>>,
    actor: Actor,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let (headers, extensions) = (request.headers().clone(), request.extensions().clone());
    let NewPassword { current, password } = read_json(request).await?;
    let (current, password) = (given("current", current)?, given("password", password)?);
    let visit = visit(&app, &headers, &extensions);
    change_own_password(&app, &actor, &current, &password, &visit).await?;
    Ok(Json(json!({"success": true})))
}

/// Gives a person another password.
///
/// # Errors
/// As [`own_password`].
pub async fn change_own_password(
    app: &App,
    actor: &Actor,
    current: &str,
    password: &str,
    visit: &Visit<'_>,
) -> Result<(), Problem> {
    if actor.email().is_none() {
        return Err(Problem::not_found("account"));
    }
    let (database, behind) = (app.log.database(), &app.behind_answers);
    match accounts::own_password(database, behind, &actor.holder, current, password, visit).await {
        Ok(changed) => Ok(changed?),
        Err(LogInError::Wrong) => Err(Problem::refused(&"the password of now is another")),
        Err(LogInError::Wait(left)) => Err(Problem::too_many(left)),
        Err(LogInError::Busy(_)) => Err(Problem::busy()),
        Err(LogInError::Database(error)) => Err(error.into()),
    }
}

/// `POST /api/account/sessions/{id}/revoke`: one of one's own.
///
/// # Errors
/// 404, also for another's.
pub async fn end_own_session(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(session): Id<SessionId>,
) -> Result<Json<Value>, Problem> {
    end_own(&app, &actor, session).await?;
    Ok(Json(json!({"success": true})))
}

/// Ends a session of a person's own.
///
/// # Errors
/// As [`end_own_session`].
pub async fn end_own(app: &App, actor: &Actor, session: SessionId) -> Result<(), Problem> {
    match actor.holder.who {
        Who::Person { account, .. } => end(app, actor, session, Some(account)).await,
        Who::Program { .. } => Err(Problem::not_found("session")),
    }
}

/// Ends a session: any, or only one of an account.
///
/// # Errors
/// 404.
pub async fn end(
    app: &App,
    actor: &Actor,
    session: SessionId,
    of: Option<AccountId>,
) -> Result<(), Problem> {
    let metadata = actor.metadata(app, actor.holder.stream());
    let ended = accounts::end_session(app.log.database(), session, of, &metadata).await?;
    if ended { Ok(()) } else { Err(Problem::not_found("session")) }
}

async fn row(app: &App, id: AccountId) -> Result<AccountRow, Problem> {
    let rows = accounts::list_accounts(app.log.database()).await?;
    rows.into_iter().find(|row| row.id == id).ok_or_else(|| Problem::not_found("account"))
}

/// A member that must be there.
///
/// # Errors
/// 400, with its name.
pub(super) fn given(name: &str, value: Option<String>) -> Result<String, Problem> {
    value.ok_or_else(|| Problem::bad_request(format!("{name} is missing")))
}

/// The role that a word names.
///
/// # Errors
/// 400 for none.
pub fn role_of(word: Option<String>) -> Result<Role, Problem> {
    let word = given("role", word)?;
    word.parse().map_err(|_| Problem::bad_request(format!("{word} is no role")))
}
