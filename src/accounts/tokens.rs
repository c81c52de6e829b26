//! The tokens of programs.

use jiff::Timestamp;
use milepost_schemas::event::{TokenCreated, TokenRevoked};
use milepost_schemas::{Metadata, Right, Role, TokenId};
use serde::Serialize;

use super::record::commit;
use super::{
    AccountError, Holder, USE_NOTED_EVERY, Who, rights_of, role_of, scopes_of, secret, sha_of,
};
use crate::domain::AccountRefusal;
use crate::domain::account::token_name;
use crate::log::{Database, DatabaseError};

/// Tokens in a list.
const TOKENS_LISTED_MAX: i64 = 1_000;

/// A token in a list; its secret is nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenRow {
    /// Its id.
    pub id: TokenId,
    /// Which program it is for.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// To what it is narrowed; empty where it is not.
    pub scopes: Vec<Right>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was used last, to the minute.
    pub last_used_at: Option<Timestamp>,
}

/// A token to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Which program it is for.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// To what it is narrowed; empty where it is not.
    pub scopes: Vec<Right>,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

/// Makes a token; its secret is returned, and kept nowhere.
///
/// # Errors
/// [`AccountError`]: there is none then.
pub async fn create(
    database: &Database,
    id: TokenId,
    new: NewToken,
    now: Timestamp,
    metadata: &Metadata,
) -> Result<String, AccountError> {
    token_name(&new.name)?;
    if new.expires_at.is_some_and(|at| at <= now) {
        return Err(AccountRefusal::TokenExpiry.into());
    }
    let token = secret("mp_");
    let scopes: Vec<&str> = new.scopes.iter().map(|right| right.as_str()).collect();
    let mut client = database.get().await?;
    let tx = client.transaction().await?;
    // One that has run out makes room for its successor.
    let delete = "DELETE FROM api_token WHERE name = $1 AND expires_at <= $2";
    tx.execute(delete, &[&new.name, &now]).await?;
    let made = tx
        .execute(
            "INSERT INTO api_token (token_sha256, name, id, role, scopes, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO NOTHING",
            &[
                &sha_of(&token).as_slice(),
                &new.name,
                &id.0,
                &new.role.as_str(),
                &scopes,
                &new.expires_at,
            ],
        )
        .await?;
    if made == 0 {
        return Err(AccountRefusal::TokenExists.into());
    }
    let NewToken { name, role, scopes, expires_at } = new;
    let event = TokenCreated { token_id: id, name, role, scopes, expires_at };
    commit(tx, id.stream(), event, metadata).await?;
    Ok(token)
}

/// Makes the token of `milepost dev`, which stands before the log and is in none of its events.
/// One that is there is left alone, and so are its streams.
///
/// # Errors
/// [`DatabaseError`] when the database refuses.
pub async fn ensure(database: &Database, name: &str, token: &str) -> Result<(), DatabaseError> {
    let client = database.get().await?;
    client
        .execute(
            "INSERT INTO api_token AS t (token_sha256, name, role) VALUES ($1, $2, 'admin') \
             ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256, \
             role = 'admin', scopes = '{}', expires_at = NULL \
             WHERE t.token_sha256 <> excluded.token_sha256 OR t.role <> 'admin'",
            &[&sha_of(token).as_slice(), &name],
        )
        .await?;
    Ok(())
}

/// Revokes a token; false where there is no such one.
///
/// # Errors
/// [`DatabaseError`] when the database refuses; it is in force still.
pub async fn revoke(
    database: &Database,
    id: TokenId,
    metadata: &Metadata,
) -> Result<bool, DatabaseError> {
    let mut client = database.get().await?;
    let tx = client.transaction().await?;
    if tx.execute("DELETE FROM api_token WHERE id = $1", &[&id.0]).await? == 0 {
        return Ok(false);
    }
    commit(tx, id.stream(), TokenRevoked { token_id: id }, metadata).await?;
    Ok(true)
}

/// The token of a name.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn named(database: &Database, name: &str) -> Result<Option<TokenId>, DatabaseError> {
    let client = database.get().await?;
    let query = "SELECT id FROM api_token WHERE name = $1";
    Ok(client.query_opt(query, &[&name]).await?.map(|row| TokenId(row.get(0))))
}

/// Every token, by name; at most 1,000.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn list(database: &Database) -> Result<Vec<TokenRow>, DatabaseError> {
    let client = database.get().await?;
    let rows = client
        .query(
            "SELECT id, name, role, scopes, created_at, expires_at, last_used_at FROM api_token \
             ORDER BY name LIMIT $1",
            &[&TOKENS_LISTED_MAX],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(TokenRow {
                id: TokenId(row.get(0)),
                name: row.get(1),
                role: role_of(row.get(2))?,
                scopes: rights_of(&row.get::<_, Vec<String>>(3)),
                created_at: row.get(4),
                expires_at: row.get(5),
                last_used_at: row.get(6),
            })
        })
        .collect()
}

/// Whoever a token stands for, while it is in force.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn of_bearer(
    database: &Database,
    token: &str,
    now: Timestamp,
) -> Result<Option<Holder>, DatabaseError> {
    let client = database.get().await?;
    let statement = client
        .prepare_cached(
            "SELECT id, name, role, scopes, expires_at, last_used_at FROM api_token \
             WHERE token_sha256 = $1 AND (expires_at IS NULL OR expires_at > $2)",
        )
        .await?;
    let sha = sha_of(token);
    let Some(row) = client.query_opt(&statement, &[&sha.as_slice(), &now]).await? else {
        return Ok(None);
    };
    if row.get::<_, Option<Timestamp>>(5).is_none_or(|at| now.duration_since(at) > USE_NOTED_EVERY)
    {
        let update = "UPDATE api_token SET last_used_at = $2 WHERE token_sha256 = $1";
        let update = client.prepare_cached(update).await?;
        client.execute(&update, &[&sha.as_slice(), &now]).await?;
    }
    let Some(scopes) = scopes_of(&row.get::<_, Vec<String>>(3)) else { return Ok(None) };
    Ok(Some(Holder {
        who: Who::Program { token: TokenId(row.get(0)), name: row.get(1) },
        role: role_of(row.get(2))?,
        scopes,
        expires_at: row.get(4),
        sha,
    }))
}
