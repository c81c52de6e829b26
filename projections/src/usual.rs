//! How long each step usually takes, from the jobs that succeeded lately.

use serde::Serialize;

use crate::Job;
use crate::steps::COUNT;

/// Jobs looked at: enough for a steady 95th percentile, few enough to follow a change.
pub const JOBS_MAX: usize = 200;

/// Fewer samples than this say nothing about what is usual.
pub const SAMPLES_MIN: usize = 3;

/// What is usual for one step, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct UsualDuration {
    /// Half take at most this.
    pub p50_ms: i64,
    /// 95 in 100 take at most this.
    pub p95_ms: i64,
}

/// What is usual for each of the five steps; `None` with too few samples to say.
pub fn usual<'a>(succeeded: impl IntoIterator<Item = &'a Job>) -> [Option<UsualDuration>; COUNT] {
    let mut samples_ms: [Vec<i64>; COUNT] = Default::default();
    for job in succeeded {
        for (samples, step) in samples_ms.iter_mut().zip(job.attempt().progress.steps()) {
            samples.extend(step.duration_ms);
        }
    }
    samples_ms.map(|mut samples| {
        samples.sort_unstable();
        let at = |percent: usize| samples[(samples.len() * percent / 100).min(samples.len() - 1)];
        (samples.len() >= SAMPLES_MIN).then(|| UsualDuration { p50_ms: at(50), p95_ms: at(95) })
    })
}
