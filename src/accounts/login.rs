//! Coming in: with a password, or with a link that does it once.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use milepost_schemas::event::{ActionRefused, LogInFailed, LogInWay};
use milepost_schemas::{AccountId, Metadata, Right, StreamId};
use uuid::Uuid;

use super::record::commit;
use super::throttle::{self, Keys, is_told};
use super::{AccountError, Holder, LINK_DURATION, Who, passwords, secret, sessions, sha_of};
use crate::domain::account::PASSWORD_BYTES_MAX;
use crate::log::{Database, DatabaseError};

/// Who stands at the door.
#[derive(Clone, Copy, Debug)]
pub struct Visit<'a> {
    /// A fresh id: the session's, should there be one; and that of the request.
    pub id: Uuid,
    /// When.
    pub now: Timestamp,
    /// Where from.
    pub address: IpAddr,
    /// What the browser calls itself.
    pub user_agent: Option<&'a str>,
    /// The session's secret that the browser brought.
    pub cookie: Option<&'a str>,
}

impl Visit<'_> {
    fn metadata(&self, actor: String, stream: Uuid) -> Metadata {
        let causation_id = Some(format!("request:{}", self.id));
        Metadata { actor, correlation_id: stream, causation_id, callback: None }
    }
}

/// Why nobody came in.
#[derive(Debug, thiserror::Error)]
pub enum LogInError {
    /// Which of the two it is, nobody is told.
    #[error("the address or the password is wrong")]
    Wrong,
    /// Too many failed before.
    #[error("too many log-ins have failed")]
    Wait(SignedDuration),
    /// The database cannot be asked.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<tokio_postgres::Error> for LogInError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Begins a session for whoever knows the password; returns the cookie's secret.
///
/// # Errors
/// [`LogInError`]: there is no session then.
pub async fn log_in(
    database: &Database,
    email: &str,
    password: &str,
    visit: &Visit<'_>,
) -> Result<String, LogInError> {
    let account = check(database, email, password, visit).await?;
    let mut client = database.get().await?;
    let metadata = visit.metadata(format!("account:{account}"), account.0);
    let tx = client.transaction().await?;
    Ok(sessions::begin(tx, account, LogInWay::Password, visit, &metadata).await?)
}

/// Whose address and password these are. Counts the try, and tells the log of failures.
pub(super) async fn check(
    database: &Database,
    email: &str,
    password: &str,
    visit: &Visit<'_>,
) -> Result<AccountId, LogInError> {
    let keys = Keys::new(email, visit.address);
    let begun = throttle::begin(database, keys, visit.id.as_u128(), visit.now).await?;
    let made = begun.map_err(LogInError::Wait)?;
    let query = "SELECT id, password_hash, disabled_at IS NULL FROM account \
         WHERE lower(email) = lower($1)";
    let row = database.get().await?.query_opt(query, &[&email.trim()]).await?;
    let known = row.as_ref().map(|row| AccountId(row.get(0)));
    let hash = row.as_ref().map(|row| row.get(1));
    let enabled = row.as_ref().is_some_and(|row| row.get(2));
    let fits = password.len() <= PASSWORD_BYTES_MAX && passwords::verify(password, hash).await;
    if let Some(account) = known.filter(|_| fits && enabled) {
        throttle::succeeded(database, made).await?;
        return Ok(account);
    }
    let failures = match known {
        Some(_) => made.of_account,
        // However many addresses are made up, they are one run.
        None => throttle::count_unknown(database, visit.now).await?,
    };
    if is_told(failures) {
        let stream = known.map_or(StreamId::LOG_INS, AccountId::stream);
        let metadata = visit.metadata("system:log-in".to_owned(), stream.0);
        let event = LogInFailed { account_id: known, failures };
        let mut client = database.get().await?;
        commit(client.transaction().await?, stream, event, &metadata).await?;
    }
    Err(LogInError::Wrong)
}

/// Gives the holder of a session another password, if they know the one of now. Their other
/// sessions end.
///
/// # Errors
/// [`LogInError`], counted like a log-in: a stolen session is no way around the counting.
pub async fn own_password(
    database: &Database,
    holder: &Holder,
    current: &str,
    new: &str,
    visit: &Visit<'_>,
) -> Result<Result<(), AccountError>, LogInError> {
    let Who::Person { account, email, session } = &holder.who else {
        return Err(LogInError::Wrong);
    };
    if let Err(refusal) = crate::domain::account::password(new) {
        return Ok(Err(refusal.into()));
    }
    check(database, email, current, visit).await?;
    let metadata = visit.metadata(holder.name(), account.0);
    Ok(super::set_password(database, *account, new, Some(*session), &metadata).await)
}

/// Makes a link's token that logs in once.
///
/// # Errors
/// [`DatabaseError`] when the database refuses.
pub async fn make_link(
    database: &Database,
    email: &str,
    now: Timestamp,
) -> Result<String, DatabaseError> {
    let token = secret("");
    let client = database.get().await?;
    client
        .execute(
            "INSERT INTO login_link (token_sha256, account_id, expires_at) \
             SELECT $1, id, $3 FROM account WHERE lower(email) = lower($2)",
            &[&sha_of(&token).as_slice(), &email, &(now + LINK_DURATION)],
        )
        .await?;
    Ok(token)
}

/// Begins a session for whoever has a one-time link; the link is used up. A link is 256 random
/// bits: there is nothing to guess, and nothing is counted.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn use_link(
    database: &Database,
    token: &str,
    visit: &Visit<'_>,
) -> Result<Option<String>, DatabaseError> {
    let mut client = database.get().await?;
    let tx = client.transaction().await?;
    let delete = "DELETE FROM login_link AS l USING account AS a \
         WHERE l.token_sha256 = $1 AND l.account_id = a.id \
         RETURNING l.account_id, l.expires_at > $2 AND a.disabled_at IS NULL";
    let row = tx.query_opt(delete, &[&sha_of(token).as_slice(), &visit.now]).await?;
    let Some(row) = row.filter(|row| row.get(1)) else {
        tx.commit().await?;
        return Ok(None);
    };
    let account = AccountId(row.get(0));
    let metadata = visit.metadata(format!("account:{account}"), account.0);
    sessions::begin(tx, account, LogInWay::Link, visit, &metadata).await.map(Some)
}

/// Tells the log that somebody asked for what they may not do.
///
/// # Errors
/// [`DatabaseError`] when the log cannot be written.
pub async fn record_refusal(
    database: &Database,
    holder: &Holder,
    (method, route): (&str, &str),
    needs: Right,
    refusals: u32,
    metadata: &Metadata,
) -> Result<(), DatabaseError> {
    let (account_id, token_id) = match holder.who {
        Who::Person { account, .. } => (Some(account), None),
        Who::Program { token, .. } => (None, Some(token)),
    };
    let (method, route) = (method.to_owned(), route.to_owned());
    let event = ActionRefused { account_id, token_id, method, route, needs, refusals };
    let mut client = database.get().await?;
    let tx = client.transaction().await?;
    commit(tx, StreamId(holder.stream()), event, metadata).await?;
    Ok(())
}
