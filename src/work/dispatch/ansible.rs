//! This machine runs the attempt: `ansible-playbook`, over SSH, for one node.
//!
//! What runs is under a lease and under a supervisor (`milepost supervise`): it ends, with every
//! process below it, when it takes too long, when its job is cancelled or its lease lost, when this
//! worker ends and when it is killed or stands still; and the worker ends what a killed supervisor
//! leaves. Tasks and lines reach the job by the callback plugin alone; what is printed is kept for the
//! error only.

mod files;
mod outcome;
mod strays;
mod supervised;

pub use strays::end_strays;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use milepost_projections::{Node, Subject};
use milepost_schemas::{EventType, Position};
use serde_json::json;
use tokio::process::Command;

use self::files::PrivateDirectory;
use self::outcome::{INTERRUPTED, INTERRUPTED_EXIT, SYNTAX_ERROR, TIMEOUT};
use self::supervised::{End, Output};
use super::{AttemptOrder, SECRET_VARIABLE};
use crate::app::App;
use crate::config::Ansible;
use crate::domain::Report;
use crate::domain::node::{DECOMMISSION_NODE, PROVISION_NODE};
use crate::execute;
use crate::log::Since;
use crate::work::lease::Lease;

/// The oldest ansible-core that the playbooks are written for.
const VERSION_MIN: (u32, u32) = (2, 16);

/// How long `ansible-playbook --version` may take.
const VERSION_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a job waits after it could not be begun for the first time.
const BACK_OFF: Duration = Duration::from_secs(10);

/// A host that has never been seen is trusted; one that has changed its key is not.
const SSH_ARGUMENTS: &str = "--ssh-extra-args=-o StrictHostKeyChecking=accept-new";

/// The steps of a node's job, in the words that every job's steps have.
const STARTED: &str = "ansible_started";
const COMPLETE: &str = "ansible_complete";

/// What Ansible and SSH need of this process's environment; its secrets are none of their business.
const INHERITED: [&str; 6] = ["HOME", "LOGNAME", "PATH", "SSH_AUTH_SOCK", "TMPDIR", "USER"];

/// Why a run is stopped before its end.
enum Stop {
    /// It takes longer than it may.
    OverTime,
    /// The claim or the lease is over: nothing that this worker says would be taken.
    NotOurs,
    /// This worker ends.
    ShuttingDown,
}

/// What became of a run.
enum Verdict {
    /// It has done what it was to do.
    Well,
    /// It has not.
    Failed(Report),
    /// Nobody would listen.
    Disowned,
}

/// All that one attempt needs to begin.
struct Run {
    directory: PathBuf,
    playbook: &'static str,
    host: String,
    private: PrivateDirectory,
}

/// Runs one attempt and records what came of it.
pub async fn run(app: &App, order: AttemptOrder) {
    let run = match prepare(app, &order).await {
        // Looking may have taken long.
        Ok(_) if app.shutdown.is_cancelled() => {
            return super::give_back_at_the_end(app, &order).await;
        }
        Ok(run) => run,
        Err(reason) => {
            let reason = app.redactor.mask(&reason).into_owned();
            let delay = super::back_off(BACK_OFF, order.refusals);
            return super::give_back(app, &order, reason, delay).await;
        }
    };
    if !attempt(app, &order, &run).await {
        // Whoever ended the attempt waits to hear that nothing of it runs any more.
        super::end(app, &order).await;
    }
}

/// Why nothing can be run with these settings; `None` where all is there.
pub async fn unready(settings: &Ansible) -> Option<String> {
    let ready = async {
        directory(settings, PROVISION_NODE)?;
        check_version(settings).await
    };
    ready.await.err()
}

/// Looks whether everything is there before the attempt counts as begun. What is not there is the
/// reason why the job waits on.
async fn prepare(app: &App, order: &AttemptOrder) -> Result<Run, String> {
    end_strays().await;
    let settings = &app.config.ansible;
    let (directory, playbook) = directory(settings, &order.job_type)?;
    check_version(settings).await?;
    let node = read_node(app, order).await?;
    let (inventory, variables) =
        (files::inventory(&node, settings)?, files::variables(&node, settings)?);
    let written = || {
        let private = PrivateDirectory::make(app.clock.id())?;
        private.write("inventory.ini", &inventory)?;
        private.write("vars.json", &variables)?;
        Ok::<_, std::io::Error>(private)
    };
    let private = written().map_err(|error| format!("No files can be written: {error}"))?;
    Ok(Run { directory, playbook, host: node.hostname, private })
}

