//! One agent: where its server stands, how it came there, and every event behind it.

use askama::Template;
use milepost_projections::answers::{InstanceAnswer, JobAnswer};
use milepost_schemas::AgentId;

use super::attempt::AttemptView;
use super::event_row::{EventList, EventsView};
use super::format::Moment;
use super::log::LogView;
use super::standing::Standing;
use super::{Actions, Fact, Frame, Usual};

/// `GET /agents/{id}`.
#[derive(Clone, Debug, Template)]
#[template(path = "agent.html")]
pub struct AgentPage {
    frame: Frame,
    id: AgentId,
    name: String,
    standing: Standing,
    actions: Actions,
    attempts: Vec<AttemptView>,
    blank: AttemptView,
    log: LogView,
    facts: Vec<Fact>,
    missing: String,
    gone: Option<Moment>,
    events: EventsView,
}

impl AgentPage {
    /// The page for that agent; `job` is the one behind its current instance, and `events` are
    /// the agent's, its instances' and its jobs'.
    pub fn new(
        frame: Frame,
        agent: &InstanceAnswer,
        job: Option<&JobAnswer>,
        usual: &Usual,
        log: LogView,
        events: EventList,
    ) -> Self {
        let now = frame.now;
        let attempts = match job {
            Some(job) => AttemptView::all(job, usual, now),
            None => vec![AttemptView::of_agent(agent, usual, now)],
        };
        let instance = agent.instance.as_ref();
        let job_id = instance.map(|instance| instance.job_id.to_string()).unwrap_or_default();
        Self {
            id: agent.agent.id,
            name: agent.agent.name.clone(),
            standing: Standing::of_agent(agent, usual, now),
            actions: Actions {
                subject: format!("/agents/{}", agent.agent.id),
                job: job_id.clone(),
                again: true,
                priority: job.map_or(0, |job| job.priority),
            },
            attempts,
            blank: AttemptView::blank_with(usual, now),
            log,
            facts: facts(agent, job_id),
            missing: instance.map(|instance| instance.missing.join(", ")).unwrap_or_default(),
            gone: instance.and_then(|it| it.server_missing_since).map(|at| Moment::of(at, now)),
            events: EventsView::new(events, now),
            frame,
        }
    }
}

fn facts(agent: &InstanceAnswer, job_id: String) -> Vec<Fact> {
    let instance = agent.instance.as_ref();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    vec![
        Fact::new("server", "Server", text(instance.and_then(|it| it.server_id.as_ref()))),
        Fact::new("ip", "Public address", text(instance.and_then(|it| it.server_ip.as_ref()))),
        Fact::new("tailnet", "Tailnet", text(instance.and_then(|it| it.tailscale_ip.as_ref()))),
        Fact::new(
            "region",
            "Region",
            instance.map_or_else(|| agent.agent.region.clone(), |it| it.region.clone()),
        ),
        Fact::new("job", "Job", job_id),
        Fact::new("agent", "Agent", agent.agent.id.to_string()),
    ]
}
