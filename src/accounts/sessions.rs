//! Browsers that are logged in.

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use milepost_schemas::event::{LogInWay, SessionBegan, SessionEnded};
use milepost_schemas::{AccountId, Metadata, SessionId};
use serde::Serialize;

use super::login::Visit;
use super::record::{commit, in_order};
use super::{Holder, USE_NOTED_EVERY, Who, role_of, secret, sha_of};
use crate::log::{Database, DatabaseError};

/// How long a session lasts.
pub const SESSION_DURATION: SignedDuration = SignedDuration::from_hours(24);

/// Sessions in a list.
pub const SESSIONS_LISTED_MAX: i64 = 200;

/// Sessions of one account; a further one ends the oldest, unrecorded like any that runs out.
const SESSIONS_OF_ACCOUNT_MAX: i64 = 50;

/// Characters kept of what a browser calls itself.
const USER_AGENT_CHARS_MAX: usize = 200;

/// A session in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionRow {
    /// Its id; no secret.
    pub id: SessionId,
    /// Whose.
    pub account_id: AccountId,
    /// Their address.
    pub email: String,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was used last, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// When it ends by itself.
    pub expires_at: Timestamp,
    /// Where it was begun from.
    pub address: Option<String>,
    /// What the browser calls itself.
    pub user_agent: Option<String>,
}

/// Begins a session within a transaction that is `in_order`, and commits; returns the cookie's secret. Whatever
/// session the browser had ends: an identifier is never carried over a log-in.
pub(super) async fn begin(
    tx: Transaction<'_>,
    account: AccountId,
    way: LogInWay,
    visit: &Visit<'_>,
    metadata: &Metadata,
) -> Result<String, DatabaseError> {
    let (token, id) = (secret(""), SessionId(visit.id));
    tx.execute("DELETE FROM session WHERE expires_at <= $1", &[&visit.now]).await?;
    if let Some(cookie) = visit.cookie {
        let sha = sha_of(cookie);
        tx.execute("DELETE FROM session WHERE token_sha256 = $1", &[&sha.as_slice()]).await?;
    }
    let delete = "DELETE FROM session WHERE token_sha256 IN ( \
         SELECT token_sha256 FROM session WHERE account_id = $1 ORDER BY created_at DESC OFFSET $2)";
    tx.execute(delete, &[&account.0, &(SESSIONS_OF_ACCOUNT_MAX - 1)]).await?;
    let agent: Option<String> =
        visit.user_agent.map(|text| text.chars().take(USER_AGENT_CHARS_MAX).collect());
    tx.execute(
        "INSERT INTO session (token_sha256, account_id, expires_at, id, created_at, address, \
             user_agent) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[
            &sha_of(&token).as_slice(),
            &account.0,
            &(visit.now + SESSION_DURATION),
            &id.0,
            &visit.now,
            &visit.address.to_string(),
            &agent,
        ],
    )
    .await?;
    let event = SessionBegan { account_id: account, session_id: id, way };
    commit(tx, account.stream(), event, metadata).await?;
    Ok(token)
}

/// Whoever a cookie's secret stands for, while it is in force.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn of_cookie(
    database: &Database,
    token: &str,
    now: Timestamp,
) -> Result<Option<Holder>, DatabaseError> {
    let client = database.get().await?;
    let statement = client
        .prepare_cached(
            "SELECT a.id, a.email, a.role, s.id, s.expires_at, s.last_used_at FROM session AS s \
             INNER JOIN account AS a ON s.account_id = a.id \
             WHERE s.token_sha256 = $1 AND s.expires_at > $2 AND a.disabled_at IS NULL",
        )
        .await?;
    let sha = sha_of(token);
    let Some(row) = client.query_opt(&statement, &[&sha.as_slice(), &now]).await? else {
        return Ok(None);
    };
    if row.get::<_, Option<Timestamp>>(5).is_none_or(|at| now.duration_since(at) > USE_NOTED_EVERY)
    {
        let update = "UPDATE session SET last_used_at = $2 WHERE token_sha256 = $1";
        let update = client.prepare_cached(update).await?;
        client.execute(&update, &[&sha.as_slice(), &now]).await?;
    }
    Ok(Some(Holder {
        who: Who::Person {
            account: AccountId(row.get(0)),
            email: row.get(1),
            session: SessionId(row.get(3)),
        },
        role: role_of(row.get(2))?,
        scopes: Vec::new(),
        expires_at: Some(row.get(4)),
        sha,
    }))
}

/// Sessions that are in force, the newest first: those of an account, or all; at most 200.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn list(
    database: &Database,
    account: Option<AccountId>,
    now: Timestamp,
) -> Result<Vec<SessionRow>, DatabaseError> {
    let client = database.get().await?;
    let rows = client
        .query(
            "SELECT s.id, s.account_id, a.email, s.created_at, s.last_used_at, s.expires_at, \
                 s.address, s.user_agent \
             FROM session AS s INNER JOIN account AS a ON s.account_id = a.id \
             WHERE s.expires_at > $1 AND ($2::uuid IS NULL OR s.account_id = $2) \
             ORDER BY s.created_at DESC LIMIT $3",
            &[&now, &account.map(|account| account.0), &SESSIONS_LISTED_MAX],
        )
        .await?;
    let row = |row: &tokio_postgres::Row| SessionRow {
        id: SessionId(row.get(0)),
        account_id: AccountId(row.get(1)),
        email: row.get(2),
        created_at: row.get(3),
        last_used_at: row.get(4),
        expires_at: row.get(5),
        address: row.get(6),
        user_agent: row.get(7),
    };
    Ok(rows.iter().map(row).collect())
}

/// Ends a session: any, or only one of an account. False where there is no such session.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked; the session is there still.
pub async fn end(
    database: &Database,
    session: SessionId,
    of: Option<AccountId>,
    metadata: &Metadata,
) -> Result<bool, DatabaseError> {
    let mut client = database.get().await?;
    let tx = client.transaction().await?;
    in_order(&tx).await?;
    let delete = "DELETE FROM session WHERE id = $1 AND ($2::uuid IS NULL OR account_id = $2) \
         RETURNING account_id";
    let of = of.map(|account| account.0);
    let Some(row) = tx.query_opt(delete, &[&session.0, &of]).await? else { return Ok(false) };
    let account_id = AccountId(row.get(0));
    let event = SessionEnded { account_id, session_id: session };
    commit(tx, account_id.stream(), event, metadata).await?;
    Ok(true)
}

/// Ends the session of a cookie, by whoever has it.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked; the session is there still.
pub async fn log_out(
    database: &Database,
    token: &str,
    now: Timestamp,
    mut metadata: Metadata,
) -> Result<(), DatabaseError> {
    let Some(holder) = of_cookie(database, token, now).await? else { return Ok(()) };
    metadata.actor = holder.name();
    metadata.correlation_id = holder.stream();
    if let Who::Person { session, .. } = holder.who {
        end(database, session, None, &metadata).await?;
    }
    Ok(())
}
