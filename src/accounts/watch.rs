//! Streams end when the right behind them does, on every node.
//!
//! A stream holds on to the credential it was opened with; all streams of one share a cell. Four
//! times a second each process looks at one number, which every change of accounts raises
//! (`access_change`); only when it has grown are the credentials of open streams looked at again,
//! all in one query. What ends by its time is the stream's own business.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use milepost_schemas::{Right, Role};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Holder, Sha, role_of, scopes_of};
use crate::log::{Database, DatabaseError};

/// How often the number is looked at: a stream ends within a second, with room for a slow answer.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long after a torn connection the next one is tried.
const RECONNECT: Duration = Duration::from_millis(200);

/// A look that takes longer is tried again on another connection.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// People whose addresses are kept at hand for pages; of others, pages say the id.
const PEOPLE_MAX: i64 = 10_000;

/// Those of the given credentials that are in force, with their terms.
const IN_FORCE: &str = "SELECT s.token_sha256, a.role, '{}'::text[], s.expires_at FROM session AS s \
     INNER JOIN account AS a ON s.account_id = a.id \
     WHERE s.token_sha256 = ANY($1) AND s.expires_at > $2 AND a.disabled_at IS NULL \
     UNION ALL SELECT token_sha256, role, scopes, expires_at FROM api_token \
     WHERE token_sha256 = ANY($1) AND (expires_at IS NULL OR expires_at > $2)";

/// The credentials that streams of this process are open with, and who people are.
#[derive(Default)]
pub struct Access {
    cells: Mutex<HashMap<(Sha, Terms), Weak<Cell>>>,
    people: Mutex<Arc<People>>,
}

/// What a stream was opened with: with any other, nobody can say that it still may go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Terms {
    role: Role,
    scopes: Vec<Right>,
    expires_at: Option<Timestamp>,
}

struct Cell {
    ended: CancellationToken,
    /// The number at which it was found to be in force.
    seen: AtomicI64,
}

/// A right that a stream is open with.
#[derive(Clone)]
pub struct InForce {
    cell: Arc<Cell>,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

impl InForce {
    /// Returns once the right was taken away.
    pub async fn revoked(&self) {
        self.cell.ended.cancelled().await;
    }
}

/// Who people are, by the ids that events name them by.
#[derive(Debug, Default)]
pub struct People(HashMap<Uuid, String>);

impl People {
    /// People with these addresses.
    pub fn new(people: impl IntoIterator<Item = (Uuid, String)>) -> Self {
        Self(people.into_iter().collect())
    }

    /// An actor for the eyes of people: `account:<email>` for `account:<account id>`, and whatever
    /// else it is as it stands.
    pub fn say(&self, actor: &str) -> String {
        let id = actor.strip_prefix("account:").and_then(|id| id.parse().ok());
        let email = id.and_then(|id: Uuid| self.0.get(&id));
        email.map_or_else(|| actor.to_owned(), |email| format!("account:{email}"))
    }

    /// The other way round: an actor as events name them, whichever way somebody wrote it.
    pub fn written(&self, said: &str) -> String {
        let email = said.strip_prefix("account:").unwrap_or_default();
        let known = self.0.iter().find(|(_, known)| known.eq_ignore_ascii_case(email));
        known.map_or_else(|| said.to_owned(), |(id, _)| format!("account:{id}"))
    }

    /// Everybody, as events name them and as people do; in an order.
    pub fn all(&self) -> Vec<(String, String)> {
        let mut all: Vec<_> = self
            .0
            .iter()
            .map(|(id, email)| (format!("account:{id}"), format!("account:{email}")))
            .collect();
        all.sort_unstable();
        all
    }
}

impl Access {
    /// Holds on to the right somebody came in with. It is looked at again before long, for it may
    /// have been taken away since it was found to be in force.
    pub fn hold(&self, holder: &Holder) -> InForce {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let Holder { role, scopes, expires_at, sha, .. } = holder.clone();
        let place = cells.entry((sha, Terms { role, scopes, expires_at })).or_default();
        let cell = place.upgrade().unwrap_or_else(|| {
            let cell = Cell { ended: CancellationToken::new(), seen: AtomicI64::new(0) };
            let cell = Arc::new(cell);
            *place = Arc::downgrade(&cell);
            cell
        });
        InForce { cell, expires_at }
    }

    /// Who people are.
    pub fn people(&self) -> Arc<People> {
        Arc::clone(&self.people.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks after all of them until the process ends.
    pub async fn follow(
        self: Arc<Self>,
        database: Database,
        now: impl Fn() -> Timestamp,
        shutdown: CancellationToken,
    ) {
        let following = async {
            loop {
                let Err(error) = self.look_on(&database, &now).await;
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "who may come in cannot be looked at"
                );
                tokio::time::sleep(RECONNECT).await;
            }
        };
        tokio::select! {
            () = following => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn look_on(
        &self,
        database: &Database,
        now: &impl Fn() -> Timestamp,
    ) -> Result<std::convert::Infallible, DatabaseError> {
        let (client, _messages) = database.dedicated().await?;
        let mut known = 0;
        loop {
            let look = tokio::time::timeout(LOOK_TIMEOUT, self.look(&client, known, now()));
            known = look.await.map_err(|_| DatabaseError::Silent)??;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Looks once; returns the number that all is true for.
    async fn look(
        &self,
        client: &Client,
        known: i64,
        now: Timestamp,
    ) -> Result<i64, DatabaseError> {
        let row = client.query_one("SELECT version FROM access_change", &[]).await?;
        let version = row.get(0);
        if version != known {
            let rows = client
                .query("SELECT id, email FROM account ORDER BY created_at LIMIT $1", &[&PEOPLE_MAX])
                .await?;
            let people = People::new(rows.iter().map(|row| (row.get(0), row.get(1))));
            *self.people.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(people);
        }
        let unsure = self.unsure(version);
        if unsure.is_empty() {
            return Ok(version);
        }
        let shas: Vec<&[u8]> = unsure.iter().map(|((sha, _), _)| sha.as_slice()).collect();
        let mut in_force = HashMap::new();
        for row in client.query(IN_FORCE, &[&shas, &now]).await? {
            let Some(scopes) = scopes_of(&row.get::<_, Vec<String>>(2)) else { continue };
            let terms = Terms { role: role_of(row.get(1))?, scopes, expires_at: row.get(3) };
            in_force.insert(row.get::<_, Vec<u8>>(0), terms);
        }
        for ((sha, terms), cell) in unsure {
            if in_force.get(sha.as_slice()) == Some(&terms) {
                cell.seen.store(version, Ordering::Relaxed);
            } else {
                cell.ended.cancel();
            }
        }
        Ok(version)
    }

    /// Credentials that were not looked at since the number grew. Those that nobody holds any more
    /// are forgotten.
    fn unsure(&self, version: i64) -> Vec<((Sha, Terms), Arc<Cell>)> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unsure = Vec::new();
        cells.retain(|key, cell| {
            let Some(cell) = cell.upgrade() else { return false };
            if cell.seen.load(Ordering::Relaxed) != version && !cell.ended.is_cancelled() {
                unsure.push((key.clone(), cell));
            }
            true
        });
        unsure
    }
}
