//! The rehearsal: a child process plays the workflow, with the same signed callbacks over real
//! HTTP. It builds no server, and says so.

use std::process::Stdio;
use std::time::Duration;

use milepost_projections::{JobStatus, Subject};
use tokio::process::{Child, Command};

use super::AttemptOrder;
use crate::app::App;
use crate::domain::Report;
use crate::execute;

/// How long a job waits after its rehearsal could not be started for the first time.
const BACK_OFF: Duration = Duration::from_secs(10);

/// The environment name of the secret a rehearsal signs with; never on its command line.
pub const SECRET_VARIABLE: &str = "MILEPOST_CALLBACK_SECRET";

/// Runs one attempt, and says so should it end without a word.
pub async fn run(app: &App, order: AttemptOrder) {
    let mut child = match start(app, &order) {
        Ok(child) => child,
        Err(error) => {
            let reason = format!("The rehearsal could not be started: {error}");
            let delay = super::back_off(BACK_OFF, order.refusals);
            return super::give_back(app, &order, reason, delay).await;
        }
    };
    let workflow_run_id = child.id().map(|pid| format!("rehearsal-{pid}"));
    let report = Report::Dispatched { workflow_run_id, run_url: None };
    super::tell(app, &order, report).await;
    let how = tokio::select! {
        ended = child.wait() => match ended {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        },
        // Dropping the child ends it.
        () = attempt_over(app, &order) => return,
        () = app.shutdown.cancelled() => {
            drop(child.kill().await);
            "its worker was told to end".to_owned()
        }
    };
    super::tell(app, &order, Report::RunEnded { how }).await;
}

/// Returns when the run goes on although its attempt is over: it hangs, and would keep its place
/// for ever. Looks no more often than a run may be silent, so that last words are not cut off.
async fn attempt_over(app: &App, order: &AttemptOrder) {
    loop {
        tokio::time::sleep(app.config.limits.silence.unsigned_abs()).await;
        let Ok(Some(job)) = execute::read_job(&app.log, order.job_id).await else { continue };
        let waits_for_next = job.status == JobStatus::RetryScheduled;
        if job.status.is_ended() || waits_for_next || job.attempt().number > order.attempt {
            return;
        }
    }
}

fn start(app: &App, order: &AttemptOrder) -> std::io::Result<Child> {
    let secret = app.config.callback_secrets.first().cloned().unwrap_or_default();
    // This very program, also after an upgrade has put another one in its place.
    let mut rehearse = Command::new("/proc/self/exe");
    rehearse.arg("rehearse").args(["--job", &order.job_id.to_string()]);
    match &order.subject {
        Subject::Agent { agent_id, region, .. } => {
            rehearse.args(["--agent", &agent_id.to_string(), "--region", region]);
        }
        Subject::Node { node_id } => {
            rehearse.args(["--node", &node_id.to_string()]);
        }
    }
    rehearse
        .args(["--attempt", &order.attempt.to_string()])
        .args(["--callback-url", &format!("{}/api/webhooks/github", app.config.loopback_url())])
        .env(SECRET_VARIABLE, secret)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}
