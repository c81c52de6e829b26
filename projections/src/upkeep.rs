//! What was ordered of a view, from the projection's own stream: rebuilds, verifications, events
//! passed over, and what came of them.

use jiff::Timestamp;
use milepost_schemas::event::{OrderOutcome, ProjectionOrderEnded, Switch};
use milepost_schemas::{Event, Position, StreamId};
use serde::Serialize;
use uuid::Uuid;

use crate::Recorded;

/// Events a view may be told to pass over: whoever needs more has another problem.
pub const SKIPPED_MAX: usize = 1_000;

/// The stream that says what was ordered of a projection.
pub fn upkeep_stream(projection: &str) -> StreamId {
    let name = format!("milepost:projection:{projection}");
    StreamId(Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()))
}

/// The upkeep of one view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Upkeep {
    /// What is to be done, or is being done. One thing at a time.
    pub order: Option<Order>,
    /// The events it passes over, as they were named.
    pub skipped: Vec<Skipped>,
    /// What came of the latest order that was not a verification.
    pub ended: Option<Ended>,
    /// What came of the latest verification.
    pub verified: Option<Ended>,
}

/// An order to a view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Order {
    /// Where it stands in the log: its name.
    pub position: Position,
    /// What is to be done.
    pub kind: OrderKind,
    /// Who wants it.
    pub by: String,
    /// Why, where they said.
    pub reason: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// When the new rows take over: of a rebuild.
    pub switch: Switch,
}

/// What is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderKind {
    /// New rows from the log.
    Rebuild,
    /// The former rows.
    Rollback,
    /// The rows compared with what the log says.
    Verify,
}

impl OrderKind {
    /// The word in JSON and on pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild",
            Self::Rollback => "rollback",
            Self::Verify => "verify",
        }
    }
}

/// An event that a view passes over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The event.
    pub position: Position,
    /// Who said so.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// What was ordered.
    pub kind: OrderKind,
    /// Who wanted it.
    pub by: String,
    /// What came of it; `None` where it was taken back.
    pub outcome: Option<OrderOutcome>,
    /// When.
    pub at: Timestamp,
    /// The generation of rows it was about.
    pub generation: Option<u32>,
    /// The position of the log it holds for.
    pub position: Option<Position>,
    /// Rows that were compared.
    pub rows: Option<u64>,
    /// Rows that differ.
    pub differing: Option<u64>,
    /// The key of the first of them.
    pub first_difference: Option<Uuid>,
    /// Why it failed, or was taken back.
    pub error: Option<String>,
}

impl Upkeep {
    /// Whether there is an order that was given at `position`.
    pub fn orders(&self, position: Position) -> bool {
        self.order.as_ref().is_some_and(|order| order.position == position)
    }

