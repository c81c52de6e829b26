//! Compares what there is at Hetzner and in the tailnet with what the log says there should be.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use milepost_projections::board::{Boards, InstanceStatus};
use milepost_projections::job::AttemptState;
use milepost_projections::{Board, Job, JobStatus};
use milepost_schemas::event::{
    CompensationReason, InstanceServerMissing, InstanceServerNotFound, OrphanFound, OrphanReason,
    OrphanRemoved, Resource,
};
use milepost_schemas::{AgentId, Event, InstanceId, JobId, Metadata, Position};
use uuid::Uuid;

use super::servers::{ServerError, Servers};
use crate::app::App;
use crate::clients::ClientError;
use crate::clients::hetzner::Server;
use crate::clients::tailscale::Device;
use crate::domain::job::compensation::{BUILDS_SERVERS, builds};
use crate::domain::orphan::{Removal, Standing, Thing, classify, removal};
use crate::domain::{AttemptId, JobCommand, ServerIdentity};
use crate::execute::{self, ExecuteError};

/// What there is, and what there is not.
#[derive(Debug, Default)]
pub struct Survey {
    /// Every server and device of ours, and whom it serves.
    pub things: Vec<(Thing, Standing)>,
    /// Running instances whose server is gone.
    pub missing: Vec<Missing>,
}

/// A running instance whose server is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its agent.
    pub agent_id: AgentId,
    /// What people call that.
    pub agent_name: String,
    /// The instance.
    pub instance_id: InstanceId,
    /// The job that built it.
    pub job_id: JobId,
    /// The server that is gone.
    pub server: MissingServer,
}

/// A server that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissingServer {
    /// The one that the workflow named, by its id.
    Named(String),
    /// The workflow named none, and there is none of this name with the attempt's labels.
    Unnamed(String),
}

/// Why they cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Hetzner cannot be asked.
    #[error("the servers cannot be listed")]
    Servers(#[source] ServerError),
    /// Hetzner or Tailscale cannot be asked, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The log cannot be read or written.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

impl Survey {
    /// What serves nobody.
    pub fn orphans(&self) -> impl Iterator<Item = (&Thing, OrphanReason)> {
        self.things.iter().filter_map(|(thing, standing)| match standing {
            Standing::Orphan(reason) => Some((thing, *reason)),
            Standing::Serving { .. }
            | Standing::UnderWay
            | Standing::AwaitsCompensation
            | Standing::Settling => None,
        })
    }
}

impl Missing {
    fn event(&self) -> Event {
        let Self { agent_id, instance_id, job_id, .. } = *self;
        match self.server.clone() {
            MissingServer::Named(server_id) => {
                InstanceServerMissing { instance_id, agent_id, job_id, server_id }.into()
            }
            MissingServer::Unnamed(name) => {
                InstanceServerNotFound { instance_id, agent_id, job_id, name }.into()
            }
        }
    }
}

/// One periodic comparison: what is found is recorded, and removed where it may be.
pub(super) async fn round(app: &App, servers: &Servers, remove_orphans: bool) {
    let compared = async {
        let survey = survey(app, servers, app.clock.now(), Position::START).await?;
        record(app, &survey).await?;
        undo(app, &survey).await?;
        if remove_orphans {
            remove(app, servers, &survey, Removal::Certain).await?;
        }
        Ok::<(), ReconcileError>(())
    };
    if let Err(error) = compared.await {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "servers and log cannot be compared now");
    }
}

/// Looks at everything, as of `now`; at instances as a view at least as new as `at_least` has them.
///
/// # Errors
/// [`ReconcileError`] when something cannot be asked: half a list would show orphans and gaps that
/// are none.
pub async fn survey(
    app: &App,
    servers: &Servers,
    now: Timestamp,
    at_least: Position,
) -> Result<Survey, ReconcileError> {
    let listed = servers.list().await.map_err(ReconcileError::Servers)?;
    let devices = servers.tailscale.devices().await?;
    let ours = devices.into_iter().filter(is_ours).map(device);
    let mut jobs: HashMap<JobId, Option<Known>> = HashMap::new();
    let mut things = Vec::new();
    for thing in listed.into_iter().map(server).chain(ours) {
        if let Some(AttemptId { job_id, .. }) = thing.attempt()
            && !jobs.contains_key(&job_id)
        {
            jobs.insert(job_id, Known::read(app, job_id).await?);
        }
        let known = thing.attempt().and_then(|id| jobs.get(&id.job_id)?.as_ref());
        let standing = Known::classify(known, &thing, now);
        things.push((thing, standing));
    }
    let missing = missing(app, servers, &things, at_least).await?;
    Ok(Survey { things, missing })
}

