//! The overview: one row an agent, what needs a person first.

use std::cmp::Reverse;

use askama::Template;
use jiff::Timestamp;
use milepost_projections::Pause;
use milepost_projections::answers::{AgentAnswer, InstanceAnswer};
use milepost_projections::steps::Progress;
use milepost_schemas::{AgentId, Position};
use uuid::Uuid;

use super::format::{Moment, number};
use super::standing::{GROUPS, Standing};
use super::steps::{self, StepView};
use super::{Frame, Usual};
use crate::views::LIST_ROWS_MAX;

/// `GET /`.
#[derive(Clone, Debug, Template)]
#[template(path = "overview.html")]
pub struct OverviewPage {
    frame: Frame,
    groups: Vec<Group>,
    left_out: Option<LeftOut>,
    callback_url: String,
    pause: Option<PauseView>,
    blank: Row,
}

/// Which agents are not on the page, where there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// Older ones that are settled.
    Settled {
        /// How many agents there are.
        total: usize,
    },
    /// Older ones, however they stand.
    Older,
}

/// Why nothing is claimed.
#[derive(Clone, Debug)]
struct PauseView {
    by: String,
    reason: String,
    since: Moment,
}

/// Agents of one kind.
#[derive(Clone, Debug)]
struct Group {
    id: &'static str,
    title: &'static str,
    states: String,
    rows: Vec<Row>,
}

/// One agent.
#[derive(Clone, Debug, Template)]
#[template(path = "parts/row.html")]
struct Row {
    id: AgentId,
    name: String,
    region: String,
    position: Position,
    ordered_ms: i64,
    at: Moment,
    standing: Standing,
    steps: Vec<StepView>,
    /// Whether whoever reads the page may order a server.
    operates: bool,
    query: String,
}

impl OverviewPage {
    /// The page for those agents, in any order, of which some are left out, and for a queue that is stopped or not;
    /// `callback_url` is where workflows post.
    pub fn new(
        frame: Frame,
        agents: &[InstanceAnswer],
        left_out: Option<LeftOut>,
        usual: &Usual,
        pause: Option<Pause>,
        callback_url: String,
    ) -> Self {
        let rows: Vec<_> = agents.iter().map(|agent| Row::new(agent, usual, &frame)).collect();
        let groups = GROUPS.map(|(id, title, states)| Group {
            id,
            title,
            states: states.join(" "),
            rows: ordered(&rows, states),
        });
        let blank = Row::new(&blank(), usual, &frame);
        let pause = pause.map(|pause| PauseView {
            since: Moment::of(pause.since, frame.now),
            by: pause.by,
            reason: pause.reason,
        });
        Self { groups: groups.into(), left_out, blank, frame, callback_url, pause }
    }

    /// What is not on the page, in words.
    fn left_out(&self) -> Option<String> {
        let shown: usize = self.groups.iter().map(|group| group.rows.len()).sum();
        let (shown, newest) = (number(shown as u64), number(LIST_ROWS_MAX as u64));
        Some(match self.left_out? {
            LeftOut::Settled { total } => format!(
                "{shown} of {} agents: the newest {newest}, and older ones that have failed or are \
                 under way.",
                number(total as u64)
            ),
            LeftOut::Older => format!("The newest {newest} agents of then; there were older ones."),
        })
    }

    fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| group.rows.is_empty())
    }
}

/// By state, then the latest order first: an order that only a change of state changes.
fn ordered(rows: &[Row], states: &[&str]) -> Vec<Row> {
    let rank = |row: &Row| states.iter().position(|state| *state == row.standing.state);
    let mut rows: Vec<Row> = rows.iter().filter(|row| rank(row).is_some()).cloned().collect();
    rows.sort_by_key(|row| (rank(row), Reverse(row.ordered_ms)));
    rows
}

impl Row {
    fn new(answer: &InstanceAnswer, usual: &Usual, frame: &Frame) -> Self {
        let (agent, instance, now) = (&answer.agent, &answer.instance, frame.now);
        let ordered_at = instance.as_ref().map_or(agent.created_at, |it| it.created_at);
        let updated_at = instance.as_ref().map_or(agent.updated_at, |it| it.updated_at);
        Self {
            id: agent.id,
            name: agent.name.clone(),
            region: instance.as_ref().map_or_else(|| agent.region.clone(), |it| it.region.clone()),
            position: answer.position,
            ordered_ms: ordered_at.as_millisecond(),
            at: Moment::of(updated_at.max(agent.updated_at), now),
            standing: Standing::of_agent(answer, usual, now),
            steps: steps::views(&answer.steps, usual, now),
            operates: frame.operates(),
            query: frame.query(),
        }
    }

    fn position_text(&self) -> String {
        number(self.position.0)
    }
}

/// The agent of the markup that scripts copy for one that has not been rendered.
fn blank() -> InstanceAnswer {
    InstanceAnswer {
        agent: AgentAnswer {
            id: AgentId(Uuid::nil()),
            name: String::new(),
            region: String::new(),
            status: "new",
            active_job_id: None,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        },
        instance: None,
        steps: Progress::none(),
        uptime: None,
        position: Position::START,
    }
}
