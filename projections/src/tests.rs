//! The laws of folds, over random events; and what the other files' tests are made of.

use std::sync::Arc;

use jiff::Timestamp;
use milepost_schemas::event::{
    AgentActivated, AgentCreated, CallbackRejected, CompensationCompleted, CompensationPutOff,
    CompensationReason, CompensationRequested, CompensationStepTaken, HeartbeatRecorded,
    InstanceRequested, InstanceServerMissing, InstanceServerNotFound, InstanceStarted,
    JobCancelled, JobFailed, JobLogRecorded, JobPriorityChanged, JobQueued, JobRetried,
    JobSucceeded, LateCallbackRecorded, LogEpochBegun, LogKeyRotated, LogRangeArchived,
    LogRangeRestored, NodeActivated, NodeAddressTaken, NodeBecameUnreachable,
    NodeDecommissionEnded, NodeDecommissionRequested, NodeDecommissioned,
    NodeProvisioningRequested, NodeRegistered, NotApplied, OrderOutcome, OrphanFound, OrphanReason,
    OrphanRemoved, Outcome, PersonalDataErased, ProjectionEventSkipped, ProjectionOrderCancelled,
    ProjectionOrderEnded, ProjectionRebuildRequested, ProjectionRollbackRequested,
    ProjectionSwitchRequested, ProjectionVerifyRequested, ProvisioningEnded, ProvisioningRequested,
    ProvisioningStarted, ProvisioningStepRecorded, QueuePaused, QueueResumed, Resource, Retry,
    RunnerEndAwaited, RunnerEnded, Server, SubjectKind, Switch, TaskStarted, UndoOutcome,
    WORKFLOW_FAILED, WorkflowDispatchFailed, WorkflowDispatchRequested, WorkflowDispatched,
    WorkflowRunCancelRequested, WorkflowRunObserved,
};
use milepost_schemas::{
    AgentId, Attempt, Event, EventType, InstanceId, JobId, NodeId, Position, StreamId,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde::Serialize;
use uuid::Uuid;

use crate::job::{Jobs, job_of};
use crate::{Agent, Board, Job, Projection, Recorded, board::Boards, node::Nodes};

pub(crate) const AGENT: AgentId = AgentId(Uuid::from_u128(1));
pub(crate) const JOB: JobId = JobId(Uuid::from_u128(0x10));
pub(crate) const NODE: NodeId = NodeId(Uuid::from_u128(0x30));
pub(crate) const INSTANCE: InstanceId = InstanceId(Uuid::from_u128(0x20));

/// A second order of the same agent.
const JOB_2: JobId = JobId(Uuid::from_u128(0x11));
const INSTANCE_2: InstanceId = InstanceId(Uuid::from_u128(0x21));

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// An event, and the delivery id of the callback behind it.
pub(crate) type Entry = (Event, Option<String>);

/// Gives each event its place: positions from 1, a second from one to the next.
fn record(index: usize, entry: &Entry) -> Recorded<'_> {
    let (event, delivery_id) = entry;
    Recorded {
        position: Position(index as u64 + 1),
        stream: stream_of(event),
        version: index as u32 + 1,
        recorded_at: at(index as i64),
        delivery_id: delivery_id.as_deref(),
        event,
    }
}

fn stream_of(event: &Event) -> StreamId {
    match (event, job_of(event)) {
        (_, Some(job)) => job.stream(),
        (Event::InstanceRequested(event), _) => event.instance_id.stream(),
        (Event::InstanceStarted(event), _) => event.instance_id.stream(),
        (Event::InstanceServerMissing(event), _) => event.instance_id.stream(),
        (Event::InstanceServerNotFound(event), _) => event.instance_id.stream(),
        (Event::PersonalDataErased(event), _) => event.subject,
        (Event::JobLogRecorded(event), _) => event.job_id.log_stream(),
        _ => AGENT.stream(),
    }
}

fn fold_from<P: Projection>(mut state: P::State, entries: &[Entry], first: usize) -> P::State {
    for (index, entry) in entries.iter().enumerate() {
        P::apply(&mut state, &record(first + index, entry));
    }
    state
}

pub(crate) fn fold_job(entries: impl IntoIterator<Item = Entry>) -> Option<Job> {
    fold_from::<Jobs>(None, &entries.into_iter().collect::<Vec<_>>(), 0)
}

