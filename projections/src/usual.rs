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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Jobs;
    use crate::tests::{at, queued, started, succeeded};
    use crate::{Projection, Recorded};
    use milepost_schemas::Position;

    /// A job that waited this long, then ran this long.
    fn job(waited_seconds: i64, ran_seconds: i64) -> Job {
        let ended = succeeded(None).remove(0);
        let times = [0, waited_seconds, waited_seconds + ran_seconds].map(at);
        let mut state = None;
        for (event, recorded_at) in [queued(), started(1), ended].iter().zip(times) {
            let (position, stream) = (Position(1), crate::tests::JOB.stream());
            let recorded =
                Recorded { position, stream, version: 1, recorded_at, delivery_id: None, event };
            Jobs::apply(&mut state, &recorded);
        }
        state.unwrap()
    }

    #[test]
    fn too_few_samples_say_nothing() {
        let jobs: Vec<Job> = (1..=SAMPLES_MIN as i64).map(|n| job(n, 60)).collect();
        assert_eq!(usual(&[]), [None; COUNT]);
        assert_eq!(usual(&jobs[1..]), [None; COUNT]);
        assert!(usual(&jobs)[0].is_some());
    }

    #[test]
    fn the_median_and_the_95th_percentile_are_told_for_each_step() {
        let jobs: Vec<Job> = (1..=100).rev().map(|n| job(n, 60)).collect();
        let usual = usual(&jobs);
        assert_eq!(usual[0], Some(UsualDuration { p50_ms: 51_000, p95_ms: 96_000 }));
        assert_eq!(usual[1], Some(UsualDuration { p50_ms: 60_000, p95_ms: 60_000 }));
        // Implied by a later step: nobody knows how long they took.
        assert_eq!(usual[2..4], [None, None]);
    }
}
