//! One step on a page: a segment of an overview row's bar, or a line of an attempt.

use jiff::Timestamp;
use milepost_projections::usual::UsualDuration;
use milepost_projections::{Step, StepStatus};

use super::Usual;
use super::format::{Clock, between, duration, spoken};
use super::standing::overdue_after_ms;
use super::words::word_of;

/// The width of a full track, in the units of its drawing.
pub const TRACK: i64 = 1000;

/// The shortest track: without any history a step of seconds should not fill it.
const SCALE_MIN_MS: i64 = 60_000;

/// One step, ready to be written.
#[derive(Clone, Debug)]
pub struct StepView {
    /// `data-step`.
    pub id: &'static str,
    /// What people read.
    pub label: &'static str,
    /// `data-status`.
    pub status: &'static str,
    /// That status in a word.
    pub status_word: &'static str,
    /// When it began, in milliseconds since 1970.
    pub started_ms: Option<i64>,
    /// How long it took, in milliseconds, once it has ended.
    pub ended_after_ms: Option<i64>,
    /// How long it has taken.
    pub clock: Clock,
    /// What is usual, in words.
    pub usual_text: String,
    /// The median, in milliseconds.
    pub p50_ms: Option<i64>,
    /// The 95th percentile, in milliseconds.
    pub p95_ms: Option<i64>,
    /// After this many milliseconds it is overdue.
    pub overdue_ms: Option<i64>,
    /// Whether it is.
    pub overdue: bool,
    /// How much of the track its time fills, of [`TRACK`].
    pub spent: i64,
    /// How much of its segment of a bar its time fills, of [`TRACK`].
    pub share: i64,
    /// How much of the track the usual time fills.
    pub usual: i64,
    /// Where on the track 95 in 100 are done.
    pub limit: i64,
    /// The same for ears, where the step is under way.
    pub value_text: String,
}

impl StepView {
    /// Whether the step is under way.
    pub fn is_active(&self) -> bool {
        self.status == "active"
    }

    /// Whether the step is the one that failed.
    pub fn is_error(&self) -> bool {
        self.status == "error"
    }

    /// The share in percent.
    pub fn percent(&self) -> i64 {
        self.share / 10
    }
}

/// The steps of one attempt, on one scale.
pub fn views(steps: &[Step], usual: &Usual, now: Timestamp) -> Vec<StepView> {
    let scale_ms = scale_ms(steps, usual, now);
    steps.iter().zip(usual).map(|(step, usual)| view(step, *usual, scale_ms, now)).collect()
}

fn view(step: &Step, usual: Option<UsualDuration>, scale_ms: i64, now: Timestamp) -> StepView {
    let spent_ms = spent_ms(step, now);
    let active = step.status == StepStatus::Active;
    let clock = match (step.status, step.started_at) {
        (StepStatus::Active, Some(from)) => Clock::up(from, now),
        (StepStatus::Completed | StepStatus::Error, from) => {
            step.duration_ms.map(|ms| Clock::fixed(ms, from)).unwrap_or_default()
        }
        _ => Clock::default(),
    };
    let on_track = |ms: i64| (ms * TRACK / scale_ms).clamp(0, TRACK);
    let share = match (step.status, usual) {
        (StepStatus::Active, Some(usual)) => {
            (spent_ms.unwrap_or(0) * TRACK / usual.p50_ms.max(1)).clamp(0, TRACK)
        }
        (StepStatus::Active, None) => TRACK / 2,
        (StepStatus::Completed | StepStatus::Error, _) => TRACK,
        (StepStatus::Pending, _) => 0,
    };
    StepView {
        id: step.id,
        label: step.label,
        status: step.status.as_str(),
        status_word: word_of("step", step.status.as_str()),
        started_ms: step.started_at.map(Timestamp::as_millisecond),
        ended_after_ms: step.duration_ms,
        clock,
        usual_text: usual.map(usual_text).unwrap_or_default(),
        p50_ms: usual.map(|usual| usual.p50_ms),
        p95_ms: usual.map(|usual| usual.p95_ms),
        overdue_ms: usual.map(overdue_after_ms),
        overdue: active
            && usual.zip(spent_ms).is_some_and(|(usual, ms)| ms > overdue_after_ms(usual)),
        spent: spent_ms.map_or(0, on_track),
        share,
        usual: usual.map_or(0, |usual| on_track(usual.p50_ms)),
        limit: usual.map_or(0, |usual| on_track(usual.p95_ms)),
        value_text: match (active, spent_ms, usual) {
            (true, Some(ms), Some(usual)) => {
                format!("{}, {}, usually {}", step.label, spoken(ms), spoken(usual.p50_ms))
            }
            (true, Some(ms), None) => format!("{}, {}", step.label, spoken(ms)),
            (true, None, _) => step.label.into(),
            (false, ..) => String::new(),
        },
    }
}

/// The time a step has taken, as far as it is known.
fn spent_ms(step: &Step, now: Timestamp) -> Option<i64> {
    match step.status {
        StepStatus::Active => step.started_at.map(|from| between(from, now).max(0)),
        StepStatus::Completed | StepStatus::Error => step.duration_ms,
        StepStatus::Pending => None,
    }
}

/// The length of the track: holds every ended step and what is usual for all with a tenth to
/// spare, and doubles when the step under way outgrows it, so that nothing moves from second to second.
fn scale_ms(steps: &[Step], usual: &Usual, now: Timestamp) -> i64 {
    let known = steps.iter().filter_map(|step| step.duration_ms);
    let usually = usual.iter().flatten().map(|usual| usual.p95_ms);
    let mut scale = known.chain(usually).fold(SCALE_MIN_MS, i64::max) * 11 / 10;
    let longest = steps.iter().filter_map(|step| spent_ms(step, now)).max().unwrap_or(0);
    while scale < longest {
        scale *= 2;
    }
    scale
}

fn usual_text(usual: UsualDuration) -> String {
    format!("usually {}, 95\u{a0}% under {}", duration(usual.p50_ms), duration(usual.p95_ms))
}
