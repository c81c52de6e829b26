//! Accounts, sessions, one-time links and tokens. Random secrets are kept as SHA-256, passwords
//! as Argon2id; a secret is shown once, when it is made.
//!
//! Each change and its event are one transaction (`record`); what of all this is in the log names
//! people by id only. `watch` tells the streams of this process when their right has ended.

mod login;
mod passwords;
mod people;
mod record;
mod refusals;
mod sessions;
pub mod throttle;
mod tokens;
mod watch;

use jiff::{SignedDuration, Timestamp};
use milepost_schemas::{AccountId, Metadata, Right, Role, SessionId, TokenId};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::domain::AccountRefusal;
use crate::domain::access;
use crate::log::DatabaseError;

pub use login::{LogInError, Visit, log_in, make_link, own_password, record_refusal, use_link};
pub use passwords::Busy;
pub use people::{
    AccountRow, change, create, ensure_admin, id_of, list as list_accounts, set_password,
};
pub use refusals::Refusals;
pub use sessions::{
    SESSION_DURATION, SESSIONS_LISTED_MAX, SessionRow, end as end_session, list as list_sessions,
    log_out, of_cookie,
};
pub use tokens::{NewToken, TokenRow, create as create_token, ensure as ensure_token};
pub use tokens::{list as list_tokens, named as token_named, of_bearer, revoke as revoke_token};
pub use watch::{Access, InForce, People};

/// How long a one-time link can be used.
pub const LINK_DURATION: SignedDuration = SignedDuration::from_hours(1);

/// How long a use of a credential goes unwritten after the last that was.
const USE_NOTED_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// Why a change of accounts came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// It is against the rules.
    #[error(transparent)]
    Refused(#[from] AccountRefusal),
    /// Nobody looks at a password now.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The database cannot be asked, or refuses.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<tokio_postgres::Error> for AccountError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

/// SHA-256 of a secret: all that is kept of it.
pub type Sha = [u8; 32];

/// Who came in, and what with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A person, by a session.
    Person {
        /// Whose account.
        account: AccountId,
        /// Their address, for their own eyes and for those who may see accounts.
        email: String,
        /// The session.
        session: SessionId,
    },
    /// A program, by its token.
    Program {
        /// Which token.
        token: TokenId,
        /// The token's name.
        name: String,
    },
}

/// A right to be here that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Whose.
    pub who: Who,
    /// What it is for.
    pub role: Role,
    /// To what it is narrowed; empty where it is not.
    pub scopes: Vec<Right>,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    sha: Sha,
}

impl Holder {
    /// As events name whoever it is: `account:<account id>` or `token:<name>`.
    pub fn name(&self) -> String {
        match &self.who {
            Who::Person { account, .. } => format!("account:{account}"),
            Who::Program { name, .. } => format!("token:{name}"),
        }
    }

    /// Whether they have a right.
    pub fn may(&self, right: Right) -> bool {
        access::may(self.role, &self.scopes, right)
    }

    /// The stream that their own events are in.
    pub fn stream(&self) -> Uuid {
        match &self.who {
            Who::Person { account, .. } => account.0,
            Who::Program { token, .. } => token.0,
        }
    }
}

/// The header of an event that a command on this machine causes.
pub fn by_command_line(stream: Uuid) -> Metadata {
    let actor = "system:cli".to_owned();
    Metadata { actor, correlation_id: stream, causation_id: None, callback: None }
}

/// A random secret of 256 bits, in hex after a prefix that says what it is.
pub fn secret(prefix: &str) -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    format!("{prefix}{}", hex::encode(bytes))
}

fn sha_of(token: &str) -> Sha {
    Sha256::digest(token.as_bytes()).into()
}

fn role_of(text: &str) -> Result<Role, DatabaseError> {
    text.parse().map_err(|_| DatabaseError::Unexpected(format!("the role {text}")))
}

/// Rights as the database keeps them. One that this version does not know gives nothing.
fn rights_of(texts: &[String]) -> Vec<Right> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// To what a credential is narrowed, empty where it is not; `None` where that is to nothing but
/// rights that this version does not know.
fn scopes_of(texts: &[String]) -> Option<Vec<Right>> {
    let scopes = rights_of(texts);
    (texts.is_empty() || !scopes.is_empty()).then_some(scopes)
}
