//! What slows down guessing, and does not lock anybody out.
//!
//! Tries are counted by the account they name, by the network address they come from, and by both
//! together (the pair). After a few that failed, each further one has to wait, twice as long each
//! time, up to 15 minutes:
//!
//! - an address waits for its own failures, whichever accounts it named;
//! - a pair waits for its own failures, and once it has any, for those of its account too: many
//!   addresses that guess at one account share its delay;
//! - a pair without failures waits for nothing but its address: the owner comes in with the right
//!   password from wherever nobody has guessed, and a session that is there is not asked at all.
//!
//! A try counts as a failure before the password is looked at, and is taken back when it was
//! right: a thousand tries at once are a thousand failures. Whoever comes too early is turned away
//! unlooked at and uncounted. An hour without a failure, and all is forgotten.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;

use super::Sha;
use crate::log::{Database, DatabaseError};

/// Failures of one pair before it has to wait.
const PAIR_FREE: u32 = 5;

/// Failures of one account, from anywhere, before those who have failed at it have to wait.
const ACCOUNT_FREE: u32 = 10;

/// Failures of one address before it has to wait; an office may share one.
const ADDRESS_FREE: u32 = 20;

/// How long a run of failures is remembered after its last.
pub const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(1);

/// The longest wait. Below the time after which all is forgotten: a run that goes on is known.
pub const WAIT_MAX: SignedDuration = SignedDuration::from_mins(15);

/// Rows kept; of more, the oldest go. At 100 bytes each, 10 MB.
pub const ROWS_MAX: i64 = 100_000;

/// Every so many tries the table is cut to its bounds.
const TRIES_BETWEEN_CUTS: u128 = 64;

/// A run of failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// How many.
    pub count: u32,
    /// When the last was.
    pub last_at: Timestamp,
}

impl Failures {
    /// What is remembered of it.
    fn at(self, now: Timestamp) -> Self {
        let over = now.duration_since(self.last_at) >= FORGOTTEN_AFTER;
        if over { Self { count: 0, last_at: now } } else { self }
    }

    /// Until when a try has to wait: not at all for the first few, then 1, 2, 4, … seconds.
    fn until(self, free: u32) -> Timestamp {
        let Some(beyond) = self.count.checked_sub(free) else { return Timestamp::MIN };
        let seconds = 1_i64.checked_shl(beyond).filter(|seconds| *seconds > 0);
        let wait = SignedDuration::from_secs(seconds.unwrap_or(i64::MAX)).min(WAIT_MAX);
        self.last_at.saturating_add(wait).expect("a signed duration can be added")
    }
}

/// What is known of a try before it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Of the account, from anywhere.
    pub account: Failures,
    /// Of the address, at any account.
    pub address: Failures,
    /// Of both.
    pub pair: Failures,
}

/// How long a try has to wait; `None` when its time has come.
pub fn wait(known: Known, now: Timestamp) -> Option<SignedDuration> {
    let Known { account, address, pair } = Known {
        account: known.account.at(now),
        address: known.address.at(now),
        pair: known.pair.at(now),
    };
    let mut until = address.until(ADDRESS_FREE);
    if pair.count > 0 {
        until = until.max(pair.until(PAIR_FREE)).max(account.until(ACCOUNT_FREE));
    }
    let left = until.duration_since(now);
    left.is_positive().then_some(left)
}

/// Whether the n-th of a run is worth an event: the 1st, 4th, 16th, …: of a million, eleven.
pub fn is_told(count: u32) -> bool {
    count.is_power_of_two() && count.trailing_zeros().is_multiple_of(2)
}

/// What a try is counted by. Hashes: no address of anybody is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    account: Sha,
    address: Sha,
    pair: Sha,
}

impl Keys {
    /// The keys of a try at an address as the database folds it: whatever is looked up as the same
    /// account is counted as one.
    pub fn new(email: &str, address: IpAddr) -> Self {
        let address = network(address);
        let key = |kind: &str, text: &str| Sha256::digest(format!("{kind}\0{text}")).into();
        Self {
            account: key("account", email),
            address: key("address", &address.to_string()),
            pair: key("pair", &format!("{email}\0{address}")),
        }
    }

