//! Accounts, sessions, one-time links and tokens. Random secrets are kept as SHA-256, passwords
//! as Argon2id; a secret is shown once, when it is made.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::log::{Database, DatabaseError};

/// How long a session lasts.
pub const SESSION_DURATION: SignedDuration = SignedDuration::from_hours(24);

/// How long a one-time link can be used.
pub const LINK_DURATION: SignedDuration = SignedDuration::from_hours(1);

/// The longest password that is looked at, in bytes: hashing is work.
pub const PASSWORD_BYTES_MAX: usize = 1_024;

/// Argon2id takes 19 MiB and a core for a while: no more than this many at once.
static HASHING: Semaphore = Semaphore::const_new(2);

/// A session that is in force.
#[derive(Clone, Debug)]
pub struct Session {
    /// Whose.
    pub email: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A random secret of 256 bits, in hex after a prefix that says what it is.
pub fn secret(prefix: &str) -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    format!("{prefix}{}", hex::encode(bytes))
}

fn digest(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

/// Makes an account, or gives the one with that address a new password.
///
/// # Errors
/// [`DatabaseError`] when the database refuses.
pub async fn set_password(
    database: &Database,
    id: Uuid,
    email: &str,
    password: &str,
) -> Result<(), DatabaseError> {
    let hash = hash(password.to_owned()).await;
    let client = database.get().await?;
    client
        .execute(
            "INSERT INTO account (id, email, password_hash) VALUES ($1, $2, $3) \
             ON CONFLICT ((lower(email))) DO UPDATE SET password_hash = excluded.password_hash",
            &[&id, &email, &hash],
        )
        .await?;
    Ok(())
}

/// Begins a session for whoever knows the password; `None` when nobody does.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn log_in(
    database: &Database,
    email: &str,
    password: &str,
    now: Timestamp,
) -> Result<Option<String>, DatabaseError> {
    let client = database.get().await?;
    let row = client
        .query_opt(
            "SELECT id, password_hash FROM account WHERE lower(email) = lower($1)",
            &[&email],
        )
        .await?;
    let (id, hash) = match &row {
        Some(row) => (Some(row.get::<_, Uuid>(0)), row.get::<_, String>(1)),
        // The same work for an unknown address: the time taken tells nothing.
        None => (None, hash("nobody".to_owned()).await),
    };
    let matches = verify(password.to_owned(), hash).await;
    match id.filter(|_| matches) {
        Some(id) => Ok(Some(begin_session(&client, id, now).await?)),
        None => Ok(None),
    }
}

/// Makes a link's token that logs in once.
///
/// # Errors
/// [`DatabaseError`] when there is no such account.
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
            &[&digest(&token), &email, &(now + LINK_DURATION)],
        )
        .await?;
    Ok(token)
}

/// Begins a session for whoever has a one-time link; the link is used up.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn use_link(
    database: &Database,
    token: &str,
    now: Timestamp,
) -> Result<Option<String>, DatabaseError> {
    let client = database.get().await?;
    let row = client
        .query_opt(
            "DELETE FROM login_link WHERE token_sha256 = $1 RETURNING account_id, expires_at > $2",
            &[&digest(token), &now],
        )
        .await?;
    match row {
        Some(row) if row.get(1) => Ok(Some(begin_session(&client, row.get(0), now).await?)),
        _ => Ok(None),
    }
}

async fn begin_session(
    client: &deadpool_postgres::Object,
    account: Uuid,
    now: Timestamp,
) -> Result<String, DatabaseError> {
    let token = secret("");
    client.execute("DELETE FROM session WHERE expires_at <= $1", &[&now]).await?;
    client
        .execute(
            "INSERT INTO session (token_sha256, account_id, expires_at) VALUES ($1, $2, $3)",
            &[&digest(&token), &account, &(now + SESSION_DURATION)],
        )
        .await?;
    Ok(token)
}

/// The session a cookie's token stands for, while it is in force.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn session(
    database: &Database,
    token: &str,
    now: Timestamp,
) -> Result<Option<Session>, DatabaseError> {
    let client = database.get().await?;
    let statement = client
        .prepare_cached(
            "SELECT a.email, s.expires_at FROM session AS s \
             INNER JOIN account AS a ON s.account_id = a.id \
             WHERE s.token_sha256 = $1 AND s.expires_at > $2",
        )
        .await?;
    let row = client.query_opt(&statement, &[&digest(token), &now]).await?;
    Ok(row.map(|row| Session { email: row.get(0), expires_at: row.get(1) }))
}

/// Ends a session.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn log_out(database: &Database, token: &str) -> Result<(), DatabaseError> {
    let client = database.get().await?;
    client.execute("DELETE FROM session WHERE token_sha256 = $1", &[&digest(token)]).await?;
    Ok(())
}

/// Makes a token for a program; one of that name is replaced.
///
/// # Errors
/// [`DatabaseError`] when the database refuses.
pub async fn set_token(database: &Database, name: &str, token: &str) -> Result<(), DatabaseError> {
    let client = database.get().await?;
    client
        .execute(
            "INSERT INTO api_token (token_sha256, name) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256",
            &[&digest(token), &name],
        )
        .await?;
    Ok(())
}

/// Revokes a program's token; false when there is none of that name.
///
/// # Errors
/// [`DatabaseError`] when the database refuses.
pub async fn revoke_token(database: &Database, name: &str) -> Result<bool, DatabaseError> {
    let client = database.get().await?;
    Ok(client.execute("DELETE FROM api_token WHERE name = $1", &[&name]).await? == 1)
}

/// The name of the program a token belongs to.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn token_name(database: &Database, token: &str) -> Result<Option<String>, DatabaseError> {
    let client = database.get().await?;
    let statement =
        client.prepare_cached("SELECT name FROM api_token WHERE token_sha256 = $1").await?;
    Ok(client.query_opt(&statement, &[&digest(token)]).await?.map(|row| row.get(0)))
}

async fn hash(password: String) -> String {
    hashing(move || {
        Argon2::default()
            .hash_password(password.as_bytes())
            .expect("a password of any length can be hashed")
            .to_string()
    })
    .await
}

async fn verify(password: String, hash: String) -> bool {
    hashing(move || {
        PasswordHash::new(&hash).is_ok_and(|parsed| {
            Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok()
        })
    })
    .await
}

async fn hashing<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let _place = HASHING.acquire().await.expect("it is never closed");
    tokio::task::spawn_blocking(work).await.expect("hashing does not panic")
}