pub(crate) fn fold_board(events: impl IntoIterator<Item = Event>) -> Board {
    let entries: Vec<Entry> = events.into_iter().map(|event| (event, None)).collect();
    fold_from::<Boards>(Board::default(), &entries, 0)
}

pub(crate) fn queued() -> Event {
    job_queued(JOB, INSTANCE)
}

fn job_queued(job_id: JobId, instance_id: InstanceId) -> Event {
    JobQueued {
        job_id,
        job_type: "provision_agent".into(),
        agent_id: Some(AGENT),
        node_id: None,
        instance_id: Some(instance_id),
        region: Some("eu-central".into()),
        max_attempts: 4,
        retry_of: None,
        reason: None,
    }
    .into()
}

/// A node, as it is made known.
pub(crate) fn node_registered() -> Event {
    NodeRegistered {
        node_id: NODE,
        hostname: "web-1.example.com".into(),
        public_ip: "192.0.2.31".into(),
        ssh_user: "root".into(),
        ssh_port: 22,
    }
    .into()
}

pub(crate) fn created() -> Event {
    AgentCreated { agent_id: AGENT, name: "mari".into(), region: "eu-central".into() }.into()
}

/// The events of one order, as they are committed.
pub(crate) fn ordered() -> Vec<Event> {
    order(JOB, INSTANCE)
}

fn order(job_id: JobId, instance_id: InstanceId) -> Vec<Event> {
    let (agent_id, region) = (AGENT, String::from("eu-central"));
    vec![
        ProvisioningRequested { agent_id, job_id, instance_id, region: region.clone() }.into(),
        InstanceRequested { instance_id, agent_id, job_id, region }.into(),
        job_queued(job_id, instance_id),
    ]
}

pub(crate) fn requested(attempt: u32) -> Event {
    claimed(JOB, attempt)
}

fn claimed(job_id: JobId, attempt: u32) -> Event {
    WorkflowDispatchRequested {
        job_id,
        agent_id: Some(AGENT),
        node_id: None,
        attempt: Attempt(attempt),
        dispatcher: "github".into(),
        locked_by: "worker".into(),
        lease_until: at(1_000),
    }
    .into()
}

pub(crate) fn started(attempt: u32) -> Event {
    let (job_id, attempt) = (JOB, Attempt(attempt));
    ProvisioningStarted {
        job_id,
        agent_id: Some(AGENT),
        node_id: None,
        attempt,
        workflow_run_id: None,
    }
    .into()
}

pub(crate) fn step(attempt: u32, step: &str) -> Event {
    let (attempt, step) = (Attempt(attempt), step.into());
    ProvisioningStepRecorded {
        job_id: JOB,
        agent_id: Some(AGENT),
        node_id: None,
        attempt,
        step,
        metadata: None,
    }
    .into()
}

pub(crate) fn failed(failed_step: Option<&str>, step: Option<&str>, retry: bool) -> Event {
    JobFailed {
        job_id: JOB,
        agent_id: Some(AGENT),
        node_id: None,
        attempt: Attempt(1),
        error_code: WORKFLOW_FAILED.into(),
        error_message: "no route to host".into(),
        truncated: false,
        failed_step: failed_step.map(Into::into),
        step: step.map(Into::into),
        server_id: None,
        retry: retry.then_some(Retry { attempt: Attempt(2), run_after: at(500) }),
    }
    .into()
}

pub(crate) fn retried() -> Event {
    JobRetried { job_id: JOB, agent_id: Some(AGENT), node_id: None, attempt: Attempt(2) }.into()
}

pub(crate) fn cancelled() -> Event {
    JobCancelled {
        job_id: JOB,
        agent_id: Some(AGENT),
        node_id: None,
        attempt: Attempt(1),
        cancelled_by: "account:ada@example.com".into(),
        reason: None,
    }
    .into()
}

/// The events of one success, as they are committed.
pub(crate) fn succeeded(server: Option<Server>) -> Vec<Event> {
    let (job_id, agent_id, instance_id) = (JOB, AGENT, INSTANCE);
    let missing = if server.is_some() { vec![] } else { vec!["server_ip".into()] };
    vec![
        JobSucceeded { job_id, agent_id: Some(agent_id), node_id: None, attempt: Attempt(1) }
            .into(),
        InstanceStarted { instance_id, agent_id, job_id, server, missing }.into(),
        AgentActivated { agent_id, job_id, instance_id }.into(),
    ]
}

