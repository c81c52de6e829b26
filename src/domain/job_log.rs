//! What becomes of printed lines: those that are new go to the end of the job's log.
//!
//! Lines after the end of their attempt, or of the job, are kept like all others: they may say
//! why it ended.

use milepost_projections::JobLog;
use milepost_schemas::event::JobLogRecorded;
use milepost_schemas::{AgentId, Attempt, JobId, NodeId};

/// Lines that a run has printed.
#[derive(Clone, Copy, Debug)]
pub struct PrintedLines<'a> {
    /// The job.
    pub job_id: JobId,
    /// What it changes, as events name it.
    pub subject: (Option<AgentId>, Option<NodeId>),
    /// The attempt that printed them; it has begun.
    pub attempt: Attempt,
    /// The number of the first one within the attempt, from 1.
    pub from: u64,
    /// The lines, in order.
    pub lines: &'a [String],
}

/// Decides what of some lines goes to the end of a job's log: `None` where all of them are there
/// already. What overlaps is passed over, and a gap is recorded.
pub fn decide(log: &JobLog, printed: &PrintedLines<'_>) -> Option<JobLogRecorded> {
    let PrintedLines { job_id, subject, attempt, from, lines } = *printed;
    let (agent_id, node_id) = subject;
    let end = log.end_of(attempt);
    let known = (end + 1).saturating_sub(from);
    if known >= lines.len() as u64 {
        return None;
    }
    let lines = lines[known as usize..].to_vec();
    let from = from + known;
    let mut ends = log.ends.clone();
    let index = attempt.0 as usize - 1;
    ends.resize(ends.len().max(index + 1), 0);
    ends[index] = from + lines.len() as u64 - 1;
    Some(JobLogRecorded {
        job_id,
        agent_id,
        node_id,
        attempt,
        from,
        first_row: log.total + 1,
        heading: log.attempt != Some(attempt),
        lost: from - end - 1,
        lines,
        ends,
    })
}

#[cfg(test)]
mod tests {
    use milepost_projections::job_log::rows;
    use milepost_schemas::Position;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    /// An attempt, the number of its first line, and the lines.
    type Said = (u32, u64, Vec<String>);

    fn printed(attempt: u32, from: u64, lines: &[&str]) -> Said {
        (attempt, from, lines.iter().map(|line| (*line).to_owned()).collect())
    }

    /// The events that these lines become, each decided by the one before it alone.
    fn record(said: impl IntoIterator<Item = Said>) -> Vec<JobLogRecorded> {
        let mut events: Vec<JobLogRecorded> = Vec::new();
        for (attempt, from, lines) in said {
            let position = Position(events.len() as u64);
            let log = events.last().map(|event| JobLog::after(event, position));
            let printed = PrintedLines {
                job_id: JobId(Uuid::from_u128(1)),
                subject: (Some(AgentId(Uuid::from_u128(2))), None),
                attempt: Attempt(attempt),
                from,
                lines: &lines,
            };
            events.extend(decide(&log.unwrap_or_default(), &printed));
        }
        events
    }

    /// What people read.
    fn text(events: &[JobLogRecorded]) -> Vec<String> {
        let at = jiff::Timestamp::UNIX_EPOCH;
        events
            .iter()
            .flat_map(|event| rows(event, at).map(|row| row.text.into_owned()).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn lines_follow_each_other_under_one_heading() {
        let events = record([printed(1, 1, &["a", "b"]), printed(1, 3, &["c"])]);
        assert_eq!(text(&events), ["Attempt 1", "a", "b", "c"]);
        assert_eq!(events[1].first_row, 4);
        assert_eq!(events[1].ends, [3]);
    }

    #[test]
    fn what_is_there_already_is_passed_over() {
        let events = record([
            printed(1, 1, &["a", "b"]),
            printed(1, 1, &["a", "b"]),
            printed(1, 2, &["b"]),
            printed(1, 2, &["b", "c"]),
        ]);
        assert_eq!(text(&events), ["Attempt 1", "a", "b", "c"]);
        assert_eq!((events.len(), events[1].from), (2, 3));
    }

    #[test]
    fn a_gap_is_recorded_and_nothing_fills_it_later() {
        let events =
            record([printed(1, 3, &["c"]), printed(1, 6, &["f"]), printed(1, 4, &["d", "e"])]);
        assert_eq!(
            text(&events),
            ["Attempt 1", "2 lines were lost", "c", "2 lines were lost", "f"]
        );
    }

    #[test]
    fn each_attempt_counts_for_itself_and_late_lines_get_a_heading() {
        let events = record([
            printed(1, 1, &["a"]),
            printed(2, 1, &["A"]),
            printed(1, 2, &["b"]),
            printed(2, 2, &["B"]),
        ]);
        let headed = ["Attempt 1", "a", "Attempt 2", "A", "Attempt 1", "b", "Attempt 2", "B"];
        assert_eq!(text(&events), headed);
        assert_eq!(events[3].ends, [2, 2]);
    }

    proptest! {
        #[test]
        fn rows_are_numbered_without_a_gap_and_no_line_is_there_twice(
            said in vec((1..4_u32, 1..40_u64, 1..10_usize), 0..40),
        ) {
            let said = said.into_iter().map(|(attempt, from, count)| {
                let numbers = from..from + count as u64;
                (attempt, from, numbers.map(|n| format!("{attempt}.{n}")).collect())
            });
            let events = record(said);
            let at = jiff::Timestamp::UNIX_EPOCH;
            let all: Vec<_> = events.iter().flat_map(|event| rows(event, at)).collect();
            let mut seen = std::collections::HashSet::new();
            for (row, expected) in all.iter().zip(1_u64..) {
                prop_assert_eq!(row.line, expected);
                if let Some(number) = row.number {
                    prop_assert_eq!(&*row.text, format!("{}.{number}", row.attempt));
                    prop_assert!(seen.insert(row.text.clone()), "twice: {}", row.text);
                }
            }
        }
    }
}
