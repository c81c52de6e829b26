use milepost_projections::Recorded;
use milepost_projections::job::{CALLBACKS_MAX, CANCELS_MAX, DELIVERIES_MAX, RunState, job_of};
use milepost_projections::node::node_of;
use milepost_projections::steps::Progress;
use milepost_schemas::event::JobQueued;
use milepost_schemas::{AgentId, EventType, InstanceId, JobId, NodeId};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::domain::node::{DECOMMISSION_NODE, PROVISION_NODE};

mod compensation;

const JOB: JobId = JobId(Uuid::from_u128(1));
const AGENT: AgentId = AgentId(Uuid::from_u128(2));
const NODE: NodeId = NodeId(Uuid::from_u128(4));
const INSTANCE: InstanceId = InstanceId(Uuid::from_u128(3));

// --- given -----------------------------------------------------------------------------------

/// A job and its log, as far as it has come, at its own time.
#[derive(Clone)]
struct Story {
    state: Option<Job>,
    /// Every event of the log, with its time and its delivery id; the first stands at position 1.
    log: Vec<(Event, Timestamp, Option<String>)>,
    /// Events in the job's stream.
    version: u32,
    /// The queue's row.
    queue: (QueueState, Timestamp),
    now: Timestamp,
    limits: Limits,
}

/// A log without events.
fn empty() -> Story {
    let now = Timestamp::from_second(1_756_461_600).unwrap();
    let queue = (QueueState::Queued, now);
    Story { state: None, log: Vec::new(), version: 0, queue, now, limits: Limits::default() }
}

/// A job that waits for its first attempt.
fn queued() -> Story {
    let mut story = empty();
    let event = JobQueued {
        job_id: JOB,
        job_type: "provision_agent".into(),
        agent_id: Some(AGENT),
        node_id: None,
        instance_id: Some(INSTANCE),
        region: Some("eu-central".into()),
        max_attempts: 4,
        retry_of: None,
        reason: None,
    };
    story.append(event.into(), None);
    story
}

fn dispatching() -> Story {
    let mut job = queued();
    job.orders(claim());
    job
}

fn running() -> Story {
    let mut job = dispatching();
    job.hears(json!({"status": "provisioning"}));
    job
}

/// A job whose first attempt has failed.
fn retrying() -> Story {
    let mut job = running();
    job.hears(json!({"status": "failed"}));
    job
}

/// A job whose second attempt waits to be claimed.
fn queued_again() -> Story {
    let mut job = retrying();
    job.wait_minutes(1);
    job.orders(JobCommand::Tick);
    job
}

fn running_again() -> Story {
    let mut job = queued_again();
    job.orders(claim());
    job.hears(json!({"status": "provisioning", "attempt": 2}));
    job
}

fn succeeded() -> Story {
    let mut job = running();
    job.hears(json!({"status": "running"}));
    job
}

/// A job whose four attempts have failed.
fn failed() -> Story {
    let mut job = running();
    for delay_minutes in [1, 5, 15] {
        job.hears(json!({"status": "failed", "attempt": job.attempt()}));
        job.wait_minutes(delay_minutes);
        job.orders(JobCommand::Tick);
        job.orders(claim());
        job.hears(json!({"status": "provisioning", "attempt": job.attempt()}));
    }
    job.hears(json!({"status": "failed", "attempt": 4}));
    job
}

fn cancelled() -> Story {
    let mut job = running();
    job.orders(cancel());
    job
}

fn ended() -> [(&'static str, Story); 3] {
    [("succeeded", succeeded()), ("failed", failed()), ("cancelled", cancelled())]
}

fn claim() -> JobCommand {
    JobCommand::Claim { dispatcher: "github", locked_by: "worker".into() }
}

fn cancel() -> JobCommand {
    JobCommand::Cancel { by: "account:ada@example.com".into(), reason: None }
}

fn dispatched(run: &str) -> Report {
    Report::Dispatched { workflow_run_id: Some(run.into()), run_url: None }
}

fn held() -> Report {
    Report::Held { workflow_run_id: None }
}

fn dispatch_failed() -> Report {
    let delay = SignedDuration::from_secs(30);
    Report::DispatchFailed { reason: "GitHub answered 403".into(), delay, unresolved: false }
}

fn run_ended() -> Report {
    Report::RunEnded { how: "cancelled".into() }
}

fn host_failed(retryable: bool) -> Report {
    let (code, failed_step) = ("ANSIBLE_HOST_FAILED", Some("configure".to_owned()));
    Report::Failed { code, message: "no space left".into(), failed_step, retryable }
}

fn prioritise(priority: i16) -> JobCommand {
    JobCommand::Prioritise { priority, by: "ada".into(), reason: Some(" she waits ".into()) }
}

/// A callback as it comes over the wire.
fn callback(mut body: Value) -> Arc<Callback> {
    body["job_id"] = json!(JOB);
    Arc::new(Callback::parse(body.to_string().as_bytes()).unwrap())
}

// --- when ------------------------------------------------------------------------------------

impl Story {
    fn job(&self) -> &Job {
        self.state.as_ref().unwrap()
    }

    fn status(&self) -> JobStatus {
        self.job().status
    }

    fn attempt(&self) -> u32 {
        self.job().attempt().number.0
    }

    fn wait(&mut self, duration: SignedDuration) {
        self.now += duration;
    }

    fn wait_minutes(&mut self, minutes: i64) {
        self.wait(SignedDuration::from_mins(minutes));
    }

    fn append(&mut self, event: Event, delivery_id: Option<String>) {
        self.log.push((event, self.now, delivery_id));
        let folded = fold(self.state.take(), &self.log, self.log.len() - 1);
        self.version += u32::from(job_of(&self.log.last().unwrap().0).is_some());
        self.state = folded;
    }

    /// Decides an order and folds what it does.
    fn tries(&mut self, command: JobCommand) -> Result<JobDecision, JobRefusal> {
        let delivery_id = match &command {
            JobCommand::Record(callback) => callback.delivery_id.clone(),
            _ => None,
        };
        let decision = decide(self.job(), command, self.now, &self.limits)?;
        for event in &decision.events {
            self.append(event.clone(), delivery_id.clone());
        }
        self.queue = decision.queue.unwrap_or(self.queue);
        Ok(decision)
    }

    fn orders(&mut self, command: JobCommand) -> JobDecision {
        self.tries(command).unwrap()
    }

    /// The claim of an attempt, where it was claimed.
    fn claim_of(&self, attempt: u32) -> Position {
        let index = self.log.iter().rposition(|(event, ..)| {
            matches!(event, Event::WorkflowDispatchRequested(it) if it.attempt.0 == attempt)
        });
        Position(index.map_or(0, |index| index as u64 + 1))
    }

    /// The worker that claimed an attempt says something of it.
    fn tries_to_report(&mut self, attempt: u32, report: Report) -> Result<JobDecision, JobRefusal> {
        let claim = self.claim_of(attempt);
        self.tries(JobCommand::Report { claim, report })
    }

    fn reports(&mut self, report: Report) -> JobDecision {
        self.tries_to_report(self.attempt(), report).unwrap()
    }

    fn hears(&mut self, body: Value) -> JobDecision {
        self.orders(JobCommand::Record(callback(body)))
    }

    /// The first letters of the five steps' statuses.
    fn steps(&self) -> String {
        letters(&self.job().attempt().progress)
    }

    fn last_position(&self) -> Position {
        let last = self.log.iter().rposition(|(event, ..)| !is_undo(event));
        Position(last.map_or(0, |index| index as u64 + 1))
    }
}

/// Folds the log from an index on.
fn fold(
    mut state: Option<Job>,
    log: &[(Event, Timestamp, Option<String>)],
    from: usize,
) -> Option<Job> {
    for (index, (event, recorded_at, delivery_id)) in log.iter().enumerate().skip(from) {
        let recorded = Recorded {
            position: Position(index as u64 + 1),
            stream: JOB.stream(),
            version: index as u32 + 1,
            recorded_at: *recorded_at,
            delivery_id: delivery_id.as_deref(),
            event,
        };
        if job_of(event).is_some() {
            Job::apply(&mut state, &recorded);
        }
    }
    state
}

fn letters(progress: &Progress) -> String {
    progress.steps().iter().map(|step| &step.status.as_str()[..1]).collect()
}

// --- then ------------------------------------------------------------------------------------

/// What was decided of the job itself; what becomes of its servers has tests of its own.
fn names(decision: &JobDecision) -> Vec<&'static str> {
    let own = decision.events.iter().filter(|event| !is_undo(event));
    own.map(|event| event.event_type().name()).collect()
}

fn is_undo(event: &Event) -> bool {
    matches!(event, Event::CompensationRequested(_))
}

fn kept(decision: &JobDecision) -> (&LateCallbackRecorded, NotApplied) {
    match (&decision.events[..], &decision.answer) {
        ([Event::LateCallbackRecorded(event), undo @ ..], JobAnswer::Kept(reason)) => {
            assert!(undo.iter().all(is_undo), "{undo:?}");
            assert_eq!(decision.queue, None, "what is kept leaves the queue alone");
            assert_eq!(event.reason, *reason);
            (event, *reason)
        }
        other => panic!("it was not kept: {other:?}"),
    }
}

