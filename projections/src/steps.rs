//! The five steps of provisioning, and where an attempt stands in them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many steps there are.
pub const COUNT: usize = 5;

/// The steps' ids, in order; they stand in every interface.
pub const IDS: [&str; COUNT] = ["queued", "creating", "installing", "configuring", "running"];

/// What people read.
pub const LABELS: [&str; COUNT] =
    ["Queued", "Creating Server", "Installing Dependencies", "Configuring Agent", "Running"];

/// What people read of a node's job.
pub const NODE_LABELS: [&str; COUNT] =
    ["Queued", "Starting", "Preparing", "Running Playbook", "Done"];

/// The step a failure is shown at when nothing says where it happened.
const FAILED_SOMEWHERE: usize = 2;

/// The steps a workflow posts, in their order, each with the step it puts under way.
const KNOWN: [(&str, usize); 4] =
    [("vm_created", 2), ("network_configured", 2), ("ansible_started", 3), ("ansible_complete", 4)];

/// The rank of a posted step among those known; `None` for a step this version does not know.
fn rank_of(step: &str) -> Option<usize> {
    KNOWN.iter().position(|(name, _)| *name == step)
}

/// The status of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepStatus {
    /// Not reached.
    Pending,
    /// Under way.
    Active,
    /// Behind.
    Completed,
    /// Where it failed.
    Error,
}

impl StepStatus {
    /// The word in `data-status` and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Completed => "completed",
            Self::Error => "error",
        }
    }
}

/// One step as people and pages see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `queued`, `creating`, `installing`, `configuring` or `running`.
    pub id: &'static str,
    /// What people read.
    pub label: &'static str,
    /// Where it stands.
    pub status: StepStatus,
    /// When it began, where a callback said so.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Its length in milliseconds, once it has ended and both ends are known.
    pub duration_ms: Option<i64>,
}

/// How far an attempt has come; within an attempt it never goes backward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The furthest step under way, an index into [`IDS`].
    index: usize,
    /// Whether the last one is behind too.
    done: bool,
    /// Where it failed, an index into [`IDS`].
    failed_at: Option<usize>,
    /// The last known step a workflow posted, in the wire's words.
    pub current_step: Option<String>,
    /// When each step came under way; a step that was only implied by a later one has none.
    reached_at: [Option<Timestamp>; COUNT],
    ended_at: Option<Timestamp>,
}

impl Progress {
    /// A fresh attempt, waiting.
    pub fn queued(at: Timestamp) -> Self {
        Self {
            index: 0,
            done: false,
            failed_at: None,
            current_step: None,
            reached_at: [Some(at), None, None, None, None],
            ended_at: None,
        }
    }

    /// The five steps of an agent nobody has ordered a server for.
    pub fn none() -> [Step; COUNT] {
        std::array::from_fn(|index| Step {
            id: IDS[index],
            label: LABELS[index],
            status: StepStatus::Pending,
            started_at: None,
            finished_at: None,
            duration_ms: None,
        })
    }

    /// The index of the furthest step under way, or the one that failed.
    pub fn index(&self) -> usize {
        self.failed_at.unwrap_or(self.index)
    }

    /// The workflow has begun.
    pub fn start(&mut self, at: Timestamp) {
        self.advance(1, at);
    }

    /// The workflow posted a step; one that is unknown, or behind, moves nothing.
    pub fn record(&mut self, step: &str, at: Timestamp) {
        let Some(rank) = rank_of(step) else { return self.advance(1, at) };
        if self.current_step.as_deref().and_then(rank_of) < Some(rank) {
            self.current_step = Some(step.to_owned());
        }
        self.advance(KNOWN[rank].1, at);
    }

    /// The agent runs: all five are behind.
    pub fn complete(&mut self, at: Timestamp) {
        self.advance(COUNT - 1, at);
        self.done = true;
        self.current_step = None;
        self.ended_at = Some(at);
    }

    /// The attempt failed: at the last step known, else where `failed_step` points, else at 2.
    pub fn fail(&mut self, failed_step: Option<&str>, at: Timestamp) {
        let told = match failed_step {
            Some("provision") => Some(1),
            Some(phase) if phase.starts_with("configure") => Some(3),
            Some(_) | None => None,
        };
        let known = self.current_step.is_some().then_some(self.index);
        self.failed_at = Some(known.or(told).unwrap_or(FAILED_SOMEWHERE));
        self.ended_at = Some(at);
    }

