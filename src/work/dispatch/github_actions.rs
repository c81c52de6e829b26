//! GitHub Actions run the attempt: `workflow_dispatch` of `provision-agent.yml`.
//!
//! The rule: **an attempt is dispatched again only when it is certain that it was not taken.**
//! Certain is a refusal, a limit, a connection that never came about, and an error of GitHub's own
//! (5xx) after which no such run was listed for the settling time. Everything else is open: the
//! run is looked for by its name, and where GitHub answers and lists none, the attempt is given
//! up and the next one follows: its number makes the gate (409 on *started*) stop the first one's
//! run, should that begin after all. While GitHub cannot be asked, the job waits and nothing is
//! sent. So there are never two runs of one attempt, whatever becomes of the answers.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use milepost_projections::Subject;
use milepost_schemas::{Attempt, JobId};
use serde_json::json;

use super::AttemptOrder;
use crate::app::App;
use crate::clients::github::{GithubError, RUNS_A_PAGE, Run};
use crate::domain::Report;

/// How often a run is looked for within the settling time, at the most.
const LOOKS: u32 = 12;

/// Pages looked through for a run: it is among the newest.
const PAGES_MAX: usize = 3;

/// What became of an attempt.
enum Outcome {
    /// GitHub runs it; which run it is may not be known.
    Taken(Option<Run>),
    /// GitHub did not take it. It may be dispatched again.
    Refused(GithubError),
    /// Nobody can tell yet.
    Open(GithubError),
    /// It was sent, and GitHub lists no such run.
    Lost,
    /// It was sent, and this worker ends before anybody can tell.
    Left,
}

/// Dispatches one attempt and records what came of it.
pub async fn run(app: &App, order: AttemptOrder) {
    let outcome = if order.unresolved {
        resolve(app, &order, Outcome::Lost).await
    } else {
        dispatch(app, &order).await
    };
    let report = report(app, &order, outcome);
    super::conclude(app, &order, &report).await;
}

/// The name of an attempt's run, as the workflow's `run-name` makes it.
pub fn run_name(job_id: JobId, attempt: Attempt) -> String {
    format!("provision {job_id} attempt {attempt}")
}

/// The newest run of that name; `None` where GitHub lists none.
///
/// # Errors
/// [`GithubError`] where GitHub does not say.
pub async fn find_run(app: &App, name: &str) -> Result<Option<Run>, GithubError> {
    for page in 1..=PAGES_MAX {
        let runs = app.github.runs(page, app.clock.now()).await?;
        let last = runs.len() < RUNS_A_PAGE;
        if let Some(run) = runs.into_iter().find(|run| run.display_title == name) {
            return Ok(Some(run));
        }
        if last {
            break;
        }
    }
    Ok(None)
}

async fn dispatch(app: &App, order: &AttemptOrder) -> Outcome {
    let Subject::Agent { agent_id, region, .. } = &order.subject else {
        // None is claimed for this dispatcher: see `config::Dispatchers`.
        let why = "the workflow is for jobs of agents";
        return Outcome::Refused(GithubError::Settings(why.to_owned()));
    };
    // Each is a string: inputs are, whatever type the workflow gives them.
    let inputs = json!({
        "job_id": order.job_id.to_string(),
        "agent_id": agent_id.to_string(),
        "region": region,
        "callback_url": format!("{}/api/webhooks/github", app.config.public_url),
        "attempt": order.attempt.to_string(),
    });
    let now = app.clock.now();
    match app.github.dispatch(&inputs, now).await {
        Ok(Some(run)) => Outcome::Taken(Some(Run {
            id: run.workflow_run_id,
            html_url: run.html_url,
            display_title: run_name(order.job_id, order.attempt),
            status: None,
            conclusion: None,
            run_attempt: 1,
            created_at: now,
        })),
        Ok(None) => resolve(app, order, Outcome::Taken(None)).await,
        Err(error @ GithubError::Failing { .. }) => {
            resolve(app, order, Outcome::Refused(error)).await
        }
        Err(GithubError::Lost(_)) => resolve(app, order, Outcome::Lost).await,
        Err(error) => Outcome::Refused(error),
    }
}

/// Looks for the attempt's run for as long as GitHub may take to list it; `absent` is what it
/// comes to when GitHub answers at the end of that time and lists none.
async fn resolve(app: &App, order: &AttemptOrder, absent: Outcome) -> Outcome {
    let name = run_name(order.job_id, order.attempt);
    let begun = Instant::now();
    loop {
        // A look may take long itself: the time counts, not the looks.
        let last = begun.elapsed() >= app.config.github.settle;
        match find_run(app, &name).await {
            Ok(Some(run)) => return Outcome::Taken(Some(run)),
            Ok(None) if last => return absent,
            Err(_) if last && matches!(absent, Outcome::Taken(_)) => return absent,
            Err(error) if last => return Outcome::Open(error),
            Ok(None) | Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(app.config.github.settle / LOOKS) => {}
            () = app.shutdown.cancelled() => {
                return if matches!(absent, Outcome::Taken(_)) { absent } else { Outcome::Left };
            }
        }
    }
}

fn report(app: &App, order: &AttemptOrder, outcome: Outcome) -> Report {
    match outcome {
        Outcome::Taken(run) => Report::Dispatched {
            workflow_run_id: run.as_ref().map(|run| run.id.to_string()),
            run_url: run.map(|run| run.html_url),
        },
        Outcome::Refused(error) => {
            let delay = delay(&error, order.refusals, app.config.github.back_off, app.clock.now());
            let reason = app.redactor.mask(&error.words()).into_owned();
            Report::DispatchFailed { reason, delay, unresolved: false }
        }
        Outcome::Open(error) => {
            let delay = delay(&error, order.refusals, app.config.github.back_off, app.clock.now());
            let words = format!("Whether GitHub took it is not known yet: {}", error.words());
            let reason = app.redactor.mask(&words).into_owned();
            Report::DispatchFailed { reason, delay, unresolved: true }
        }
        Outcome::Lost => Report::DispatchLost,
        Outcome::Left => {
            let reason = "Whether GitHub took it is not known yet: the worker that asked has ended";
            let delay = SignedDuration::ZERO;
            Report::DispatchFailed { reason: reason.to_owned(), delay, unresolved: true }
        }
    }
}

/// How long a job waits after its dispatch was refused: no shorter than GitHub asks for.
fn delay(error: &GithubError, refusals: u32, first: Duration, now: Timestamp) -> SignedDuration {
    let delay = super::back_off(first, refusals);
    match error {
        GithubError::Limited { until, .. } => delay.max(until.duration_since(now)),
        GithubError::Settings(_)
        | GithubError::Refused { .. }
        | GithubError::Unreachable(_)
        | GithubError::Failing { .. }
        | GithubError::Lost(_) => delay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_756_461_600, 0);

    fn seconds(error: &GithubError, refusals: u32) -> i64 {
        delay(error, refusals, Duration::from_secs(10), NOW).as_secs()
    }

    #[test]
    fn refusals_wait_twice_as_long_each_time_up_to_ten_minutes() {
        let error = GithubError::Settings("a setting is missing".into());
        let waits: Vec<i64> = (0..8).map(|refusals| seconds(&error, refusals)).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(seconds(&error, u32::MAX), 600);
    }

    #[test]
    fn a_limit_is_waited_for() {
        let until = NOW + SignedDuration::from_mins(42);
        let error = GithubError::Limited { until, message: String::new() };
        assert_eq!(seconds(&error, 0), 42 * 60);
        let error = GithubError::Limited { until: NOW, message: String::new() };
        assert_eq!(seconds(&error, 3), 80);
    }
}