fn failure(decision: &JobDecision) -> &JobFailed {
    match decision.events.first() {
        Some(Event::JobFailed(event)) => event,
        other => panic!("nothing failed: {other:?}"),
    }
}

fn repeats(decision: &JobDecision, position: Position, reason: Option<NotApplied>) {
    assert_eq!(decision.answer, JobAnswer::Repeated(position, reason));
    assert_eq!((&decision.events[..], decision.queue), (&[][..], None));
}

// --- callbacks of an attempt that runs ---------------------------------------------------------

#[test]
fn started_begins_the_attempt() {
    let mut job = dispatching();
    let decision = job.hears(json!({"status": "provisioning", "workflow_run_id": "44"}));
    assert_eq!(names(&decision), ["ProvisioningStarted"]);
    assert_eq!(decision.answer, JobAnswer::Applied);
    assert_eq!((job.status(), job.steps().as_str()), (JobStatus::Running, "cappp"));
    assert_eq!(job.job().attempt().workflow_run_id.as_deref(), Some("44"));
    assert_eq!(job.queue, (QueueState::Running, job.now + SignedDuration::from_mins(15)));
}

#[test]
fn a_step_moves_progress_and_keeps_its_metadata() {
    let mut job = running();
    let metadata = json!({"server_id": "42"});
    let decision =
        job.hears(json!({"status": "provisioning", "step": "vm_created", "metadata": metadata}));
    let [Event::ProvisioningStepRecorded(event)] = &decision.events[..] else {
        panic!("{decision:?}")
    };
    assert_eq!((event.step.as_str(), &event.metadata), ("vm_created", &Some(Arc::new(metadata))));
    assert_eq!((decision.answer, job.steps().as_str()), (JobAnswer::Applied, "ccapp"));
    assert_eq!(decision.queue, None, "the deadline is looked up when the earlier one is over");
}

#[test]
fn a_step_without_a_started_before_it_runs_the_job() {
    let mut job = dispatching();
    let decision = job.hears(json!({"status": "provisioning", "step": "ansible_started"}));
    assert_eq!((job.status(), job.steps().as_str()), (JobStatus::Running, "cccap"));
    assert!(matches!(decision.queue, Some((QueueState::Running, _))));
}

#[test]
fn an_unknown_step_is_accepted_and_progress_stays() {
    let mut job = running();
    job.hears(json!({"status": "provisioning", "step": "vm_created"}));
    let decision = job.hears(json!({"status": "provisioning", "step": "disk_encrypted"}));
    assert_eq!(names(&decision), ["ProvisioningStepRecorded"]);
    assert_eq!(decision.answer, JobAnswer::Applied);
    assert_eq!(job.steps(), "ccapp");
    assert_eq!(job.job().attempt().progress.current_step.as_deref(), Some("vm_created"));
}

#[test]
fn steps_late_twice_and_out_of_order_never_move_back() {
    let mut job = running();
    for (step, expected) in [
        ("ansible_started", "cccap"),
        ("vm_created", "cccap"),
        ("network_configured", "cccap"),
        ("vm_created", "cccap"),
        ("ansible_complete", "cccca"),
        ("ansible_started", "cccca"),
    ] {
        job.hears(json!({"status": "provisioning", "step": step}));
        assert_eq!(job.steps(), expected, "{step}");
    }
    job.hears(json!({"status": "provisioning", "delivery_id": "a late started"}));
    assert_eq!(job.steps(), "cccca");
}

fn task(number: u64) -> Value {
    json!({"type": "task", "number": number, "play": "agent", "task": format!("task {number}")})
}

#[test]
fn a_task_is_kept_as_the_one_under_way() {
    let mut job = running();
    let decision = job.hears(task(1));
    assert_eq!((names(&decision), &decision.answer), (vec!["TaskStarted"], &JobAnswer::Applied));
    assert_eq!(decision.queue, None);
    job.wait_minutes(1);
    job.hears(task(3));
    let latest = job.job().attempt().task.clone().unwrap();
    assert_eq!((latest.number, latest.task.as_str(), latest.started_at), (3, "task 3", job.now));
    assert_eq!(job.steps(), "cappp", "a task is no step");
}

#[test]
fn a_task_that_comes_first_runs_the_job() {
    let mut job = dispatching();
    let decision = job.hears(task(1));
    assert_eq!(job.status(), JobStatus::Running);
    assert!(matches!(decision.queue, Some((QueueState::Running, _))));
}

#[test]
fn a_task_not_above_the_latest_changes_nothing_whatever_its_delivery_id() {
    let mut job = running();
    job.hears(task(4));
    let position = job.last_position();
    for number in [4, 3, 1] {
        let mut body = task(number);
        repeats(&job.hears(body.clone()), position, None);
        body["delivery_id"] = json!(format!("d{number}"));
        repeats(&job.hears(body), position, None);
    }
    assert_eq!(names(&job.hears(task(5))), ["TaskStarted"]);
}

#[test]
fn the_next_attempt_counts_its_tasks_anew() {
    let mut job = running();
    job.hears(task(9));
    job.hears(json!({"status": "failed"}));
    job.wait_minutes(1);
    job.orders(JobCommand::Tick);
    job.orders(claim());
    let mut body = task(1);
    body["attempt"] = json!(2);
    assert_eq!(names(&job.hears(body)), ["TaskStarted"]);
    assert_eq!(job.job().attempts[0].task.as_ref().map(|task| task.number), Some(9));
}

#[test]
fn of_tasks_that_come_too_late_or_too_early_the_first_is_kept() {
    for (name, mut job) in ended() {
        let mut body = task(1);
        body["delivery_id"] = json!("d1");
        let decision = job.hears(body);
        let (event, reason) = kept(&decision);
        assert_eq!((event.kind.as_str(), reason), ("task", NotApplied::JobEnded), "{name}");
        let position = job.last_position();
        let mut body = task(2);
        body["delivery_id"] = json!("d2");
        repeats(&job.hears(body), position, Some(NotApplied::JobEnded));
    }
    let mut job = retrying();
    let early = |number| {
        let mut body = task(number);
        body["attempt"] = json!(2);
        body
    };
    assert_eq!(kept(&job.hears(early(1))).1, NotApplied::AttemptNotBegun);
    job.wait_minutes(1);
    job.orders(JobCommand::Tick);
    job.orders(claim());
    // Once it has begun, what was too early is no reason any more.
    assert_eq!(names(&job.hears(early(2))), ["TaskStarted"]);
}

#[test]
fn a_heartbeat_extends_a_running_attempt() {
    let mut job = running();
    job.wait_minutes(14);
    assert_eq!(names(&job.hears(json!({"type": "heartbeat"}))), ["HeartbeatRecorded"]);
    job.wait_minutes(14);
    assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
    assert_eq!(job.status(), JobStatus::Running);
}

#[test]
fn a_heartbeat_of_an_attempt_that_does_not_run_is_kept_and_extends_nothing() {
    for mut job in [queued(), dispatching(), queued_again()] {
        let before = job.job().attempt().clone();
        let attempt = job.attempt();
        let decision = job.hears(json!({"type": "heartbeat", "attempt": attempt}));
        assert_eq!(kept(&decision).1, NotApplied::NotRunning);
        assert_eq!(*job.job().attempt(), before);
    }
}

#[test]
fn done_ends_the_job_its_instance_and_its_agent_in_one_decision() {
    let mut job = running();
    let decision = job.hears(json!({
        "status": "running",
        "server_id": "42",
        "metadata": {"server_ip": "192.0.2.1", "tailscale_ip": "100.64.0.1"},
    }));
    assert_eq!(names(&decision), ["JobSucceeded", "InstanceStarted", "AgentActivated"]);
    let Event::InstanceStarted(started) = &decision.events[1] else { panic!("{decision:?}") };
    let server = started.server.as_ref().unwrap();
    assert_eq!((server.server_id.as_str(), server.server_ip.as_str()), ("42", "192.0.2.1"));
    assert!(started.missing.is_empty());
    assert_eq!((job.status(), job.steps().as_str()), (JobStatus::Succeeded, "ccccc"));
    assert_eq!(job.job().finished_at, Some(job.now));
    assert_eq!(job.queue, (QueueState::Ended, job.now));
}

#[test]
fn done_with_some_facts_counts_as_none_and_the_gap_is_kept() {
    for (facts, missing) in [
        (json!({}), vec!["server_id", "server_ip", "tailscale_ip"]),
        (json!({"server_id": "42"}), vec!["server_ip", "tailscale_ip"]),
        (json!({"server_id": "42", "server_ip": ""}), vec!["server_ip", "tailscale_ip"]),
        (json!({"server_id": "42", "metadata": {"tailscale_ip": "100.64.0.1"}}), vec!["server_ip"]),
    ] {
        let mut body = facts;
        body["status"] = json!("running");
        let decision = running().hears(body);
        let Event::InstanceStarted(started) = &decision.events[1] else { panic!("{decision:?}") };
        assert_eq!(started.server, None);
        assert_eq!(started.missing, missing);
    }
}

#[test]
fn done_ends_a_job_whose_started_was_never_heard() {
    let mut job = dispatching();
    assert_eq!(job.hears(json!({"status": "running"})).answer, JobAnswer::Applied);
    assert_eq!(job.status(), JobStatus::Succeeded);
}

