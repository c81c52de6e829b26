//! What may happen to an account.

use milepost_schemas::event::{AccountDisabled, AccountEnabled, AccountRoleChanged};
use milepost_schemas::{AccountId, Event, Role};

/// The shortest password, in characters.
pub const PASSWORD_CHARS_MIN: usize = 12;

/// The longest password that is looked at, in bytes: hashing is work.
pub const PASSWORD_BYTES_MAX: usize = 1_024;

/// The longest address, in bytes, as mail allows it.
pub const EMAIL_BYTES_MAX: usize = 254;

/// An account as far as a decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// What it is for.
    pub role: Role,
    /// Whether it may not log in.
    pub disabled: bool,
    /// Whether somebody else is an admin who may log in.
    pub another_admin: bool,
}

/// An order to an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountCommand {
    /// It is for something else now.
    Role(Role),
    /// It may not log in any more.
    Disable,
    /// It may log in again.
    Enable,
}

/// Why an order to an account is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountRefusal {
    /// No such account.
    #[error("there is no such account")]
    Unknown,
    /// The address has one.
    #[error("this address has an account already")]
    Exists,
    /// It is no address.
    #[error("this is no e-mail address")]
    Email,
    /// It is too short to be a secret, or too long to be looked at.
    #[error("a password has at least {PASSWORD_CHARS_MIN} characters")]
    Password,
    /// Nobody would be left who may change accounts.
    #[error("this is the last admin who may log in")]
    LastAdmin,
    /// It is so already.
    #[error("it is so already")]
    Unchanged,
    /// The name is empty, too long, or has characters that a name does not have.
    #[error("a token's name has 1 to {TOKEN_NAME_CHARS_MAX} letters, digits, dots, dashes")]
    TokenName,
    /// A token of that name is in force.
    #[error("a token of this name is in force; revoke it first")]
    TokenExists,
    /// It would never be of use.
    #[error("a token ends in the future")]
    TokenExpiry,
}

/// Characters in a token's name.
pub const TOKEN_NAME_CHARS_MAX: usize = 60;

/// Decides what an order does.
///
/// # Errors
/// [`AccountRefusal`]: nothing happens then.
pub fn decide(
    id: AccountId,
    account: Account,
    command: AccountCommand,
) -> Result<Event, AccountRefusal> {
    let is_admin = account.role == Role::Admin && !account.disabled;
    let ends_admin = match command {
        AccountCommand::Role(role) => is_admin && role != Role::Admin,
        AccountCommand::Disable => is_admin,
        AccountCommand::Enable => false,
    };
    if ends_admin && !account.another_admin {
        return Err(AccountRefusal::LastAdmin);
    }
    match command {
        AccountCommand::Role(role) if role == account.role => Err(AccountRefusal::Unchanged),
        AccountCommand::Role(role) => Ok(AccountRoleChanged { account_id: id, role }.into()),
        AccountCommand::Disable if account.disabled => Err(AccountRefusal::Unchanged),
        AccountCommand::Disable => Ok(AccountDisabled { account_id: id }.into()),
        AccountCommand::Enable if !account.disabled => Err(AccountRefusal::Unchanged),
        AccountCommand::Enable => Ok(AccountEnabled { account_id: id }.into()),
    }
}

/// An address that will do, without the spaces around it.
///
/// # Errors
/// [`AccountRefusal::Email`].
pub fn email(text: &str) -> Result<&str, AccountRefusal> {
    let text = text.trim();
    let parts = text.split_once('@');
    let whole = parts.is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    let plain = !text.chars().any(|letter| letter.is_control() || letter.is_whitespace());
    let fits = whole && plain && text.len() <= EMAIL_BYTES_MAX;
    fits.then_some(text).ok_or(AccountRefusal::Email)
}

/// A password that will do.
///
/// # Errors
/// [`AccountRefusal::Password`].
pub fn password(text: &str) -> Result<&str, AccountRefusal> {
    let fits = text.chars().count() >= PASSWORD_CHARS_MIN && text.len() <= PASSWORD_BYTES_MAX;
    fits.then_some(text).ok_or(AccountRefusal::Password)
}

/// A token's name that will do: it stands in events, as who did something.
///
/// # Errors
/// [`AccountRefusal::TokenName`].
pub fn token_name(text: &str) -> Result<&str, AccountRefusal> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let fits = !text.is_empty() && text.len() <= TOKEN_NAME_CHARS_MAX && text.chars().all(plain);
    fits.then_some(text).ok_or(AccountRefusal::TokenName)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const ID: AccountId = AccountId(Uuid::from_u128(7));

    fn account(role: Role, disabled: bool, another_admin: bool) -> Account {
        Account { role, disabled, another_admin }
    }

    #[test]
    fn the_last_admin_stays_one() {
        let last = account(Role::Admin, false, false);
        for command in [AccountCommand::Role(Role::Viewer), AccountCommand::Disable] {
            assert_eq!(decide(ID, last, command), Err(AccountRefusal::LastAdmin));
            assert!(decide(ID, account(Role::Admin, false, true), command).is_ok());
            // One who may not log in anyway is no loss.
            let disabled = account(Role::Admin, true, false);
            assert_ne!(decide(ID, disabled, command), Err(AccountRefusal::LastAdmin));
        }
    }

    #[test]
    fn what_is_so_already_is_refused() {
        let viewer = account(Role::Viewer, false, true);
        for command in [AccountCommand::Role(Role::Viewer), AccountCommand::Enable] {
            assert_eq!(decide(ID, viewer, command), Err(AccountRefusal::Unchanged));
        }
        let event = decide(ID, viewer, AccountCommand::Role(Role::Auditor)).unwrap();
        assert_eq!(event, AccountRoleChanged { account_id: ID, role: Role::Auditor }.into());
    }

    #[test]
    fn addresses_passwords_and_names_are_looked_at() {
        assert_eq!(email(" ada@example.com "), Ok("ada@example.com"));
        for wrong in ["", "ada", "@", "a@", "@b", "a b@c", "a\n@b"] {
            assert_eq!(email(wrong), Err(AccountRefusal::Email), "{wrong:?}");
        }
        assert!(password("twelve chars").is_ok() && password(&"ä".repeat(12)).is_ok());
        assert!(password("eleven char").is_err() && password(&"p".repeat(1_025)).is_err());
        assert!(token_name("ci-2.deploy_x").is_ok());
        for wrong in ["", "a b", "a:b", "ä", &"n".repeat(61)] {
            assert_eq!(token_name(wrong), Err(AccountRefusal::TokenName), "{wrong:?}");
        }
    }
}
