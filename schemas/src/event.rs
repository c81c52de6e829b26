//! Every event Milepost records: past-tense facts, each with a stable code and a version.
//!
//! To add one: a struct here, a line in the `events!` list, an arm in every fold (the compiler
//! asks), `events/<Name>.v1.json` and `golden/<Name>.v1.json` (a test asks). To change one:
//! raise its version and add an upcaster from the old body; old golden examples stay.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    AccountId, AgentId, Attempt, InstanceId, JobId, NodeId, Position, Right, Role, SessionId,
    StreamId, TokenId,
};

/// An event that cannot be read back.
#[derive(Debug)]
pub enum DecodeError {
    /// A type code this version of Milepost does not know.
    UnknownType(i16),
    /// A schema version newer than this Milepost knows.
    UnknownVersion(EventType, i16),
    /// The body is not what its type and version promise.
    Body(EventType, serde_json::Error),
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownType(code) => write!(f, "event type {code} is not known to this version"),
            Self::UnknownVersion(kind, version) => {
                write!(f, "{} v{version} is newer than this version knows", kind.name())
            }
            Self::Body(kind, _) => write!(f, "the body is not a {}", kind.name()),
        }
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Body(_, source) => Some(source),
            Self::UnknownType(_) | Self::UnknownVersion(..) => None,
        }
    }
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $code:literal v $version:literal),+ $(,)?) => {
        /// Any event.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Event {
            $($(#[$doc])* $name($name),)+
        }

        /// The type of an event; the code is what the log stores and never changes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum EventType {
            $($(#[$doc])* $name = $code,)+
        }

        impl EventType {
            /// Every type there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name in every interface.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// The version events of this type are written with.
            pub fn schema_version(self) -> i16 {
                match self { $(Self::$name => $version,)+ }
            }

            /// The code in the log.
            pub const fn code(self) -> i16 {
                self as i16
            }

            /// # Errors
            /// [`DecodeError::UnknownType`] for a code that no type has.
            pub fn from_code(code: i16) -> Result<Self, DecodeError> {
                match code {
                    $($code => Ok(Self::$name),)+
                    other => Err(DecodeError::UnknownType(other)),
                }
            }

            /// The type of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $(stringify!($name) => Some(Self::$name),)+ _ => None }
            }
        }

        impl Event {
            /// The type of this event.
            pub fn event_type(&self) -> EventType {
                match self { $(Self::$name(_) => EventType::$name,)+ }
            }

            /// Reads an event as the log stores it, through the upcasters where it is old.
            ///
            /// # Errors
            /// [`DecodeError`] when the type, the version or the body is not known: nothing is
            /// guessed.
            pub fn decode(code: i16, version: i16, body: &[u8]) -> Result<Self, DecodeError> {
                let kind = EventType::from_code(code)?;
                if version < 1 || version > kind.schema_version() {
                    return Err(DecodeError::UnknownVersion(kind, version));
                }
                match kind {
                    $(EventType::$name => serde_json::from_slice(body)
                        .map(Self::$name)
                        .map_err(|error| DecodeError::Body(kind, error)),)+
                }
            }
        }

        $(impl From<$name> for Event {
            fn from(event: $name) -> Self {
                Self::$name(event)
            }
        })+
    };
}