// --- failures and retries ----------------------------------------------------------------------

#[test]
fn failed_keeps_what_the_workflow_said() {
    let mut job = running();
    let decision = job.hears(json!({
        "status": "failed",
        "error": "no route to host",
        "failed_step": "configure",
        "step": "ansible_started",
        "server_id": 42,
    }));
    let event = failure(&decision);
    assert_eq!((event.error_code.as_str(), event.truncated), ("WORKFLOW_FAILED", false));
    assert_eq!(event.error_message, "no route to host");
    assert_eq!(event.failed_step.as_deref(), Some("configure"));
    assert_eq!(event.step.as_deref(), Some("ansible_started"));
    assert_eq!(event.server_id.as_deref(), Some("42"));
    assert_eq!(job.steps(), "cccep");
}

#[test]
fn attempts_are_retried_after_1_5_and_15_minutes_and_the_fourth_is_final() {
    let mut job = running();
    for (attempt, delay_minutes) in [(1, 1), (2, 5), (3, 15)] {
        let decision = job.hears(json!({"status": "failed", "attempt": attempt}));
        let run_after = job.now + SignedDuration::from_mins(delay_minutes);
        assert_eq!(names(&decision), ["JobFailed"]);
        let retry = failure(&decision).retry.unwrap();
        assert_eq!((retry.attempt, retry.run_after), (Attempt(attempt + 1), run_after));
        assert_eq!(job.queue, (QueueState::Retry, run_after));
        assert_eq!(job.status(), JobStatus::RetryScheduled);
        assert_eq!(job.job().finished_at, None);

        job.wait(SignedDuration::from_mins(delay_minutes) - SignedDuration::from_millis(1));
        assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
        job.wait(SignedDuration::from_millis(1));
        assert_eq!(names(&job.orders(JobCommand::Tick)), ["JobRetried"]);
        assert_eq!(job.queue, (QueueState::Queued, job.now));
        job.orders(claim());
        job.hears(json!({"status": "provisioning", "attempt": attempt + 1}));
    }
    let decision = job.hears(json!({"status": "failed", "attempt": 4}));
    assert_eq!(names(&decision), ["JobFailed", "ProvisioningEnded"]);
    assert_eq!(failure(&decision).retry, None);
    assert!(matches!(
        &decision.events[1],
        Event::ProvisioningEnded(event) if event.outcome == Outcome::Failed
    ));
    assert_eq!((job.status(), job.queue), (JobStatus::Failed, (QueueState::Ended, job.now)));
}

#[test]
fn a_job_that_may_take_one_attempt_is_not_retried() {
    let mut job = running();
    job.state.as_mut().unwrap().max_attempts = 1;
    assert_eq!(failure(&job.hears(json!({"status": "failed"}))).retry, None);
    assert_eq!(job.status(), JobStatus::Failed);
}

#[test]
fn a_new_attempt_starts_over_at_queued() {
    let mut job = running();
    job.hears(json!({"status": "provisioning", "step": "ansible_complete"}));
    job.hears(json!({"status": "failed"}));
    assert_eq!(job.steps(), "cccce");
    job.wait_minutes(1);
    let decision = job.orders(JobCommand::Tick);
    assert!(matches!(&decision.events[..], [Event::JobRetried(it)] if it.attempt == Attempt(2)));
    assert_eq!((job.status(), job.steps().as_str()), (JobStatus::Queued, "apppp"));
    assert_eq!(job.job().attempt().progress.current_step, None);
    assert_eq!(letters(&job.job().attempts[0].progress), "cccce", "the first one stays as it was");
    assert_eq!(job.job().failure(), None);
}

#[test]
fn a_short_error_is_kept_whole_and_a_long_one_is_cut_to_its_last_10_kib_at_a_character() {
    for (error, kept, truncated) in [
        (String::new(), String::new(), false),
        ("x".repeat(ERROR_BYTES_MAX), "x".repeat(ERROR_BYTES_MAX), false),
        (format!("y{}", "x".repeat(ERROR_BYTES_MAX)), "x".repeat(ERROR_BYTES_MAX), true),
        // 10 KiB are no multiple of a three-byte character: the one that is cut is left out.
        ("€".repeat(4_000), "€".repeat(ERROR_BYTES_MAX / 3), true),
    ] {
        let decision = running().hears(json!({"status": "failed", "error": error}));
        let event = failure(&decision);
        assert!(event.error_message == kept, "{} bytes", event.error_message.len());
        assert_eq!(event.truncated, truncated);
        assert!(event.error_message.len() <= ERROR_BYTES_MAX);
    }
}

#[test]
fn a_failure_without_words_says_so() {
    let decision = running().hears(json!({"status": "failed"}));
    assert_eq!(failure(&decision).error_message, "The workflow gave no reason");
}

// --- callbacks that come too late, too early, or say something unknown ------------------------

#[test]
fn a_late_running_never_resurrects_a_job() {
    for (name, mut job) in ended() {
        let before = job.job().clone();
        let body = json!({"status": "running", "server_id": "42", "delivery_id": "late"});
        let decision = job.hears(body);
        let (event, reason) = kept(&decision);
        assert_eq!(reason, NotApplied::JobEnded, "{name}");
        assert_eq!(event.kind, "done");
        assert_eq!(event.server_id.as_deref(), Some("42"), "it goes to compensation");
        assert_eq!(job.status(), before.status, "{name}");
        assert_eq!(outcomes(&job.job().attempts), outcomes(&before.attempts), "{name}");
    }
}

#[test]
fn every_late_callback_of_an_ended_job_is_kept_and_changes_nothing() {
    for (name, job) in ended() {
        for (kind, body) in [
            ("heartbeat", json!({"type": "heartbeat"})),
            ("started", json!({"status": "provisioning"})),
            ("step", json!({"status": "provisioning", "step": "vm_created"})),
            ("done", json!({"status": "running"})),
            ("failed", json!({"status": "failed", "step": "vm_created", "server_id": "42"})),
            ("unknown", json!({"status": "paused"})),
        ] {
            let (mut job, mut body) = (job.clone(), body);
            body["delivery_id"] = json!("late");
            let decision = job.hears(body);
            let (event, reason) = kept(&decision);
            assert_eq!((event.kind.as_str(), reason), (kind, NotApplied::JobEnded), "{name}");
            assert_eq!(event.server_id.is_some(), kind == "failed");
            assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
        }
    }
}

#[test]
fn a_callback_of_an_older_attempt_is_kept_and_does_not_touch_the_newer_one() {
    let mut job = running_again();
    let before = job.job().attempts.clone();
    for body in [
        json!({"type": "heartbeat", "attempt": 1}),
        json!({"status": "provisioning", "step": "ansible_complete", "attempt": 1}),
        json!({"status": "running", "server_id": "42", "attempt": 1}),
        json!({"status": "failed", "step": "vm_created", "attempt": 1}),
    ] {
        let decision = job.hears(body);
        let (event, reason) = kept(&decision);
        assert_eq!((event.attempt, reason), (Attempt(1), NotApplied::AttemptSuperseded));
    }
    assert_eq!(job.status(), JobStatus::Running);
    assert_eq!(outcomes(&job.job().attempts), outcomes(&before));
}

#[test]
fn a_callback_of_an_attempt_that_failed_is_kept_while_the_retry_waits() {
    let mut job = retrying();
    let decision = job.hears(json!({"status": "running", "server_id": "42"}));
    let (event, reason) = kept(&decision);
    assert_eq!(reason, NotApplied::AttemptSuperseded);
    assert_eq!(event.server_id.as_deref(), Some("42"));
    assert_eq!(job.status(), JobStatus::RetryScheduled);
}

#[test]
fn a_callback_of_an_attempt_that_was_not_begun_is_kept() {
    for mut job in [running(), retrying()] {
        let decision = job.hears(json!({"status": "provisioning", "step": "new", "attempt": 2}));
        assert_eq!(kept(&decision).1, NotApplied::AttemptNotBegun);
    }
}

#[test]
fn an_unknown_status_is_kept() {
    let mut job = running();
    let before = job.job().attempts.clone();
    let decision = job.hears(json!({"status": "paused"}));
    let (event, reason) = kept(&decision);
    assert_eq!(reason, NotApplied::UnknownStatus);
    assert_eq!((event.kind.as_str(), event.step.as_deref()), ("unknown", Some("paused")));
    assert_eq!(job.job().attempts, before);
}

#[test]
fn a_callback_without_an_attempt_speaks_for_the_one_that_was_begun() {
    // The second attempt waits: nobody can speak for it yet.
    let mut job = queued_again();
    let decision = job.hears(json!({"status": "provisioning", "step": "ansible_started"}));
    assert_eq!(kept(&decision).1, NotApplied::AttemptSuperseded);
    assert_eq!((job.status(), job.steps().as_str()), (JobStatus::Queued, "apppp"));
    // It is under way.
    job.orders(claim());
    let decision = job.hears(json!({"status": "provisioning"}));
    assert_eq!(decision.answer, JobAnswer::Applied);
    assert_eq!(job.status(), JobStatus::Running);
}

