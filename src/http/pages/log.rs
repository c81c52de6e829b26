//! What a job's runs have printed, on a page: the last rows as text, and the element that shows
//! all of them.

use askama::Template;
use milepost_projections::job_log::{LogRow, RowKind};

use super::ansi::{self, Span};
use super::format::number;

/// The log of a job.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "parts/log.html")]
pub struct LogView {
    /// The job; nothing for an agent without one.
    pub job: String,
    /// Rows there are in all.
    pub total: u64,
    /// The last of them.
    pub rows: Vec<RowView>,
    /// The position that it is shown at, on a page of the past.
    pub at: Option<u64>,
}

/// One row.
#[derive(Clone, Debug)]
pub struct RowView {
    /// Its number in the log.
    pub line: u64,
    /// `attempt`, `lost` or `output`.
    pub kind: &'static str,
    /// The attempt it belongs to.
    pub attempt: u32,
    /// What it says.
    pub spans: Vec<Span>,
}

impl LogView {
    /// The end of a job's log.
    pub fn new(job: String, total: u64, rows: &[LogRow<'_>]) -> Self {
        Self { job, total, rows: rows.iter().map(RowView::of).collect(), at: None }
    }

    fn count(&self) -> String {
        match self.total {
            1 => "1 line".to_owned(),
            total => format!("{} lines", number(total)),
        }
    }

    fn has_earlier(&self) -> bool {
        self.rows.len() < self.total as usize
    }
}

impl RowView {
    fn of(row: &LogRow<'_>) -> Self {
        let kind = match row.kind {
            RowKind::Attempt => "attempt",
            RowKind::Lost => "lost",
            RowKind::Output => "output",
        };
        Self { line: row.line, kind, attempt: row.attempt.0, spans: ansi::spans(&row.text) }
    }

    fn is_heading(&self) -> bool {
        self.kind == "attempt"
    }
}