events! {
    /// An agent was made.
    AgentCreated = 1 v 1,
    /// A server was ordered for an agent.
    ProvisioningRequested = 2 v 1,
    /// The agent's server runs.
    AgentActivated = 3 v 1,
    /// The order ended without a server.
    ProvisioningEnded = 4 v 1,
    /// A job waits for its first attempt.
    JobQueued = 10 v 1,
    /// An attempt was claimed; the dispatcher is about to be called.
    WorkflowDispatchRequested = 11 v 1,
    /// The dispatcher took the attempt.
    WorkflowDispatched = 12 v 1,
    /// The dispatcher did not take it; the job waits again.
    WorkflowDispatchFailed = 13 v 2,
    /// The workflow's *started* callback.
    ProvisioningStarted = 14 v 1,
    /// The workflow's *step* callback.
    ProvisioningStepRecorded = 15 v 1,
    /// The workflow's heartbeat.
    HeartbeatRecorded = 16 v 1,
    /// The workflow's *running* callback: the end of the job.
    JobSucceeded = 17 v 1,
    /// An attempt failed: by its callback, or by a deadline.
    JobFailed = 18 v 1,
    /// The next attempt's time has come.
    JobRetried = 19 v 1,
    /// Somebody ended the job.
    JobCancelled = 20 v 1,
    /// A callback that came after its job or its attempt had ended.
    LateCallbackRecorded = 21 v 1,
    /// Somebody moved a job up or down the queue.
    JobPriorityChanged = 22 v 1,
    /// A task of the attempt's tool has begun.
    TaskStarted = 23 v 1,
    /// The attempt's tool has printed lines.
    JobLogRecorded = 24 v 1,
    /// The dispatcher's word on an attempt's run.
    WorkflowRunObserved = 25 v 1,
    /// The dispatcher was asked to end a run that nobody wants any more.
    WorkflowRunCancelRequested = 26 v 1,
    /// A cancelled job's node stays guarded: what its worker runs on it is ending.
    RunnerEndAwaited = 27 v 1,
    /// Nothing of a cancelled job's attempt runs any more; its node is free.
    RunnerEnded = 28 v 1,
    /// An instance was planned.
    InstanceRequested = 30 v 1,
    /// The instance's server runs.
    InstanceStarted = 31 v 1,
    /// A signed callback that belongs to no job.
    CallbackRejected = 40 v 1,
    /// A node was made known.
    NodeRegistered = 50 v 1,
    /// A node is to be made ready.
    NodeProvisioningRequested = 51 v 1,
    /// A node is ready.
    NodeActivated = 52 v 1,
    /// Making a node ready came to nothing.
    NodeBecameUnreachable = 53 v 1,
    /// A node is to be given up.
    NodeDecommissionRequested = 54 v 1,
    /// A node was given up.
    NodeDecommissioned = 55 v 1,
    /// Giving a node up came to nothing.
    NodeDecommissionEnded = 56 v 1,
    /// A host name or an address now belongs to a node.
    NodeAddressTaken = 57 v 1,
    /// Somebody stopped the queue.
    QueuePaused = 60 v 1,
    /// Somebody let the queue go on.
    QueueResumed = 61 v 1,
    /// What an attempt made and no longer serves is to be undone.
    CompensationRequested = 70 v 2,
    /// One thing that an attempt made was undone, or could not be.
    CompensationStepTaken = 71 v 1,
    /// Nothing is left of what an attempt made.
    CompensationCompleted = 72 v 1,
    /// Nothing is left of what an attempt made; but its run goes on and may make more.
    CompensationPutOff = 73 v 1,
    /// A server or a device that serves nobody.
    OrphanFound = 75 v 1,
    /// An orphan was removed.
    OrphanRemoved = 76 v 1,
    /// The server of a running instance is not there any more.
    InstanceServerMissing = 77 v 1,
    /// Another key signs the log's checkpoints.
    LogKeyRotated = 110 v 1,
    /// The log goes on in a new epoch, for a restore has lost events.
    LogEpochBegun = 111 v 1,
    /// No server is there that would be a running instance's, which nobody has named.
    InstanceServerNotFound = 78 v 1,
    /// Somebody wants a view filled anew from the log.
    ProjectionRebuildRequested = 100 v 1,
    /// Somebody wants a view's former rows back.
    ProjectionRollbackRequested = 101 v 1,
    /// Somebody wants a view compared with what the log says.
    ProjectionVerifyRequested = 102 v 1,
    /// Somebody has seen what differs, and wants the new rows to take over.
    ProjectionSwitchRequested = 103 v 1,
    /// Somebody took back what was ordered of a view.
    ProjectionOrderCancelled = 104 v 1,
    /// What was ordered of a view has come to its end.
    ProjectionOrderEnded = 105 v 1,
    /// Somebody had a view pass over an event that it cannot fold.
    ProjectionEventSkipped = 106 v 1,
    /// A person may log in.
    AccountCreated = 80 v 1,
    /// An account is for something else now; its sessions ended.
    AccountRoleChanged = 81 v 1,
    /// An account may not log in any more; its sessions ended.
    AccountDisabled = 82 v 1,
    /// An account may log in again.
    AccountEnabled = 83 v 1,
    /// An account has another password; its other sessions ended.
    PasswordChanged = 84 v 1,
    /// Somebody logged in.
    SessionBegan = 85 v 1,
    /// A session was ended: by a log-out, or by somebody who may.
    SessionEnded = 86 v 1,
    /// Log-ins failed: the first of a run, and then ever fewer of them.
    LogInFailed = 87 v 1,
    /// Somebody asked for what their role may not do: the first of a run, and then ever fewer.
    ActionRefused = 88 v 1,
    /// A program may call the API.
    TokenCreated = 90 v 1,
    /// A program may not call the API any more.
    TokenRevoked = 91 v 1,
    /// A range of the log was written to an archive, and its partition leaves the database.
    LogRangeArchived = 130 v 1,
    /// A range of the log is brought back from an archive.
    LogRangeRestored = 131 v 1,
    /// Somebody had the personal data of one subject erased.
    PersonalDataErased = 120 v 1,
}

