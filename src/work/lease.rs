//! The lease of an attempt that a worker runs itself.
//!
//! It lives in the queue's row, not in the log: renewing it is one update, guarded by the claim's
//! position. A worker that stops renewing is found by the sweeper, which ends the attempt; what it
//! says afterwards is refused by the same position.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use milepost_schemas::{JobId, Position};

use crate::app::App;
use crate::log::DatabaseError;

/// A lease is renewed this often within its length: two renewals may fail before it is lost.
pub const RENEWALS_PER_LEASE: u32 = 3;

/// The lease of one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// The job.
    pub job_id: JobId,
    /// Where the claim stands in the log.
    pub claim: Position,
    /// When the attempt is over in any case: no renewal goes beyond.
    pub ends_at: Timestamp,
}

impl Lease {
    /// Renews it once; `false` where it is lost, or the attempt's time is over.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked: the lease may hold or not.
    pub async fn renew(&self, app: &App) -> Result<bool, DatabaseError> {
        let now = app.clock.now();
        let until = (now + app.config.limits.lease).min(self.ends_at);
        let client = app.log.database().get().await?;
        // Found due by now, it may have been ended by the sweeper: it does not come back to life.
        let statement = client
            .prepare_cached(
                "UPDATE queue SET due_at = $3 \
                 WHERE job_id = $1 AND claim = $2 AND state = 'running' AND due_at > $4",
            )
            .await?;
        let (job, claim) = (self.job_id.0, self.claim.0 as i64);
        let renewed = client.execute(&statement, &[&job, &claim, &until, &now]).await?;
        Ok(renewed == 1 && until > now)
    }

    /// Renews it as long as it holds; returns when it is lost, so that whoever runs the attempt
    /// stops. A database out of reach is no loss yet: the lease lapses by itself, at its time, also
    /// in the middle of a renewal that hangs.
    pub async fn keep(&self, app: &App) {
        let lease = app.config.limits.lease.unsigned_abs();
        let pause = (lease / RENEWALS_PER_LEASE).max(Duration::from_millis(1));
        let mut lapses_at = app.clock.now() + app.config.limits.lease;
        loop {
            let renewal = async {
                tokio::time::sleep(pause).await;
                (app.clock.now(), self.renew(app).await)
            };
            let left = lapses_at.duration_since(app.clock.now()).max(SignedDuration::ZERO);
            match tokio::time::timeout(left.unsigned_abs(), renewal).await {
                Ok((begun, Ok(true))) => lapses_at = begun + app.config.limits.lease,
                Ok((_, Ok(false))) | Err(_) => return,
                Ok((_, Err(error))) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(job = %self.job_id, error, "a lease cannot be renewed");
                }
            }
        }
    }
}
