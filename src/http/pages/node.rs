//! One node: where it stands, its latest job's attempts, and every event behind it.

use askama::Template;
use milepost_projections::answers::NodeAnswer;

use super::attempt::AttemptView;
use super::event_row::{EventList, EventsView};
use super::log::LogView;
use super::standing::Standing;
use super::words::word_of;
use super::{Actions, Fact, Frame, NO_USUAL};

/// `GET /nodes/{id}`.
#[derive(Clone, Debug, Template)]
#[template(path = "node.html")]
pub struct NodePage {
    frame: Frame,
    id: String,
    name: String,
    status: &'static str,
    status_word: &'static str,
    standing: Standing,
    actions: Actions,
    attempts: Vec<AttemptView>,
    blank: AttemptView,
    log: LogView,
    facts: Vec<Fact>,
    events: EventsView,
}

impl NodePage {
    /// The page for that node; `log` is what its latest job prints, `events` are its own and
    /// its jobs'.
    pub fn new(frame: Frame, node: &NodeAnswer, log: LogView, events: EventList) -> Self {
        let now = frame.now;
        let job = node.job.as_ref();
        let status = node.status.as_str();
        let job_id = job.map(|job| job.id.to_string()).unwrap_or_default();
        Self {
            id: node.id.to_string(),
            name: node.hostname.clone(),
            status,
            status_word: word_of("node-status", status),
            standing: Standing::of_node(node, now),
            actions: Actions {
                subject: format!("/nodes/{}", node.id),
                job: job_id.clone(),
                again: false,
                priority: job.map_or(0, |job| job.priority),
            },
            attempts: job.map(|job| AttemptView::all(job, &NO_USUAL, now)).unwrap_or_default(),
            blank: AttemptView::blank_with(&NO_USUAL, now),
            log,
            facts: facts(node, job_id),
            events: EventsView::new(events, now),
            frame,
        }
    }
}

fn facts(node: &NodeAnswer, job_id: String) -> Vec<Fact> {
    vec![
        Fact::new("ip", "Public address", node.public_ip.clone()),
        Fact::new("ssh", "SSH", format!("{}, port {}", node.ssh_user, node.ssh_port)),
        Fact::new("job", "Job", job_id),
        Fact::new("node", "Node", node.id.to_string()),
    ]
}