/// An agent was made. Stream: the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentCreated {
    /// The new agent.
    pub agent_id: AgentId,
    /// What people call it.
    pub name: String,
    /// Where its servers are built by default.
    pub region: String,
}

/// A server was ordered for an agent. Stream: the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisioningRequested {
    /// The agent it is for.
    pub agent_id: AgentId,
    /// The job that builds it.
    pub job_id: JobId,
    /// The server to be.
    pub instance_id: InstanceId,
    /// Where.
    pub region: String,
}

/// The agent's server runs. Stream: the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentActivated {
    /// The agent.
    pub agent_id: AgentId,
    /// The job that built it.
    pub job_id: JobId,
    /// The server.
    pub instance_id: InstanceId,
}

/// The order ended without a server. Stream: the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisioningEnded {
    /// The agent.
    pub agent_id: AgentId,
    /// The job that ended.
    pub job_id: JobId,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a job ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its last attempt failed.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

/// A job waits for its first attempt. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobQueued {
    /// The job.
    pub job_id: JobId,
    /// What it does: `provision_agent`, `provision_node` or `decommission_node`.
    pub job_type: String,
    /// For which agent; a job changes an agent or a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// For which node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// Which server it builds for its agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// Where it builds that server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Attempts it may take in all.
    pub max_attempts: u32,
    /// The ended job that this one repeats by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<JobId>,
    /// Why it is repeated, where somebody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An attempt was claimed; the dispatcher is about to be called. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowDispatchRequested {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt.
    pub attempt: Attempt,
    /// Who dispatches: `rehearsal`, `github`, `ansible`.
    pub dispatcher: String,
    /// The process that holds the claim.
    pub locked_by: String,
    /// When the claim lapses.
    pub lease_until: Timestamp,
}

/// The dispatcher took the attempt. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowDispatched {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt.
    pub attempt: Attempt,
    /// The run, where the dispatcher named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_run_id: Option<String>,
    /// Where a person can look at the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_url: Option<String>,
    /// Whether the worker that holds the claim runs the attempt itself, under a lease that it
    /// renews in the queue.
    #[serde(default, skip_serializing_if = "is_false")]
    pub held: bool,
}

/// The dispatcher did not take it; the job waits again. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowDispatchFailed {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt.
    pub attempt: Attempt,
    /// In the dispatcher's words.
    pub reason: String,
    /// When it is tried again.
    pub run_after: Timestamp,
    /// Whether it may have been taken all the same: then its run is looked for first. Version 1
    /// knew definite refusals only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unresolved: bool,
}

/// The dispatcher's word on an attempt's run: it waits, works, or is completed. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowRunObserved {
    /// The job.
    pub job_id: JobId,
    /// Its agent, where it changes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node, where it changes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt.
    pub attempt: Attempt,
    /// The run.
    pub workflow_run_id: String,
    /// From 1; higher when somebody ran it again.
    pub run_attempt: u32,
    /// Where it is, in the dispatcher's words: `completed` is its end.
    pub status: String,
    /// How it ended, in the dispatcher's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conclusion: Option<String>,
}

/// The dispatcher was asked to end a run that nobody wants any more. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowRunCancelRequested {
    /// The job.
    pub job_id: JobId,
    /// Its agent, where it changes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node, where it changes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt.
    pub attempt: Attempt,
    /// The run.
    pub workflow_run_id: String,
    /// Whether the dispatcher took the request.
    pub accepted: bool,
    /// Why not, in the dispatcher's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The workflow's *started* callback. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisioningStarted {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt.
    pub attempt: Attempt,
    /// The run that posts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_run_id: Option<String>,
}