pub(crate) fn server() -> Server {
    Server {
        server_id: "42".into(),
        server_ip: "192.0.2.1".into(),
        tailscale_ip: "100.64.0.1".into(),
    }
}

fn any_step() -> impl Strategy<Value = String> {
    let known = ["vm_created", "network_configured", "ansible_started", "ansible_complete"];
    select(known.into_iter().chain(["something_new", ""]).collect::<Vec<_>>()).prop_map_into()
}

/// Any event of two orders of one agent, likely or not: folds take what they get.
fn any_event() -> impl Strategy<Value = Event> {
    let words = || option::of(select(vec!["provision", "configure", "elsewhere"]));
    (
        select(EventType::ALL.to_vec()),
        any::<bool>(),
        1..4_u32,
        any_step(),
        words(),
        any::<bool>(),
        0..2_000_i64,
    )
        .prop_map(|(kind, second, attempt, step, word, flag, second_at)| {
            let (agent_id, region) = (AGENT, String::from("eu-north"));
            let (job_id, instance_id) = if second { (JOB_2, INSTANCE_2) } else { (JOB, INSTANCE) };
            let attempt = Attempt(attempt);
            let word = word.map(String::from);
            match kind {
                EventType::AgentCreated => created(),
                EventType::ProvisioningRequested => {
                    ProvisioningRequested { agent_id, job_id, instance_id, region }.into()
                }
                EventType::AgentActivated => {
                    AgentActivated { agent_id, job_id, instance_id }.into()
                }
                EventType::ProvisioningEnded => {
                    ProvisioningEnded { agent_id, job_id, outcome: Outcome::Failed }.into()
                }
                EventType::JobQueued => job_queued(job_id, instance_id),
                EventType::WorkflowDispatchRequested => claimed(job_id, attempt.0),
                EventType::WorkflowDispatched => WorkflowDispatched {
                    job_id,
                    agent_id: Some(agent_id),
                    node_id: None,
                    attempt,
                    workflow_run_id: word.clone(),
                    run_url: word,
                    held: flag,
                }
                .into(),
                EventType::WorkflowDispatchFailed => WorkflowDispatchFailed {
                    job_id,
                    agent_id: Some(agent_id),
                    node_id: None,
                    attempt,
                    reason: step,
                    run_after: at(second_at),
                    unresolved: flag,
                }
                .into(),
                EventType::WorkflowRunObserved => WorkflowRunObserved {
                    job_id,
                    agent_id: Some(agent_id),
                    node_id: None,
                    attempt,
                    workflow_run_id: step,
                    run_attempt: attempt.0,
                    status: "completed".into(),
                    conclusion: word,
                }
                .into(),
                EventType::WorkflowRunCancelRequested => WorkflowRunCancelRequested {
                    job_id,
                    agent_id: Some(agent_id),
                    node_id: None,
                    attempt,
                    workflow_run_id: step,
                    accepted: flag,
                    detail: word,
                }
                .into(),
                EventType::ProvisioningStarted => ProvisioningStarted {
                    job_id,
                    agent_id: Some(agent_id),
                    node_id: None,
                    attempt,
                    workflow_run_id: word,
                }
                .into(),
                EventType::ProvisioningStepRecorded => {
                    let metadata = flag.then(|| serde_json::json!({"a": [second_at, word]}));
                    ProvisioningStepRecorded {
                        job_id,
                        agent_id: Some(agent_id),
                        node_id: None,
                        attempt,
                        step,
                        metadata: metadata.map(Arc::new),
                    }
                    .into()
                }
                EventType::HeartbeatRecorded => {
                    HeartbeatRecorded { job_id, agent_id: Some(agent_id), node_id: None, attempt }
                        .into()
                }
                EventType::JobSucceeded => {
                    JobSucceeded { job_id, agent_id: Some(agent_id), node_id: None, attempt }.into()
                }
                EventType::JobFailed => {
                    let run_after = at(second_at);
                    JobFailed {
                        job_id,
                        agent_id: Some(agent_id),
                        node_id: None,
                        attempt,
                        error_code: if flag { WORKFLOW_FAILED } else { "RUN_ENDED" }.into(),
                        error_message: step.clone(),
                        truncated: flag,
                        failed_step: word,
                        step: flag.then_some(step),
                        server_id: flag.then(|| "42".into()),
                        retry: (!flag).then_some(Retry { attempt: attempt.next(), run_after }),
                    }
                    .into()
                }
                EventType::JobRetried => {
                    JobRetried { job_id, agent_id: Some(agent_id), node_id: None, attempt }.into()
                }
                EventType::JobCancelled => JobCancelled {
                    job_id,
                    agent_id: Some(agent_id),
                    node_id: None,
                    attempt,
                    cancelled_by: step,
                    reason: word,
                }
                .into(),
                EventType::LateCallbackRecorded => LateCallbackRecorded {
                    job_id,
                    agent_id: Some(agent_id),
                    node_id: None,
                    attempt,
                    kind: "step".into(),
                    step: Some(step),
                    reason: NotApplied::AttemptSuperseded,
                    server_id: word,
                }
                .into(),
                EventType::TaskStarted => TaskStarted {
                    job_id,
                    agent_id: Some(agent_id),
                    node_id: None,
                    attempt,
                    number: second_at.unsigned_abs() + 1,
                    play: word,
                    task: step,
                }
                .into(),
                EventType::JobLogRecorded => JobLogRecorded {
                    job_id,
                    agent_id: Some(agent_id),
                    node_id: None,
                    attempt,
                    from: 1,
                    first_row: 1,
                    heading: flag,
                    lost: 0,
                    lines: vec![step],
                    ends: vec![1],
                }
                .into(),
                EventType::JobPriorityChanged => JobPriorityChanged {
                    job_id,
                    agent_id: Some(agent_id),
                    node_id: None,
                    priority: i16::try_from(second_at).unwrap(),
                    changed_by: step,
                    reason: word,
                }
                .into(),
                EventType::InstanceRequested => {
                    InstanceRequested { instance_id, agent_id, job_id, region }.into()
                }
                EventType::InstanceStarted => {
                    let server = flag.then(server);
                    let missing = word.into_iter().collect();
                    InstanceStarted { instance_id, agent_id, job_id, server, missing }.into()
                }
                EventType::NodeRegistered => node_registered(),
                EventType::NodeProvisioningRequested => {
                    NodeProvisioningRequested { node_id: NODE, job_id }.into()
                }
                EventType::NodeActivated => NodeActivated { node_id: NODE, job_id }.into(),
                EventType::NodeBecameUnreachable => {
                    let outcome = Outcome::Failed;
                    NodeBecameUnreachable { node_id: NODE, job_id, outcome }.into()
                }
                EventType::NodeDecommissionRequested => {
                    NodeDecommissionRequested { node_id: NODE, job_id }.into()
                }
                EventType::NodeDecommissioned => {
                    NodeDecommissioned { node_id: NODE, job_id }.into()
                }
                EventType::NodeDecommissionEnded => {
                    let outcome = Outcome::Cancelled;
                    NodeDecommissionEnded { node_id: NODE, job_id, outcome }.into()
                }
                EventType::NodeAddressTaken => {
                    NodeAddressTaken { node_id: NODE, address: step }.into()
                }
                EventType::QueuePaused => {
                    QueuePaused { paused_by: step.clone(), reason: step }.into()
                }
                EventType::LogKeyRotated => {
                    LogKeyRotated { former_key: step.clone(), key: step }.into()
                }
                EventType::LogEpochBegun => LogEpochBegun {
                    former_epoch: 1,
                    epoch: 2,
                    size: 3,
                    signed_size: None,
                    begun_by: step.clone(),
                    reason: step,
                }
                .into(),
                EventType::ProjectionRebuildRequested => ProjectionRebuildRequested {
                    projection: step.clone(),
                    requested_by: step,
                    switch: if flag { Switch::Always } else { Switch::WhenEqual },
                    reason: word,
                }
                .into(),
                EventType::ProjectionRollbackRequested => ProjectionRollbackRequested {
                    projection: step.clone(),
                    requested_by: step,
                    reason: word,
                }
                .into(),
                EventType::ProjectionVerifyRequested => {
                    ProjectionVerifyRequested { projection: step.clone(), requested_by: step }
                        .into()
                }
                EventType::ProjectionSwitchRequested => {
                    ProjectionSwitchRequested { projection: step.clone(), requested_by: step }
                        .into()
                }
                EventType::ProjectionOrderCancelled => ProjectionOrderCancelled {
                    projection: step.clone(),
                    cancelled_by: step,
                    reason: word,
                }
                .into(),
                EventType::ProjectionOrderEnded => ProjectionOrderEnded {
                    projection: step,
                    outcome: if flag { OrderOutcome::Switched } else { OrderOutcome::Failed },
                    generation: Some(attempt.0),
                    position: None,
                    rows: None,
                    differing: None,
                    first_difference: None,
                    error: word,
                }
                .into(),
                EventType::ProjectionEventSkipped => ProjectionEventSkipped {
                    projection: step.clone(),
                    position: Position(u64::from(attempt.0)),
                    skipped_by: step.clone(),
                    reason: step,
                }
                .into(),
                EventType::LogRangeArchived => LogRangeArchived {
                    first: 1,
                    last: 2,
                    location: step.clone(),
                    file_sha256: step.clone(),
                    tree_size: 3,
                    root: step.clone(),
                    kept_events: 1,
                    kept_root: step.clone(),
                    archived_by: step,
                }
                .into(),
                EventType::LogRangeRestored => {
                    let (location, restored_by) = (step.clone(), step);
                    LogRangeRestored { first: 1, last: 2, location, restored_by }.into()
                }
                EventType::QueueResumed => QueueResumed { resumed_by: step, reason: word }.into(),
                EventType::CompensationRequested => CompensationRequested {
                    job_id,
                    agent_id,
                    attempt,
                    server_id: word,
                    reason: CompensationReason::AttemptFailed,
                    begin_at: at(second_at),
                }
                .into(),
                EventType::CompensationStepTaken => CompensationStepTaken {
                    job_id,
                    agent_id,
                    attempt,
                    resource: if flag { Resource::Server } else { Resource::Key },
                    resource_id: word.clone(),
                    outcome: if flag { UndoOutcome::Removed } else { UndoOutcome::Failed },
                    detail: word,
                    try_number: attempt.0,
                    next_try_at: (!flag).then(|| at(second_at)),
                }
                .into(),
                EventType::CompensationCompleted => {
                    CompensationCompleted { job_id, agent_id, attempt }.into()
                }
                EventType::CompensationPutOff => CompensationPutOff {
                    job_id,
                    agent_id,
                    attempt,
                    workflow_run_id: step,
                    try_number: attempt.0,
                    next_try_at: at(second_at),
                }
                .into(),
                EventType::RunnerEndAwaited => {
                    RunnerEndAwaited { job_id, node_id: NODE, attempt, until: at(second_at) }.into()
                }
                EventType::RunnerEnded => {
                    RunnerEnded { job_id, node_id: NODE, attempt, lapsed: flag }.into()
                }
                EventType::InstanceServerNotFound => {
                    InstanceServerNotFound { instance_id, agent_id, job_id, name: step }.into()
                }
                EventType::OrphanFound => OrphanFound {
                    resource: Resource::Server,
                    resource_id: step.clone(),
                    name: step,
                    job_id: Some(job_id),
                    attempt: Some(attempt),
                    reason: OrphanReason::Ended,
                }
                .into(),
                EventType::OrphanRemoved => OrphanRemoved {
                    resource: Resource::Device,
                    resource_id: step.clone(),
                    name: step,
                }
                .into(),
                EventType::InstanceServerMissing => {
                    InstanceServerMissing { instance_id, agent_id, job_id, server_id: step }.into()
                }
                EventType::AccountCreated
                | EventType::AccountRoleChanged
                | EventType::AccountDisabled
                | EventType::AccountEnabled
                | EventType::PasswordChanged
                | EventType::SessionBegan
                | EventType::SessionEnded
                | EventType::LogInFailed
                | EventType::ActionRefused
                | EventType::TokenCreated
                | EventType::TokenRevoked => golden(kind),
                EventType::PersonalDataErased => PersonalDataErased {
                    subject: agent_id.stream(),
                    kind: SubjectKind::Agent,
                    erased_by: "token:ci".into(),
                    reason: step,
                }
                .into(),
                EventType::CallbackRejected => CallbackRejected {
                    job_id: step,
                    kind: "step".into(),
                    reason: NotApplied::UnknownJob,
                }
                .into(),
            }
        })
}

