//! Two generations of a view's rows compared, byte for byte.

use std::cmp::Ordering;
use std::collections::VecDeque;

use milepost_schemas::Position;
use sha2::{Digest as _, Sha256};
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::generation::{Difference, Generation};
use crate::log::DatabaseError;

/// Rows read at once: 2 MiB of digests, whatever the rows hold.
const ROWS_AT_ONCE: i64 = 20_000;

/// Keys of rows that differ which are named; the others are counted.
pub const DIFFERENCES_NAMED: usize = 10;

/// Compares the rows of `old` with those of `new`, all of which hold for `position` and stand still.
///
/// # Errors
/// [`DatabaseError`] when either cannot be read.
pub async fn compare(
    old: (&impl GenericClient, &Generation),
    new: (&impl GenericClient, &Generation),
    position: Position,
) -> Result<Difference, DatabaseError> {
    let (mut old, mut new) = (Rows::of(old.0, old.1), Rows::of(new.0, new.1));
    let (mut differing, mut first) = (0, Vec::new());
    loop {
        let (left, right) = (old.peek().await?, new.peek().await?);
        let (key, order) = match (left, right) {
            (None, None) => break,
            (Some(left), None) => (left.key, Ordering::Less),
            (None, Some(right)) => (right.key, Ordering::Greater),
            (Some(left), Some(right)) => (left.key.min(right.key), left.key.cmp(&right.key)),
        };
        let equal = order == Ordering::Equal && left == right;
        if order.is_le() {
            old.take();
        }
        if order.is_ge() {
            new.take();
        }
        if !equal {
            differing += 1;
            if first.len() < DIFFERENCES_NAMED {
                first.push(key);
            }
        }
    }
    Ok(Difference {
        position,
        rows_old: old.count,
        rows_new: new.count,
        differing,
        first,
        checksum_old: hex::encode(old.checksum.finalize()),
        checksum_new: hex::encode(new.checksum.finalize()),
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct RowDigest {
    key: Uuid,
    position: i64,
    label: String,
    state_sha256: Vec<u8>,
}

/// The rows of one generation in order of their keys, some at a time.
struct Rows<'a, C> {
    client: &'a C,
    sql: String,
    ready: VecDeque<RowDigest>,
    last: Uuid,
    ended: bool,
    count: u64,
    checksum: Sha256,
}

impl<'a, C: GenericClient> Rows<'a, C> {
    fn of(client: &'a C, generation: &Generation) -> Self {
        let sql = format!(
            "SELECT key, position, label, sha256(state) FROM {} \
             WHERE key > $1 OR ($2 AND key = $1) ORDER BY key LIMIT {ROWS_AT_ONCE}",
            generation.table()
        );
        Self {
            client,
            sql,
            ready: VecDeque::new(),
            last: Uuid::nil(),
            ended: false,
            count: 0,
            checksum: Sha256::new(),
        }
    }

    async fn peek(&mut self) -> Result<Option<&RowDigest>, DatabaseError> {
        if self.ready.is_empty() && !self.ended {
            // The very first key may be the nil one.
            let first = self.count == 0;
            let rows = self.client.query(&self.sql, &[&self.last, &first]).await?;
            self.ended = (rows.len() as i64) < ROWS_AT_ONCE;
            self.ready.extend(rows.iter().map(|row| RowDigest {
                key: row.get(0),
                position: row.get(1),
                label: row.get(2),
                state_sha256: row.get(3),
            }));
        }
        Ok(self.ready.front())
    }

    fn take(&mut self) {
        let Some(row) = self.ready.pop_front() else { return };
        self.last = row.key;
        self.count += 1;
        self.checksum.update(row.key.as_bytes());
        self.checksum.update(row.position.to_be_bytes());
        self.checksum.update((row.label.len() as u64).to_be_bytes());
        self.checksum.update(&row.label);
        self.checksum.update(&row.state_sha256);
    }
}