/// The workflow's *step* callback. Stream: the job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProvisioningStepRecorded {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt.
    pub attempt: Attempt,
    /// The step's name, known or not.
    pub step: String,
    /// What the workflow added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Arc<Value>>,
}

/// The workflow's heartbeat. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRecorded {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt.
    pub attempt: Attempt,
}

/// The workflow's *running* callback: the end of the job. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSucceeded {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt.
    pub attempt: Attempt,
}

/// The code of a failure that the workflow itself reported; the others were found by Milepost.
pub const WORKFLOW_FAILED: &str = "WORKFLOW_FAILED";

/// An attempt failed. The job ends with it, unless `retry` names the next. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFailed {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt that failed.
    pub attempt: Attempt,
    /// A stable code: `WORKFLOW_FAILED`, `HEARTBEAT_TIMEOUT`, `ATTEMPT_TIMEOUT`, `DISPATCH_LOST`,
    /// `RUN_ENDED`, `WORKER_LOST`, or one of the tool that failed.
    pub error_code: String,
    /// The tool's last words, at most 10 KiB.
    pub error_message: String,
    /// Whether words before those were cut off.
    #[serde(default)]
    pub truncated: bool,
    /// The phase that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_step: Option<String>,
    /// The last step reached, as the workflow says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// A server that may be left over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<String>,
    /// The attempt to come; absent when the job has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// An attempt to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Its number.
    pub attempt: Attempt,
    /// Not before this.
    pub run_after: Timestamp,
}

/// The next attempt's time has come. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRetried {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt that now waits.
    pub attempt: Attempt,
}

/// Somebody ended the job. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCancelled {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt that was under way or to come.
    pub attempt: Attempt,
    /// Who ended it.
    pub cancelled_by: String,
    /// Why, where they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Somebody moved a job up or down the queue. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobPriorityChanged {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// Its priority from now on; the highest is claimed first.
    pub priority: i16,
    /// Who moved it.
    pub changed_by: String,
    /// Why, where they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Why a callback changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotApplied {
    /// Its job had ended.
    JobEnded,
    /// A newer attempt had taken over, or this one had failed.
    AttemptSuperseded,
    /// It names an attempt that was never begun.
    AttemptNotBegun,
    /// A heartbeat of an attempt that does not run.
    NotRunning,
    /// No such job.
    UnknownJob,
    /// A status this version does not know.
    UnknownStatus,
}

impl NotApplied {
    /// The word in the answer's `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobEnded => "job_ended",
            Self::AttemptSuperseded => "attempt_superseded",
            Self::AttemptNotBegun => "attempt_not_begun",
            Self::NotRunning => "not_running",
            Self::UnknownJob => "unknown_job",
            Self::UnknownStatus => "unknown_status",
        }
    }
}

/// A callback that came after its job or its attempt had ended, or before it began, or said
/// something unknown: kept, not applied. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateCallbackRecorded {
    /// The job.
    pub job_id: JobId,
    /// Its agent; absent where it changes a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node; absent where it changes an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt it spoke for.
    pub attempt: Attempt,
    /// `heartbeat`, `started`, `step`, `done`, `failed`, `task`, `log` or `unknown`.
    pub kind: String,
    /// Its step, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Why it changed nothing.
    pub reason: NotApplied,
    /// A server nobody else may know of: it goes to compensation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<String>,
}

/// A task of the attempt's tool has begun. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStarted {
    /// The job.
    pub job_id: JobId,
    /// Its agent, where it changes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node, where it changes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt.
    pub attempt: Attempt,
    /// The task's number within the attempt, from 1.
    pub number: u64,
    /// The play it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub play: Option<String>,
    /// Its name.
    pub task: String,
}

