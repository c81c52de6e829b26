//! People's accounts.

use jiff::Timestamp;
use milepost_schemas::event::{AccountCreated, PasswordChanged};
use milepost_schemas::{AccountId, Metadata, Role, SessionId};
use serde::Serialize;

use super::record::{commit, in_order};
use super::{AccountError, passwords, role_of};
use crate::domain::account::{self, Account};
use crate::domain::{AccountCommand, AccountRefusal};
use crate::log::{Database, DatabaseError};

/// Accounts in a list.
const ACCOUNTS_LISTED_MAX: i64 = 1_000;

/// An account in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccountRow {
    /// Its id.
    pub id: AccountId,
    /// Its address.
    pub email: String,
    /// What it is for.
    pub role: Role,
    /// Since when it may not log in.
    pub disabled_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Every account, the oldest first; at most 1,000.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn list(database: &Database) -> Result<Vec<AccountRow>, DatabaseError> {
    let client = database.get().await?;
    let rows = client
        .query(
            "SELECT id, email, role, disabled_at, created_at FROM account \
             ORDER BY created_at, id LIMIT $1",
            &[&ACCOUNTS_LISTED_MAX],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(AccountRow {
                id: AccountId(row.get(0)),
                email: row.get(1),
                role: role_of(row.get(2))?,
                disabled_at: row.get(3),
                created_at: row.get(4),
            })
        })
        .collect()
}

/// The account of an address.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn id_of(database: &Database, email: &str) -> Result<Option<AccountId>, DatabaseError> {
    let client = database.get().await?;
    let query = "SELECT id FROM account WHERE lower(email) = lower($1)";
    Ok(client.query_opt(query, &[&email.trim()]).await?.map(|row| AccountId(row.get(0))))
}

/// Makes an account.
///
/// # Errors
/// [`AccountError`]: there is none then.
pub async fn create(
    database: &Database,
    id: AccountId,
    email: &str,
    password: &str,
    role: Role,
    metadata: &Metadata,
) -> Result<(), AccountError> {
    let email = account::email(email)?;
    let hash = passwords::hash(account::password(password)?).await?;
    let mut client = database.get().await?;
    let tx = client.transaction().await?;
    let made = tx
        .execute(
            "INSERT INTO account (id, email, password_hash, role) VALUES ($1, $2, $3, $4) \
             ON CONFLICT ((lower(email))) DO NOTHING",
            &[&id.0, &email, &hash, &role.as_str()],
        )
        .await?;
    if made == 0 {
        return Err(AccountRefusal::Exists.into());
    }
    commit(tx, id.stream(), AccountCreated { account_id: id, role }, metadata).await?;
    Ok(())
}

/// Gives an order to an account. Where it loses rights its sessions end, and their streams.
///
/// # Errors
/// [`AccountError`]: nothing has changed then.
pub async fn change(
    database: &Database,
    id: AccountId,
    command: AccountCommand,
    now: Timestamp,
    metadata: &Metadata,
) -> Result<(), AccountError> {
    let mut client = database.get().await?;
    let tx = client.transaction().await?;
    // Else two admins could end one another at once.
    in_order(&tx).await?;
    let query = "SELECT role, disabled_at IS NOT NULL, EXISTS ( \
             SELECT FROM account AS o WHERE o.id <> a.id AND o.role = 'admin' \
             AND o.disabled_at IS NULL \
         ) FROM account AS a WHERE a.id = $1";
    let row = tx.query_opt(query, &[&id.0]).await?.ok_or(AccountRefusal::Unknown)?;
    let known =
        Account { role: role_of(row.get(0))?, disabled: row.get(1), another_admin: row.get(2) };
    let event = account::decide(id, known, command)?;
    match command {
        AccountCommand::Role(role) => {
            let update = "UPDATE account SET role = $2 WHERE id = $1";
            tx.execute(update, &[&id.0, &role.as_str()]).await?;
        }
        AccountCommand::Disable => {
            let update = "UPDATE account SET disabled_at = $2 WHERE id = $1";
            tx.execute(update, &[&id.0, &now]).await?;
        }
        AccountCommand::Enable => {
            tx.execute("UPDATE account SET disabled_at = NULL WHERE id = $1", &[&id.0]).await?;
        }
    }
    tx.execute("DELETE FROM session WHERE account_id = $1", &[&id.0]).await?;
    tx.execute("DELETE FROM login_link WHERE account_id = $1", &[&id.0]).await?;
    commit(tx, id.stream(), event, metadata).await?;
    Ok(())
}

/// Gives an account another password; its sessions end. One that its holder changes is `own`: their
/// session goes on, if the hash is still that of the password they gave.
///
/// # Errors
/// [`AccountError`]: it has the password of before then.
pub async fn set_password(
    database: &Database,
    id: AccountId,
    password: &str,
    own: Option<(SessionId, &str)>,
    metadata: &Metadata,
) -> Result<(), AccountError> {
    let hash = passwords::hash(account::password(password)?).await?;
    let (kept, given) = own.unzip();
    let mut client = database.get().await?;
    let tx = client.transaction().await?;
    in_order(&tx).await?;
    let update = "UPDATE account SET password_hash = $2 WHERE id = $1 \
         AND ($3::text IS NULL OR (password_hash = $3 AND disabled_at IS NULL))";
    if tx.execute(update, &[&id.0, &hash, &given]).await? == 0 {
        return Err(AccountRefusal::Unknown.into());
    }
    let delete = "DELETE FROM session WHERE account_id = $1 AND id IS DISTINCT FROM $2";
    tx.execute(delete, &[&id.0, &kept.map(|session| session.0)]).await?;
    tx.execute("DELETE FROM login_link WHERE account_id = $1", &[&id.0]).await?;
    commit(tx, id.stream(), PasswordChanged { account_id: id }, metadata).await?;
    Ok(())
}

/// Makes the admin of `milepost dev`, who stands before the log and is in none of its events.
/// One who is there and has the password is left alone, and so are their sessions.
///
/// # Errors
/// [`AccountError`] when the database refuses.
pub async fn ensure_admin(
    database: &Database,
    id: AccountId,
    email: &str,
    password: &str,
) -> Result<(), AccountError> {
    let client = database.get().await?;
    let query = "SELECT password_hash FROM account \
         WHERE lower(email) = lower($1) AND role = 'admin' AND disabled_at IS NULL";
    let known = client.query_opt(query, &[&email]).await?.map(|row| row.get(0));
    if passwords::verify(password, known).await? {
        return Ok(());
    }
    let hash = passwords::hash(password).await?;
    client
        .execute(
            "INSERT INTO account (id, email, password_hash, role) VALUES ($1, $2, $3, 'admin') \
             ON CONFLICT ((lower(email))) DO UPDATE \
             SET password_hash = excluded.password_hash, role = 'admin', disabled_at = NULL",
            &[&id.0, &email, &hash],
        )
        .await?;
    Ok(())
}
