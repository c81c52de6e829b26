//! Durations, times and numbers as pages write them. `assets/format.js` writes them the same way.

use askama::Template;
use jiff::{SignedDuration, Timestamp};

const SECOND_MS: i64 = 1000;
const HOUR_S: i64 = 3600;
const DAY_S: i64 = 86_400;

/// `1:12`, from an hour `2:05:09`, from a day `3 d 4 h`. Below zero is `0:00`.
pub fn duration(ms: i64) -> String {
    let seconds = ms.max(0) / SECOND_MS;
    match seconds {
        0..HOUR_S => format!("{}:{:02}", seconds / 60, seconds % 60),
        HOUR_S..DAY_S => {
            format!("{}:{:02}:{:02}", seconds / HOUR_S, seconds % HOUR_S / 60, seconds % 60)
        }
        _ => format!("{} d {} h", seconds / DAY_S, seconds % DAY_S / HOUR_S),
    }
}

/// `1 minute 12 seconds`, for ears.
pub fn spoken(ms: i64) -> String {
    let seconds = ms.max(0) / SECOND_MS;
    let parts: Vec<String> =
        [(seconds / HOUR_S, "hour"), (seconds % HOUR_S / 60, "minute"), (seconds % 60, "second")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, unit)| format!("{count} {unit}{}", if count == 1 { "" } else { "s" }))
            .collect();
    if parts.is_empty() { "0 seconds".into() } else { parts.join(" ") }
}

/// `18,234`.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12:04:31` on the day of `now`, else `28 Jul 12:04`. UTC, like every time on a page.
pub fn time(at: Timestamp, now: Timestamp) -> String {
    let same_day = at.strftime("%F").to_string() == now.strftime("%F").to_string();
    at.strftime(if same_day { "%H:%M:%S" } else { "%-d %b %H:%M" }).to_string()
}

/// `2026-07-29 12:04:31 UTC`: what a time says on hover.
pub fn full(at: Timestamp) -> String {
    at.strftime("%F %T UTC").to_string()
}

/// Milliseconds from one time to another.
pub fn between(from: Timestamp, to: Timestamp) -> i64 {
    to.as_millisecond() - from.as_millisecond()
}

/// A duration on a page: one that grows, one that shrinks, one that stands, or space for one.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "parts/clock.html")]
pub struct Clock {
    /// `up`, `down`, `fixed`, or nothing.
    pub kind: &'static str,
    /// Where it counts from or to, in milliseconds since 1970; a fixed one's length.
    pub ms: i64,
    /// What it shows at first.
    pub text: String,
    /// The `datetime` attribute.
    pub machine: String,
    /// What it says on hover.
    pub hover: String,
}

impl Clock {
    /// Grows from `from`.
    pub fn up(from: Timestamp, now: Timestamp) -> Self {
        Self {
            kind: "up",
            ms: from.as_millisecond(),
            text: duration(between(from, now)),
            machine: from.to_string(),
            hover: format!("since {}", full(from)),
        }
    }

    /// Shrinks until `until`.
    pub fn down(until: Timestamp, now: Timestamp) -> Self {
        Self {
            kind: "down",
            ms: until.as_millisecond(),
            text: duration(between(now, until)),
            machine: until.to_string(),
            hover: format!("at {}", full(until)),
        }
    }

    /// Stands.
    pub fn fixed(ms: i64, from: Option<Timestamp>) -> Self {
        Self {
            kind: "fixed",
            ms,
            text: duration(ms),
            machine: SignedDuration::from_millis(ms).to_string(),
            hover: from.map(|from| format!("from {}", full(from))).unwrap_or_default(),
        }
    }
}

/// A time of day on a page.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "parts/moment.html")]
pub struct Moment {
    /// What it shows.
    pub text: String,
    /// The `datetime` attribute.
    pub machine: String,
    /// What it says on hover.
    pub hover: String,
}

impl Moment {
    /// That time, as seen on the day of `now`.
    pub fn of(at: Timestamp, now: Timestamp) -> Self {
        Self { text: time(at, now), machine: at.to_string(), hover: full(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_grow_units() {
        let texts = [-5, 0, 999, 72_000, 3_599_000, 3_600_000, 7_509_000, 86_400_000, 273_600_000]
            .map(duration);
        assert_eq!(
            texts,
            ["0:00", "0:00", "0:00", "1:12", "59:59", "1:00:00", "2:05:09", "1 d 0 h", "3 d 4 h"]
        );
    }

    #[test]
    fn spoken_durations_name_their_units() {
        assert_eq!(spoken(72_000), "1 minute 12 seconds");
        assert_eq!(spoken(0), "0 seconds");
        assert_eq!(spoken(3_601_000), "1 hour 1 second");
    }

    #[test]
    fn numbers_stand_in_threes() {
        assert_eq!(
            [0, 999, 1000, 18_234, 1_234_567].map(number),
            ["0", "999", "1,000", "18,234", "1,234,567"]
        );
    }

    #[test]
    fn another_day_names_itself() {
        let now: Timestamp = "2026-07-29T12:04:31Z".parse().unwrap();
        assert_eq!(time("2026-07-29T01:02:03.9Z".parse().unwrap(), now), "01:02:03");
        assert_eq!(time("2026-07-28T23:59:59Z".parse().unwrap(), now), "28 Jul 23:59");
    }
}