/// Where the playbooks are, and which one does what the job is for.
fn directory(settings: &Ansible, job_type: &str) -> Result<(PathBuf, &'static str), String> {
    let playbook = match job_type {
        PROVISION_NODE => "playbooks/node-provision.yml",
        DECOMMISSION_NODE => "playbooks/node-decommission.yml",
        other => return Err(format!("There is no playbook for jobs of the type {other}")),
    };
    let directory = std::path::absolute(&settings.directory).map_err(|error| error.to_string())?;
    if directory.join(playbook).is_file() {
        return Ok((directory, playbook));
    }
    Err(format!("MILEPOST_ANSIBLE_DIR: there is no {playbook} in {}", directory.display()))
}

async fn check_version(settings: &Ansible) -> Result<(), String> {
    let program = &settings.playbook_program;
    let mut command = Command::new(program);
    command.arg("--version").env_clear().envs(inherited());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let asked = tokio::time::timeout(VERSION_TIMEOUT, command.output()).await;
    let printed = match asked {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(Err(error)) => {
            return Err(format!("MILEPOST_ANSIBLE_PLAYBOOK: {program} cannot be run: {error}"));
        }
        Err(_) => return Err(format!("{program} --version does not answer")),
    };
    let (major, minor) = VERSION_MIN;
    match version(&printed) {
        Some(version) if version >= VERSION_MIN => Ok(()),
        Some((is_major, is_minor)) => Err(format!(
            "{program} is of ansible-core {is_major}.{is_minor}; {major}.{minor} is needed"
        )),
        None => Err(format!("{program} --version does not say which ansible-core it is of")),
    }
}