/// The attempt's tool has printed lines. Stream: the job's log, see [`JobId::log_stream`]. Each
/// event carries all that the next one is decided by, so that nobody has to read the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLogRecorded {
    /// The job.
    pub job_id: JobId,
    /// Its agent, where it changes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Its node, where it changes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The attempt that printed them.
    pub attempt: Attempt,
    /// The number of the first line kept, within the attempt, from 1.
    pub from: u64,
    /// The number of the event's first row in the whole log of the job, from 1. Rows are the
    /// heading, the gap and the lines, where they are there, in this order.
    pub first_row: u64,
    /// Whether a heading stands first: what was printed before came from another attempt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub heading: bool,
    /// Lines of the attempt before these that never came; a row says so.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// The lines; colours are kept, secrets are masked.
    pub lines: Vec<String>,
    /// Of each attempt, the first one first, the number of the last line that was printed.
    pub ends: Vec<u64>,
}

/// There is no server with the labels of a running instance, and its workflow has named none.
/// Stream: the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceServerNotFound {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its agent.
    pub agent_id: AgentId,
    /// The job that built it.
    pub job_id: JobId,
    /// What its server would be called.
    pub name: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A cancelled job's worker is ending what it runs on the node, which stays guarded until it says
/// that it has, or until the time named: its lease is over then. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerEndAwaited {
    /// The job.
    pub job_id: JobId,
    /// Its node.
    pub node_id: NodeId,
    /// The attempt.
    pub attempt: Attempt,
    /// When it is waited for no longer.
    pub until: Timestamp,
}

/// Nothing of a cancelled job's attempt runs any more, as its worker says, or as must be assumed.
/// Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerEnded {
    /// The job.
    pub job_id: JobId,
    /// Its node.
    pub node_id: NodeId,
    /// The attempt.
    pub attempt: Attempt,
    /// Whether its worker never said so, and its lease ran out.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lapsed: bool,
}

/// An instance was planned. Stream: the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRequested {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its agent.
    pub agent_id: AgentId,
    /// The job that builds it.
    pub job_id: JobId,
    /// Where.
    pub region: String,
}

/// The instance's server runs. Stream: the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStarted {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its agent.
    pub agent_id: AgentId,
    /// The job that built it.
    pub job_id: JobId,
    /// The server; absent where the workflow did not send all three facts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// The facts the workflow did not send, so that the gap is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// A server, as the workflow names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its id at the cloud provider.
    pub server_id: String,
    /// Its public address.
    pub server_ip: String,
    /// Its address in the tailnet.
    pub tailscale_ip: String,
}

/// A signed callback that belongs to no job. Stream: derived from the delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackRejected {
    /// The job as the workflow named it, at most 200 characters.
    pub job_id: String,
    /// `heartbeat`, `started`, `step`, `done`, `failed`, `task`, `log` or `unknown`.
    pub kind: String,
    /// Why it belongs to no job.
    pub reason: NotApplied,
}

/// A node was made known. Stream: the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRegistered {
    /// The new node.
    pub node_id: NodeId,
    /// Its host name, in small letters.
    pub hostname: String,
    /// Its public address; sealed, once it is stored.
    pub public_ip: String,
    /// Whom to log in as.
    pub ssh_user: String,
    /// Where its SSH server listens.
    pub ssh_port: u16,
}

/// A node is to be made ready. Stream: the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProvisioningRequested {
    /// The node.
    pub node_id: NodeId,
    /// The job that does so.
    pub job_id: JobId,
}

/// A node is ready. Stream: the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeActivated {
    /// The node.
    pub node_id: NodeId,
    /// The job that made it so.
    pub job_id: JobId,
}

/// Making a node ready came to nothing: nobody knows what it can do. Stream: the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBecameUnreachable {
    /// The node.
    pub node_id: NodeId,
    /// The job that ended.
    pub job_id: JobId,
    /// How it ended.
    pub outcome: Outcome,
}

/// A node is to be given up. Stream: the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDecommissionRequested {
    /// The node.
    pub node_id: NodeId,
    /// The job that does so.
    pub job_id: JobId,
}

/// A node was given up. Stream: the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDecommissioned {
    /// The node.
    pub node_id: NodeId,
    /// The job that did so.
    pub job_id: JobId,
}

/// Giving a node up came to nothing: it is what it was. Stream: the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDecommissionEnded {
    /// The node.
    pub node_id: NodeId,
    /// The job that ended.
    pub job_id: JobId,
    /// How it ended.
    pub outcome: Outcome,
}

