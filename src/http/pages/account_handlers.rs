//! What the pages of accounts ask for, and what their forms do.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{Redirect, Response};
use axum::routing::{get, post};
use jiff::SignedDuration;
use milepost_schemas::{AccountId, Position, Right, SessionId, TokenId};
use serde::Deserialize;

use super::handlers::{Trouble, form, frame, html};
use super::{AccountPage, AccountsPage};
use crate::accounts::{self, NewToken, Who};
use crate::app::App;
use crate::domain::AccountCommand;
use crate::domain::access::READING;
use crate::http::api::{Id, accounts as api, tokens};
use crate::http::auth::{Actor, Visitor, visit};
use crate::http::problem::Problem;

/// The routes of these pages.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/account", get(own))
        .route("/account/password", post(own_password))
        .route("/account/sessions/{id}/revoke", post(end_own_session))
        .route("/accounts", get(list).post(create))
        .route("/accounts/{id}/role", post(role))
        .route("/accounts/{id}/disable", post(disable))
        .route("/accounts/{id}/enable", post(enable))
        .route("/tokens", post(create_token))
        .route("/tokens/{id}/revoke", post(revoke_token))
        .route("/sessions/{id}/revoke", post(end_session))
}

async fn own(State(app): State<Arc<App>>, Visitor(actor): Visitor) -> Result<Response, Trouble> {
    show_own(&app, &actor, None).await
}

/// The page of one's own account, with what was just done.
async fn show_own(
    app: &App,
    actor: &Actor,
    done: Option<&'static str>,
) -> Result<Response, Trouble> {
    let Who::Person { account, email, session } = actor.holder.who.clone() else {
        return Err(Problem::not_found("account").into());
    };
    let (database, now) = (app.log.database(), app.clock.now());
    let sessions = accounts::list_sessions(database, Some(account), now).await?;
    let frame = frame(app, Some(actor), "Your account".to_owned(), app.log.feed().head());
    Ok(html(&AccountPage::new(frame, email, actor.holder.role, &sessions, session, done)))
}

#[derive(Deserialize)]
struct NewPassword {
    current: String,
    password: String,
}

async fn own_password(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    request: Request,
) -> Result<Response, Trouble> {
    let (headers, extensions) = (request.headers().clone(), request.extensions().clone());
    let NewPassword { current, password } = form(request).await?;
    let visit = visit(&app, &headers, &extensions);
    api::change_own_password(&app, &actor, &current, &password, &visit).await?;
    // Said in this answer only: a link must not be able to say it.
    let done = "The password was changed, and your other sessions have ended.";
    show_own(&app, &actor, Some(done)).await
}

async fn end_own_session(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<SessionId>, Problem>,
) -> Result<Redirect, Trouble> {
    let Id(session) = id?;
    api::end_own(&app, &actor, session).await?;
    Ok(Redirect::to("/account"))
}

async fn list(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, Trouble> {
    show(&app, &visitor, None).await
}

/// The page, with the token that was just made.
async fn show(
    app: &App,
    Visitor(actor): &Visitor,
    made: Option<(String, String)>,
) -> Result<Response, Trouble> {
    let database = app.log.database();
    let people = accounts::list_accounts(database).await?;
    let tokens = accounts::list_tokens(database).await?;
    // Where people are is for those who look after accounts only.
    let sessions = if actor.holder.may(Right::Administer) {
        accounts::list_sessions(database, None, app.clock.now()).await?
    } else {
        Vec::new()
    };
    let own = match actor.holder.who {
        Who::Person { session, .. } => Some(session),
        Who::Program { .. } => None,
    };
    let head: Position = app.log.feed().head();
    let frame = frame(app, Some(actor), "Accounts".to_owned(), head);
    Ok(html(&AccountsPage::new(frame, &people, &tokens, &sessions, own, made)))
}

#[derive(Deserialize)]
struct NewAccount {
    email: String,
    password: String,
    role: String,
}

async fn create(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    request: Request,
) -> Result<Redirect, Trouble> {
    let NewAccount { email, password, role } = form(request).await?;
    let id = api::make(&app, &actor, &email, &password, api::role_of(Some(role))?).await?;
    Ok(Redirect::to(&format!("/accounts#account-{id}")))
}

#[derive(Deserialize)]
struct NewRole {
    role: String,
}

async fn role(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<AccountId>, Problem>,
    request: Request,
) -> Result<Redirect, Trouble> {
    let Id(account) = id?;
    let NewRole { role } = form(request).await?;
    let command = AccountCommand::Role(api::role_of(Some(role))?);
    api::change(&app, &actor, account, command).await?;
    Ok(Redirect::to(&format!("/accounts#account-{account}")))
}

async fn disable(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<AccountId>, Problem>,
) -> Result<Redirect, Trouble> {
    let Id(account) = id?;
    api::change(&app, &actor, account, AccountCommand::Disable).await?;
    Ok(Redirect::to(&format!("/accounts#account-{account}")))
}

async fn enable(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<AccountId>, Problem>,
) -> Result<Redirect, Trouble> {
    let Id(account) = id?;
    api::change(&app, &actor, account, AccountCommand::Enable).await?;
    Ok(Redirect::to(&format!("/accounts#account-{account}")))
}

#[derive(Deserialize)]
struct NewTokenForm {
    name: String,
    role: String,
    scope: Option<String>,
    days: Option<String>,
}

async fn create_token(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    request: Request,
) -> Result<Response, Trouble> {
    let NewTokenForm { name, role, scope, days } = form(request).await?;
    let scopes = match scope.as_deref() {
        None | Some("") => Vec::new(),
        Some("read") => READING.to_vec(),
        Some(one) => tokens::scopes_of(&[one.to_owned()])?,
    };
    // A field left empty is sent all the same.
    let days = days.filter(|text| !text.is_empty()).map(|text| text.parse::<i16>());
    let wrong = |_| Problem::bad_request("Days are a whole number");
    let days = days.transpose().map_err(wrong)?;
    let now = app.clock.now();
    let expires_at = days.map(|days| now + SignedDuration::from_hours(24 * i64::from(days)));
    let new = NewToken { name: name.clone(), role: api::role_of(Some(role))?, scopes, expires_at };
    let made = tokens::make(&app, &actor, new).await?;
    show(&app, &Visitor(actor), Some((name, made.secret))).await
}

async fn revoke_token(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<TokenId>, Problem>,
) -> Result<Redirect, Trouble> {
    let Id(token) = id?;
    tokens::end(&app, &actor, token).await?;
    Ok(Redirect::to("/accounts#tokens"))
}

async fn end_session(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<SessionId>, Problem>,
) -> Result<Redirect, Trouble> {
    let Id(session) = id?;
    api::end(&app, &actor, session, None).await?;
    Ok(Redirect::to("/accounts#sessions"))
}