/// The version in `ansible-playbook [core 2.19.4]`.
fn version(printed: &str) -> Option<(u32, u32)> {
    let (_, rest) = printed.split_once("[core ")?;
    let mut numbers = rest.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

async fn read_node(app: &App, order: &AttemptOrder) -> Result<Node, String> {
    let Subject::Node { node_id } = order.subject else {
        // None is claimed for this dispatcher: see `config::Dispatchers`.
        return Err("The job is for no node".to_owned());
    };
    match execute::read_node(&app.log, node_id).await {
        Ok(Some(node)) => opened(app, node).await,
        Ok(None) => Err(format!("There is no node {node_id}")),
        Err(error) => Err(format!("The node cannot be read: {error}")),
    }
}

/// The node with its host name, address and user as they are: Ansible has to reach it. What is
/// erased is no host name, and no inventory is made of it.
async fn opened(app: &App, mut node: Node) -> Result<Node, String> {
    for text in [&mut node.hostname, &mut node.public_ip, &mut node.ssh_user] {
        let opened = app.log.keys().open_text(text).await;
        *text = opened.map_err(|error| format!("The node's key cannot be read: {error}"))?;
    }
    Ok(node)
}

/// Runs what was prepared, under its lease, and says how it ended; whether that is in the log.
async fn attempt(app: &App, order: &AttemptOrder, run: &Run) -> bool {
    let Some(lease) = hold(app, order).await else { return false };
    match play_both(app, order, run, &lease).await {
        Some(report) => say_last(app, order, lease.without_spare(), &report).await,
        None => false,
    }
}

/// Says that this worker runs the attempt itself: its lease. `None` once the claim is over.
async fn hold(app: &App, order: &AttemptOrder) -> Option<Lease> {
    let spare = supervised::end_max(app.config.ansible.grace);
    loop {
        // Before it is in the log: it lasts no longer than others think.
        let lease = Lease::new(app, order.job_id, order.claim, spare);
        // Without its lease in the log nobody would find out soon that this worker is gone.
        match super::say(app, order, Report::Held { workflow_run_id: None }).await {
            Ok(holds) => return holds.then_some(lease),
            Err(_) => tokio::time::sleep(super::AGAIN_AFTER).await,
        }
    }
}

/// Says the last word until it is in the log or the lease is over: what it took half an hour to
/// come to must not get lost because the log was away for a moment.
async fn say_last(app: &App, order: &AttemptOrder, lease: Lease, report: &Report) -> bool {
    tokio::select! {
        said = super::insist(app, order, report) => said,
        () = lease.keep(app) => false,
    }
}

/// Has the playbook looked at, then played; what there is to say at its end, if anybody listens.
async fn play_both(app: &App, order: &AttemptOrder, run: &Run, lease: &Lease) -> Option<Report> {
    let mut stop = pin!(stop(app, order, lease));
    let checked = play(app, order, run, true, lease, &mut stop).await;
    match judge(app, run, checked, true) {
        Verdict::Well => {}
        Verdict::Failed(report) => return Some(report),
        Verdict::Disowned => return None,
    }
    let metadata = Some(json!({"playbook": run.playbook}).into());
    super::tell(app, order, Report::Step { step: STARTED.to_owned(), metadata }).await;
    let played = play(app, order, run, false, lease, &mut stop).await;
    match judge(app, run, played, false) {
        Verdict::Well => {
            let complete = Report::Step { step: COMPLETE.to_owned(), metadata: None };
            super::tell(app, order, complete).await;
            Some(Report::Succeeded)
        }
        Verdict::Failed(report) => Some(report),
        Verdict::Disowned => None,
    }
}

type Ended = std::io::Result<(End<Stop>, Output)>;

/// Runs `ansible-playbook`, or has it look at the playbook only.
async fn play(
    app: &App,
    order: &AttemptOrder,
    run: &Run,
    check: bool,
    lease: &Lease,
    stop: &mut (impl Future<Output = Stop> + Unpin),
) -> Ended {
    let settings = &app.config.ansible;
    let private = run.private.path();
    let mut variables = private.join("vars.json").into_os_string();
    variables = [OsStr::new("@"), &variables].into_iter().collect();
    // This very program, also after an upgrade has put another one in its place.
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["supervise", "--grace", &settings.grace.as_secs_f64().to_string()])
        .arg("--remove")
        .arg(private)
        .args(["--", &settings.playbook_program, "-i"])
        .arg(private.join("inventory.ini"))
        .arg("-e")
        .arg(variables)
        .arg(SSH_ARGUMENTS)
        .args(check.then_some("--syntax-check"))
        .arg(run.playbook)
        .current_dir(&run.directory)
        // A terminal's Ctrl-C is for this process, which then says how its children are to end.
        .process_group(0)
        .env_clear()
        .envs(inherited())
        .envs(environment(&run.directory, private))
        .env(strays::MARK.0, strays::MARK.1);
    if !check {
        command.envs(callbacks(app, order));
    }
    let ended = supervised::run(command, settings.grace, lease.until(), stop).await;
    // Of a supervisor that was killed, what the run has started is left.
    end_strays().await;
    ended
}

fn inherited() -> impl Iterator<Item = (&'static str, std::ffi::OsString)> {
    INHERITED.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
}