    /// The attempt was ended by somebody: it stops where it stands.
    pub fn stop(&mut self, at: Timestamp) {
        self.failed_at = Some(self.index);
        self.ended_at = Some(at);
    }

    /// The five steps.
    pub fn steps(&self) -> [Step; COUNT] {
        std::array::from_fn(|index| {
            let started_at = self.reached_at[index];
            let finished_at = self.finished_at(index);
            Step {
                id: IDS[index],
                label: LABELS[index],
                status: self.status(index),
                started_at,
                finished_at,
                duration_ms: started_at
                    .zip(finished_at)
                    .map(|(from, to)| to.as_millisecond() - from.as_millisecond()),
            }
        })
    }

    fn advance(&mut self, index: usize, at: Timestamp) {
        if index > self.index {
            self.index = index;
            self.reached_at[index] = Some(at);
        }
    }

    fn status(&self, index: usize) -> StepStatus {
        let here = self.index();
        match index.cmp(&here) {
            _ if self.done => StepStatus::Completed,
            std::cmp::Ordering::Less => StepStatus::Completed,
            std::cmp::Ordering::Greater => StepStatus::Pending,
            std::cmp::Ordering::Equal if self.failed_at.is_some() => StepStatus::Error,
            std::cmp::Ordering::Equal => StepStatus::Active,
        }
    }

    /// A step ends when a later one begins, and the last one with the attempt.
    fn finished_at(&self, index: usize) -> Option<Timestamp> {
        let later = self.reached_at[index + 1..].iter().flatten().next().copied();
        later.or(self.ended_at.filter(|_| index <= self.index()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn statuses(progress: &Progress) -> String {
        progress.steps().iter().map(|step| step.status.as_str().chars().next().unwrap()).collect()
    }

    #[test]
    fn each_row_of_the_table_shows_its_index() {
        let mut progress = Progress::queued(at(0));
        assert_eq!(statuses(&progress), "apppp");
        progress.start(at(1));
        assert_eq!(statuses(&progress), "cappp");
        progress.record("something_new", at(2));
        assert_eq!(statuses(&progress), "cappp");
        progress.record("vm_created", at(3));
        assert_eq!(statuses(&progress), "ccapp");
        progress.record("network_configured", at(4));
        progress.record("vm_created", at(4));
        assert_eq!(progress.current_step.as_deref(), Some("network_configured"));
        assert_eq!(statuses(&progress), "ccapp");
        progress.record("ansible_started", at(5));
        assert_eq!(statuses(&progress), "cccap");
        progress.record("ansible_complete", at(6));
        assert_eq!(statuses(&progress), "cccca");
        progress.complete(at(7));
        assert_eq!(statuses(&progress), "ccccc");
        assert_eq!(progress.current_step, None);
    }

    #[test]
    fn a_failure_stands_at_the_last_step_known() {
        let mut progress = Progress::queued(at(0));
        progress.start(at(1));
        progress.record("ansible_started", at(2));
        progress.fail(Some("provision"), at(3));
        assert_eq!(statuses(&progress), "cccep");
    }

    #[test]
    fn without_a_step_failed_step_says_where_else_it_is_the_third() {
        for (failed_step, expected) in [
            (Some("provision"), "ceppp"),
            (Some("configure"), "cccep"),
            (Some("configure-agent"), "cccep"),
            (Some("elsewhere"), "ccepp"),
            (None, "ccepp"),
        ] {
            let mut progress = Progress::queued(at(0));
            progress.start(at(1));
            progress.fail(failed_step, at(2));
            assert_eq!(statuses(&progress), expected, "{failed_step:?}");
        }
    }

    #[test]
    fn a_late_step_moves_nothing_back() {
        let mut progress = Progress::queued(at(0));
        progress.record("ansible_complete", at(1));
        progress.record("vm_created", at(2));
        progress.start(at(3));
        assert_eq!(statuses(&progress), "cccca");
        assert_eq!(progress.current_step.as_deref(), Some("ansible_complete"));
    }

    #[test]
    fn durations_run_from_step_to_step() {
        let mut progress = Progress::queued(at(0));
        progress.start(at(2));
        progress.record("ansible_started", at(43));
        progress.complete(at(100));
        let durations: Vec<_> = progress.steps().iter().map(|step| step.duration_ms).collect();
        // Installing was only implied; Running began and ended with the callback that said so.
        assert_eq!(durations, [Some(2000), Some(41_000), None, Some(57_000), Some(0)]);
    }
}
