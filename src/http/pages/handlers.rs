//! What a browser asks for, and what its forms do. Forms work without scripts: each changes
//! something and sends the browser on to where the change is seen.

use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest as _, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use milepost_projections::answers::{InstanceAnswer, JobAnswer, NodeAnswer};
use milepost_projections::node::Nodes;
use milepost_projections::{Job, Pause, Subject};
use milepost_schemas::event::Switch;
use milepost_schemas::{AgentId, JobId, NodeId, Position, Right, StreamId};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::event_row::PART;
use super::overview::LeftOut;
use super::{
    AgentPage, EventList, EventRow, Frame, JobPage, LogView, LoginPage, NodePage, NodesPage,
    OverviewPage, PastFrame, Place, ProblemPage, ProjectionsPage, Usual, account_handlers, assets,
    diff, event, events as log_events, integrity,
};
use crate::accounts::{self, People, Visit};
use crate::app::App;
use crate::domain::node::NewNode;
use crate::http::api::projections::{self, Asked};
use crate::http::api::{Id, agents, jobs, nodes, privacy, queue, session};
use crate::http::at::{At, Past};
use crate::http::auth::{Actor, Visitor, is_from_elsewhere, visit};
use crate::http::problem::Problem;
use crate::http::{BODY_BYTES_MAX, is_for_programs, read_body};
use crate::log::{Committed, Escape, EventFilter, Opener};
use crate::views::{
    LIST_ROWS_MAX, Overview, RowRange, past, read_log_rows, streams_of_agent, streams_of_node,
};

/// Events a page shows at once; older ones are a link away.
const EVENTS_SHOWN: usize = 200;

/// Rows of a log a page shows without scripts; with them, all are there.
const LOG_ROWS_SHOWN: usize = 200;

/// People whose addresses a page carries along; others are called by their ids.
const PEOPLE_ON_PAGE_MAX: usize = 200;

/// The routes of all pages.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(overview))
        .route("/agents", post(create))
        .route("/agents/{id}", get(agent))
        .route("/agents/{id}/provision", post(provision))
        .route("/agents/{id}/erase", post(erase_agent))
        .route("/jobs/{id}", get(job))
        .route("/jobs/{id}/cancel", post(cancel))
        .route("/jobs/{id}/priority", post(prioritise))
        .route("/jobs/{id}/retry", post(retry))
        .route("/nodes", get(nodes_list).post(register))
        .route("/nodes/{id}", get(node))
        .route("/nodes/{id}/provision", post(provision_node))
        .route("/nodes/{id}/decommission", post(decommission_node))
        .route("/nodes/{id}/erase", post(erase_node))
        .route("/projections", get(projections_list))
        .route("/projections/{name}/{order}", post(order_projection))
        .route("/events", get(log_events::show))
        .route("/events/{position}", get(event::show))
        .route("/diff", get(diff::show))
        .route("/integrity", get(integrity::show))
        .route("/queue/pause", post(pause))
        .route("/queue/resume", post(resume))
        .route("/login", get(login).post(log_in))
        .route("/logout", post(log_out))
        .route("/assets/{*path}", get(asset))
        .merge(account_handlers::routes())
}

/// A problem as a page: people get words, not JSON.
pub struct Trouble(Problem);

impl<P: Into<Problem>> From<P> for Trouble {
    fn from(problem: P) -> Self {
        Self(problem.into())
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let status = self.0.status();
        let (title, detail) = self.0.words();
        let frame = Frame {
            title: title.to_owned(),
            account: None,
            rights: Vec::new(),
            people: Vec::new(),
            epoch: 0,
            position: 0,
            now: crate::app::Clock.now(),
            rehearsal: false,
            undoes: false,
            past: None,
        };
        let page = ProblemPage::new(frame, status.as_u16(), detail.to_owned());
        let mut response = (status, html(&page)).into_response();
        let wait = self.0.retry_after().map(|wait| (header::RETRY_AFTER, wait));
        response.headers_mut().extend(wait);
        response
    }
}