    /// Folds one event of a projection's own stream.
    pub fn apply(&mut self, recorded: &Recorded<'_>) {
        let at = recorded.recorded_at;
        match recorded.event {
            Event::ProjectionRebuildRequested(event) => {
                let (by, reason) = (event.requested_by.clone(), event.reason.clone());
                self.begin(recorded, OrderKind::Rebuild, by, reason, event.switch);
            }
            Event::ProjectionRollbackRequested(event) => {
                let (by, reason) = (event.requested_by.clone(), event.reason.clone());
                self.begin(recorded, OrderKind::Rollback, by, reason, Switch::Always);
            }
            Event::ProjectionVerifyRequested(event) => {
                let by = event.requested_by.clone();
                self.begin(recorded, OrderKind::Verify, by, None, Switch::WhenEqual);
            }
            Event::ProjectionSwitchRequested(_) => {
                if let Some(order) = &mut self.order {
                    order.switch = Switch::Always;
                }
            }
            Event::ProjectionOrderCancelled(event) => {
                let why = match &event.reason {
                    Some(reason) => format!("Cancelled by {}: {reason}", event.cancelled_by),
                    None => format!("Cancelled by {}", event.cancelled_by),
                };
                self.end(|order| Ended { error: Some(why), ..Ended::of(order, at) });
            }
            Event::ProjectionOrderEnded(event) => {
                self.end(|order| Ended::as_told(order, at, event));
            }
            Event::ProjectionEventSkipped(event) => {
                let (position, reason) = (event.position, event.reason.clone());
                self.skipped.retain(|skipped| skipped.position != position);
                self.skipped.push(Skipped { position, by: event.skipped_by.clone(), reason, at });
            }
            Event::AgentCreated(_)
            | Event::ProvisioningRequested(_)
            | Event::AgentActivated(_)
            | Event::ProvisioningEnded(_)
            | Event::JobQueued(_)
            | Event::WorkflowDispatchRequested(_)
            | Event::WorkflowDispatched(_)
            | Event::WorkflowDispatchFailed(_)
            | Event::ProvisioningStarted(_)
            | Event::ProvisioningStepRecorded(_)
            | Event::HeartbeatRecorded(_)
            | Event::JobSucceeded(_)
            | Event::JobFailed(_)
            | Event::JobRetried(_)
            | Event::JobCancelled(_)
            | Event::LateCallbackRecorded(_)
            | Event::JobPriorityChanged(_)
            | Event::TaskStarted(_)
            | Event::JobLogRecorded(_)
            | Event::WorkflowRunObserved(_)
            | Event::WorkflowRunCancelRequested(_)
            | Event::InstanceRequested(_)
            | Event::InstanceStarted(_)
            | Event::CallbackRejected(_)
            | Event::NodeRegistered(_)
            | Event::NodeProvisioningRequested(_)
            | Event::NodeActivated(_)
            | Event::NodeBecameUnreachable(_)
            | Event::NodeDecommissionRequested(_)
            | Event::NodeDecommissioned(_)
            | Event::NodeDecommissionEnded(_)
            | Event::NodeAddressTaken(_)
            | Event::RunnerEndAwaited(_)
            | Event::RunnerEnded(_)
            | Event::CompensationPutOff(_)
            | Event::InstanceServerNotFound(_)
            | Event::LogKeyRotated(_)
            | Event::LogEpochBegun(_)
            | Event::LogRangeArchived(_)
            | Event::LogRangeRestored(_)
            | Event::PersonalDataErased(_)
            | Event::AccountCreated(_)
            | Event::AccountRoleChanged(_)
            | Event::AccountDisabled(_)
            | Event::AccountEnabled(_)
            | Event::PasswordChanged(_)
            | Event::SessionBegan(_)
            | Event::SessionEnded(_)
            | Event::LogInFailed(_)
            | Event::ActionRefused(_)
            | Event::TokenCreated(_)
            | Event::TokenRevoked(_)
            | Event::QueuePaused(_)
            | Event::QueueResumed(_)
            | Event::CompensationRequested(_)
            | Event::CompensationStepTaken(_)
            | Event::CompensationCompleted(_)
            | Event::OrphanFound(_)
            | Event::OrphanRemoved(_)
            | Event::InstanceServerMissing(_) => {}
        }
    }

    fn begin(
        &mut self,
        recorded: &Recorded<'_>,
        kind: OrderKind,
        by: String,
        reason: Option<String>,
        switch: Switch,
    ) {
        let (position, since) = (recorded.position, recorded.recorded_at);
        self.order = Some(Order { position, kind, by, reason, since, switch });
    }

    fn end(&mut self, ended: impl FnOnce(&Order) -> Ended) {
        let Some(order) = self.order.take() else { return };
        let ended = ended(&order);
        match order.kind {
            OrderKind::Verify => self.verified = Some(ended),
            OrderKind::Rebuild | OrderKind::Rollback => self.ended = Some(ended),
        }
    }
}

impl Ended {
    fn of(order: &Order, at: Timestamp) -> Self {
        Self {
            kind: order.kind,
            by: order.by.clone(),
            outcome: None,
            at,
            generation: None,
            position: None,
            rows: None,
            differing: None,
            first_difference: None,
            error: None,
        }
    }

    fn as_told(order: &Order, at: Timestamp, event: &ProjectionOrderEnded) -> Self {
        Self {
            outcome: Some(event.outcome),
            generation: event.generation,
            position: event.position,
            rows: event.rows,
            differing: event.differing,
            first_difference: event.first_difference,
            error: event.error.clone(),
            ..Self::of(order, at)
        }
    }
}
