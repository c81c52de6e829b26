//! The views: where each stands, what is ordered of it and how far that is, what it stopped at.

use askama::Template;
use jiff::Timestamp;
use milepost_projections::upkeep::{Ended, OrderKind, upkeep_stream};

use super::Frame;
use super::format::{Moment, duration, number};
use crate::views::{Difference, Phase, PoisonEvent, Progress, ProjectionStatus};

/// `GET /projections`.
#[derive(Clone, Debug, Template)]
#[template(path = "projections.html")]
pub struct ProjectionsPage {
    frame: Frame,
    views: Vec<View>,
}

/// One view.
#[derive(Clone, Debug)]
struct View {
    name: &'static str,
    version: i16,
    generation: String,
    state: &'static str,
    state_word: String,
    position: String,
    is_behind: bool,
    lag: String,
    rate: String,
    poison: Vec<Poison>,
    skipped: Vec<String>,
    order: Option<Work>,
    former: Option<Former>,
    ended: Vec<String>,
    /// What is said of it to those who listen, when that changes.
    told: String,
}

#[derive(Clone, Debug)]
struct Poison {
    position: u64,
    position_text: String,
    error: String,
    at: Moment,
}

#[derive(Clone, Debug)]
struct Former {
    generation: i32,
    at: Moment,
}

/// An order under way.
#[derive(Clone, Debug)]
struct Work {
    title: String,
    phase: &'static str,
    percent: Option<u64>,
    facts: String,
    difference: Option<String>,
    checksums: Option<String>,
    differs: bool,
    rebuild: bool,
}

impl ProjectionsPage {
    /// The page for those views, in their order.
    pub fn new(frame: Frame, views: &[ProjectionStatus]) -> Self {
        let now = frame.now;
        Self { views: views.iter().map(|view| View::new(view, now)).collect(), frame }
    }

    /// Whether something changes that no event tells of.
    fn is_moving(&self) -> bool {
        self.views.iter().any(|view| view.order.is_some() || view.is_behind)
    }

    /// The streams that tell what is ordered.
    fn streams(&self) -> String {
        let streams = self.views.iter().map(|view| upkeep_stream(view.name).to_string());
        streams.collect::<Vec<_>>().join(" ")
    }
}

impl View {
    fn new(status: &ProjectionStatus, now: Timestamp) -> Self {
        let (state, state_word) = state_of(status);
        let order = Work::of(status);
        let ends = || status.ended.iter().chain(&status.verified);
        let told = match (&order, ends().max_by_key(|end| end.at)) {
            (Some(order), _) => order.phase.to_owned(),
            (None, Some(end)) => ended(end),
            (None, None) => state_word.clone(),
        };
        let former = status.generations.iter().find(|generation| {
            generation.state == "former" && generation.version == status.version
        });
        Self {
            name: status.name,
            version: status.version,
            generation: status.generation.map_or_else(|| "none".into(), |it| it.to_string()),
            state,
            state_word,
            position: number(status.position.0),
            is_behind: status.lag_events > 0,
            lag: match status.lag_events {
                0 => "up to date".to_owned(),
                events => format!("{} events, {:.1} s", number(events), status.lag_seconds),
            },
            rate: format!("{} events/s", number(status.events_per_second.max(0.0) as u64)),
            poison: status.poison.iter().map(|poison| Poison::new(poison, now)).collect(),
            skipped: status
                .skipped
                .iter()
                .map(|it| format!("#{} by {}: {}", number(it.position.0), it.by, it.reason))
                .collect(),
            order,
            former: former
                .map(|it| Former { generation: it.generation, at: Moment::of(it.updated_at, now) }),
            ended: ends().map(ended).collect(),
            told,
        }
    }
}

/// The state of a view: its name for the style, and in words.
fn state_of(status: &ProjectionStatus) -> (&'static str, String) {
    if status.poisoned > 0 {
        let streams = if status.poisoned == 1 { "stream" } else { "streams" };
        return ("wrong", format!("Stopped at {} {streams}", status.poisoned));
    }
    match (status.generation, status.lag_events) {
        (None, _) => ("now", "Being filled for the first time".to_owned()),
        (Some(_), 0) => ("done", "Up to date".to_owned()),
        (Some(_), _) => ("now", "Catching up".to_owned()),
    }
}

impl Poison {
    fn new(poison: &PoisonEvent, now: Timestamp) -> Self {
        Self {
            position: poison.position.0,
            position_text: number(poison.position.0),
            error: poison.error.clone(),
            at: Moment::of(poison.recorded_at, now),
        }
    }
}

impl Work {
    fn of(status: &ProjectionStatus) -> Option<Self> {
        let order = status.order.as_ref()?;
        let what = match order.kind {
            OrderKind::Rebuild => "Rebuild",
            OrderKind::Rollback => "Roll-back",
            OrderKind::Verify => "Verification",
        };
        let why = order.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let progress = status.progress.as_ref().map(|it| &it.progress);
        let difference = progress.and_then(|progress| progress.difference.as_ref());
        Some(Self {
            title: format!("{what} ordered by {}{why}", order.by),
            phase: progress.map_or("waits for the process that runs the view", |it| phase(it)),
            percent: progress
                .filter(|it| it.target > 0)
                .map(|it| (it.events.min(it.target) * 100) / it.target),
            facts: progress.map_or_else(String::new, |it| {
                let left = it
                    .remaining_ms
                    .map_or_else(String::new, |ms| format!(" · {} to go", duration(ms as i64)));
                format!(
                    "{} of {} events · {} events/s · {}{left}",
                    number(it.events),
                    number(it.target),
                    number(it.events_per_second.max(0.0) as u64),
                    duration(it.elapsed_ms as i64),
                )
            }),
            differs: difference.is_some_and(|it| it.differing > 0),
            difference: difference.map(in_words),
            checksums: difference.map(|it| {
                format!("SHA-256 read now {} · new {}", it.checksum_old, it.checksum_new)
            }),
            rebuild: order.kind == OrderKind::Rebuild,
        })
    }
}

fn phase(progress: &Progress) -> &'static str {
    match progress.phase {
        Phase::Folding => "folding the log",
        Phase::Writing => "writing the rows",
        Phase::CatchingUp => "catching up",
        Phase::Comparing => "comparing",
        Phase::Waiting if progress.difference.is_none() => {
            "waiting for you: the rows that are read do not follow the log, so nothing was compared"
        }
        Phase::Waiting => "waiting for you: look at what differs",
        Phase::Switching => "taking over",
    }
}

fn in_words(difference: &Difference) -> String {
    let at = number(difference.position.0);
    match difference.first.first() {
        None => {
            format!("At #{at} all {} rows are equal, byte for byte.", number(difference.rows_new))
        }
        Some(first) => format!(
            "At #{at} {} of {} rows differ; the first is {first}.",
            number(difference.differing),
            number(difference.rows_new.max(difference.rows_old)),
        ),
    }
}

fn ended(end: &Ended) -> String {
    let what = match end.kind {
        OrderKind::Rebuild => "rebuild",
        OrderKind::Rollback => "roll-back",
        OrderKind::Verify => "verification",
    };
    let outcome = end.outcome.map_or("taken back", |outcome| outcome.as_str());
    let at = end.position.map(|at| format!(" at #{}", number(at.0))).unwrap_or_default();
    let first = end
        .first_difference
        .map(|first| format!(", {} rows differ, first {first}", end.differing.unwrap_or(0)))
        .unwrap_or_default();
    let error = end.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    format!("{what} by {}, {outcome}{at}{first}{error}", end.by)
}