/// A host name or an address now belongs to a node, until that is decommissioned. Stream: derived
/// from the name or address, so that two nodes cannot take it at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddressTaken {
    /// The node.
    pub node_id: NodeId,
    /// The host name or the address.
    pub address: String,
}

/// Somebody stopped the queue: nothing more is claimed. Stream: the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePaused {
    /// Who stopped it.
    pub paused_by: String,
    /// Why.
    pub reason: String,
}

/// Somebody let the queue go on. Stream: the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueResumed {
    /// Who let it.
    pub resumed_by: String,
    /// Why, where they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What an attempt made and no longer serves is to be undone. Only attempts of agents make
/// anything. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompensationRequested {
    /// The job.
    pub job_id: JobId,
    /// Its agent.
    pub agent_id: AgentId,
    /// The attempt.
    pub attempt: Attempt,
    /// Its server, where the workflow has named it; it is looked for as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<String>,
    /// Why it serves no more.
    pub reason: CompensationReason,
    /// Not before this, unless its run has ended: the workflow puts its own things away.
    pub begin_at: Timestamp,
}

/// Why what an attempt made serves no more. The last three are said from version 2 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompensationReason {
    /// The attempt failed.
    AttemptFailed,
    /// Somebody ended the job.
    JobCancelled,
    /// A callback that came too late named a server.
    LateCallback,
    /// A server or a device of it turned up after all was undone, or that nobody asked to undo.
    ThingFound,
    /// Its run was seen at work after all was undone.
    RunFound,
    /// It succeeded, and its agent runs on a later server since.
    InstanceReplaced,
}

/// Something that is made for an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// A server at the cloud provider.
    Server,
    /// A machine of the tailnet.
    Device,
    /// A key a machine joins the tailnet with.
    Key,
}

impl Resource {
    /// The word in JSON and on pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Device => "device",
            Self::Key => "key",
        }
    }
}

/// What came of undoing one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UndoOutcome {
    /// It is gone.
    Removed,
    /// It was gone before.
    AlreadyGone,
    /// It is another's, and was left alone.
    Kept,
    /// It may still be there.
    Failed,
}

impl UndoOutcome {
    /// The word in JSON and on pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::AlreadyGone => "already_gone",
            Self::Kept => "kept",
            Self::Failed => "failed",
        }
    }
}

/// One thing that an attempt made was undone, or could not be. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompensationStepTaken {
    /// The job.
    pub job_id: JobId,
    /// Its agent.
    pub agent_id: AgentId,
    /// The attempt.
    pub attempt: Attempt,
    /// What kind of thing.
    pub resource: Resource,
    /// Which; absent where nobody could be asked what there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
    /// What came of it.
    pub outcome: UndoOutcome,
    /// Why, in the service's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The number of the try, from 1.
    #[serde(rename = "try")]
    pub try_number: u32,
    /// When it is tried again; absent where it need not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_at: Option<Timestamp>,
}

/// Nothing is left of what an attempt made. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompensationCompleted {
    /// The job.
    pub job_id: JobId,
    /// Its agent.
    pub agent_id: AgentId,
    /// The attempt.
    pub attempt: Attempt,
}

/// Nothing was left of what an attempt made when it was looked for; but its run is not known to be
/// over, and may make more: it is looked for again then, or at the time named. Stream: the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompensationPutOff {
    /// The job.
    pub job_id: JobId,
    /// Its agent.
    pub agent_id: AgentId,
    /// The attempt.
    pub attempt: Attempt,
    /// The run that goes on.
    pub workflow_run_id: String,
    /// The number of the try, from 1.
    #[serde(rename = "try")]
    pub try_number: u32,
    /// When it is tried again, unless the run ends before.
    pub next_try_at: Timestamp,
}

/// Why a server or a device serves nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrphanReason {
    /// Its attempt failed, or its job was ended, and what it made was undone as far as was known.
    Ended,
    /// A later attempt took over.
    Superseded,
    /// The log knows of no such job: perhaps another Milepost's.
    UnknownJob,
    /// Its job has come to no such attempt, or is another agent's.
    Disagrees,
    /// It says that it is ours, and not of which attempt.
    Unlabelled,
}

impl OrphanReason {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Superseded => "superseded",
            Self::UnknownJob => "unknown_job",
            Self::Disagrees => "disagrees",
            Self::Unlabelled => "unlabelled",
        }
    }
}