#[test]
fn a_callback_without_an_attempt_speaks_for_the_one_its_run_belongs_to() {
    let mut job = dispatching();
    job.reports(dispatched("44"));
    job.hears(json!({"status": "failed", "workflow_run_id": "44"}));
    job.wait_minutes(1);
    job.orders(JobCommand::Tick);
    job.orders(claim());
    job.reports(dispatched("45"));
    let decision = job.hears(json!({"status": "running", "workflow_run_id": "44"}));
    assert_eq!(kept(&decision).1, NotApplied::AttemptSuperseded);
    let decision = job.hears(json!({"status": "running", "workflow_run_id": "45"}));
    assert_eq!(decision.answer, JobAnswer::Applied);
}

// --- repeats -----------------------------------------------------------------------------------

#[test]
fn the_same_delivery_id_answers_the_first_ones_position_and_adds_nothing() {
    let mut job = running();
    let body = json!({"status": "provisioning", "step": "vm_created", "delivery_id": "d-1"});
    job.hears(body.clone());
    let first = job.last_position();
    job.hears(json!({"status": "provisioning", "step": "ansible_started", "delivery_id": "d-2"}));
    repeats(&job.hears(body), first, None);
    // Whatever stands beside it: the id decides.
    repeats(&job.hears(json!({"type": "heartbeat", "delivery_id": "d-1"})), first, None);
}

#[test]
fn without_a_delivery_id_attempt_kind_and_step_make_a_repeat() {
    let mut job = running();
    repeats(&job.hears(json!({"status": "provisioning"})), job.last_position(), None);
    let body = json!({"status": "provisioning", "step": "vm_created"});
    job.hears(body.clone());
    let first = job.last_position();
    repeats(&job.hears(body), first, None);
    repeats(
        &job.hears(json!({"status": "provisioning", "step": "vm_created", "attempt": 1})),
        first,
        None,
    );
    let other = job.hears(json!({"status": "provisioning", "step": "ansible_started"}));
    assert_eq!(other.answer, JobAnswer::Applied);
}

#[test]
fn a_repeated_done_is_answered_with_the_first_one() {
    let mut job = running();
    job.hears(json!({"status": "running"}));
    let first = Position(job.last_position().0 - 2);
    assert!(matches!(job.log[first.0 as usize - 1].0, Event::JobSucceeded(_)));
    repeats(&job.hears(json!({"status": "running"})), first, None);
}

#[test]
fn a_repeated_failed_is_answered_with_the_first_one_even_when_the_retry_waits_to_be_claimed() {
    let mut job = retrying();
    let first = job.last_position();
    repeats(&job.hears(json!({"status": "failed"})), first, None);
    job.wait_minutes(1);
    job.orders(JobCommand::Tick);
    repeats(&job.hears(json!({"status": "failed"})), first, None);
    assert_eq!(job.status(), JobStatus::Queued);
}

#[test]
fn a_repeat_of_what_was_kept_gets_the_same_reason() {
    let mut job = cancelled();
    for body in [
        json!({"status": "running", "server_id": "42"}),
        json!({"type": "heartbeat", "delivery_id": "d"}),
    ] {
        job.hears(body.clone());
        repeats(&job.hears(body), job.last_position(), Some(NotApplied::JobEnded));
    }
}

#[test]
fn another_delivery_id_makes_another_event() {
    let mut job = running();
    for id in ["a", "b"] {
        let body = json!({"status": "provisioning", "step": "vm_created", "delivery_id": id});
        assert_eq!(job.hears(body).answer, JobAnswer::Applied);
    }
}

#[test]
fn heartbeats_without_a_delivery_id_are_never_repeats() {
    let mut job = running();
    for _ in 0..3 {
        assert_eq!(names(&job.hears(json!({"type": "heartbeat"}))), ["HeartbeatRecorded"]);
    }
    let body = json!({"type": "heartbeat", "delivery_id": "d"});
    job.hears(body.clone());
    repeats(&job.hears(body), job.last_position(), None);
}

#[test]
fn a_failed_after_a_timeout_is_no_repeat_of_the_timeout() {
    let mut job = running();
    job.wait_minutes(15);
    assert_eq!(failure(&job.orders(JobCommand::Tick)).error_code, "HEARTBEAT_TIMEOUT");
    let decision = job.hears(json!({"status": "failed", "server_id": "42"}));
    let (event, reason) = kept(&decision);
    assert_eq!(reason, NotApplied::AttemptSuperseded);
    assert_eq!(event.server_id.as_deref(), Some("42"), "it goes to compensation");
}

#[test]
fn a_repeated_started_of_an_attempt_that_is_over_is_still_refused_by_the_gate() {
    for (mut job, reason) in [
        (succeeded(), NotApplied::JobEnded),
        (cancelled(), NotApplied::JobEnded),
        (retrying(), NotApplied::AttemptSuperseded),
        (running_again(), NotApplied::AttemptSuperseded),
    ] {
        let first = Position(3);
        assert!(matches!(job.log[2].0, Event::ProvisioningStarted(_)));
        let decision = job.hears(json!({"status": "provisioning", "attempt": 1}));
        repeats(&decision, first, Some(reason));
    }
}

#[test]
fn the_windows_of_repeats_are_bounded_and_keep_the_latest() {
    let mut job = running();
    let body = |n: usize| json!({"status": "provisioning", "step": "s", "delivery_id": n});
    for n in 0..=DELIVERIES_MAX {
        job.hears(body(n));
    }
    repeats(&job.hears(body(1)), Position(5), None);
    assert_eq!(job.hears(body(0)).answer, JobAnswer::Applied, "the oldest was forgotten");

    let mut job = running();
    let body = |n: usize| json!({"status": "provisioning", "step": format!("step-{n}")});
    for n in 0..=CALLBACKS_MAX {
        job.hears(body(n));
    }
    repeats(&job.hears(body(1)), Position(5), None);
    assert_eq!(job.hears(body(0)).answer, JobAnswer::Applied, "the oldest was forgotten");
}

// --- dispatch ----------------------------------------------------------------------------------

#[test]
fn a_claim_records_the_intent_and_holds_a_lease() {
    let mut job = queued();
    let decision = job.orders(claim());
    let [Event::WorkflowDispatchRequested(event)] = &decision.events[..] else {
        panic!("{decision:?}")
    };
    let lease_until = job.now + SignedDuration::from_mins(2);
    assert_eq!((event.attempt, event.lease_until), (Attempt(1), lease_until));
    assert_eq!((event.dispatcher.as_str(), event.locked_by.as_str()), ("github", "worker"));
    assert_eq!(job.status(), JobStatus::Dispatching);
    assert_eq!(job.queue, (QueueState::Dispatching, lease_until));
    assert_eq!(job.job().locked_by.as_deref(), Some("worker"));
}

#[test]
fn a_job_is_claimed_only_while_it_is_queued() {
    let mut others = vec![dispatching(), running(), retrying()];
    others.extend(ended().map(|(_, job)| job));
    for mut job in others {
        assert_eq!(job.tries(claim()), Err(JobRefusal::Status(job.status())));
    }
    assert!(queued_again().tries(claim()).is_ok());
}

#[test]
fn a_job_is_claimed_only_when_it_is_due() {
    let mut job = dispatching();
    job.reports(dispatch_failed());
    job.wait(SignedDuration::from_secs(29));
    assert_eq!(job.tries(claim()), Err(JobRefusal::Status(JobStatus::Queued)));
    job.wait(SignedDuration::from_secs(1));
    assert!(job.tries(claim()).is_ok());
}

#[test]
fn a_dispatched_attempt_waits_for_its_run_to_speak() {
    let mut job = dispatching();
    let decision = job.reports(dispatched("44"));
    assert_eq!(names(&decision), ["WorkflowDispatched"]);
    assert_eq!(job.status(), JobStatus::Dispatching);
    assert_eq!(job.queue, (QueueState::Running, job.now + SignedDuration::from_mins(15)));
    assert_eq!(job.job().attempt().workflow_run_id.as_deref(), Some("44"));
    // The lease is over: only silence can fail it now.
    job.wait_minutes(14);
    assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
    job.wait_minutes(1);
    assert_eq!(failure(&job.orders(JobCommand::Tick)).error_code, "HEARTBEAT_TIMEOUT");
}

#[test]
fn a_dispatchers_answer_after_its_run_spoke_is_kept_and_leaves_the_queue_alone() {
    let mut job = running();
    let decision = job.reports(dispatched("44"));
    assert_eq!(names(&decision), ["WorkflowDispatched"]);
    assert_eq!(decision.queue, None);
    assert_eq!(job.status(), JobStatus::Running);
    assert_eq!(job.job().attempt().workflow_run_id.as_deref(), Some("44"));
}

#[test]
fn a_worker_whose_claim_is_over_is_refused_by_name() {
    let lapsed = || {
        let mut job = holding();
        let claim = job.claim_of(1);
        job.orders(JobCommand::LeaseLapsed { claim });
        job
    };
    // Another claim came after, the attempt is over, or nobody has claimed the next one yet.
    for job in [running_again(), succeeded(), cancelled(), retrying(), queued_again(), lapsed()] {
        let claim = job.claim_of(1);
        assert!(claim > Position(0));
        for report in [
            dispatched("44"),
            held(),
            dispatch_failed(),
            Report::Step { step: "ansible_complete".into(), metadata: None },
            Report::Succeeded,
            host_failed(true),
            run_ended(),
        ] {
            let refused = job.clone().tries(JobCommand::Report { claim, report });
            assert_eq!(refused, Err(JobRefusal::Fenced(claim)));
        }
        let refused = job.clone().tries(JobCommand::LeaseLapsed { claim });
        assert_eq!(refused, Err(JobRefusal::Fenced(claim)));
    }
}

