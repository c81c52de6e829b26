//! How long each step usually takes, from the jobs that succeeded lately.

use std::collections::{BTreeMap, VecDeque};

use milepost_schemas::{Event, JobId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::job::job_of;
use crate::steps::{COUNT, Progress};
use crate::{Projection, Recorded};

/// Durations kept a step: enough for a steady 95th percentile, few enough to follow a change.
pub const SAMPLES_MAX: usize = 200;

/// Jobs under way that are followed at once; the oldest gives way. Far above what one Milepost
/// runs, and a bound on the row.
pub const IN_FLIGHT_MAX: usize = 10_000;

/// Fewer samples than this say nothing about what is usual.
pub const SAMPLES_MIN: usize = 3;

/// The usual durations of the five steps; one row for the whole log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usual {
    in_flight: BTreeMap<JobId, Progress>,
    samples_ms: [VecDeque<i64>; COUNT],
}

/// What is usual for one step, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct UsualDuration {
    /// Half take at most this.
    pub p50_ms: i64,
    /// 95 in 100 take at most this.
    pub p95_ms: i64,
}

impl Usual {
    /// What is usual for the step with that index; `None` with too few samples to say.
    pub fn of(&self, step: usize) -> Option<UsualDuration> {
        let samples = self.samples_ms.get(step).filter(|samples| samples.len() >= SAMPLES_MIN)?;
        let mut sorted: Vec<i64> = samples.iter().copied().collect();
        sorted.sort_unstable();
        let at = |percent: usize| sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)];
        Some(UsualDuration { p50_ms: at(50), p95_ms: at(95) })
    }

    /// What is usual for each of the five.
    pub fn all(&self) -> [Option<UsualDuration>; COUNT] {
        std::array::from_fn(|step| self.of(step))
    }

    fn learn(&mut self, progress: &Progress) {
        for (samples, step) in self.samples_ms.iter_mut().zip(progress.steps()) {
            if let Some(duration_ms) = step.duration_ms {
                if samples.len() == SAMPLES_MAX {
                    samples.pop_front();
                }
                samples.push_back(duration_ms);
            }
        }
    }

    fn begin(&mut self, job: JobId, progress: Progress) {
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            self.in_flight.pop_first();
        }
        self.in_flight.insert(job, progress);
    }
}

/// The view of usual durations.
pub struct Usuals;

impl Projection for Usuals {
    const NAME: &'static str = "usual";
    const VERSION: i16 = 1;
    type State = Usual;

    fn key(event: &Event) -> Option<Uuid> {
        job_of(event).map(|_| Uuid::nil())
    }

    fn apply(state: &mut Usual, recorded: &Recorded<'_>) {
        let at = recorded.recorded_at;
        match recorded.event {
            Event::JobQueued(event) => state.begin(event.job_id, Progress::queued(at)),
            Event::JobRetried(event) => state.begin(event.job_id, Progress::queued(at)),
            Event::ProvisioningStarted(event) => {
                if let Some(progress) = state.in_flight.get_mut(&event.job_id) {
                    progress.start(at);
                }
            }
            Event::ProvisioningStepRecorded(event) => {
                if let Some(progress) = state.in_flight.get_mut(&event.job_id) {
                    progress.record(&event.step, at);
                }
            }
            Event::JobSucceeded(event) => {
                if let Some(mut progress) = state.in_flight.remove(&event.job_id) {
                    progress.complete(at);
                    state.learn(&progress);
                }
            }
            Event::JobFailed(event) => {
                state.in_flight.remove(&event.job_id);
            }
            Event::JobCancelled(event) => {
                state.in_flight.remove(&event.job_id);
            }
            Event::WorkflowDispatchRequested(_)
            | Event::WorkflowDispatched(_)
            | Event::WorkflowDispatchFailed(_)
            | Event::HeartbeatRecorded(_)
            | Event::LateCallbackRecorded(_)
            | Event::AgentCreated(_)
            | Event::ProvisioningRequested(_)
            | Event::AgentActivated(_)
            | Event::ProvisioningEnded(_)
            | Event::InstanceRequested(_)
            | Event::InstanceStarted(_)
            | Event::CallbackRejected(_) => {}
        }
    }
}
