//! `/api/events`: the log itself, in ranges, by filters, and one event at a time.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use milepost_schemas::{AgentId, EventType, NodeId, Position, StreamId};

use crate::app::App;
use crate::http::at::Past;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::log::{Committed, Direction, EventFilter, Found, READ_EVENTS_MAX, Search};
use crate::views::{streams_of_agent, streams_of_node};

/// The longest actor or text that is searched for, in bytes: an e-mail address has 254 at the most.
const SOUGHT_BYTES_MAX: usize = 512;

/// Events in an answer unless more are asked for.
const LIST_DEFAULT: usize = 100;

/// `GET /api/events?after=&before=&from=&to=&limit=&stream=&agent=&node=&type=&actor=&text=` →
/// `{"events":[…],"looked_to":N,"head":N}`, ascending, with `before` descending; at most 1,000 an
/// answer. `stream` and `type` may be repeated: any of them will do, and all else must hold too.
///
/// # Errors
/// 400 for a filter that makes no sense; 404 for a place in the log that is still to come.
pub async fn list(
    State(app): State<Arc<App>>,
    _: Actor,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref().unwrap_or_default())?;
    let (epoch, head) = app.log.head().await?;
    let limit = query.limit.unwrap_or(LIST_DEFAULT).min(READ_EVENTS_MAX);
    let found = query.find(&app, head, limit).await?;
    let (events, looked_to) = (&found.events, found.looked_to);
    let mut body = b"{\"events\":[".to_vec();
    for (index, event) in events.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        event.write_json(&mut body);
    }
    body.extend_from_slice(
        format!("],\"looked_to\":{looked_to},\"epoch\":{epoch},\"head\":{head}}}").as_bytes(),
    );
    Ok(json(body))
}

/// `GET /api/events/{position}`: one event, as it stands in a list.
///
/// # Errors
/// 404.
pub async fn show(
    State(app): State<Arc<App>>,
    _: Actor,
    position: Result<Path<u64>, PathRejection>,
) -> Result<Response, Problem> {
    let mut body = Vec::new();
    read_one(&app, position.ok().map(|Path(position)| position)).await?.write_json(&mut body);
    Ok(json(body))
}

/// The event at a position.
///
/// # Errors
/// 404.
pub async fn read_one(app: &App, position: Option<u64>) -> Result<Committed, Problem> {
    let event = match position {
        Some(position) => app.log.read_event(Position(position)).await?,
        None => None,
    };
    event.ok_or_else(|| Problem::not_found("event"))
}

