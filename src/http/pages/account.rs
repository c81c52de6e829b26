//! One's own account, and the accounts, tokens and sessions of all.

use askama::Template;
use milepost_schemas::{Right, Role, SessionId};

use super::Frame;
use super::format::Moment;
use crate::accounts::{AccountRow, SessionRow, TokenRow};
use crate::domain::access::rights;

/// `GET /account`.
#[derive(Clone, Debug, Template)]
#[template(path = "account.html")]
pub struct AccountPage {
    frame: Frame,
    email: String,
    role: Role,
    sessions: Vec<SessionView>,
    done: Option<&'static str>,
}

/// `GET /accounts`.
#[derive(Clone, Debug, Template)]
#[template(path = "accounts.html")]
pub struct AccountsPage {
    frame: Frame,
    accounts: Vec<AccountView>,
    tokens: Vec<TokenView>,
    sessions: Vec<SessionView>,
    /// A token that was just made: its name and its secret, shown this once.
    made: Option<(String, String)>,
}

#[derive(Clone, Debug)]
struct AccountView {
    id: String,
    email: String,
    role: Role,
    disabled: Option<Moment>,
    created: Moment,
}

#[derive(Clone, Debug)]
struct TokenView {
    id: String,
    name: String,
    role: Role,
    scopes: String,
    created: Moment,
    expires: Option<Moment>,
    used: Option<Moment>,
}

#[derive(Clone, Debug)]
struct SessionView {
    id: String,
    email: String,
    own: bool,
    address: String,
    browser: String,
    began: Moment,
    used: Option<Moment>,
    expires: Moment,
}

impl AccountPage {
    /// The page of whoever has these sessions and looks at them through one.
    pub fn new(
        frame: Frame,
        email: String,
        role: Role,
        sessions: &[SessionRow],
        own: SessionId,
        done: Option<&'static str>,
    ) -> Self {
        let sessions = sessions.iter().map(|row| SessionView::new(row, own, &frame)).collect();
        Self { frame, email, role, sessions, done }
    }

    fn words(&self) -> &'static str {
        role_words(self.role)
    }
}

impl AccountsPage {
    /// The page for all of these; `own` is the session it is looked at through.
    pub fn new(
        frame: Frame,
        accounts: &[AccountRow],
        tokens: &[TokenRow],
        sessions: &[SessionRow],
        own: Option<SessionId>,
        made: Option<(String, String)>,
    ) -> Self {
        let own = own.unwrap_or(SessionId(uuid::Uuid::nil()));
        Self {
            accounts: accounts.iter().map(|row| AccountView::new(row, &frame)).collect(),
            tokens: tokens.iter().map(|row| TokenView::new(row, &frame)).collect(),
            sessions: sessions.iter().map(|row| SessionView::new(row, own, &frame)).collect(),
            made,
            frame,
        }
    }

    /// Each role, in a word and in a sentence.
    #[expect(clippy::unused_self, reason = "templates call methods of the page")]
    fn roles(&self) -> Vec<(Role, &'static str, String)> {
        let row = |role: &Role| {
            let may: Vec<_> = rights(*role).iter().map(|right| right_words(*right)).collect();
            (*role, role_words(*role), may.join(", "))
        };
        Role::ALL.iter().map(row).collect()
    }
}

impl AccountView {
    fn new(row: &AccountRow, frame: &Frame) -> Self {
        Self {
            id: row.id.to_string(),
            email: row.email.clone(),
            role: row.role,
            disabled: row.disabled_at.map(|at| Moment::of(at, frame.now)),
            created: Moment::of(row.created_at, frame.now),
        }
    }
}

impl TokenView {
    fn new(row: &TokenRow, frame: &Frame) -> Self {
        let scopes: Vec<_> = row.scopes.iter().map(|right| right.as_str()).collect();
        let moment = |at| Moment::of(at, frame.now);
        Self {
            id: row.id.to_string(),
            name: row.name.clone(),
            role: row.role,
            scopes: scopes.join(", "),
            created: moment(row.created_at),
            expires: row.expires_at.map(moment),
            used: row.last_used_at.map(moment),
        }
    }
}

impl SessionView {
    fn new(row: &SessionRow, own: SessionId, frame: &Frame) -> Self {
        let moment = |at| Moment::of(at, frame.now);
        Self {
            id: row.id.to_string(),
            email: row.email.clone(),
            own: row.id == own,
            address: row.address.clone().unwrap_or_default(),
            browser: row.user_agent.clone().unwrap_or_default(),
            began: moment(row.created_at),
            used: row.last_used_at.map(moment),
            expires: moment(row.expires_at),
        }
    }
}

fn role_words(role: Role) -> &'static str {
    match role {
        Role::Viewer => "sees how things stand",
        Role::Operator => "changes jobs, agents, nodes and the queue",
        Role::Auditor => "checks the log, and changes nothing",
        Role::Admin => "may do everything",
    }
}

fn right_words(right: Right) -> &'static str {
    match right {
        Right::See => "see",
        Right::Events => "read events",
        Right::Audit => "audit",
        Right::Operate => "operate",
        Right::Administer => "administer",
    }
}
