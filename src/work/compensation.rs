//! Undoes what attempts made and no longer serve, and looks for what nobody asked to undo.
//!
//! One process at a time does so, held by an advisory lock. Should two ever try, the number of the
//! try lets only one of them record it, and what is removed twice is removed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use milepost_projections::compensation::OpenCompensation;
use milepost_projections::{Compensations, OpenCompensations};
use milepost_schemas::{AgentId, Attempt, EventType, JobId, Position};
use tokio::time::Instant;
use uuid::Uuid;

use super::lead::lead;
use super::servers::Servers;
use super::{again, reconcile, system};
use crate::app::App;
use crate::clients::Patience;
use crate::config::Cloud;
use crate::domain::job::compensation::due;
use crate::domain::{AttemptId, JobCommand, ServerIdentity};
use crate::execute::{self, ExecuteError};
use crate::log::Since;

/// The advisory lock of the process that undoes: "undo" in ASCII.
const LOCK: i64 = 0x75_6e_64_6f;

/// How often it is looked for what is due when no event says that something was recorded.
const POLL: Duration = Duration::from_secs(1);

/// The shortest time between two looks, however busy the log is.
const BREATH: Duration = Duration::from_millis(500);

/// How soon after an agent got a server all are compared: it may have replaced another. Also the
/// shortest time between two comparisons, however many get one.
const COMPARE_SOON: Duration = Duration::from_secs(30);

/// How often a service is asked in one try: the tries themselves are repeated.
const TRIES_OF_REQUEST: u32 = 2;

/// How long an action, and a pause that a service asks for, is waited for in one try: a deletion
/// takes seconds, and what takes longer is found done by the next try, or is tried again.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Tries under way at once: what hangs in one holds up no other, and a service's allowance lasts.
const TRIES_AT_ONCE: usize = 8;

/// Undoes until shutdown, or stands by.
pub fn start(app: Arc<App>, cloud: Cloud) {
    let patience = Patience {
        tries_max: TRIES_OF_REQUEST,
        action_timeout: WAIT_MAX,
        retry_after_max: WAIT_MAX,
        ..Patience::default()
    };
    tokio::spawn(again("undoing", app.shutdown.clone(), move || {
        let (app, cloud) = (Arc::clone(&app), cloud.clone());
        let servers = Servers::new(&cloud.accounts, Arc::new(app.clock), patience);
        async move { Box::pin(lead(&app, LOCK, || rounds(&app, &servers, &cloud))).await }
    }));
}

async fn rounds(app: &App, servers: &Servers, cloud: &Cloud) {
    let mut head = app.log.feed().watch();
    let mut reconciled: Option<Instant> = None;
    let (mut seen, mut activated) = (app.log.feed().head(), false);
    loop {
        // As old as the view may be: it is looked again soon.
        if let Err(error) = round(app, servers, Position::START).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "what is to be undone cannot be read");
        }
        activated |= has_activated(app, &mut seen);
        let pause = if activated { COMPARE_SOON.min(cloud.reconcile) } else { cloud.reconcile };
        if reconciled.is_none_or(|at| at.elapsed() >= pause) {
            (reconciled, activated) = (Some(Instant::now()), false);
            reconcile::round(app, servers, cloud.remove_orphans).await;
        }
        tokio::time::sleep(BREATH).await;
        drop(tokio::time::timeout(POLL, head.changed()).await);
    }
}

/// Whether an agent has got a server since the feed was last looked at, as far as it goes back.
fn has_activated(app: &App, seen: &mut Position) -> bool {
    match app.log.feed().since(*seen, usize::MAX) {
        Since::Events(events) => {
            *seen = events.last().map_or(*seen, |event| event.position);
            events.iter().any(|event| event.code == EventType::AgentActivated.code())
        }
        Since::Older(_) => {
            *seen = app.log.feed().head();
            true
        }
    }
}

/// The attempts whose compensation is open, as a view that is at least as new as `at_least` has
/// them.
///
/// # Errors
/// [`ExecuteError`] when the view cannot be read.
pub(super) async fn open(
    app: &App,
    at_least: Position,
) -> Result<Vec<(AttemptId, OpenCompensation)>, ExecuteError> {
    let (mut found, mut after) = (Vec::new(), Uuid::nil());
    loop {
        let label = OpenCompensations::OPEN;
        let rows = app.views.labelled::<Compensations>(at_least, label, after).await?;
        let Some((last, _)) = rows.last() else { return Ok(found) };
        after = *last;
        for (job, row) in rows {
            let id = |attempt| AttemptId { job_id: JobId(job), attempt: Attempt(attempt) };
            found.extend(row.attempts.into_iter().map(|(attempt, open)| (id(attempt), open)));
        }
    }
}

/// Undoes all that is due, as a view that is at least as new as `at_least` has it.
///
/// # Errors
/// [`ExecuteError`] when the view cannot be read; what cannot be undone is recorded as such.
pub async fn round(app: &App, servers: &Servers, at_least: Position) -> Result<(), ExecuteError> {
    let now = app.clock.now();
    let open = open(app, at_least).await?.into_iter();
    // The end of its run makes the first try due before its time, and the one after a wait.
    let due = open.filter(|(_, open)| open.due_at <= now || !open.tried);
    let tries =
        futures_util::stream::iter(due).for_each_concurrent(TRIES_AT_ONCE, |(id, _)| async move {
            if let Err(error) = undo(app, servers, id).await {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(job = %id.job_id, error, "an attempt cannot be undone");
            }
        });
    tries.await;
    Ok(())
}

/// Tries once to undo what an attempt made, if that is due as the log itself has it.
async fn undo(app: &App, servers: &Servers, id: AttemptId) -> Result<(), ExecuteError> {
    let Some(job) = execute::read_job(&app.log, id.job_id).await? else { return Ok(()) };
    let Some((agent_id, undoing)) = due(&job, id.attempt, app.clock.now()) else { return Ok(()) };
    let (named, try_number) = (undoing.server_ids.clone(), undoing.tries + 1);
    try_once(app, servers, agent_id, id, &named, try_number).await
}

async fn try_once(
    app: &App,
    servers: &Servers,
    agent_id: AgentId,
    id: AttemptId,
    named: &[String],
    try_number: u32,
) -> Result<(), ExecuteError> {
    let identity = ServerIdentity { agent_id, attempt: id };
    let findings = servers.undo(identity, named).await;
    let command = JobCommand::RecordCompensation {
        attempt: id.attempt,
        try_number,
        named: named.len(),
        findings,
    };
    execute::to_job(app, id.job_id, command, system(app, id.job_id)).await.map(drop)
}
