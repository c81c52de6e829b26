//! Work that one process at a time does: who holds its advisory lock does it, the others stand by.

use std::time::Duration;

use crate::app::App;
use crate::log::DatabaseError;

/// How long a process that stands by waits before it tries to take over.
const STANDBY: Duration = Duration::from_secs(2);

/// Does the work whenever this process holds the lock, from its beginning each time; never ends.
pub async fn lead<F: Future<Output = ()>>(app: &App, lock: i64, mut work: impl FnMut() -> F) {
    loop {
        if let Err(error) = lead_once(app, lock, work()).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, lock, "no lock can be held: its work stands still here");
        }
        tokio::time::sleep(STANDBY).await;
    }
}

/// Works as long as this process holds the lock.
async fn lead_once(
    app: &App,
    lock: i64,
    work: impl Future<Output = ()>,
) -> Result<(), DatabaseError> {
    let (client, mut gone) = app.log.database().dedicated().await?;
    let locked = client.query_one("SELECT pg_try_advisory_lock($1)", &[&lock]).await?;
    if !locked.get::<_, bool>(0) {
        return Ok(());
    }
    tokio::select! {
        () = work => {}
        () = async { while gone.recv().await.is_some() {} } => {}
    }
    Ok(())
}