fn environment(directory: &Path, private: &Path) -> [(&'static str, std::ffi::OsString); 3] {
    [
        // Ansible passes over the file of a directory that others may write to, unless it is named.
        ("ANSIBLE_CONFIG", directory.join("ansible.cfg").into()),
        ("ANSIBLE_LOCAL_TEMP", private.join("tmp").into()),
        // Ansible wants UTF-8, and every system has this one.
        ("LC_ALL", "C.UTF-8".into()),
    ]
}

/// What the callback plugin goes by.
fn callbacks(app: &App, order: &AttemptOrder) -> [(&'static str, String); 4] {
    let secret = app.config.callback_secrets.first().cloned().unwrap_or_default();
    [
        ("MILEPOST_CALLBACK_URL", format!("{}/api/webhooks/github", app.config.loopback_url())),
        (SECRET_VARIABLE, secret),
        ("MILEPOST_JOB_ID", order.job_id.to_string()),
        ("MILEPOST_ATTEMPT", order.attempt.to_string()),
    ]
}

/// Judges how a run ended, or the look at its playbook.
fn judge(app: &App, run: &Run, ended: Ended, check: bool) -> Verdict {
    let (end, mut output) = match ended {
        Ok(ended) => ended,
        Err(error) => {
            let message = format!("ansible-playbook could not be supervised: {error}");
            return Verdict::Failed(failed(INTERRUPTED, true, message));
        }
    };
    let printed = outcome::words(&app.redactor, output.bytes.make_contiguous(), output.cut);
    let (exit, timed_out, why) = match end {
        End::Stopped(Stop::NotOurs) => return Verdict::Disowned,
        End::Stopped(Stop::ShuttingDown) => {
            (INTERRUPTED_EXIT, false, "its worker was told to end".to_owned())
        }
        End::Stopped(Stop::OverTime) => {
            let limit = app.config.ansible.timeout;
            (INTERRUPTED_EXIT, true, format!("it took longer than {limit:?}"))
        }
        End::Exited(exit) => (exit, false, format!("it ended with {exit}")),
    };
    let has_host = check || outcome::recap_has_host(&printed, &run.host);
    let (code, retryable) = match outcome::classify(exit, has_host, timed_out) {
        None => return Verdict::Well,
        Some(interruption @ (INTERRUPTED | TIMEOUT, _)) => interruption,
        Some(_) if check => (SYNTAX_ERROR, false),
        Some(failure) => failure,
    };
    // What it printed comes last: of a long error its end is kept.
    let message = format!("ansible-playbook: {why}\n{printed}");
    Verdict::Failed(failed(code, retryable, message.trim_end().to_owned()))
}

fn failed(code: &'static str, retryable: bool, message: String) -> Report {
    Report::Failed { code, message, failed_step: None, retryable }
}

/// Returns when the run must not go on; keeps its lease until then.
async fn stop(app: &App, order: &AttemptOrder, lease: &Lease) -> Stop {
    tokio::select! {
        () = tokio::time::sleep(app.config.ansible.timeout) => Stop::OverTime,
        () = lease.keep(app) => Stop::NotOurs,
        () = claim_over(app, order) => Stop::NotOurs,
        () = app.shutdown.cancelled() => Stop::ShuttingDown,
    }
}

/// Returns when the claim is over, as soon as the log says so: a run that somebody cancels should
/// not go on until its lease is renewed next.
async fn claim_over(app: &App, order: &AttemptOrder) {
    let feed = app.log.feed();
    let mut head = feed.watch();
    let mut seen = feed.head();
    loop {
        match execute::read_job(&app.log, order.job_id).await {
            Ok(Some(job)) if job.claim != Some(order.claim) => return,
            Ok(_) => {}
            Err(error) => {
                // What it was to be read for is not said again.
                tracing::warn!(
                    job = %order.job_id,
                    error = &error as &dyn std::error::Error,
                    "whether a run goes on cannot be read"
                );
                tokio::time::sleep(super::AGAIN_AFTER).await;
                continue;
            }
        }
        while !may_have_ended(app, order, &mut seen) {
            if head.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Whether there is news of the job's end since it was last looked at.
fn may_have_ended(app: &App, order: &AttemptOrder, seen: &mut Position) -> bool {
    const ENDS: [EventType; 3] =
        [EventType::JobCancelled, EventType::JobFailed, EventType::JobSucceeded];
    let feed = app.log.feed();
    match feed.since(*seen, usize::MAX) {
        Since::Events(events) => {
            *seen = events.last().map_or(*seen, |event| event.position);
            let own = events.iter().filter(|event| event.stream == order.job_id.stream());
            own.into_iter().any(|event| ENDS.iter().any(|end| end.code() == event.code))
        }
        Since::Older(_) => {
            *seen = feed.head();
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_ansible_prints() {
        let printed = "ansible-playbook [core 2.19.4]\n  config file = None\n";
        assert_eq!(version(printed), Some((2, 19)));
        assert_eq!(version("ansible-playbook [core 2.16.0rc1]"), Some((2, 16)));
        for none in ["", "ansible-playbook 2.9.27", "[core x]", "[core 2]"] {
            assert_eq!(version(none), None, "{none}");
        }
        assert!((2, 9) < VERSION_MIN && (3, 0) > VERSION_MIN);
    }
}