/// A server or a device that serves nobody. Stream: derived from the thing, so that each is
/// reported once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanFound {
    /// What kind of thing.
    pub resource: Resource,
    /// Which.
    pub resource_id: String,
    /// What it is called.
    pub name: String,
    /// The job it says it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// The attempt it says it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// Why it serves nobody.
    pub reason: OrphanReason,
}

/// An orphan was removed. Stream: derived from the thing, as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanRemoved {
    /// What kind of thing.
    pub resource: Resource,
    /// Which.
    pub resource_id: String,
    /// What it was called.
    pub name: String,
}

/// The server of a running instance is not there any more. Stream: the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceServerMissing {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its agent.
    pub agent_id: AgentId,
    /// The job that built it.
    pub job_id: JobId,
    /// The server, as the workflow named it.
    pub server_id: String,
}

/// Another key signs the log's checkpoints. The checkpoint over this event is signed by both.
/// Stream: the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogKeyRotated {
    /// The key that signed until now, as C2SP writes verifier keys.
    pub former_key: String,
    /// The key that signs from now on.
    pub key: String,
}

/// The log goes on in a new epoch, for a restore has lost events. Stream: the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEpochBegun {
    /// The epoch before.
    pub former_epoch: i64,
    /// The epoch that has begun, in seconds since 1970.
    pub epoch: i64,
    /// How many events the log had when it began.
    pub size: u64,
    /// How many events were signed in the epoch before; absent where nobody here knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_size: Option<u64>,
    /// Who says so: a user of the machine.
    pub begun_by: String,
    /// Why.
    pub reason: String,
}

/// Somebody wants a view filled anew from the log. Stream: the projection's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionRebuildRequested {
    /// The view.
    pub projection: String,
    /// Who wants it.
    pub requested_by: String,
    /// When the new rows take the place of the old ones.
    pub switch: Switch,
    /// Why, where they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Somebody wants a view's former rows back. Stream: the projection's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionRollbackRequested {
    /// The view.
    pub projection: String,
    /// Who wants it.
    pub requested_by: String,
    /// Why, where they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Somebody wants a view compared with what the log says. Stream: the projection's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionVerifyRequested {
    /// The view.
    pub projection: String,
    /// Who wants it.
    pub requested_by: String,
}

/// Somebody has seen what differs, and wants the new rows to take over. Stream: the projection's
/// own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionSwitchRequested {
    /// The view.
    pub projection: String,
    /// Who wants it.
    pub requested_by: String,
}

/// Somebody took back what was ordered of a view. Stream: the projection's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionOrderCancelled {
    /// The view.
    pub projection: String,
    /// Who took it back.
    pub cancelled_by: String,
    /// Why, where they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What was ordered of a view has come to its end. Stream: the projection's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionOrderEnded {
    /// The view.
    pub projection: String,
    /// What came of it.
    pub outcome: OrderOutcome,
    /// The generation of rows it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The position of the log it holds for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Rows that were compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Rows that differ, or are in one of the two only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differing: Option<u64>,
    /// The key of the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_difference: Option<Uuid>,
    /// Why it failed, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Somebody had a view pass over an event that it cannot fold. Stream: the projection's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionEventSkipped {
    /// The view.
    pub projection: String,
    /// The event.
    pub position: Position,
    /// Who said so.
    pub skipped_by: String,
    /// Why.
    pub reason: String,
}

/// When the new rows of a view take the place of the old ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Switch {
    /// By themselves where nothing differs; else once somebody has looked at what does.
    WhenEqual,
    /// By themselves, whatever differs.
    Always,
}

/// What came of an order to a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderOutcome {
    /// The new rows, or the former ones, are those that are read now.
    Switched,
    /// The rows are what the log says, byte for byte.
    Equal,
    /// They are not.
    Different,
    /// Nothing came of it.
    Failed,
}

impl OrderOutcome {
    /// The word in JSON and on pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Switched => "switched",
            Self::Equal => "equal",
            Self::Different => "different",
            Self::Failed => "failed",
        }
    }
}

/// A person may log in. Stream: the account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountCreated {
    /// The new account.
    pub account_id: AccountId,
    /// What it is for.
    pub role: Role,
}