/// What the log knows of the job that a thing says it is of.
struct Known {
    job: Job,
    /// The job that built the server its agent runs on now, if that one built any.
    serving: Option<JobId>,
}

impl Known {
    async fn read(app: &App, id: JobId) -> Result<Option<Self>, ExecuteError> {
        let Some(job) = execute::read_job(&app.log, id).await? else { return Ok(None) };
        let serving = match job.subject.agent_id() {
            Some(agent) => execute::read_agent(&app.log, agent).await?.and_then(|it| it.serving),
            None => None,
        };
        let Some(serving) = serving.filter(|serving| *serving != id) else {
            return Ok(Some(Self { job, serving }));
        };
        // A rehearsal replaces no server: it has none.
        let later = execute::read_job(&app.log, serving).await?;
        let built = later.is_some_and(|later| builds(later.attempt()));
        Ok(Some(Self { job, serving: Some(serving).filter(|_| built) }))
    }

    fn classify(known: Option<&Self>, thing: &Thing, now: Timestamp) -> Standing {
        let (job, serving) = (known.map(|it| &it.job), known.and_then(|it| it.serving));
        classify(thing, job, serving, now)
    }
}

/// Asks to undo what turned up of attempts that are over, and of instances that were replaced: with
/// the decision, the tries and the lines on the page that all undoing has.
///
/// # Errors
/// [`ReconcileError`] when the log cannot be written.
pub async fn undo(app: &App, survey: &Survey) -> Result<(), ReconcileError> {
    for (thing, reason) in survey.orphans() {
        let certain = removal(reason) == Removal::Certain;
        let Some(AttemptId { job_id, attempt }) = thing.attempt().filter(|_| certain) else {
            continue;
        };
        let Some(job) = execute::read_job(&app.log, job_id).await? else { continue };
        let succeeded = job.status == JobStatus::Succeeded && job.attempt().number == attempt;
        let reason = if succeeded {
            CompensationReason::InstanceReplaced
        } else {
            CompensationReason::ThingFound
        };
        let server_id = (thing.resource == Resource::Server).then(|| thing.id.clone());
        let command = JobCommand::Undo { attempt, server_id, reason };
        execute::to_job(app, job_id, command, super::system(app, job_id)).await?;
    }
    Ok(())
}

/// Records what was found, each thing once.
///
/// # Errors
/// [`ReconcileError`] when the log cannot be written.
pub async fn record(app: &App, survey: &Survey) -> Result<(), ReconcileError> {
    for (thing, reason) in survey.orphans() {
        let attempt = thing.attempt();
        let event = OrphanFound {
            resource: thing.resource,
            resource_id: thing.id.clone(),
            name: thing.name.clone(),
            job_id: attempt.map(|it| it.job_id),
            attempt: attempt.map(|it| it.attempt),
            reason,
        };
        execute::record_once(app, event.into(), system(app, thing)).await?;
    }
    for missing in &survey.missing {
        let metadata = super::system(app, missing.job_id);
        execute::record_once(app, missing.event(), metadata).await?;
    }
    Ok(())
}

/// Removes the orphans that may be removed by whoever asks; which.
///
/// # Errors
/// The first [`ReconcileError`]; the others were tried all the same.
pub async fn remove(
    app: &App,
    servers: &Servers,
    survey: &Survey,
    asked_by: Removal,
) -> Result<Vec<Thing>, ReconcileError> {
    let mut removed = Vec::new();
    let mut first_error = Ok(());
    for (thing, reason) in survey.orphans() {
        let may = match removal(reason) {
            Removal::Certain => true,
            Removal::WhenTold => asked_by == Removal::WhenTold,
            Removal::ByHand => false,
        };
        if !may {
            continue;
        }
        match remove_one(app, servers, thing, reason).await {
            Ok(true) => removed.push(thing.clone()),
            Ok(false) => {}
            Err(error) => first_error = first_error.and(Err(error)),
        }
    }
    first_error.map(|()| removed)
}

/// Removes one, unless it or its job has changed since it was looked at.
async fn remove_one(
    app: &App,
    servers: &Servers,
    thing: &Thing,
    reason: OrphanReason,
) -> Result<bool, ReconcileError> {
    let known = match thing.attempt() {
        Some(id) => Known::read(app, id.job_id).await?,
        None => None,
    };
    let same = |thing: &Thing| {
        // It was old enough when it was looked at.
        let thing = Thing { made_at: None, ..thing.clone() };
        Known::classify(known.as_ref(), &thing, Timestamp::MAX) == Standing::Orphan(reason)
    };
    match thing.resource {
        Resource::Server => {
            let Ok(id) = thing.id.parse() else { return Ok(false) };
            let Some(now) = servers.hetzner.server(id).await? else { return Ok(false) };
            if !same(&server(now)) {
                return Ok(false);
            }
            servers.hetzner.delete_server(id).await?;
        }
        Resource::Device => {
            if !same(thing) {
                return Ok(false);
            }
            servers.tailscale.delete_device(&thing.id).await?;
        }
        // A key opens nothing after an hour: nobody looks for them.
        Resource::Key => return Ok(false),
    }
    let (resource_id, name) = (thing.id.clone(), thing.name.clone());
    let event = OrphanRemoved { resource: thing.resource, resource_id, name };
    execute::record_once(app, event.into(), system(app, thing)).await?;
    Ok(true)
}

