//! What the runs of a job have printed: where its log stands, and the rows people read.
//!
//! A log is not folded whole: it may be long. Each event says all that the next one needs, so
//! the last one alone gives the state, and each one by itself gives its rows.

use jiff::Timestamp;
use milepost_schemas::event::JobLogRecorded;
use milepost_schemas::{Attempt, Position};
use serde::Serialize;

/// Where a job's log stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobLog {
    /// Its rows so far.
    pub total: u64,
    /// The attempt that printed last.
    pub attempt: Option<Attempt>,
    /// Of each attempt, the first one first, the number of the last line that was printed.
    pub ends: Vec<u64>,
    /// Where its last event stands.
    pub position: Position,
}

impl JobLog {
    /// The state after the log's last event.
    pub fn after(event: &JobLogRecorded, position: Position) -> Self {
        Self {
            total: event.first_row + rows_of(event) - 1,
            attempt: Some(event.attempt),
            ends: event.ends.clone(),
            position,
        }
    }

    /// The number of an attempt's last line; 0 before its first.
    pub fn end_of(&self, attempt: Attempt) -> u64 {
        self.ends.get(attempt.0.saturating_sub(1) as usize).copied().unwrap_or(0)
    }
}

/// What a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RowKind {
    /// The heading of an attempt's part.
    Attempt,
    /// Says that lines never came.
    Lost,
    /// A line that was printed.
    Output,
}

/// One row of a job's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogRow<'a> {
    /// Its number in the whole log, from 1: the line of `log.txt` it stands in.
    pub line: u64,
    /// What it holds.
    pub kind: RowKind,
    /// The attempt it belongs to.
    pub attempt: Attempt,
    /// The line's number within the attempt; absent for what nobody printed.
    pub number: Option<u64>,
    /// When the log took it.
    pub recorded_at: Timestamp,
    /// What it says.
    pub text: std::borrow::Cow<'a, str>,
}

/// How many rows an event has.
pub fn rows_of(event: &JobLogRecorded) -> u64 {
    u64::from(event.heading) + u64::from(event.lost > 0) + event.lines.len() as u64
}

/// The rows of an event, in order.
pub fn rows(event: &JobLogRecorded, recorded_at: Timestamp) -> impl Iterator<Item = LogRow<'_>> {
    let attempt = event.attempt;
    let heading = event.heading.then(|| (RowKind::Attempt, None, format!("Attempt {attempt}")));
    let lost = (event.lost > 0).then(|| (RowKind::Lost, None, lost_words(event.lost)));
    let said =
        heading.into_iter().chain(lost).map(|(kind, number, text)| (kind, number, text.into()));
    let printed = event.lines.iter().zip(event.from..).map(|(line, number)| {
        (RowKind::Output, Some(number), std::borrow::Cow::Borrowed(line.as_str()))
    });
    said.chain(printed).zip(event.first_row..).map(move |((kind, number, text), line)| LogRow {
        line,
        kind,
        attempt,
        number,
        recorded_at,
        text,
    })
}

fn lost_words(lost: u64) -> String {
    match lost {
        1 => "1 line was lost".to_owned(),
        lost => format!("{lost} lines were lost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{AGENT, JOB, at};

    fn event(heading: bool, lost: u64, lines: &[&str]) -> JobLogRecorded {
        JobLogRecorded {
            job_id: JOB,
            agent_id: Some(AGENT),
            node_id: None,
            attempt: Attempt(2),
            from: 41,
            first_row: 100,
            heading,
            lost,
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            ends: vec![90, 40 + lines.len() as u64],
        }
    }

    #[test]
    fn an_event_s_rows_are_its_heading_its_gap_and_its_lines() {
        let event = event(true, 40, &["a", ""]);
        let rows: Vec<_> = rows(&event, at(7)).collect();
        let told: Vec<_> =
            rows.iter().map(|row| (row.line, row.kind, row.number, &*row.text)).collect();
        assert_eq!(
            told,
            [
                (100, RowKind::Attempt, None, "Attempt 2"),
                (101, RowKind::Lost, None, "40 lines were lost"),
                (102, RowKind::Output, Some(41), "a"),
                (103, RowKind::Output, Some(42), ""),
            ]
        );
        assert!(rows.iter().all(|row| row.attempt == Attempt(2) && row.recorded_at == at(7)));
    }

    #[test]
    fn the_last_event_alone_says_where_the_log_stands() {
        for (heading, lost) in [(false, 0), (true, 0), (false, 1), (true, 40)] {
            let event = event(heading, lost, &["a", "b", "c"]);
            let log = JobLog::after(&event, Position(9));
            assert_eq!(log.total, rows(&event, at(0)).last().unwrap().line);
            assert_eq!((log.end_of(Attempt(1)), log.end_of(Attempt(2))), (90, 43));
            assert_eq!(log.end_of(Attempt(3)), 0);
        }
        assert_eq!(JobLog::default().end_of(Attempt(1)), 0);
    }

    #[test]
    fn one_lost_line_is_one_line() {
        let event = event(false, 1, &["a"]);
        assert_eq!(rows(&event, at(0)).next().unwrap().text, "1 line was lost");
    }
}