#[test]
fn a_dispatcher_that_failed_gives_its_claim_back() {
    let mut job = dispatching();
    let first = job.claim_of(1);
    job.reports(dispatch_failed());
    job.wait_minutes(1);
    job.orders(claim());
    let late = JobCommand::Report { claim: first, report: dispatched("44") };
    assert_eq!(job.tries(late), Err(JobRefusal::Fenced(first)));
    assert_eq!(names(&job.reports(dispatched("45"))), ["WorkflowDispatched"]);
}

// --- attempts that a worker runs itself --------------------------------------------------------

/// A job whose first attempt is run by the worker that claimed it.
fn holding() -> Story {
    let mut job = dispatching();
    job.reports(held());
    job
}

#[test]
fn a_worker_that_runs_the_attempt_itself_holds_a_lease() {
    let job = holding();
    assert_eq!((job.status(), job.steps().as_str()), (JobStatus::Running, "cappp"));
    assert_eq!(job.queue, (QueueState::Running, job.now + job.limits.lease));
    assert_eq!(job.job().lease_until, None, "the queue's row has it");
}

#[test]
fn a_worker_that_runs_the_attempt_itself_need_not_send_heartbeats() {
    let mut job = holding();
    job.wait_minutes(29);
    assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
    let ends_at = job.job().attempt().started_at.unwrap() + job.limits.attempt;
    assert_eq!(deadline(job.job().attempt(), job.now, &job.limits), ends_at);
    job.wait_minutes(1);
    assert_eq!(failure(&job.orders(JobCommand::Tick)).error_code, "ATTEMPT_TIMEOUT");
}

#[test]
fn a_lapsed_lease_fails_the_attempt_and_another_follows() {
    let mut job = holding();
    let claim = job.claim_of(1);
    let decision = job.orders(JobCommand::LeaseLapsed { claim });
    assert_eq!(failure(&decision).error_code, "WORKER_LOST");
    assert!(failure(&decision).error_message.contains("worker"), "{decision:?}");
    assert_eq!(job.status(), JobStatus::RetryScheduled);
    // The lease of an attempt that runs elsewhere is its dispatcher's, and over once that answers.
    let mut job = dispatching();
    job.reports(dispatched("44"));
    let claim = job.claim_of(1);
    assert_eq!(job.orders(JobCommand::LeaseLapsed { claim }), JobDecision::nothing());
}

#[test]
fn a_worker_tells_the_steps_and_the_end_of_its_attempt() {
    let mut job = holding();
    let step = Report::Step { step: "ansible_started".into(), metadata: None };
    let decision = job.reports(step);
    assert_eq!((names(&decision), decision.queue), (vec!["ProvisioningStepRecorded"], None));
    assert_eq!(job.steps(), "cccap");
    job.reports(Report::Succeeded);
    assert_eq!((job.status(), job.queue.0), (JobStatus::Succeeded, QueueState::Ended));
}

#[test]
fn a_failure_that_another_attempt_cannot_mend_is_the_last() {
    let mut job = holding();
    assert!(failure(&job.reports(host_failed(true))).retry.is_some());
    let mut job = holding();
    let decision = job.reports(host_failed(false));
    assert_eq!(names(&decision), ["JobFailed", "ProvisioningEnded"]);
    assert_eq!(failure(&decision).error_code, "ANSIBLE_HOST_FAILED");
    assert_eq!((job.status(), job.queue.0), (JobStatus::Failed, QueueState::Ended));
}

// --- jobs of nodes -----------------------------------------------------------------------------

/// A node's job, run by the worker that claimed it.
fn of_node(job_type: &str) -> Story {
    let mut story = empty();
    let event = JobQueued {
        job_id: JOB,
        job_type: job_type.into(),
        agent_id: None,
        node_id: Some(NODE),
        instance_id: None,
        region: None,
        max_attempts: 4,
        retry_of: None,
        reason: None,
    };
    story.append(event.into(), None);
    story.orders(claim());
    story.reports(held());
    story
}

#[test]
fn the_end_of_a_nodes_job_changes_the_node_in_the_same_decision() {
    for (job_type, succeeded, ended) in [
        (PROVISION_NODE, "NodeActivated", "NodeBecameUnreachable"),
        (DECOMMISSION_NODE, "NodeDecommissioned", "NodeDecommissionEnded"),
    ] {
        let decision = of_node(job_type).reports(Report::Succeeded);
        assert_eq!(names(&decision), ["JobSucceeded", succeeded]);
        let decision = of_node(job_type).reports(host_failed(false));
        assert_eq!(names(&decision), ["JobFailed", ended]);
        for event in &decision.events {
            assert_eq!(node_of(event), Some(NODE), "{event:?}");
        }
    }
}

/// A node's job that was cancelled while its worker runs it.
fn ending(job_type: &str) -> Story {
    let mut job = of_node(job_type);
    let decision = job.orders(cancel());
    assert_eq!(names(&decision), ["RunnerEndAwaited", "JobCancelled"]);
    assert_eq!(job.status(), JobStatus::Cancelled);
    assert_eq!(job.queue, (QueueState::Running, job.now + job.limits.lease), "its row is kept");
    job
}

#[test]
fn a_cancelled_jobs_node_is_free_when_its_worker_has_ended_what_it_ran() {
    for (job_type, ended) in
        [(PROVISION_NODE, "NodeBecameUnreachable"), (DECOMMISSION_NODE, "NodeDecommissionEnded")]
    {
        let mut job = ending(job_type);
        let claim = job.claim_of(1);
        let other = JobCommand::EndRunner { claim: Position(claim.0 + 1) };
        assert_eq!(job.orders(other), JobDecision::nothing(), "another's word");
        let decision = job.orders(JobCommand::EndRunner { claim });
        assert_eq!(names(&decision), ["RunnerEnded", ended]);
        assert!(decision.events.iter().all(|event| node_of(event) == Some(NODE)));
        assert_eq!(job.queue.0, QueueState::Ended);
        assert_eq!(job.orders(JobCommand::EndRunner { claim }), JobDecision::nothing());
    }
}

#[test]
fn a_cancelled_jobs_node_is_free_when_its_workers_lease_has_run_out() {
    let mut job = ending(PROVISION_NODE);
    job.wait(job.limits.lease - SignedDuration::from_secs(1));
    assert_eq!(job.orders(JobCommand::Tick), JobDecision::nothing());
    job.wait(SignedDuration::from_secs(1));
    let decision = job.orders(JobCommand::Tick);
    let [Event::RunnerEnded(ended), Event::NodeBecameUnreachable(_)] = &decision.events[..] else {
        panic!("{decision:?}")
    };
    assert!(ended.lapsed);
    assert_eq!(job.orders(JobCommand::Tick), JobDecision::nothing());
}

#[test]
fn a_nodes_job_that_nobody_runs_is_cancelled_in_one_decision() {
    let mut job = of_node(PROVISION_NODE);
    job.reports(host_failed(true));
    let decision = job.orders(cancel());
    assert_eq!(names(&decision), ["JobCancelled", "NodeBecameUnreachable"]);
}

#[test]
fn a_node_is_what_it_was_while_a_retry_of_its_job_is_to_come() {
    let decision = of_node(PROVISION_NODE).reports(host_failed(true));
    assert_eq!(names(&decision), ["JobFailed"]);
}

// --- priority ----------------------------------------------------------------------------------

#[test]
fn a_waiting_job_moves_in_the_queue_and_keeps_its_time() {
    for mut job in [queued(), queued_again(), retrying()] {
        let before = job.queue;
        job.wait(SignedDuration::from_secs(5));
        let decision = job.orders(prioritise(50));
        let [Event::JobPriorityChanged(event)] = &decision.events[..] else {
            panic!("{decision:?}")
        };
        assert_eq!(
            (event.changed_by.as_str(), event.reason.as_deref()),
            ("ada", Some("she waits"))
        );
        assert_eq!((job.job().priority, job.queue), (50, before));
        assert!(decision.queue.is_some());
    }
}

#[test]
fn a_job_under_way_keeps_its_place_and_takes_the_priority_to_its_next_attempt() {
    for mut job in [dispatching(), running(), holding()] {
        assert_eq!(job.orders(prioritise(-PRIORITY_MAX)).queue, None);
        assert_eq!(job.job().priority, -PRIORITY_MAX);
    }
}

#[test]
fn a_priority_is_bounded_and_of_a_job_that_has_not_ended() {
    for wrong in [PRIORITY_MAX + 1, -PRIORITY_MAX - 1] {
        assert_eq!(queued().tries(prioritise(wrong)), Err(JobRefusal::Priority));
    }
    assert_eq!(queued().orders(prioritise(0)), JobDecision::nothing(), "it has that already");
    for (_, mut job) in ended() {
        assert_eq!(job.tries(prioritise(1)), Err(JobRefusal::Status(job.status())));
    }
}

