//! How often each account and token asked of late for what it may not do: whoever knocks a
//! thousand times does not fill the log.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use lru::LruCache;
use uuid::Uuid;

use super::throttle::{FORGOTTEN_AFTER, is_told};

/// Accounts and tokens whose refusals are counted at once.
const COUNTED_MAX: NonZeroUsize = NonZeroUsize::new(1_000).expect("it is not zero");

/// The counts of this process.
pub struct Refusals(Mutex<LruCache<Uuid, (u32, Timestamp)>>);

impl Refusals {
    /// None yet.
    pub fn new() -> Self {
        Self(Mutex::new(LruCache::new(COUNTED_MAX)))
    }

    /// Counts one; its number in its run, where the log is to be told of it.
    pub fn count(&self, whose: Uuid, now: Timestamp) -> Option<u32> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, last_at) = counts.get_or_insert_mut(whose, || (0, now));
        let over = now.duration_since(*last_at) >= FORGOTTEN_AFTER;
        *count = if over { 1 } else { count.saturating_add(1) };
        *last_at = now;
        is_told(*count).then_some(*count)
    }
}

impl Default for Refusals {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn a_run_of_refusals_is_told_ever_less_often_and_begins_anew_after_an_hour() {
        let (refusals, whose) = (Refusals::new(), Uuid::from_u128(1));
        let begun = Timestamp::UNIX_EPOCH;
        let told: Vec<_> = (0..100)
            .filter_map(|second| refusals.count(whose, begun + SignedDuration::from_secs(second)))
            .collect();
        assert_eq!(told, [1, 4, 16, 64]);
        let later = begun + SignedDuration::from_secs(99) + FORGOTTEN_AFTER;
        assert_eq!(refusals.count(whose, later), Some(1));
        assert_eq!(refusals.count(Uuid::from_u128(2), later), Some(1), "another's run");
    }
}