    fn all(&self) -> Vec<Vec<u8>> {
        // In one order for all, so that two tries never wait for each other.
        let mut all = vec![self.account.to_vec(), self.address.to_vec(), self.pair.to_vec()];
        all.sort_unstable();
        all
    }
}

/// The network a person has to themselves: an address of version 4, or the /64 of version 6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

/// A try that may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    keys: Keys,
    /// Failures of its account, this one counted already.
    pub of_account: u32,
}

/// Begins a try: counts it as a failure, or says how long it has to wait.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked; then nobody may try.
/// Source: `migrations/V12__accounts.sql`.
pub async fn begin(
    database: &Database,
    keys: Keys,
    random: u128,
    now: Timestamp,
) -> Result<Result<Try, SignedDuration>, DatabaseError> {
    let mut client = database.get().await?;
    let tx = client.transaction().await?;
    let all = keys.all();
    let insert = "INSERT INTO log_in_failure (key, failures, last_at) \
         SELECT unnest($1::bytea[]), 0, $2 ON CONFLICT (key) DO NOTHING";
    tx.execute(insert, &[&all, &now]).await?;
    let select = "SELECT key, failures, last_at FROM log_in_failure WHERE key = ANY($1) \
         ORDER BY key FOR UPDATE";
    let rows = tx.query(select, &[&all]).await?;
    let of = |key: &Sha| {
        let row = rows.iter().find(|row| row.get::<_, &[u8]>(0) == key);
        row.map_or(Failures::default(), |row| Failures {
            count: row.get::<_, i32>(1).unsigned_abs(),
            last_at: row.get(2),
        })
    };
    let known =
        Known { account: of(&keys.account), address: of(&keys.address), pair: of(&keys.pair) };
    if let Some(left) = wait(known, now) {
        // Whoever is turned away leaves no trace, not even the rows made above.
        return Ok(Err(left));
    }
    let floor = now - FORGOTTEN_AFTER;
    let update = "UPDATE log_in_failure SET last_at = $2, \
         failures = CASE WHEN last_at <= $3 THEN 1 ELSE least(failures, 1000000000) + 1 END \
         WHERE key = ANY($1)";
    tx.execute(update, &[&all, &now, &floor]).await?;
    tx.commit().await?;
    if random.is_multiple_of(TRIES_BETWEEN_CUTS) {
        cut(&client, floor).await?;
    }
    Ok(Ok(Try { keys, of_account: known.account.at(now).count + 1 }))
}

/// Counts a failure at an address that nobody has; how many those are by now, of this run.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub(super) async fn count_unknown(
    database: &Database,
    now: Timestamp,
) -> Result<u32, DatabaseError> {
    let key: Sha = Sha256::digest("nobody").into();
    let upsert = "INSERT INTO log_in_failure AS f (key, failures, last_at) VALUES ($1, 1, $2) \
         ON CONFLICT (key) DO UPDATE SET last_at = $2, \
         failures = CASE WHEN f.last_at <= $3 THEN 1 ELSE least(f.failures, 1000000000) + 1 END \
         RETURNING failures";
    let client = database.get().await?;
    let row = client.query_one(upsert, &[&key.as_slice(), &now, &(now - FORGOTTEN_AFTER)]).await?;
    Ok(row.get::<_, i32>(0).unsigned_abs())
}

/// Keeps the table within its bounds. What a try has in its hands is left for the next time: nobody
/// waits for this.
async fn cut(client: &Client, floor: Timestamp) -> Result<(), DatabaseError> {
    let delete = "DELETE FROM log_in_failure WHERE key IN ( \
         SELECT key FROM log_in_failure WHERE last_at <= $1 OR key IN ( \
             SELECT key FROM log_in_failure ORDER BY last_at DESC OFFSET $2 \
         ) FOR UPDATE SKIP LOCKED)";
    client.execute(delete, &[&floor, &ROWS_MAX]).await?;
    Ok(())
}