#[test]
fn a_refused_dispatch_leaves_the_job_queued_with_the_reason_and_a_later_time() {
    let mut job = dispatching();
    let decision = job.reports(dispatch_failed());
    let run_after = job.now + SignedDuration::from_secs(30);
    assert_eq!(names(&decision), ["WorkflowDispatchFailed"]);
    assert_eq!(job.queue, (QueueState::Queued, run_after));
    let state = job.job();
    assert_eq!((state.status, state.run_after), (JobStatus::Queued, Some(run_after)));
    assert_eq!(state.waiting_because.as_deref(), Some("GitHub answered 403"));
    assert_eq!((&state.locked_by, state.started_at), (&None, None));
    assert_eq!((job.attempt(), job.steps().as_str()), (1, "apppp"));
    // The next claim clears it.
    job.wait_minutes(1);
    job.orders(claim());
    assert_eq!((&job.job().waiting_because, job.job().run_after), (&None, None));
}

#[test]
fn a_refused_dispatch_whose_run_spoke_all_the_same_does_nothing() {
    assert_eq!(running().reports(dispatch_failed()), JobDecision::nothing());
}

// --- deadlines ---------------------------------------------------------------------------------

#[test]
fn a_lease_that_lapses_fails_the_attempt_as_lost() {
    let mut job = queued();
    job.orders(JobCommand::Claim { dispatcher: "rehearsal", locked_by: "worker".into() });
    job.wait(SignedDuration::from_secs(119));
    assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
    job.wait(SignedDuration::from_secs(1));
    let decision = job.orders(JobCommand::Tick);
    assert_eq!(failure(&decision).error_code, "DISPATCH_LOST");
    assert!(failure(&decision).retry.is_some(), "it is tried again as another attempt");
    assert_eq!((job.status(), job.steps().as_str()), (JobStatus::RetryScheduled, "ceppp"));
}

#[test]
fn an_attempt_that_is_silent_for_15_minutes_fails() {
    let mut job = running();
    job.wait(SignedDuration::from_secs(15 * 60 - 1));
    assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
    job.wait(SignedDuration::from_secs(1));
    let decision = job.orders(JobCommand::Tick);
    assert_eq!(failure(&decision).error_code, "HEARTBEAT_TIMEOUT");
    assert!(failure(&decision).retry.is_some());
    assert_eq!(job.queue.0, QueueState::Retry);
}

#[test]
fn any_callback_of_the_attempt_breaks_the_silence() {
    let mut job = running();
    job.wait_minutes(10);
    job.hears(json!({"status": "provisioning", "step": "new"}));
    job.wait_minutes(10);
    assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
}

#[test]
fn an_attempt_of_30_minutes_fails_even_with_heartbeats() {
    let mut job = running();
    for _ in 0..29 {
        job.wait_minutes(1);
        job.hears(json!({"type": "heartbeat"}));
        assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
    }
    job.wait_minutes(1);
    job.hears(json!({"type": "heartbeat"}));
    let decision = job.orders(JobCommand::Tick);
    assert_eq!(failure(&decision).error_code, "ATTEMPT_TIMEOUT");
    assert_eq!(failure(&decision).error_message, "The attempt took longer than 30m");
}

#[test]
fn each_attempt_has_its_own_30_minutes() {
    let mut job = running();
    job.wait_minutes(14);
    job.hears(json!({"status": "failed"}));
    job.wait_minutes(1);
    job.orders(JobCommand::Tick);
    job.wait_minutes(20);
    assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing, "waiting has no deadline");
    job.orders(claim());
    job.hears(json!({"status": "provisioning", "attempt": 2}));
    job.wait_minutes(14);
    assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
}

#[test]
fn a_deadline_is_the_earlier_of_silence_and_attempt() {
    let mut job = running();
    let started = job.now;
    let deadline = |job: &Story| deadline(job.job().attempt(), job.now, &job.limits);
    assert_eq!(deadline(&job), started + SignedDuration::from_mins(15));
    job.wait_minutes(10);
    job.hears(json!({"type": "heartbeat"}));
    assert_eq!(deadline(&job), started + SignedDuration::from_mins(25));
    job.wait_minutes(10);
    job.hears(json!({"type": "heartbeat"}));
    assert_eq!(deadline(&job), started + SignedDuration::from_mins(30));
}

#[test]
fn a_run_that_ends_without_a_word_fails_its_attempt() {
    for mut job in [dispatching(), running()] {
        let decision = job.reports(run_ended());
        assert_eq!(failure(&decision).error_code, "RUN_ENDED");
        assert!(failure(&decision).error_message.ends_with(": cancelled"));
        assert_eq!(job.status(), JobStatus::RetryScheduled);
    }
}

// --- cancel ------------------------------------------------------------------------------------

#[test]
fn a_job_is_cancelled_wherever_it_stands_until_it_has_ended() {
    for mut job in [queued(), dispatching(), running(), retrying(), queued_again()] {
        let decision = job.orders(cancel());
        assert_eq!(names(&decision), ["JobCancelled", "ProvisioningEnded"]);
        assert!(matches!(
            &decision.events[1],
            Event::ProvisioningEnded(event) if event.outcome == Outcome::Cancelled
        ));
        assert_eq!(job.status(), JobStatus::Cancelled);
        assert_eq!(job.queue, (QueueState::Ended, job.now));
        assert_eq!(job.job().run_after, None);
        assert_eq!(job.job().attempt().retry_at, None);
    }
    for (_, mut job) in ended() {
        assert_eq!(job.tries(cancel()), Err(JobRefusal::Status(job.status())));
    }
}

#[test]
fn a_reason_to_cancel_is_trimmed_bounded_and_left_out_when_empty() {
    for (reason, expected) in [
        (None, None),
        (Some(" \n".to_owned()), None),
        (Some(" wrong region ".to_owned()), Some("wrong region".to_owned())),
        (Some("x".repeat(2_000)), Some("x".repeat(REASON_BYTES_MAX))),
    ] {
        let decision = running().orders(JobCommand::Cancel { by: "ada".into(), reason });
        let Event::JobCancelled(event) = &decision.events[0] else { panic!("{decision:?}") };
        assert_eq!((event.cancelled_by.as_str(), &event.reason), ("ada", &expected));
    }
}

#[test]
fn a_run_that_nobody_could_hear_gets_two_minutes_to_make_itself_heard() {
    let mut job = running();
    job.wait_minutes(40);
    job.limits.listening_since = Some(job.now);
    assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
    let limits = job.limits.clone();
    assert_eq!(deadline(job.job().attempt(), job.now, &limits), job.now + CATCH_UP);
    job.wait(CATCH_UP - SignedDuration::from_secs(1));
    let mut told = job.clone();
    told.hears(json!({"status": "running"}));
    assert_eq!(told.status(), JobStatus::Succeeded);
    assert_eq!(job.orders(JobCommand::Tick).answer, JobAnswer::Nothing);
    job.wait(SignedDuration::from_secs(1));
    assert_eq!(failure(&job.orders(JobCommand::Tick)).error_code, "ATTEMPT_TIMEOUT");
}

// --- runs that can be asked for ----------------------------------------------------------------

fn seen(attempt: u32, run: &str, run_attempt: u32, how: Option<&str>) -> RunSeen {
    RunSeen {
        attempt: Attempt(attempt),
        workflow_run_id: run.into(),
        run_url: Some("https://github.example/7".into()),
        run_attempt,
        status: how.map_or("in_progress", |_| "completed").into(),
        conclusion: how.map(Into::into),
    }
}

fn observed(run: RunSeen) -> JobCommand {
    JobCommand::ObserveRun(run)
}

#[test]
fn a_lease_of_a_dispatcher_that_lists_runs_lapses_into_looking_for_the_run() {
    let mut job = dispatching();
    job.wait_minutes(2);
    let decision = job.orders(JobCommand::Tick);
    assert_eq!(names(&decision), ["WorkflowDispatchFailed"]);
    assert_eq!(job.queue, (QueueState::Queued, job.now));
    assert!(job.job().attempt().run.unresolved);
    assert_eq!(job.attempt(), 1);
    job.orders(claim());
    assert!(job.job().attempt().run.unresolved, "whoever claims it has to look first");
    job.reports(dispatched("7"));
    assert!(!job.job().attempt().run.unresolved);
}

#[test]
fn a_dispatch_that_is_lost_costs_the_attempt() {
    let mut job = dispatching();
    let decision = job.reports(Report::DispatchLost);
    assert_eq!(failure(&decision).error_code, "DISPATCH_LOST");
    assert!(failure(&decision).retry.is_some());
}

#[test]
fn a_run_that_was_found_meanwhile_is_neither_lost_nor_refused() {
    for mut job in [dispatching(), running()] {
        job.orders(observed(seen(1, "7", 1, None)));
        for late in [Report::DispatchLost, dispatch_failed(), dispatched("7")] {
            assert_eq!(job.reports(late), JobDecision::nothing());
        }
    }
}