fn json(body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// What a query asks of the log.
#[derive(Debug, Default)]
pub struct Query {
    /// Only events after this.
    pub after: Option<Position>,
    /// Only events before this, the newest first.
    pub before: Option<Position>,
    /// Only from this place in the log on, a position or a time.
    pub from: Option<String>,
    /// Only up to this place.
    pub to: Option<String>,
    /// Only those of this agent, its jobs and its instances.
    pub agent: Option<AgentId>,
    /// Only those of this node and its jobs.
    pub node: Option<NodeId>,
    /// Only those that this actor caused; people by id or by address.
    pub actor: Option<String>,
    /// Only those whose body says this somewhere.
    pub text: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
    /// Only these.
    pub filter: EventFilter,
}

impl Query {
    /// Reads a query string.
    ///
    /// # Errors
    /// 400, with the parameter's name.
    pub fn parse(query: &str) -> Result<Self, Problem> {
        let mut parsed = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let wrong = || Problem::bad_request(format!("{name}={value} makes no sense"));
            // A form sends what is left empty all the same.
            if value.is_empty() && !matches!(&*name, "after" | "limit") {
                continue;
            }
            match &*name {
                "after" | "before" => {
                    let position: u64 = value.parse().map_err(|_| wrong())?;
                    // Postgres counts in signed numbers.
                    let position = Some(Position(position.min(i64::MAX as u64)));
                    if name == "after" { parsed.after = position } else { parsed.before = position }
                }
                "from" => parsed.from = Some(value.into_owned()),
                "to" => parsed.to = Some(value.into_owned()),
                "agent" => parsed.agent = Some(value.parse().map_err(|_| wrong())?),
                "node" => parsed.node = Some(value.parse().map_err(|_| wrong())?),
                "actor" | "text" if value.len() > SOUGHT_BYTES_MAX => {
                    return Err(Problem::bad_request(format!("{name} is too long")));
                }
                "actor" => parsed.actor = Some(value.into_owned()),
                "text" => parsed.text = Some(value.into_owned()),
                "limit" => parsed.limit = Some(value.parse().map_err(|_| wrong())?),
                "stream" => {
                    parsed.filter.streams.push(StreamId(value.parse().map_err(|_| wrong())?));
                }
                "type" => {
                    parsed.filter.types.push(EventType::from_name(&value).ok_or_else(wrong)?);
                }
                _ => {}
            }
        }
        if parsed.filter.streams.len() > crate::push::WANTS_MAX {
            return Err(Problem::bad_request("too many streams are asked for"));
        }
        if parsed.after.is_some() && parsed.before.is_some() {
            return Err(Problem::bad_request("say after= or before=, not both"));
        }
        Ok(parsed)
    }

    /// Which way it reads: back from `before`, else forward.
    pub fn direction(&self) -> Direction {
        if self.before.is_some() { Direction::Down } else { Direction::Up }
    }

    /// What it searches for, agents and nodes by their streams; `None` where no stream is of all that
    /// are named.
    ///
    /// # Errors
    /// 503 when the log cannot be read.
    async fn search(&self, app: &App) -> Result<Option<Search>, Problem> {
        let mut filter = self.filter.clone();
        let of_agent = match self.agent {
            Some(agent) => Some(streams_of_agent(&app.log, agent).await?),
            None => None,
        };
        let of_node = match self.node {
            Some(node) => Some(streams_of_node(&app.log, node).await?),
            None => None,
        };
        for streams in [of_agent, of_node].into_iter().flatten() {
            if filter.streams.is_empty() {
                filter.streams = streams;
                continue;
            }
            filter.streams.retain(|stream| streams.contains(stream));
            // None at all would ask for every stream.
            if filter.streams.is_empty() {
                return Ok(None);
            }
        }
        let people = app.access.people();
        let actor = self.actor.as_deref().map(|actor| people.written(actor));
        Ok(Some(Search { filter, actor, text: self.text.clone() }))
    }

    /// The positions it allows, cursors apart: after the first, up to the second.
    ///
    /// # Errors
    /// 400 for a place that is none; 404 for one that is still to come.
    async fn bounds(&self, app: &App, head: Position) -> Result<(Position, Position), Problem> {
        let low = match &self.from {
            Some(from) => Past::find_from(app, "from", from).await?,
            None => Position::START,
        };
        let high = match &self.to {
            Some(to) => Past::find_to(app, "to", to).await?,
            None => head,
        };
        Ok((low, high))
    }

    /// Looks for what it asks for, in a log that ends at `head`.
    ///
    /// # Errors
    /// 400 for a place that is none; 404 for one that is still to come; 503 when the log cannot be
    /// read.
    pub async fn find(&self, app: &App, head: Position, limit: usize) -> Result<Found, Problem> {
        let (low, high) = self.bounds(app, head).await?;
        let low = self.after.map_or(low, |after| after.max(low));
        let below = |before: Position| Position(before.0.saturating_sub(1));
        // A page of the past ends there, whatever it is asked for.
        let high = self.before.map_or(high, |before| below(before).min(high)).min(head);
        let Some(search) = self.search(app).await? else {
            let looked_to = match self.direction() {
                Direction::Up => high.max(low),
                Direction::Down => low.next(),
            };
            return Ok(Found { events: Vec::new(), looked_to, is_whole: true });
        };
        Ok(app.log.search(&search, low, high, self.direction(), limit).await?)
    }
}
