//! What every part of a process shares.

use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::execute::JobCache;
use crate::intake::Redactor;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::push::Hub;
use crate::views::Views;

/// The state of a process; shared by reference.
pub struct App {
    /// Every setting.
    pub config: Config,
    /// The time and fresh ids.
    pub clock: Clock,
    /// The event log.
    pub log: Log,
    /// The states of jobs that were changed lately.
    pub jobs: JobCache,
    /// The subscribers.
    pub hub: Arc<Hub>,
    /// The views' tables.
    pub views: Views,
    /// What must not be stored.
    pub redactor: Redactor,
    /// What operators watch.
    pub metrics: Arc<Metrics>,
    /// Says when to end.
    pub shutdown: CancellationToken,
}

/// The only place that reads the clock and draws ids.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Now, in microseconds as the log keeps time.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn now(self) -> Timestamp {
        let now = Timestamp::now();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    /// A fresh id; ids made later sort later, so that hot streams share index pages.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn id(self) -> Uuid {
        Uuid::now_v7()
    }
}