/// The running instances whose server is neither listed nor found by its id; or, where the workflow
/// has named none, by its labels. What is known to be missing is not asked for again.
async fn missing(
    app: &App,
    servers: &Servers,
    things: &[(Thing, Standing)],
    at_least: Position,
) -> Result<Vec<Missing>, ReconcileError> {
    let listed = things.iter().map(|(thing, _)| thing);
    let listed = listed.filter(|thing| thing.resource == Resource::Server);
    let ids: HashSet<&str> = listed.clone().map(|server| server.id.as_str()).collect();
    let attempts: HashSet<AttemptId> = listed.filter_map(Thing::attempt).collect();
    let mut missing = Vec::new();
    let mut after = Uuid::nil();
    loop {
        let label = InstanceStatus::Running.as_str();
        let rows = app.views.labelled::<Boards>(at_least, label, after).await?;
        let Some((last, _)) = rows.last() else { return Ok(missing) };
        after = *last;
        for Running { candidate, attempt, known } in
            rows.iter().filter_map(|(_, board)| running(board))
        {
            let there = match &candidate.server {
                MissingServer::Named(server_id) if ids.contains(server_id.as_str()) => true,
                MissingServer::Unnamed(_) if attempts.contains(&attempt) => true,
                MissingServer::Named(_) | MissingServer::Unnamed(_) if known => false,
                MissingServer::Named(server_id) => {
                    // What is no id of Hetzner's was not built there.
                    let Ok(id) = server_id.parse() else { continue };
                    servers.hetzner.server(id).await?.is_some()
                }
                MissingServer::Unnamed(_) => {
                    let found = servers.of_attempt(attempt).await;
                    !found.map_err(ReconcileError::Servers)?.is_empty()
                }
            };
            if !there {
                missing.push(candidate);
            }
        }
    }
}

/// A running instance whose server is to be there.
struct Running {
    /// What to say if it is gone.
    candidate: Missing,
    /// The attempt that built it: one of a dispatcher that builds any.
    attempt: AttemptId,
    /// Whether it is known to be gone.
    known: bool,
}

fn running(board: &Board) -> Option<Running> {
    let (agent, instance) = (board.agent.as_ref()?, board.instance.as_ref()?);
    let dispatched = |attempt: &AttemptState| {
        let dispatcher = attempt.dispatcher.as_deref();
        dispatcher.is_some_and(|name| BUILDS_SERVERS.contains(&name))
    };
    let job = board.job.as_ref().filter(|job| dispatched(job.attempt()))?;
    let attempt = AttemptId { job_id: job.id, attempt: job.attempt().number };
    let name = || ServerIdentity { agent_id: agent.id, attempt }.name();
    let named = instance.server.as_ref().map(|server| server.server_id.clone());
    let server = named.map_or_else(|| MissingServer::Unnamed(name()), MissingServer::Named);
    let (agent_name, job_id) = (agent.name.clone(), instance.job_id);
    let candidate =
        Missing { agent_id: agent.id, agent_name, instance_id: instance.id, job_id, server };
    Some(Running { candidate, attempt, known: instance.server_missing_since.is_some() })
}

/// A device of ours has a name that follows from an attempt, and a tag, which nobody can give
/// itself.
fn is_ours(device: &Device) -> bool {
    AttemptId::of_name(&device.hostname).is_some() && !device.tags.is_empty()
}

fn server(server: Server) -> Thing {
    Thing {
        resource: Resource::Server,
        id: server.id.to_string(),
        name: server.name,
        labels: Some(server.labels),
        made_at: server.created.parse().ok(),
    }
}

fn device(device: Device) -> Thing {
    Thing {
        resource: Resource::Device,
        id: device.id,
        name: device.hostname,
        labels: None,
        made_at: device.created.parse().ok(),
    }
}

/// The header of what is told of a thing.
fn system(app: &App, thing: &Thing) -> Metadata {
    let id = thing.attempt().map_or_else(|| app.clock.id(), |id| id.job_id.0);
    super::system(app, JobId(id))
}