/// Takes a try back that was right. The pair is as new; the others only lose this one: an account
/// of one's own does not wash an address clean.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn succeeded(database: &Database, made: Try) -> Result<(), DatabaseError> {
    take_back(database, made, true).await
}

/// Takes a try back whose password nobody looked at.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub(super) async fn not_looked_at(database: &Database, made: Try) -> Result<(), DatabaseError> {
    take_back(database, made, false).await
}

async fn take_back(database: &Database, made: Try, is_right: bool) -> Result<(), DatabaseError> {
    // The rows in the order in which a try takes them.
    let update = "WITH tried AS ( \
             SELECT key FROM log_in_failure WHERE key = ANY($1) ORDER BY key FOR UPDATE \
         ) UPDATE log_in_failure AS f SET failures = CASE WHEN $3 AND f.key = $2 THEN 0 \
             ELSE greatest(f.failures - 1, 0) END FROM tried AS t WHERE f.key = t.key";
    let client = database.get().await?;
    client.execute(update, &[&made.keys.all(), &made.keys.pair.as_slice(), &is_right]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-07-29T12:00:00Z".parse().unwrap()
    }

    fn seconds(seconds: i64) -> SignedDuration {
        SignedDuration::from_secs(seconds)
    }

    fn failed(count: u32, ago: i64) -> Failures {
        Failures { count, last_at: now() - seconds(ago) }
    }

    #[test]
    fn the_first_few_failures_cost_nothing_and_each_further_one_twice_as_much() {
        let waits: Vec<_> = (4..=16)
            .map(|count| wait(Known { pair: failed(count, 0), ..Known::default() }, now()))
            .map(|left| left.map_or(0, |left| left.as_secs()))
            .collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        let far = Known { pair: failed(u32::MAX, 0), ..Known::default() };
        assert_eq!(wait(far, now()), Some(WAIT_MAX));
    }

    #[test]
    fn a_wait_passes() {
        let known = |ago| Known { pair: failed(7, ago), ..Known::default() };
        assert_eq!(wait(known(3), now()), Some(seconds(1)));
        assert_eq!(wait(known(4), now()), None);
    }

    #[test]
    fn the_owner_comes_in_from_where_nobody_has_guessed() {
        let attacked = Known { account: failed(1_000_000, 0), ..Known::default() };
        assert_eq!(wait(attacked, now()), None);
        // Who has failed there once shares the account's delay.
        let guesser = Known { pair: failed(1, 0), ..attacked };
        assert_eq!(wait(guesser, now()), Some(WAIT_MAX));
    }

    #[test]
    fn an_address_that_tries_one_account_after_the_other_is_slowed() {
        let known = Known { address: failed(ADDRESS_FREE + 5, 0), ..Known::default() };
        assert_eq!(wait(known, now()), Some(seconds(32)));
    }

    #[test]
    fn a_run_is_forgotten_after_an_hour_without_a_failure() {
        let all = |ago| {
            let failures = failed(1_000, ago);
            Known { account: failures, address: failures, pair: failures }
        };
        assert_eq!(wait(all(899), now()), Some(seconds(1)));
        assert_eq!(wait(all(3_600), now()), None);
    }

    #[test]
    fn a_million_failures_are_eleven_events() {
        let told = (1..=1_048_576).filter(|count| is_told(*count));
        assert_eq!(told.clone().take(4).collect::<Vec<_>>(), [1, 4, 16, 64]);
        assert_eq!(told.count(), 11);
        assert!(!is_told(0));
    }

    #[test]
    fn a_person_has_a_whole_network_of_version_6() {
        let keys = |address: &str| Keys::new("ada@example.com", address.parse().unwrap());
        assert_eq!(keys("2001:db8::1"), keys("2001:db8::ffff:2"));
        assert_ne!(keys("2001:db8::1"), keys("2001:db8:0:1::1"));
        assert_eq!(keys("192.0.2.1"), keys("::ffff:192.0.2.1"));
        assert_ne!(keys("192.0.2.1"), keys("192.0.2.2"));
    }
}