#[test]
fn a_run_is_recorded_when_there_is_news_of_it_and_only_forward() {
    let mut job = dispatching();
    let first = job.orders(observed(seen(1, "7", 1, None)));
    assert_eq!(names(&first), ["WorkflowRunObserved", "WorkflowDispatched"]);
    assert_eq!(job.orders(observed(seen(1, "7", 1, None))), JobDecision::nothing());
    job.hears(json!({"status": "provisioning"}));
    let again = job.orders(observed(seen(1, "7", 2, None)));
    assert_eq!(names(&again), ["WorkflowRunObserved"]);
    let late = job.orders(observed(seen(1, "7", 1, Some("failure"))));
    assert_eq!(late, JobDecision::nothing(), "it runs again already");
    assert_eq!(job.orders(observed(seen(1, "8", 9, None))), JobDecision::nothing(), "not its own");
    assert_eq!(job.orders(observed(seen(9, "7", 9, None))), JobDecision::nothing());
}

#[test]
fn a_run_that_ends_without_a_word_ends_its_attempt() {
    for how in ["failure", "cancelled", "timed_out", "startup_failure"] {
        let mut job = running();
        let decision = job.orders(observed(seen(1, "7", 1, Some(how))));
        assert_eq!(names(&decision), ["WorkflowRunObserved", "JobFailed"]);
        let Event::JobFailed(failed) = &decision.events[1] else { panic!() };
        assert_eq!(failed.error_code, "RUN_ENDED");
        assert!(failed.error_message.ends_with(how));
    }
}

#[test]
fn a_run_that_is_seen_at_work_is_heard_of_until_the_attempts_time_is_over() {
    let mut job = running();
    let mut recorded = 0;
    for _ in 1..30 {
        job.wait_minutes(1);
        recorded += job.orders(observed(seen(1, "7", 1, None))).events.len();
        assert_eq!(job.orders(JobCommand::Tick), JobDecision::nothing());
    }
    assert!((7..12).contains(&recorded), "{recorded} events: one in a while, not one a look");
    job.wait_minutes(1);
    assert_eq!(failure(&job.orders(JobCommand::Tick)).error_code, "ATTEMPT_TIMEOUT");
}

#[test]
fn a_run_that_waits_itself_or_is_another_attempts_is_not_heard_of() {
    let mut job = running();
    let mut waiting = seen(1, "7", 1, None);
    "queued".clone_into(&mut waiting.status);
    let mut old = running_again();
    for _ in 0..14 {
        job.wait_minutes(1);
        old.wait_minutes(1);
        job.orders(observed(waiting.clone()));
        old.orders(observed(seen(1, "7", 1, None)));
    }
    for mut job in [job, old] {
        job.wait_minutes(1);
        assert_eq!(failure(&job.orders(JobCommand::Tick)).error_code, "HEARTBEAT_TIMEOUT");
    }
}

#[test]
fn a_run_that_has_ended_while_its_job_waits_again_is_acted_on_at_once() {
    let lost = {
        let mut job = dispatching();
        job.wait_minutes(2);
        job.orders(JobCommand::Tick);
        job
    };
    let refused = {
        let mut job = dispatching();
        job.reports(dispatch_failed());
        job
    };
    for job in [lost, refused] {
        assert_eq!(job.status(), JobStatus::Queued);
        let mut failed = job.clone();
        let decision = failed.orders(observed(seen(1, "7", 1, Some("failure"))));
        assert_eq!(names(&decision), ["WorkflowRunObserved", "JobFailed"]);
        assert!(failed.job().attempt().compensation.is_some(), "it may have made a server");
        let mut well = job.clone();
        well.orders(observed(seen(1, "7", 1, Some("success"))));
        assert_eq!((well.status(), well.queue.0), (JobStatus::Succeeded, QueueState::Ended));
        // One at work is found by the next claim.
        let mut at_work = job;
        at_work.orders(observed(seen(1, "7", 1, None)));
        assert_eq!(at_work.status(), JobStatus::Queued);
    }
}

#[test]
fn a_run_that_was_seen_to_end_before_its_job_waited_for_it_ends_its_attempt() {
    let mut job = queued_again();
    let end = || observed(seen(2, "7", 1, Some("failure")));
    job.orders(claim());
    // As a log has it that was written before the end of a waiting job's run was acted on.
    let observed_at_first = job.clone().orders(end()).events[0].clone();
    job.append(observed_at_first, None);
    assert_eq!(names(&job.orders(end())), ["WorkflowRunObserved", "JobFailed"]);
    assert_eq!(job.orders(end()), JobDecision::nothing());
}

#[test]
fn a_run_that_could_only_not_say_that_it_succeeded_has_succeeded() {
    let mut job = running();
    let decision = job.orders(observed(seen(1, "7", 1, Some("success"))));
    let told = ["WorkflowRunObserved", "JobSucceeded", "InstanceStarted", "AgentActivated"];
    assert_eq!(names(&decision), told);
    let Event::InstanceStarted(started) = &decision.events[2] else { panic!() };
    assert_eq!((&started.server, started.missing.len()), (&None, 3));
    assert_eq!(job.queue.0, QueueState::Ended);
}

#[test]
fn the_end_of_a_run_whose_job_has_ended_is_kept_and_changes_nothing() {
    let mut job = running();
    job.orders(cancel());
    for how in ["success", "cancelled"] {
        let mut job = job.clone();
        let decision = job.orders(observed(seen(1, "7", 1, Some(how))));
        assert_eq!(names(&decision), ["WorkflowRunObserved"]);
        assert_eq!((job.status(), decision.queue), (JobStatus::Cancelled, None));
    }
}

#[test]
fn a_run_is_unwanted_when_its_attempt_is_over_and_it_has_not_said_so_itself() {
    let going_on = |job: &Story| unwanted(job.job(), &seen(1, "7", 1, None));
    let again = |job: &Story| unwanted(job.job(), &seen(1, "7", 2, None));
    let cancelled = {
        let mut job = running();
        job.orders(cancel());
        job
    };
    let silent = {
        let mut job = running();
        job.wait_minutes(15);
        job.orders(JobCommand::Tick);
        job
    };
    let succeeded = {
        let mut job = running();
        job.hears(json!({"status": "running"}));
        job
    };
    assert!(!going_on(&running()) && !again(&running()));
    assert!(going_on(&cancelled) && going_on(&silent));
    // It has said so, and puts its things away; but nobody wants it once more.
    for job in [retrying(), succeeded] {
        assert!(!going_on(&job) && again(&job));
    }
    let mut job = running();
    job.orders(observed(seen(1, "7", 1, None)));
    assert!(unwanted(job.job(), &seen(1, "8", 1, None)), "a second run of one attempt");
    assert!(!unwanted(cancelled.job(), &seen(1, "7", 1, Some("cancelled"))));
}

#[test]
fn a_run_is_told_to_end_until_it_will_or_often_enough() {
    let asked = |refusal: Option<&str>| JobCommand::RecordRunCancel {
        attempt: Attempt(1),
        workflow_run_id: "7".into(),
        refusal: refusal.map(Into::into),
    };
    let mut job = running();
    job.orders(cancel());
    let mut willing = job.clone();
    willing.orders(asked(None));
    assert!(!unwanted(willing.job(), &seen(1, "7", 1, None)));
    assert_eq!(willing.orders(asked(Some("late"))), JobDecision::nothing());
    assert!(unwanted(willing.job(), &seen(1, "8", 1, None)), "another one has not been told");
    for _ in 0..CANCEL_REQUESTS_MAX {
        assert!(unwanted(job.job(), &seen(1, "7", 1, None)));
        assert_eq!(
            names(&job.orders(asked(Some("GitHub answered 403")))),
            ["WorkflowRunCancelRequested"]
        );
    }
    assert!(!unwanted(job.job(), &seen(1, "7", 1, None)));
    assert_eq!(job.orders(asked(None)), JobDecision::nothing());
}

#[test]
fn only_so_many_runs_of_an_attempt_are_told_to_end() {
    let mut job = running();
    job.orders(observed(seen(1, "7", 1, None)));
    for run in 0..=CANCELS_MAX {
        let run = format!("other-{run}");
        let is_unwanted = unwanted(job.job(), &seen(1, &run, 1, None));
        let attempt = Attempt(1);
        let command = JobCommand::RecordRunCancel { attempt, workflow_run_id: run, refusal: None };
        assert_eq!(job.orders(command).events.len(), usize::from(is_unwanted));
    }
    assert!(!unwanted(job.job(), &seen(1, "one more", 1, None)));
    assert_eq!(job.job().attempt().run.cancels.len(), CANCELS_MAX);
}

// --- ten thousand random stories ---------------------------------------------------------------

#[derive(Clone, Debug)]
enum Act {
    Hear { kind: u8, attempt: Option<u32>, delivery: Option<u8>, run: Option<u8> },
    Wait { minutes: i64 },
    Tick,
    Claim,
    Report { attempt: u32, report: Report },
    LeaseLapsed { attempt: u32 },
    Prioritise { priority: i16 },
    Observe { attempt: u32, run: u8, run_attempt: u32, how: Option<bool> },
    Cancel,
}

const STEPS: [&str; 5] =
    ["vm_created", "network_configured", "ansible_started", "ansible_complete", "new"];

