//! Whom a server or a device serves, as the log has it.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use milepost_projections::{Compensation, Job, JobStatus};
use milepost_schemas::event::{OrphanReason, Resource};
use milepost_schemas::{AgentId, InstanceId, JobId};

use super::{AttemptId, ServerIdentity};

/// How long after its making and its attempt's end a thing is left alone: its workflow may just be
/// putting it away.
pub const ORPHAN_AGE: SignedDuration = SignedDuration::from_mins(5);

/// A server or a device that says it is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thing {
    /// What kind of thing.
    pub resource: Resource,
    /// Which.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// A server's labels; a device has none, but the server's name.
    pub labels: Option<BTreeMap<String, String>>,
    /// When it was made, where that is known.
    pub made_at: Option<Timestamp>,
}

impl Thing {
    /// The attempt it says it is of.
    pub fn attempt(&self) -> Option<AttemptId> {
        match &self.labels {
            Some(labels) => AttemptId::of_labels(labels),
            None => AttemptId::of_name(&self.name),
        }
    }

    /// Whether it is what that attempt for that agent makes.
    fn is_of(&self, identity: ServerIdentity) -> bool {
        match &self.labels {
            Some(labels) => identity.disagreements(labels).is_empty(),
            None => identity.name() == self.name,
        }
    }

    fn is_young(&self, now: Timestamp) -> bool {
        self.made_at.is_some_and(|made_at| now.duration_since(made_at) < ORPHAN_AGE)
    }
}

/// Whom it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A running instance.
    Serving {
        /// Its agent.
        agent_id: AgentId,
        /// The instance.
        instance_id: InstanceId,
    },
    /// An attempt that waits or runs.
    UnderWay,
    /// Nobody, and it is about to be undone.
    AwaitsCompensation,
    /// Nobody; but so lately that it may just be going.
    Settling,
    /// Nobody.
    Orphan(OrphanReason),
}

/// Who may remove an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The server by itself, where its settings say so: nothing is uncertain.
    Certain,
    /// Somebody who says so: it may be another Milepost's.
    WhenTold,
    /// Somebody who knows which, by its id: what it says of itself makes no sense here.
    ByHand,
}

/// Who may remove what is an orphan for that reason.
pub fn removal(reason: OrphanReason) -> Removal {
    match reason {
        OrphanReason::Ended | OrphanReason::Superseded => Removal::Certain,
        OrphanReason::UnknownJob => Removal::WhenTold,
        OrphanReason::Disagrees | OrphanReason::Unlabelled => Removal::ByHand,
    }
}

/// Whom a thing serves; `job` is the one it says it is of, as the log has it, and `serving` the one
/// that built the server its agent runs on now, where that is known.
pub fn classify(
    thing: &Thing,
    job: Option<&Job>,
    serving: Option<JobId>,
    now: Timestamp,
) -> Standing {
    let orphan = |reason| {
        if thing.is_young(now) { Standing::Settling } else { Standing::Orphan(reason) }
    };
    let Some(id) = thing.attempt() else { return orphan(OrphanReason::Unlabelled) };
    let Some(job) = job else { return orphan(OrphanReason::UnknownJob) };
    let subject = job.subject.agent_id().zip(job.subject.instance_id());
    let attempt = job.numbered(id.attempt);
    let (Some((agent_id, instance_id)), Some(attempt)) = (subject, attempt) else {
        return orphan(OrphanReason::Disagrees);
    };
    if !thing.is_of(ServerIdentity { agent_id, attempt: id }) {
        return orphan(OrphanReason::Disagrees);
    }
    let current = job.attempt().number == id.attempt;
    let replaced = serving.is_some_and(|serving| serving != job.id);
    let reason = match job.status {
        JobStatus::Succeeded if current && !replaced => {
            return Standing::Serving { agent_id, instance_id };
        }
        JobStatus::Succeeded if current => OrphanReason::Superseded,
        JobStatus::Queued | JobStatus::Dispatching | JobStatus::Running if current => {
            return Standing::UnderWay;
        }
        _ if current => OrphanReason::Ended,
        JobStatus::Queued
        | JobStatus::Dispatching
        | JobStatus::Running
        | JobStatus::RetryScheduled
        | JobStatus::Succeeded
        | JobStatus::Failed
        | JobStatus::Cancelled => OrphanReason::Superseded,
    };
    if attempt.compensation.as_ref().is_some_and(Compensation::is_open) {
        return Standing::AwaitsCompensation;
    }
    if attempt.ended_at.is_some_and(|ended_at| now.duration_since(ended_at) < ORPHAN_AGE) {
        return Standing::Settling;
    }
    orphan(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_young_for_a_while_and_one_from_the_end_of_time_stops_nobody() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let is_young = |made_at| {
            let (id, name) = ("7".to_owned(), "mp".to_owned());
            let resource = Resource::Device;
            Thing { resource, id, name, labels: None, made_at }.is_young(now)
        };
        assert!(is_young(Some(now)) && !is_young(Some(now - ORPHAN_AGE)) && !is_young(None));
        assert!(is_young(Some(Timestamp::MAX)) && !is_young(Some(Timestamp::MIN)));
    }
}
