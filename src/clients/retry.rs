//! When to try again.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;

use super::{Class, ClientError};

/// The longest `Retry-After` that is waited out by default. Whoever is asked to wait longer is told
/// so instead: a workflow's run costs money while it sleeps.
pub const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);

/// The longest pause when a service's allowance is used up and it says only when all of it is
/// back: some of it is back much earlier.
pub const RATE_LIMIT_PAUSE_MAX: Duration = Duration::from_mins(1);

/// The passing of time and chance, as clients see it; `app::Clock` is the real one.
pub trait Time: Send + Sync + fmt::Debug {
    /// Now.
    fn now(&self) -> Timestamp;
    /// How much time has passed since some moment. It never goes back, whoever sets the clock.
    fn passed(&self) -> Duration;
    /// A number from 0 up to 1, another at each call.
    fn random(&self) -> f64;
    /// Lets so much time pass.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// How often, how long and how patiently a service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How often a request is made, the first time included.
    pub tries_max: u32,
    /// The pause after the first try; it doubles after each.
    pub delay_first: Duration,
    /// The longest pause.
    pub delay_max: Duration,
    /// How long one request may take.
    pub request_timeout: Duration,
    /// The pause between two looks at something that takes its time.
    pub poll: Duration,
    /// How long an action may take.
    pub action_timeout: Duration,
    /// The longest `Retry-After` that is waited out.
    pub retry_after_max: Duration,
}

impl Default for Patience {
    /// About a minute of trying; a look every two seconds.
    fn default() -> Self {
        Self {
            tries_max: 8,
            delay_first: Duration::from_millis(500),
            delay_max: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            poll: Duration::from_secs(2),
            action_timeout: Duration::from_mins(5),
            retry_after_max: RETRY_AFTER_MAX,
        }
    }
}

impl Patience {
    /// How long to wait after a try (from 1) that failed; `None` when it was the last.
    pub fn delay(&self, tried: u32, error: &ClientError, random: f64) -> Option<Duration> {
        let asked = error.retry_after().unwrap_or_default();
        let hopeless = error.class() == Class::Final || asked > self.retry_after_max;
        if hopeless || tried >= self.tries_max {
            return None;
        }
        let doubled = self.delay_first.saturating_mul(1 << (tried - 1).min(16));
        // Half of it by chance, so that many who failed together do not come back together.
        let delay = doubled.min(self.delay_max).mul_f64(0.5 + random / 2.0);
        Some(delay.max(asked))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Trouble;
    use super::*;

    fn refused(code: &str, retry_after: Option<u64>) -> ClientError {
        let (code, message) = (code.to_owned(), String::new());
        let retry_after = retry_after.map(Duration::from_secs);
        let trouble = Trouble::Refused { status: 400, code, message, retry_after };
        ClientError { service: "Hetzner", request: String::new(), trouble }
    }

    #[test]
    fn pauses_grow_to_a_limit_with_chance_in_them_and_end() {
        let patience = Patience::default();
        let error = refused("conflict", None);
        let seconds =
            |tried, random| patience.delay(tried, &error, random).map(|delay| delay.as_secs_f64());
        assert_eq!(seconds(1, 1.0), Some(0.5));
        assert_eq!(seconds(1, 0.0), Some(0.25));
        assert_eq!(seconds(4, 1.0), Some(4.0));
        assert_eq!(seconds(7, 1.0), Some(30.0));
        assert_eq!(seconds(patience.tries_max, 1.0), None);
        let eager = Patience { tries_max: u32::MAX, ..patience };
        assert_eq!(eager.delay(1_000, &error, 1.0), Some(patience.delay_max));
    }

    #[test]
    fn what_the_service_asks_for_is_the_least() {
        let patience = Patience::default();
        let delay = |seconds| patience.delay(1, &refused("rate_limit_exceeded", seconds), 0.0);
        assert_eq!(delay(Some(17)), Some(Duration::from_secs(17)));
        assert_eq!(delay(Some(0)), Some(Duration::from_millis(250)));
        assert_eq!(delay(Some(RETRY_AFTER_MAX.as_secs())), Some(RETRY_AFTER_MAX));
        assert_eq!(delay(Some(RETRY_AFTER_MAX.as_secs() + 1)), None);
        let hurried = Patience { retry_after_max: Duration::from_secs(16), ..patience };
        assert_eq!(hurried.delay(1, &refused("rate_limit_exceeded", Some(17)), 0.0), None);
    }

    #[test]
    fn what_is_final_is_not_tried_again() {
        assert_eq!(Patience::default().delay(1, &refused("forbidden", None), 0.0), None);
    }
}