fn act() -> impl Strategy<Value = Act> {
    let attempts = || 1..3_u32;
    prop_oneof![
        12 => (0..11_u8, option::of(attempts()), option::weighted(0.3, 0..6_u8),
            option::weighted(0.2, 0..3_u8))
            .prop_map(|(kind, attempt, delivery, run)| Act::Hear { kind, attempt, delivery, run }),
        3 => (0..17_i64).prop_map(|minutes| Act::Wait { minutes }),
        3 => Just(Act::Tick),
        3 => Just(Act::Claim),
        4 => (attempts(), report()).prop_map(|(attempt, report)| Act::Report { attempt, report }),
        1 => attempts().prop_map(|attempt| Act::LeaseLapsed { attempt }),
        1 => (-2..3_i16).prop_map(|priority| Act::Prioritise { priority }),
        1 => (attempts(), 0..3_u8, 1..3_u32, option::of(any::<bool>())).prop_map(
            |(attempt, run, run_attempt, how)| Act::Observe { attempt, run, run_attempt, how }),
        1 => Just(Act::Cancel),
    ]
}

fn report() -> impl Strategy<Value = Report> {
    prop_oneof![
        (0..3_u8).prop_map(|run| dispatched(&run.to_string())),
        Just(held()),
        Just(dispatch_failed()),
        Just(Report::DispatchLost),
        (0..5_usize).prop_map(|step| Report::Step { step: STEPS[step].into(), metadata: None }),
        Just(Report::Succeeded),
        any::<bool>().prop_map(host_failed),
        Just(run_ended()),
    ]
}

impl Act {
    fn command(&self, story: &Story) -> JobCommand {
        match self {
            Self::Hear { kind, attempt, delivery, run } => JobCommand::Record(Arc::new(Callback {
                job_id: JOB.to_string(),
                attempt: attempt.map(Attempt),
                workflow_run_id: run.map(|run| run.to_string()),
                delivery_id: delivery.map(|delivery| delivery.to_string()),
                kind: kind_of(*kind),
            })),
            Self::Claim => claim(),
            Self::Report { attempt, report } => {
                JobCommand::Report { claim: story.claim_of(*attempt), report: report.clone() }
            }
            Self::LeaseLapsed { attempt } => {
                JobCommand::LeaseLapsed { claim: story.claim_of(*attempt) }
            }
            Self::Prioritise { priority } => prioritise(*priority),
            Self::Observe { attempt, run, run_attempt, how } => {
                let how = how.map(|well| if well { "success" } else { "failure" });
                observed(seen(*attempt, &run.to_string(), *run_attempt, how))
            }
            Self::Cancel => cancel(),
            Self::Tick | Self::Wait { .. } => JobCommand::Tick,
        }
    }
}

fn kind_of(kind: u8) -> CallbackKind {
    let server_id = Some("42".to_owned());
    match kind {
        0 | 1 => CallbackKind::Heartbeat,
        2 => CallbackKind::Started,
        3 => CallbackKind::Done { server_id, server_ip: None, tailscale_ip: None },
        4 | 5 => CallbackKind::Failed {
            error: None,
            failed_step: (kind == 4).then(|| "provision".into()),
            step: (kind == 5).then(|| "ansible_started".into()),
            server_id,
        },
        10 => CallbackKind::Unknown { status: "paused".into() },
        step => CallbackKind::Step { step: STEPS[step as usize % 5].into(), metadata: None },
    }
}

/// What makes two callbacks the same where they have no delivery id.
type Same = (Attempt, String, Option<String>);

/// What the callback behind an event said; `None` for an event that is no callback.
fn said(event: &Event) -> Option<Same> {
    Some(match event {
        Event::ProvisioningStarted(it) => (it.attempt, "started".into(), None),
        Event::ProvisioningStepRecorded(it) => (it.attempt, "step".into(), Some(it.step.clone())),
        Event::HeartbeatRecorded(it) => (it.attempt, "heartbeat".into(), None),
        Event::JobSucceeded(it) => (it.attempt, "done".into(), None),
        Event::JobFailed(it) if it.error_code == WORKFLOW_FAILED => {
            (it.attempt, "failed".into(), it.step.clone())
        }
        Event::LateCallbackRecorded(it) => (it.attempt, it.kind.clone(), it.step.clone()),
        _ => return None,
    })
}

/// Every callback is one event, or an exact repeat of one that stands at the answered position.
fn not_lost(
    before: &Story,
    callback: &Callback,
    decision: &JobDecision,
) -> Result<(), TestCaseError> {
    let kind = callback.kind.name();
    let step = callback.kind.step().map(str::to_owned);
    let same_delivery =
        |other: &Option<String>| callback.delivery_id.is_some() && *other == callback.delivery_id;
    if let JobAnswer::Repeated(position, _) = decision.answer {
        prop_assert!(decision.events.is_empty() && decision.queue.is_none());
        let (event, _, delivery_id) = &before.log[position.0 as usize - 1];
        if callback.delivery_id.is_some() {
            prop_assert!(same_delivery(delivery_id));
        } else {
            let (attempt, first_kind, first_step) = said(event).expect("it was a callback");
            prop_assert_eq!((first_kind.as_str(), first_step), (kind, step));
            prop_assert!(kind != "heartbeat");
            prop_assert!(callback.attempt.is_none_or(|named| named == attempt));
        }
        return Ok(());
    }
    prop_assert!(!before.log.iter().any(|(.., delivery_id)| same_delivery(delivery_id)));
    let told: Vec<Same> = decision.events.iter().filter_map(said).collect();
    let of_job = |event: &&Event| job_of(event).is_some() && !is_undo(event);
    let in_stream = decision.events.iter().filter(of_job).count();
    prop_assert_eq!((told.len(), in_stream), (1, 1));
    prop_assert_eq!((told[0].1.as_str(), &told[0].2), (kind, &step));
    prop_assert!(callback.attempt.is_none_or(|named| named == told[0].0));
    let late = decision.events[0].event_type() == EventType::LateCallbackRecorded;
    prop_assert_eq!(late, matches!(decision.answer, JobAnswer::Kept(_)));
    Ok(())
}

/// Ended is final, attempts only go up, and no attempt's progress goes backward.
fn never_backward(before: &Job, after: &Job) -> Result<(), TestCaseError> {
    if before.status.is_ended() {
        prop_assert_eq!(after.status, before.status);
        prop_assert_eq!(outcomes(&after.attempts), outcomes(&before.attempts));
    }
    let (earlier, later) = (before.attempts.len(), after.attempts.len());
    prop_assert!(later == earlier || later == earlier + 1);
    for (number, attempt) in (1..).zip(&after.attempts) {
        prop_assert_eq!(attempt.number, Attempt(number));
    }
    for (old, new) in before.attempts.iter().zip(&after.attempts) {
        prop_assert!(new.progress.index() >= old.progress.index());
        let completed = |progress: &Progress| letters(progress).matches('c').count();
        prop_assert!(completed(&new.progress) >= completed(&old.progress));
        let rank = |progress: &Progress| {
            progress
                .current_step
                .as_deref()
                .and_then(|step| STEPS.iter().position(|it| *it == step))
        };
        let cleared = after.status == JobStatus::Succeeded;
        prop_assert!(cleared || rank(&new.progress) >= rank(&old.progress));
    }
    // Whatever was before the last attempt is over.
    let over = |job: &Job| outcomes(&job.attempts[..earlier - 1]);
    prop_assert_eq!(over(after), over(before));
    Ok(())
}

/// Attempts without what was said of their runs: those may go on when an attempt is over.
fn outcomes(attempts: &[AttemptState]) -> Vec<AttemptState> {
    let outcome = |attempt: &AttemptState| AttemptState {
        run: RunState::default(),
        workflow_run_id: None,
        compensation: None,
        ..attempt.clone()
    };
    attempts.iter().map(outcome).collect()
}

/// A job that has not ended is looked at again, in the state of the queue that fits its own.
fn watched(story: &Story) -> Result<(), TestCaseError> {
    let fits = match story.status() {
        JobStatus::Queued => story.queue.0 == QueueState::Queued,
        JobStatus::Dispatching => {
            matches!(story.queue.0, QueueState::Dispatching | QueueState::Running)
        }
        JobStatus::Running => story.queue.0 == QueueState::Running,
        JobStatus::RetryScheduled => story.queue.0 == QueueState::Retry,
        JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => {
            story.queue.0 == QueueState::Ended
        }
    };
    prop_assert!(fits, "{:?} is not {:?}", story.queue, story.status());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn ten_thousand_random_stories_lose_no_callback_and_never_go_backward(
        acts in vec(act(), 1..24),
    ) {
        let mut story = running();
        for act in &acts {
            if let Act::Wait { minutes } = act {
                story.wait_minutes(*minutes);
                continue;
            }
            let (before, command) = (story.clone(), act.command(&story));
            let heard = if let JobCommand::Record(it) = &command { Some(it.clone()) } else { None };
            let Ok(decision) = story.tries(command) else {
                prop_assert!(heard.is_none(), "a callback is never refused");
                continue;
            };
            if let Some(callback) = &heard {
                not_lost(&before, callback, &decision)?;
            }
            never_backward(before.job(), story.job())?;
            watched(&story)?;
            compensation::asked_for(story.job())?;
            let own = decision.events.iter().filter(|event| job_of(event).is_some()).count();
            prop_assert_eq!(story.version, before.version + own as u32);
            prop_assert_eq!(story.log.len(), before.log.len() + decision.events.len());
        }
        prop_assert_eq!(fold(None, &story.log, 0), story.state);
    }
}
