//! `?at=`: the place in the log that a question is about.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use milepost_schemas::Position;

use super::problem::Problem;
use crate::app::App;
use crate::log::DatabaseError;

/// The parameter's name.
const NAME: &str = "at";

/// Where a question is asked from: now, or a place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At(pub Option<Past>);

/// A place in the log. What is answered there never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// Everything up to here has happened.
    pub position: Position,
    /// When that event was recorded: the `now` of every duration. Before the first event, when
    /// the log began.
    pub recorded_at: Timestamp,
    /// Where the log ended when it was asked.
    pub head: Position,
}

/// What somebody wrote for a place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Position(u64),
    Time(Timestamp),
}

impl At {
    /// The time that durations are told from.
    pub fn now(self, app: &App) -> Timestamp {
        self.0.map_or_else(|| app.clock.now(), |past| past.recorded_at)
    }

    /// Up to where the log is read; `None` for all of it.
    pub fn position(self) -> Option<Position> {
        self.0.map(|past| past.position)
    }
}

impl Past {
    /// The place that was written: a position, or a time, which is the last position by then.
    ///
    /// # Errors
    /// 400 for what is neither; 404 for what has not happened yet; 410 up to the floor, where not all
    /// of what there was is here; 503 when the log cannot be read.
    pub async fn find(app: &App, name: &str, text: &str) -> Result<Self, Problem> {
        let (position, head) = place(app, name, text).await?;
        let recorded_at = app.log.time_by(position).await?;
        // Behind the read: what leaves the database in between is noticed. The event at the floor
        // itself may be archived, and with it the `now` of every duration.
        let floor = app.log.floor().await?;
        if position > Position::START && position <= floor {
            return Err(DatabaseError::Archived { floor }.into());
        }
        let began = Timestamp::from_second(app.log.feed().epoch());
        let recorded_at = recorded_at.unwrap_or(began.unwrap_or(Timestamp::UNIX_EPOCH));
        Ok(Self { position, recorded_at, head })
    }

    /// The last position of a range that ends at a place.
    ///
    /// # Errors
    /// As [`place`].
    pub async fn find_to(app: &App, name: &str, text: &str) -> Result<Position, Problem> {
        Ok(place(app, name, text).await?.0)
    }

    /// The position before the first event from a place on: of a position itself, or of a time.
    ///
    /// # Errors
    /// As [`place`].
    pub async fn find_from(app: &App, name: &str, text: &str) -> Result<Position, Problem> {
        if let Some(Written::Time(time)) = parse(text) {
            let (_, head) = app.log.head().await?;
            // What was recorded at that very time belongs to it; the log counts microseconds.
            let before = time.saturating_sub(SignedDuration::from_micros(1));
            return Ok(app.log.position_by(before.unwrap_or(time), head).await?);
        }
        let (position, _) = place(app, name, text).await?;
        Ok(Position(position.0.saturating_sub(1)))
    }
}

/// The position that was written, and the log's head.
///
/// # Errors
/// 400 for what is no place; 404 for what has not happened yet; 503 when the log cannot be read.
async fn place(app: &App, name: &str, text: &str) -> Result<(Position, Position), Problem> {
    let written = parse(text).ok_or_else(|| {
        let detail = format!(
            "{name}={text} is neither a position (18234) nor a time (2026-07-29T12:04:31Z)"
        );
        Problem::bad_request(detail)
    })?;
    let (_, head) = app.log.head().await?;
    let position = match written {
        Written::Position(position) => Position(position),
        Written::Time(time) if time > app.clock.now() => return Err(beyond(head)),
        Written::Time(time) => app.log.position_by(time, head).await?,
    };
    if position > head { Err(beyond(head)) } else { Ok((position, head)) }
}

/// What comes later may be anything: an answer would not be the same tomorrow.
fn beyond(head: Position) -> Problem {
    let detail = format!("The log ends at {head}: what comes after has not happened yet");
    Problem::new(StatusCode::NOT_FOUND, "not-yet", "Not yet", detail).with("head", head.0)
}

impl FromRequestParts<Arc<App>> for At {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let found = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == NAME);
        // A form that is sent empty asks for nothing.
        let Some((_, text)) = found.filter(|(_, text)| !text.is_empty()) else {
            return Ok(Self(None));
        };
        Past::find(app, NAME, &text).await.map(|past| Self(Some(past)))
    }
}

/// A position, as pages write them too (`#18,234`), or a time; one without a zone is UTC, like
/// every time on a page.
fn parse(text: &str) -> Option<Written> {
    let text = text.trim();
    let digits = text.strip_prefix('#').unwrap_or(text).replace(',', "");
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return digits.parse().ok().map(Written::Position);
    }
    let text = text.strip_suffix(" UTC").unwrap_or(text);
    let time = text.parse::<Timestamp>().ok().or_else(|| {
        let civil: DateTime = text.parse().ok()?;
        civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    });
    time.map(Written::Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_as_a_position_or_as_a_time() {
        let noon: Timestamp = "2026-07-29T12:04:31Z".parse().unwrap();
        for (text, expected) in [
            ("18234", Some(Written::Position(18_234))),
            ("#18,234", Some(Written::Position(18_234))),
            ("0", Some(Written::Position(0))),
            ("18446744073709551615", Some(Written::Position(u64::MAX))),
            ("18446744073709551616", None),
            ("2026-07-29T12:04:31Z", Some(Written::Time(noon))),
            ("2026-07-29T14:04:31+02:00", Some(Written::Time(noon))),
            ("2026-07-29T12:04:31", Some(Written::Time(noon))),
            ("2026-07-29 12:04:31 UTC", Some(Written::Time(noon))),
            ("-1", None),
            ("1.5", None),
            ("yesterday", None),
            ("2026-13-01T00:00:00Z", None),
            ("#", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