/// The stored example of an event that means nothing to these folds.
fn golden(kind: EventType) -> Event {
    let stored = milepost_schemas::documents::golden(kind.name(), kind.schema_version()).unwrap();
    let stored: serde_json::Value = serde_json::from_str(stored).unwrap();
    let body = stored["data"].to_string();
    Event::decode(kind.code(), kind.schema_version(), body.as_bytes()).unwrap()
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (any_event(), option::of((0..8_u8).prop_map(|id| format!("delivery-{id}"))))
}

/// An agent with an order, then anything; and where to cut it in two.
fn histories() -> impl Strategy<Value = (Vec<Entry>, usize)> {
    vec(any_entry(), 0..40)
        .prop_map(|entries| {
            let begun = std::iter::once(created()).chain(ordered()).map(|event| (event, None));
            begun.chain(entries).collect::<Vec<_>>()
        })
        .prop_flat_map(|entries| {
            let cut = 0..=entries.len();
            (Just(entries), cut)
        })
}

/// The same event of a job, were it a node's.
fn of_the_node(mut event: Event) -> Event {
    macro_rules! moved {
        ($($name:ident),+) => {
            match &mut event {
                $(Event::$name(it) => (it.agent_id, it.node_id) = (None, Some(NODE)),)+
                _ => {}
            }
        };
    }
    moved!(
        JobQueued,
        WorkflowDispatchRequested,
        WorkflowDispatched,
        WorkflowDispatchFailed,
        ProvisioningStarted,
        ProvisioningStepRecorded,
        HeartbeatRecorded,
        JobSucceeded,
        JobFailed,
        JobRetried,
        JobCancelled,
        LateCallbackRecorded,
        JobPriorityChanged
    );
    event
}