/// An account is for something else now; its sessions ended. Stream: the account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRoleChanged {
    /// The account.
    pub account_id: AccountId,
    /// What it is for from now on.
    pub role: Role,
}

/// An account may not log in any more; its sessions ended. Stream: the account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountDisabled {
    /// The account.
    pub account_id: AccountId,
}

/// An account may log in again. Stream: the account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountEnabled {
    /// The account.
    pub account_id: AccountId,
}

/// An account has another password; its other sessions ended. Stream: the account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasswordChanged {
    /// The account.
    pub account_id: AccountId,
}

/// Somebody logged in. Stream: the account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionBegan {
    /// The account.
    pub account_id: AccountId,
    /// The session.
    pub session_id: SessionId,
    /// How.
    pub way: LogInWay,
}

/// How somebody logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogInWay {
    /// With the address and the password.
    Password,
    /// With a link that logs in once.
    Link,
}

/// A session was ended: by a log-out, or by somebody who may. Stream: the account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnded {
    /// The account.
    pub account_id: AccountId,
    /// The session.
    pub session_id: SessionId,
}

/// Log-ins failed: the first of a run, and then ever fewer of them. Stream:
/// the account, or the one of addresses nobody has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogInFailed {
    /// The account; absent where the address is nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<AccountId>,
    /// How many of this run so far; one is over after an hour without any.
    pub failures: u32,
}

/// Somebody asked for what their role may not do: the first of a run, and then ever fewer. Stream:
/// the account or the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionRefused {
    /// Whose account it was, where it was a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<AccountId>,
    /// Whose token it was, where it was a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<TokenId>,
    /// The method of the request.
    pub method: String,
    /// The route, without the ids in it.
    pub route: String,
    /// The right that it takes.
    pub needs: Right,
    /// How many of this run so far, by one process; one is over after an hour without any.
    pub refusals: u32,
}

/// A program may call the API. Stream: the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreated {
    /// The new token.
    pub token_id: TokenId,
    /// Which program it is for.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// To what it is narrowed; absent where it may do all that its role may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<Right>,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// A program may not call the API any more. Stream: the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRevoked {
    /// The token.
    pub token_id: TokenId,
}

/// A range of the log was written to an archive and read back, and its partition leaves the
/// database. Stream: the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRangeArchived {
    /// The first position of the range.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// Where the archive was written, as the operator named it.
    pub location: String,
    /// The SHA-256 of the archive's file, in hex.
    pub file_sha256: String,
    /// The size of the signed tree that the archive is proven in.
    pub tree_size: u64,
    /// Its root, in hex.
    pub root: String,
    /// Events of the range that stay in the database.
    pub kept_events: u64,
    /// The Merkle root over the leaves of those, by position, in hex.
    pub kept_root: String,
    /// Who says so.
    pub archived_by: String,
}

/// A range of the log is brought back from an archive. Stream: the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRangeRestored {
    /// The first position of the range.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// Where the archive was read, as the operator named it.
    pub location: String,
    /// Who says so.
    pub restored_by: String,
}

/// What personal data is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    /// An agent, with its jobs and servers.
    Agent,
    /// A node, with its jobs.
    Node,
    /// A stream by itself: a refused callback, or the queue.
    Stream,
}

/// Somebody had the personal data of one subject erased: its key was destroyed in the transaction
/// that recorded this. Stream: the subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalDataErased {
    /// The stream whose key it was; also the id of the agent or the node.
    pub subject: StreamId,
    /// What it is.
    pub kind: SubjectKind,
    /// Who had it erased.
    pub erased_by: String,
    /// Why. It stays readable: the key that could seal it is gone.
    pub reason: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a field by reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_read_back() {
        for kind in EventType::ALL {
            assert_eq!(EventType::from_code(kind.code()).unwrap(), *kind);
            assert_eq!(EventType::from_name(kind.name()), Some(*kind));
        }
    }

    #[test]
    fn a_newer_version_is_not_guessed() {
        let error = Event::decode(15, 2, b"{}").unwrap_err();
        assert!(matches!(
            error,
            DecodeError::UnknownVersion(EventType::ProvisioningStepRecorded, 2)
        ));
        assert!(matches!(Event::decode(999, 1, b"{}"), Err(DecodeError::UnknownType(999))));
    }
}