pub(super) fn html(page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => Html(text).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

pub(super) fn frame(app: &App, actor: Option<&Actor>, title: String, position: Position) -> Frame {
    let may = |right: &Right| actor.is_some_and(|actor| actor.holder.may(*right));
    let rights: Vec<_> = Right::ALL.iter().copied().filter(may).collect();
    let mut people = Vec::new();
    if rights.contains(&Right::Events) {
        people = app.access.people().all();
        people.truncate(PEOPLE_ON_PAGE_MAX);
    }
    Frame {
        title,
        // A program that reads pages is called by its name.
        account: actor.map(|actor| actor.email().unwrap_or(&actor.name).to_owned()),
        rights,
        people,
        epoch: app.log.feed().epoch(),
        position: position.0,
        now: app.clock.now(),
        rehearsal: app.config.dispatchers.include(crate::config::Dispatcher::Rehearsal),
        undoes: app.config.cloud.is_some(),
        past: None,
    }
}

/// What stands around a page, now or as it was; `scope` is what it is about, as `/diff` takes it.
pub(super) fn frame_at(
    app: &App,
    actor: &Actor,
    title: String,
    head: Position,
    (at, scope): (At, String),
) -> Frame {
    let frame = frame(app, Some(actor), title, head);
    let Some(past) = at.0 else { return frame };
    Frame {
        position: past.position.0,
        now: past.recorded_at,
        past: Some(PastFrame { head: past.head.0, scope }),
        ..frame
    }
}

async fn overview(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    at: Result<At, Problem>,
) -> Result<Response, Trouble> {
    let at = at?;
    let (boards, whole, left_out, queue) = if let Some(Past { position, .. }) = at.0 {
        let boards = past::boards_at(&app.log, position, None).await?;
        let left_out = (boards.len() == LIST_ROWS_MAX).then_some(LeftOut::Older);
        (boards, position, left_out, past::queue_at(&app.log, position).await?)
    } else {
        let (_, head) = app.log.head().await?;
        let Overview { boards, position, total } = app.views.overview(head).await?;
        let left_out = (boards.len() < total).then_some(LeftOut::Settled { total });
        // The stream goes on from here: what the rows do not hold yet must come by it.
        let queue = crate::execute::read_queue(&app.log).await?.1;
        (boards, head.min(position), left_out, queue)
    };
    let usual = usual(&app, at).await?;
    let now = at.now(&app);
    let agents: Vec<_> = boards.iter().filter_map(|board| InstanceAnswer::of(board, now)).collect();
    let frame = frame_at(&app, &actor, "Overview".to_owned(), whole, (at, String::new()));
    let callback_url = format!("{}/api/webhooks/github", app.config.public_url);
    let people = app.access.people();
    let paused = queue.paused.map(|pause| Pause { by: people.say(&pause.by), ..pause });
    Ok(html(&OverviewPage::new(frame, &agents, left_out, &usual, paused, callback_url)))
}

/// The query of a page with events.
#[derive(Debug, Default, Deserialize)]
struct Before {
    before: Option<u64>,
}

async fn agent(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<AgentId>, Problem>,
    query: Result<Query<Before>, QueryRejection>,
    at: Result<At, Problem>,
) -> Result<Response, Trouble> {
    let (Query(Before { before }), Id(id), at) = (query?, id?, at?);
    let head = end(&app, at).await?;
    let board = agents::board_at(&app, id, at).await?;
    let answer = InstanceAnswer::of(&board, at.now(&app));
    let answer = answer.ok_or_else(|| Problem::not_found("agent"))?;
    let job = board.job.as_ref().map(JobAnswer::of);
    let streams = streams_of_agent(&app.log, id).await?;
    let events = events(&app, streams, before, head, at).await?;
    let log = match &job {
        Some(job) => log(&app, job.id, at).await?,
        None => LogView::default(),
    };
    let usual = usual(&app, at).await?;
    let scope = (at, format!("&agent={id}"));
    let frame = frame_at(&app, &actor, answer.agent.name.clone(), head, scope);
    Ok(html(&AgentPage::new(frame, &answer, job.as_ref(), &usual, log, events)))
}

async fn job(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<JobId>, Problem>,
    query: Result<Query<Before>, QueryRejection>,
    at: Result<At, Problem>,
) -> Result<Response, Trouble> {
    let (Query(Before { before }), Id(id), at) = (query?, id?, at?);
    let head = end(&app, at).await?;
    let job = jobs::read_at(&app, id, at).await?;
    let name = name_of(&app, &job, at).await?;
    let events = events(&app, vec![id.stream()], before, head, at).await?;
    let log = log(&app, id, at).await?;
    let usual = usual(&app, at).await?;
    let scope = (at, format!("&job={id}"));
    let frame = frame_at(&app, &actor, format!("{name}: job"), head, scope);
    let mut answer = JobAnswer::of(&job);
    answer.cancelled_by = answer.cancelled_by.map(|by| frame.who(by));
    Ok(html(&JobPage::new(frame, name, &answer, &usual, log, events)))
}

/// Up to where a page tells of the log.
async fn end(app: &App, at: At) -> Result<Position, Problem> {
    match at.position() {
        Some(position) => Ok(position),
        None => Ok(app.log.head().await?.1),
    }
}

/// What is usual, or was.
async fn usual(app: &App, at: At) -> Result<Usual, Problem> {
    match at.position() {
        Some(position) => Ok(past::usual_at(&app.log, &app.views.kept, position).await?),
        None => Ok(app.views.usual().await?),
    }
}

/// The end of a job's log.
async fn log(app: &App, job: JobId, at: At) -> Result<LogView, Problem> {
    let upto = at.position();
    let mut page = read_log_rows(&app.log, job, RowRange::Newest, LOG_ROWS_SHOWN, upto).await?;
    // Before their colours are read: those are sealed with them.
    let texts = page.lines.iter().map(|row| row.text.as_bytes());
    let opener = app.log.keys().opener(texts).await?;
    for row in &mut page.lines {
        row.text = opener.text(&row.text).into_owned().into();
    }
    let view = LogView::new(job.to_string(), page.total, &page.lines);
    Ok(LogView { at: upto.map(|position| position.0), ..view })
}

async fn nodes_list(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    at: Result<At, Problem>,
) -> Result<Response, Trouble> {
    let at = at?;
    let head = end(&app, at).await?;
    let (rows, whole) = match at.position() {
        Some(position) => (past::nodes_at(&app.log, position, None).await?, position),
        None => app.views.rows::<Nodes>(head, None).await?,
    };
    let answers: Vec<_> = rows.iter().filter_map(NodeAnswer::of).collect();
    let scope = (at, String::new());
    let frame = frame_at(&app, &actor, "Nodes".to_owned(), head.min(whole), scope);
    Ok(html(&NodesPage::new(frame, &answers)))
}

async fn node(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<NodeId>, Problem>,
    query: Result<Query<Before>, QueryRejection>,
    at: Result<At, Problem>,
) -> Result<Response, Trouble> {
    let (Query(Before { before }), Id(id), at) = (query?, id?, at?);
    let head = end(&app, at).await?;
    let answer = nodes::answer(&nodes::row_at(&app, id, at).await?)?;
    let streams = streams_of_node(&app.log, id).await?;
    let events = events(&app, streams, before, head, at).await?;
    let log = match &answer.job {
        Some(job) => log(&app, job.id, at).await?,
        None => LogView::default(),
    };
    let scope = (at, format!("&node={id}"));
    let frame = frame_at(&app, &actor, answer.hostname.clone(), head, scope);
    Ok(html(&NodePage::new(frame, &answer, log, events)))
}

#[derive(Deserialize)]
struct Registration {
    hostname: String,
    public_ip: String,
    ssh_user: Option<String>,
    ssh_port: Option<String>,
}

async fn register(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    request: Request,
) -> Result<Redirect, Trouble> {
    let Registration { hostname, public_ip, ssh_user, ssh_port } = form(request).await?;
    // A field left empty is sent all the same.
    let given = |field: Option<String>| field.filter(|text| !text.is_empty());
    let port = |_| Problem::bad_request("The port is a number from 1 to 65535");
    let ssh_port = given(ssh_port).map(|text| text.parse()).transpose().map_err(port)?;
    let new = NewNode { hostname, public_ip, ssh_user: given(ssh_user), ssh_port };
    let id = nodes::register(&app, &actor, new).await?;
    Ok(Redirect::to(&format!("/nodes/{id}")))
}

async fn provision_node(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<NodeId>, Problem>,
) -> Result<Redirect, Trouble> {
    let Id(node) = id?;
    nodes::order(&app, &actor, node, nodes::Order::Provision, None, None).await?;
    Ok(Redirect::to(&format!("/nodes/{node}")))
}

async fn decommission_node(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<NodeId>, Problem>,
) -> Result<Redirect, Trouble> {
    let Id(node) = id?;
    nodes::order(&app, &actor, node, nodes::Order::Decommission, None, None).await?;
    Ok(Redirect::to(&format!("/nodes/{node}")))
}

async fn projections_list(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
) -> Result<Response, Trouble> {
    let (_, head) = app.log.head().await?;
    let mut views = crate::views::statuses(&app, None).await?;
    let people = app.access.people();
    for view in &mut views {
        view.name_people(|by| people.say(by));
    }
    let frame = frame(&app, Some(&actor), "Projections".to_owned(), head);
    Ok(html(&ProjectionsPage::new(frame, &views)))
}

/// What the forms of a view say.
#[derive(Debug, Default, Deserialize)]
struct OrderForm {
    reason: Option<String>,
    position: Option<u64>,
}

async fn order_projection(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Result<Redirect, Trouble> {
    let Path((name, order)) = path.map_err(|_| Problem::not_found("page"))?;
    let OrderForm { reason, position } = form(request).await?;
    let reason = reason.filter(|reason| !reason.trim().is_empty());
    let position = || {
        let position = position.map(Position);
        position.ok_or_else(|| Problem::bad_request("Say the position of the event"))
    };
    let asked = match order.as_str() {
        "rebuild" => Asked::Rebuild(Switch::WhenEqual, reason),
        "switch" => Asked::Switch,
        "cancel" => Asked::Cancel(reason),
        "rollback" => Asked::RollBack(reason),
        "verify" => Asked::Verify,
        "retry" => Asked::Retry(position()?),
        "skip" => Asked::Skip(position()?, reason.unwrap_or_default()),
        _ => return Err(Problem::not_found("page").into()),
    };
    projections::give(&app, &actor, &name, asked).await?;
    Ok(Redirect::to("/projections"))
}

async fn pause(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    request: Request,
) -> Result<Redirect, Trouble> {
    let Reason { reason } = form(request).await?;
    queue::stop(&app, &actor, reason.unwrap_or_default()).await?;
    Ok(Redirect::to("/"))
}

async fn resume(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    request: Request,
) -> Result<Redirect, Trouble> {
    let Reason { reason } = form(request).await?;
    queue::go_on(&app, &actor, reason).await?;
    Ok(Redirect::to("/"))
}

#[derive(Deserialize)]
struct Priority {
    priority: i16,
    reason: Option<String>,
}

async fn prioritise(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<JobId>, Problem>,
    request: Request,
) -> Result<Redirect, Trouble> {
    let Id(job) = id?;
    let Priority { priority, reason } = form(request).await?;
    jobs::prioritise(&app, &actor, job, priority, reason).await?;
    Ok(Redirect::to(&format!("/jobs/{job}")))
}

/// What people call what a job changes.
async fn name_of(app: &App, job: &Job, at: At) -> Result<String, Problem> {
    match &job.subject {
        Subject::Agent { agent_id, .. } => {
            let name = agents::board_at(app, *agent_id, at).await?.agent.map(|agent| agent.name);
            Ok(name.unwrap_or_else(|| agent_id.to_string()))
        }
        Subject::Node { node_id } => {
            let name = nodes::row_at(app, *node_id, at).await?.node.map(|node| node.hostname);
            Ok(name.unwrap_or_else(|| node_id.to_string()))
        }
    }
}

/// The newest events of some streams, before a position if one is given. None is newer than the
/// position the page says it shows: the stream brings those.
async fn events(
    app: &App,
    streams: Vec<StreamId>,
    before: Option<u64>,
    head: Position,
    at: At,
) -> Result<EventList, Problem> {
    let upto = before.map_or(head, |before| Position(before.saturating_sub(1)).min(head));
    let filter = EventFilter { streams, types: Vec::new() };
    let mut events = app.log.read_newest(&filter, upto, EVENTS_SHOWN + 1).await?;
    let older = events.len() > EVENTS_SHOWN;
    events.truncate(EVENTS_SHOWN);
    let rows = rows(app, &events).await?;
    let and_at = at.position().map(|position| format!("&at={position}")).unwrap_or_default();
    Ok(EventList { rows, older, before, and_at })
}

/// Events as pages show them: people by their names, personal texts opened within JSON, before it
/// is laid out and cut short.
pub(super) async fn rows(app: &App, events: &[Committed]) -> Result<Vec<EventRow>, Problem> {
    let people = app.access.people();
    let opener = app.log.keys().opener(events.iter().flat_map(Committed::texts)).await?;
    events.iter().map(|event| row(event, &people, &opener)).collect()
}

fn row(event: &Committed, people: &People, opener: &Opener) -> Result<EventRow, Problem> {
    let unreadable = |error: serde_json::Error| {
        tracing::error!(position = event.position.0, %error, "an event cannot be read");
        let detail = format!("event {} cannot be read", event.position);
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "unreadable", "Unreadable", detail)
    };
    let [header, body] = event.texts().map(|text| opener.open(text, Escape::Json));
    let data = serde_json::from_slice(&body).map_err(unreadable)?;
    let metadata = serde_json::from_slice(&header).map_err(unreadable)?;
    let place = Place {
        position: event.position.0,
        epoch: event.epoch,
        stream: event.stream.0,
        version: event.version,
        recorded_at: event.recorded_at,
    };
    let mut row = EventRow::new(place, event.type_name(), &data, &metadata);
    row.actor = people.say(&row.actor);
    row.summary =
        row.summary.split(PART).map(|part| people.say(part)).collect::<Vec<_>>().join(PART);
    Ok(row)
}

#[derive(Deserialize)]
struct NewAgent {
    name: String,
    region: Option<String>,
}

async fn create(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    request: Request,
) -> Result<Redirect, Trouble> {
    let NewAgent { name, region } = form(request).await?;
    let region = region.filter(|region| !region.is_empty());
    let id = agents::make(&app, &actor, name, region).await?;
    Ok(Redirect::to(&format!("/agents/{id}")))
}

async fn provision(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<AgentId>, Problem>,
) -> Result<Redirect, Trouble> {
    let Id(agent) = id?;
    agents::order(&app, &actor, agent, None, None, None).await?;
    Ok(Redirect::to(&format!("/agents/{agent}")))
}

#[derive(Deserialize)]
struct Reason {
    reason: Option<String>,
}

async fn erase_agent(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<AgentId>, Problem>,
    request: Request,
) -> Result<Redirect, Trouble> {
    let Id(agent) = id?;
    let Reason { reason } = form(request).await?;
    privacy::destroy(&app, &actor, agent.stream(), reason.unwrap_or_default()).await?;
    Ok(Redirect::to(&format!("/agents/{agent}")))
}

async fn erase_node(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<NodeId>, Problem>,
    request: Request,
) -> Result<Redirect, Trouble> {
    let Id(node) = id?;
    let Reason { reason } = form(request).await?;
    privacy::destroy(&app, &actor, node.stream(), reason.unwrap_or_default()).await?;
    Ok(Redirect::to(&format!("/nodes/{node}")))
}

async fn cancel(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<JobId>, Problem>,
    request: Request,
) -> Result<Redirect, Trouble> {
    let Id(job) = id?;
    let Reason { reason } = form(request).await?;
    jobs::end(&app, &actor, job, reason).await?;
    Ok(Redirect::to(&format!("/jobs/{job}")))
}

async fn retry(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    id: Result<Id<JobId>, Problem>,
    request: Request,
) -> Result<Redirect, Trouble> {
    let Id(job) = id?;
    let Reason { reason } = form(request).await?;
    let again = jobs::again(&app, &actor, job, reason).await?;
    Ok(Redirect::to(&format!("/jobs/{again}")))
}

/// The query and the form of the log-in page.
#[derive(Default, Deserialize)]
struct LogIn {
    once: Option<String>,
    next: Option<String>,
    email: Option<String>,
    password: Option<String>,
}

/// `GET /login`, and `GET /login?once=` of a link that logs in once.
async fn login(
    State(app): State<Arc<App>>,
    query: Result<Query<LogIn>, QueryRejection>,
    request: Request,
) -> Result<Response, Trouble> {
    let Query(query) = query?;
    let next = local(query.next.as_deref());
    let Some(once) = query.once else { return Ok(login_page(&app, None, next)) };
    // A link that another site opens might be the other's own: it takes a person's hand.
    if is_from_elsewhere(request.headers()) {
        let frame = frame(&app, None, "Log in".to_owned(), Position::START);
        return Ok(html(&LoginPage::by_hand(frame, once, next)));
    }
    let visit = visit(&app, request.headers(), request.extensions());
    use_link(&app, &once, &visit, &next).await
}

async fn use_link(
    app: &App,
    once: &str,
    visit: &Visit<'_>,
    next: &str,
) -> Result<Response, Trouble> {
    let token = accounts::use_link(app.log.database(), once, visit).await?;
    if let Some(token) = token {
        Ok(enter(app, &token, next))
    } else {
        let used = "This link has been used, or is too old. Log in with your password.";
        let page = login_page(app, Some(used.to_owned()), next.to_owned());
        Ok((StatusCode::UNAUTHORIZED, page).into_response())
    }
}

async fn log_in(State(app): State<Arc<App>>, request: Request) -> Result<Response, Trouble> {
    let (headers, extensions) = (request.headers().clone(), request.extensions().clone());
    let LogIn { once, next, email, password } = form(request).await?;
    let next = local(next.as_deref());
    let visit = visit(&app, &headers, &extensions);
    if let Some(once) = once {
        return use_link(&app, &once, &visit, &next).await;
    }
    let (email, password) = (email.unwrap_or_default(), password.unwrap_or_default());
    match session::check(&app, &email, &password, &visit).await {
        Ok(token) => Ok(enter(&app, &token, &next)),
        Err(problem) => match problem.status() {
            status @ (StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS) => {
                let mut page = login_page(&app, Some(problem.words().1.to_owned()), next);
                *page.status_mut() = status;
                let headers = page.headers_mut();
                headers.extend(problem.retry_after().map(|wait| (header::RETRY_AFTER, wait)));
                Ok(page)
            }
            _ => Err(problem.into()),
        },
    }
}

async fn log_out(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, Trouble> {
    session::leave(&app, &headers).await?;
    let mut response = Redirect::to("/login").into_response();
    response.headers_mut().insert(header::SET_COOKIE, session::no_cookie(&app));
    Ok(response)
}

fn login_page(app: &App, error: Option<String>, next: String) -> Response {
    let frame = frame(app, None, "Log in".to_owned(), Position::START);
    html(&LoginPage::new(frame, error, next))
}

fn enter(app: &App, token: &str, next: &str) -> Response {
    let mut response = Redirect::to(next).into_response();
    response.headers_mut().insert(header::SET_COOKIE, session::cookie(app, token));
    response
}

/// A path on this server; anything else would send people elsewhere in our name.
fn local(next: Option<&str>) -> String {
    let plain = |path: &&str| {
        path.starts_with('/')
            && !path.starts_with("//")
            && !path.contains('\\')
            && !path.chars().any(char::is_control)
    };
    next.filter(plain).unwrap_or("/").to_owned()
}

pub(super) async fn form<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_body(&parts.headers, body, BODY_BYTES_MAX).await?;
    let request = Request::from_parts(parts, body.into());
    let parsed = axum::Form::<T>::from_request(request, &()).await;
    parsed.map(|axum::Form(form)| form).map_err(|error| Problem::bad_request(error.body_text()))
}

/// A file that never changes under its address.
async fn asset(path: Result<Path<String>, PathRejection>) -> Result<Response, Trouble> {
    let asset = path.ok().and_then(|Path(path)| assets::get(&path));
    let asset = asset.ok_or_else(|| Problem::not_found("file"))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type)),
        (header::ETAG, HeaderValue::from_static(asset.etag)),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable")),
    ];
    Ok((headers, asset.bytes).into_response())
}

/// What no route takes: JSON under `/api`, a page elsewhere.
pub async fn not_found(request: Request) -> Response {
    if is_for_programs(request.uri().path()) {
        return Problem::not_found("resource").into_response();
    }
    Trouble(Problem::not_found("page")).into_response()
}

/// What a route takes with other methods only; in the same forms.
pub async fn not_allowed(request: Request) -> Response {
    if is_for_programs(request.uri().path()) {
        return Problem::not_allowed().into_response();
    }
    Trouble(Problem::not_allowed()).into_response()
}