/// A row as it is stored.
fn stored<T: Serialize>(state: &T) -> serde_json::Value {
    serde_json::to_value(state).unwrap()
}

fn of_job(entries: &[Entry], job: JobId) -> Vec<Entry> {
    entries.iter().filter(|(event, _)| job_of(event) == Some(job)).cloned().collect()
}

/// `fold(a ++ b) == resume(fold(a), b)`, in memory and through a row that was stored between.
fn resumes<P: Projection>(entries: &[Entry], cut: usize) -> Result<(), TestCaseError>
where
    P::State: Clone + PartialEq + std::fmt::Debug,
{
    let whole = fold_from::<P>(P::State::default(), entries, 0);
    let half = fold_from::<P>(P::State::default(), &entries[..cut], 0);
    let resumed = fold_from::<P>(half.clone(), &entries[cut..], cut);
    prop_assert_eq!(&resumed, &whole);
    // What a row leaves out when it is stored is what only decisions need.
    let read = serde_json::from_str(&serde_json::to_string(&half).unwrap()).unwrap();
    let resumed = fold_from::<P>(read, &entries[cut..], cut);
    prop_assert_eq!(stored(&resumed), stored(&whole));
    Ok(())
}

proptest! {
    #[test]
    fn a_job_resumes_where_its_fold_stopped((entries, cut) in histories()) {
        let entries = of_job(&entries, JOB);
        resumes::<Jobs>(&entries, cut.min(entries.len()))?;
    }

    #[test]
    fn a_board_resumes_where_its_fold_stopped((entries, cut) in histories()) {
        resumes::<Boards>(&entries, cut)?;
    }

    #[test]
    fn a_nodes_row_resumes_where_its_fold_stopped((entries, cut) in histories()) {
        let mut entries: Vec<Entry> =
            entries.into_iter().map(|(event, id)| (of_the_node(event), id)).collect();
        entries.insert(0, (node_registered(), None));
        resumes::<Nodes>(&entries, cut)?;
    }

    #[test]
    fn a_step_told_twice_moves_nothing(
        (entries, cut) in histories(),
        again in vec(any_step(), 1..6),
    ) {
        let entries = of_job(&entries, JOB);
        let mut entries = entries[..cut.min(entries.len())].to_vec();
        entries.extend(again.iter().map(|it| (step(1, it), None)));
        let Some(once) = fold_job(entries.clone()) else { return Ok(()) };
        // Of all the steps told by now, any may come again.
        entries.extend(again.iter().rev().map(|it| (step(1, it), None)));
        let twice = fold_job(entries).unwrap();
        prop_assert_eq!(once.attempt().progress.steps(), twice.attempt().progress.steps());
        prop_assert_eq!(once.attempts.len(), twice.attempts.len());
        prop_assert_eq!(once.status, twice.status);
    }

    #[test]
    fn a_boards_row_is_the_fold_of_its_agents_three_streams(
        first in vec(any_entry(), 0..20),
        second in vec(any_entry(), 0..20),
    ) {
        // Orders are made by decisions: one at a time, and never again under the same id.
        let likely = |(event, _): &Entry| !matches!(
            event,
            Event::AgentCreated(_) | Event::ProvisioningRequested(_)
                | Event::InstanceRequested(_) | Event::JobQueued(_)
                // Of a node's job alone.
                | Event::RunnerEndAwaited(_) | Event::RunnerEnded(_)
        );
        let begun = |events: Vec<Event>| events.into_iter().map(|event| (event, None));
        let entries: Vec<Entry> = begun(vec![created()])
            .chain(begun(ordered()))
            .chain(first.into_iter().filter(likely))
            .chain(begun(order(JOB_2, INSTANCE_2)))
            .chain(second.into_iter().filter(likely))
            .collect();
        let board = fold_from::<Boards>(Board::default(), &entries, 0);
        let streams = [AGENT.stream(), JOB_2.stream(), INSTANCE_2.stream()];
        let (mut alone, mut agent, mut job) = (Board::default(), None, None);
        for (index, entry) in entries.iter().enumerate() {
            let recorded = record(index, entry);
            if streams.contains(&recorded.stream) {
                alone.fold(&recorded);
            }
            if recorded.stream == AGENT.stream() {
                Agent::apply(&mut agent, &recorded);
            }
            if recorded.stream == JOB_2.stream() {
                Job::apply(&mut job, &recorded);
            }
        }
        prop_assert_eq!(&board.agent, &agent);
        prop_assert_eq!(&board.job, &job);
        // A late word about an older order moves the row's position, and nothing else.
        alone.position = board.position;
        prop_assert_eq!(board, alone);
    }
}

