//! What an agent or a job says of itself in one line, and where that puts it on the overview.

use askama::Template;
use jiff::Timestamp;
use milepost_projections::answers::{InstanceAnswer, JobAnswer, NodeAnswer};
use milepost_projections::board::InstanceStatus;
use milepost_projections::usual::UsualDuration;
use milepost_projections::{JobStatus, Step, StepStatus};

use super::format::{Clock, between};
use super::words::word_of;
use super::{NO_USUAL, Usual};

/// A running workflow sends a heartbeat a minute; after three missed ones somebody should look.
pub const SILENT_AFTER_MS: i64 = 180_000;

/// A step a few seconds over a short usual time is not worth a glance.
pub const OVERDUE_SLACK_MS: i64 = 30_000;

/// The groups of the overview, in order: id, title, and their states, in order.
pub const GROUPS: [(&str, &str, &[&str]); 3] = [
    ("needs", "Needs a person", &["failed", "overdue", "silent", "waiting", "retry_scheduled"]),
    ("moving", "Moving", &["running", "dispatching", "queued"]),
    ("settled", "Settled", &["new", "succeeded", "cancelled", "stopping", "stopped", "destroyed"]),
];

/// One line: a state in words, where, which attempt, and for how long.
#[derive(Clone, Debug, Template)]
#[template(path = "parts/standing.html")]
pub struct Standing {
    /// A key of the `state` words; `data-state` on pages.
    pub state: &'static str,
    /// That state in a word.
    pub word: &'static str,
    /// The step under way, or the one that failed.
    pub place: &'static str,
    /// `attempt 2 of 4`.
    pub attempt: String,
    /// What stands before the clock.
    pub clock_word: &'static str,
    /// Since when, or how long until.
    pub clock: Clock,
    /// What stands after it.
    pub clock_after: &'static str,
}

/// What an agent and a job have in common.
struct Facts<'a> {
    status: JobStatus,
    steps: &'a [Step],
    attempt: u32,
    max_attempts: u32,
    retry_at: Option<Timestamp>,
    waiting: bool,
    created_at: Timestamp,
    updated_at: Timestamp,
    done_at: Option<Timestamp>,
}

impl Standing {
    /// Of an agent.
    pub fn of_agent(answer: &InstanceAnswer, usual: &Usual, now: Timestamp) -> Self {
        let Some(instance) = &answer.instance else {
            return Self::bare("new", Clock::up(answer.agent.created_at, now));
        };
        match instance.status {
            InstanceStatus::Stopping | InstanceStatus::Stopped | InstanceStatus::Destroyed => {
                Self::bare(instance.status.as_str(), Clock::up(instance.updated_at, now))
            }
            InstanceStatus::Pending
            | InstanceStatus::Provisioning
            | InstanceStatus::Running
            | InstanceStatus::Failed => Self::of(
                &Facts {
                    status: instance.job_status,
                    steps: &answer.steps,
                    attempt: instance.attempt,
                    max_attempts: instance.max_attempts,
                    retry_at: instance.retry_at,
                    waiting: instance.waiting_because.is_some(),
                    created_at: instance.created_at,
                    updated_at: instance.updated_at,
                    done_at: instance.running_since,
                },
                usual,
                now,
            ),
        }
    }

    /// Of a job.
    pub fn of_job(job: &JobAnswer, usual: &Usual, now: Timestamp) -> Self {
        let last = job.timeline.last();
        let standing = Self::of(
            &Facts {
                status: job.status,
                steps: last.map_or(&[], |attempt| attempt.steps.as_slice()),
                attempt: job.attempt_count,
                max_attempts: job.max_attempts,
                retry_at: last.and_then(|attempt| attempt.retry_at),
                waiting: job.waiting_because.is_some(),
                created_at: job.created_at,
                updated_at: job.updated_at,
                done_at: job.finished_at,
            },
            usual,
            now,
        );
        // A node's job builds no server that could be running.
        let own = job.node_id.map(|_| word_of("node", standing.state)).unwrap_or_default();
        if own.is_empty() { standing } else { Self { word: own, ..standing } }
    }

    /// Of a node: where its latest job stands.
    pub fn of_node(node: &NodeAnswer, now: Timestamp) -> Self {
        match &node.job {
            Some(job) => Self::of_job(job, &NO_USUAL, now),
            None => Self::bare("new", Clock::up(node.created_at, now)),
        }
    }

    fn bare(state: &'static str, clock: Clock) -> Self {
        Self {
            state,
            word: word_of("state", state),
            place: "",
            attempt: String::new(),
            clock_word: word_of("clock", state),
            clock,
            clock_after: word_of("after", state),
        }
    }

    fn of(facts: &Facts<'_>, usual: &Usual, now: Timestamp) -> Self {
        let at = facts
            .steps
            .iter()
            .position(|step| matches!(step.status, StepStatus::Active | StepStatus::Error));
        let step = at.map(|index| &facts.steps[index]);
        let began = step.and_then(|step| step.started_at);
        let late = at
            .and_then(|index| usual[index])
            .zip(began)
            .is_some_and(|(usual, began)| between(began, now) > overdue_after_ms(usual));
        let state = match facts.status {
            JobStatus::Queued if facts.waiting => "waiting",
            JobStatus::Queued | JobStatus::Dispatching | JobStatus::Running if late => "overdue",
            JobStatus::Running if between(facts.updated_at, now) > SILENT_AFTER_MS => "silent",
            status => status.as_str(),
        };
        let ended = step.and_then(|step| step.finished_at);
        let clock = match (state, facts.retry_at) {
            ("retry_scheduled", Some(retry_at)) => Clock::down(retry_at, now),
            ("succeeded", _) => Clock::up(facts.done_at.unwrap_or(facts.updated_at), now),
            ("failed" | "cancelled" | "retry_scheduled", _) => {
                Clock::up(ended.unwrap_or(facts.updated_at), now)
            }
            ("silent", _) => Clock::up(facts.updated_at, now),
            _ => Clock::up(began.unwrap_or(facts.created_at), now),
        };
        Self {
            place: step.map_or("", |step| step.label),
            attempt: attempt_of(facts.attempt, facts.max_attempts),
            ..Self::bare(state, clock)
        }
    }
}

/// `attempt 2 of 4`.
pub fn attempt_of(attempt: u32, max_attempts: u32) -> String {
    format!("attempt {attempt} of {max_attempts}")
}

/// How long a step may take before it is overdue.
pub fn overdue_after_ms(usual: UsualDuration) -> i64 {
    usual.p95_ms.max(usual.p50_ms + OVERDUE_SLACK_MS)
}
