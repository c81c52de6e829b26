//! The lease of an attempt that a worker runs itself.
//!
//! It lives in the queue's row, not in the log: renewing it is one update, guarded by the claim's
//! position. A worker that stops renewing is found by the sweeper, which ends the attempt; what it
//! says afterwards is refused by the same position.

use std::time::Duration;

use jiff::Timestamp;
use milepost_schemas::{JobId, Position};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::app::App;
use crate::log::DatabaseError;

/// A lease is renewed this often within its length: two renewals may fail before it is lost.
pub const RENEWALS_PER_LEASE: u32 = 3;

/// No more than this part of a lease is spared for ending what runs under it: the rest must leave
/// time for renewals that fail.
const SPARE_PART: u32 = 4;

/// The lease of one attempt.
#[derive(Debug)]
pub struct Lease {
    /// The job.
    pub job_id: JobId,
    /// Where the claim stands in the log.
    pub claim: Position,
    /// When the attempt is over in any case: no renewal goes beyond.
    pub ends_at: Timestamp,
    /// The same by a clock that nobody sets, as all that this process does at its time.
    over: Instant,
    /// How long before its end what runs under it begins to be ended.
    spare: Duration,
    /// Until when what runs under it may go on.
    until: watch::Sender<Instant>,
}

impl Lease {
    /// A lease that begins no earlier than now. What runs under it takes `spare` to end, and is gone
    /// when the lease is over, which somebody else may take for its end.
    pub fn new(app: &App, job_id: JobId, claim: Position, spare: Duration) -> Self {
        let (limits, now) = (&app.config.limits, Instant::now());
        let lease = Self {
            job_id,
            claim,
            ends_at: app.clock.now() + limits.attempt,
            over: now + limits.attempt.unsigned_abs(),
            spare: spare.min(limits.lease.unsigned_abs() / SPARE_PART),
            until: watch::Sender::new(now),
        };
        lease.begins(app, now);
        lease
    }

    /// The same lease once nothing runs under it: all of it may be used.
    pub fn without_spare(self) -> Self {
        self.until.send_modify(|until| *until += self.spare);
        Self { spare: Duration::ZERO, ..self }
    }

    /// Until when what runs under it may go on; changes with each renewal.
    pub fn until(&self) -> watch::Receiver<Instant> {
        self.until.subscribe()
    }

    fn begins(&self, app: &App, at: Instant) {
        let left = self.over.saturating_duration_since(at);
        let lasts = app.config.limits.lease.unsigned_abs().min(left);
        self.until.send_replace(at + lasts.saturating_sub(self.spare));
    }

    /// Renews it once; `false` where it is lost, or the attempt's time is over.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked: the lease may hold or not.
    pub async fn renew(&self, app: &App) -> Result<bool, DatabaseError> {
        let client = app.log.database().get().await?;
        // Found due by now, it may have been ended by a sweeper: it does not come back to life. The
        // database's clock says so to all of them, whatever theirs say.
        let statement = client
            .prepare_cached(
                "UPDATE queue SET due_at = least(clock_timestamp() + make_interval(secs => $3), $4) \
                 WHERE job_id = $1 AND claim = $2 AND state = 'running' \
                 AND due_at > clock_timestamp()",
            )
            .await?;
        let (job, claim) = (self.job_id.0, self.claim.0 as i64);
        let seconds = app.config.limits.lease.as_secs_f64();
        let renewed = client.execute(&statement, &[&job, &claim, &seconds, &self.ends_at]).await?;
        Ok(renewed == 1 && app.clock.now() < self.ends_at)
    }

    /// Renews it as long as it holds; returns when it is lost, or so shortly before that what runs
    /// under it must be ended. A database out of reach is no loss yet: the lease lapses by itself,
    /// at its time, also in the middle of a renewal that hangs.
    pub async fn keep(&self, app: &App) {
        let lease = app.config.limits.lease.unsigned_abs();
        let pause = (lease / RENEWALS_PER_LEASE).max(Duration::from_millis(1));
        loop {
            let renewal = async {
                tokio::time::sleep(pause).await;
                (Instant::now(), self.renew(app).await)
            };
            let until = *self.until.borrow();
            match timeout_at(until, renewal).await {
                Ok((begun, Ok(true))) => self.begins(app, begun),
                Ok((_, Ok(false))) | Err(_) => return,
                Ok((_, Err(error))) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(job = %self.job_id, error, "a lease cannot be renewed");
                }
            }
        }
    }
}