#[test]
fn an_event_belongs_to_the_row_its_ids_name() {
    for event in [created(), queued(), started(1)].into_iter().chain(ordered()) {
        assert_eq!(Boards::key(&event), Some(AGENT.0));
    }
    assert_eq!(Jobs::key(&started(1)), Some(JOB.0));
    assert_eq!(Jobs::key(&created()), None);
    let rejected = CallbackRejected {
        job_id: "j".into(),
        kind: "step".into(),
        reason: NotApplied::UnknownJob,
    };
    assert_eq!(Boards::key(&rejected.into()), None);
    // What a job prints touches no row, however much that is.
    let printed = JobLogRecorded {
        job_id: JOB,
        agent_id: Some(AGENT),
        node_id: None,
        attempt: Attempt(1),
        from: 1,
        first_row: 1,
        heading: true,
        lost: 0,
        lines: vec!["PLAY [agent]".into()],
        ends: vec![1],
    };
    let printed = printed.into();
    assert_eq!((Boards::key(&printed), Jobs::key(&printed)), (None, None));
}

#[test]
fn a_late_word_about_an_older_order_does_not_touch_the_current_one() {
    let begun = || std::iter::once(created()).chain(ordered()).chain(order(JOB_2, INSTANCE_2));
    let before = fold_board(begun());
    let mut after = fold_board(begun().chain([started(1)]).chain([cancelled()]));
    assert_eq!(after.job.as_ref().map(|job| job.id), Some(JOB_2));
    after.position = before.position;
    assert_eq!(after, before);
}

/// A view does not even decode what it passes over, so none of that may belong to a row.
fn passes_over_only_what_has_no_row<P: Projection>(event: &Event) {
    let code = event.event_type().code();
    assert!(P::folds(code) || P::key(event).is_none(), "{} {:?}", P::NAME, event.event_type());
}

proptest! {
    #[test]
    fn what_a_view_passes_over_belongs_to_no_row(event in any_event()) {
        passes_over_only_what_has_no_row::<Boards>(&event);
        passes_over_only_what_has_no_row::<Jobs>(&event);
        passes_over_only_what_has_no_row::<Nodes>(&event);
        passes_over_only_what_has_no_row::<crate::compensation::Compensations>(&event);
    }
}
