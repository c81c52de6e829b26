//! One job: its attempts, the newest first, and every event of its stream.

use askama::Template;
use jiff::Timestamp;
use milepost_projections::answers::JobAnswer;

use super::attempt::AttemptView;
use super::event_row::{EventList, EventsView};
use super::format::full;
use super::log::LogView;
use super::standing::Standing;
use super::{Actions, Fact, Frame, NO_USUAL, Usual};

/// `GET /jobs/{id}`.
#[derive(Clone, Debug, Template)]
#[template(path = "job.html")]
pub struct JobPage {
    frame: Frame,
    /// The list that what it changes stands in, and its address.
    list: (&'static str, &'static str),
    /// What people call what it changes.
    name: String,
    job_type: String,
    standing: Standing,
    actions: Actions,
    attempts: Vec<AttemptView>,
    blank: AttemptView,
    log: LogView,
    facts: Vec<Fact>,
    events: EventsView,
}

impl JobPage {
    /// The page for that job.
    pub fn new(
        frame: Frame,
        name: String,
        job: &JobAnswer,
        usual: &Usual,
        log: LogView,
        events: EventList,
    ) -> Self {
        let now = frame.now;
        let (list, subject, usual) = match (job.node_id, job.agent_id) {
            (Some(node), _) => (("Nodes", "/nodes"), format!("/nodes/{node}"), &NO_USUAL),
            (None, Some(agent)) => (("Agents", "/"), format!("/agents/{agent}"), usual),
            (None, None) => (("Agents", "/"), String::new(), usual),
        };
        Self {
            list,
            name,
            job_type: job.job_type.clone(),
            standing: Standing::of_job(job, usual, now),
            actions: Actions {
                subject,
                job: job.id.to_string(),
                again: false,
                priority: job.priority,
            },
            attempts: AttemptView::all(job, usual, now),
            blank: AttemptView::blank_with(usual, now),
            log,
            facts: facts(job),
            events: EventsView::new(events, now),
            frame,
        }
    }
}

fn facts(job: &JobAnswer) -> Vec<Fact> {
    let at = |at: Option<Timestamp>| at.map(full).unwrap_or_default();
    vec![
        Fact::new("job", "Job", job.id.to_string()),
        Fact::new("region", "Region", job.region.clone().unwrap_or_default()),
        Fact::new("priority", "Priority", job.priority.to_string()),
        Fact::new("queued-at", "Queued", full(job.created_at)),
        Fact::new("started-at", "Began", at(job.started_at)),
        Fact::new("finished-at", "Ended", at(job.finished_at)),
        Fact::new("run-after", "Not before", at(job.run_after)),
        Fact::new("locked-by", "Held by", job.locked_by.clone().unwrap_or_default()),
        Fact::new("cancelled-by", "Cancelled by", job.cancelled_by.clone().unwrap_or_default()),
        Fact::new(
            "retry-of",
            "Repeats",
            job.retry_of.map(|job| job.to_string()).unwrap_or_default(),
        ),
        Fact::new("retry-reason", "Because", job.retry_reason.clone().unwrap_or_default()),
    ]
}
