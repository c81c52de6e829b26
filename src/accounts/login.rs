//! Coming in: with a password, or with a link that does it once.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use milepost_schemas::event::{ActionRefused, LogInFailed, LogInWay};
use milepost_schemas::{AccountId, Metadata, Right, StreamId};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::record::{commit, in_order};
use super::throttle::{self, Keys, is_told};
use super::{AccountError, Busy, Holder, LINK_DURATION, Who, passwords, secret, sessions, sha_of};
use crate::domain::AccountRefusal;
use crate::domain::account::{self, PASSWORD_BYTES_MAX};
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
    /// It was not looked at, and does not count.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The database cannot be asked.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<tokio_postgres::Error> for LogInError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

/// An account as it was when its password was looked at.
struct Known {
    account: AccountId,
    hash: String,
    enabled: bool,
}

/// Begins a session for whoever knows the password; returns the cookie's secret. What the log is
/// told of a failure is told `behind` the answer.
///
/// # Errors
/// [`LogInError`]: there is no session then.
pub async fn log_in(
    database: &Database,
    behind: &TaskTracker,
    email: &str,
    password: &str,
    visit: &Visit<'_>,
) -> Result<String, LogInError> {
    let Known { account, hash, .. } = check(database, behind, email, password, visit).await?;
    let mut client = database.get().await?;
    let metadata = visit.metadata(format!("account:{account}"), account.0);
    let tx = client.transaction().await?;
    in_order(&tx).await?;
    // It took a while to look at the password: it may be another by now.
    let still = "SELECT FROM account \
         WHERE id = $1 AND password_hash = $2 AND disabled_at IS NULL";
    if tx.query_opt(still, &[&account.0, &hash]).await?.is_none() {
        return Err(LogInError::Wrong);
    }
    Ok(sessions::begin(tx, account, LogInWay::Password, visit, &metadata).await?)
}

/// Whose address and password these are. Counts the try, and has the log told of failures.
async fn check(
    database: &Database,
    behind: &TaskTracker,
    email: &str,
    password: &str,
    visit: &Visit<'_>,
) -> Result<Known, LogInError> {
    let (folded, known) = look_up(database, email).await?;
    let keys = Keys::new(&folded, visit.address);
    let begun = throttle::begin(database, keys, visit.id.as_u128(), visit.now).await?;
    let made = begun.map_err(LogInError::Wait)?;
    let hash = known.as_ref().map(|known| known.hash.clone());
    let looked_at = match password.len() {
        0..=PASSWORD_BYTES_MAX => passwords::verify(password, hash).await,
        _ => Ok(false),
    };
    let Ok(fits) = looked_at else {
        throttle::not_looked_at(database, made).await?;
        return Err(Busy.into());
    };
    let account = known.as_ref().map(|known| known.account);
    if let Some(known) = known.filter(|known| fits && known.enabled) {
        throttle::succeeded(database, made).await?;
        return Ok(known);
    }
    // What is told differs between an address with an account and one without: up to the answer
    // both take the same.
    let stream = account.map_or(StreamId::LOG_INS, AccountId::stream);
    let metadata = visit.metadata("system:log-in".to_owned(), stream.0);
    let telling = tell(database.clone(), account, made.of_account, visit.now, metadata);
    behind.spawn(async {
        if let Err(error) = telling.await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "a log-in that failed is not in the log");
        }
    });
    Err(LogInError::Wrong)
}

/// An address as the database folds it, by which its failures are counted, and whose it is. What
/// is no address folds to nothing, and is nobody's.
async fn look_up(
    database: &Database,
    email: &str,
) -> Result<(String, Option<Known>), DatabaseError> {
    let email = account::email(email).unwrap_or_default();
    let query = "SELECT f.email, a.id, a.password_hash, a.disabled_at IS NULL \
         FROM (SELECT lower($1) AS email) AS f LEFT JOIN account AS a ON lower(a.email) = f.email";
    let row = database.get().await?.query_one(query, &[&email]).await?;
    let known = row.get::<_, Option<Uuid>>(1).map(|id| Known {
        account: AccountId(id),
        hash: row.get(2),
        enabled: row.get(3),
    });
    Ok((row.get(0), known))
}

/// Tells the log of a failure at an account, or at nobody's; of a run the first, the fourth, and so
/// on.
async fn tell(
    database: Database,
    account_id: Option<AccountId>,
    of_account: u32,
    now: Timestamp,
    metadata: Metadata,
) -> Result<(), DatabaseError> {
    let failures = match account_id {
        Some(_) => of_account,
        // However many addresses are made up, they are one run.
        None => throttle::count_unknown(&database, now).await?,
    };
    if is_told(failures) {
        let stream = StreamId(metadata.correlation_id);
        let mut client = database.get().await?;
        let event = LogInFailed { account_id, failures };
        commit(client.transaction().await?, stream, event, &metadata).await?;
    }
    Ok(())
}

/// Gives the holder of a session another password, if they know the one of now. Their other
/// sessions end.
///
/// # Errors
/// [`LogInError`], counted like a log-in: a stolen session is no way around the counting.
pub async fn own_password(
    database: &Database,
    behind: &TaskTracker,
    holder: &Holder,
    current: &str,
    new: &str,
    visit: &Visit<'_>,
) -> Result<Result<(), AccountError>, LogInError> {
    let Who::Person { account, email, session } = &holder.who else {
        return Err(LogInError::Wrong);
    };
    if let Err(refusal) = account::password(new) {
        return Ok(Err(refusal.into()));
    }
    let known = check(database, behind, email, current, visit).await?;
    let metadata = visit.metadata(holder.name(), account.0);
    let own = Some((*session, &*known.hash));
    match super::set_password(database, *account, new, own, &metadata).await {
        // It was another by then.
        Err(AccountError::Refused(AccountRefusal::Unknown)) => Err(LogInError::Wrong),
        changed => Ok(changed),
    }
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
    in_order(&tx).await?;
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
