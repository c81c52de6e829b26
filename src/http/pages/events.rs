//! The browser of the log: filters, pages both ways, and the newest as they come.

use std::sync::Arc;

use askama::Template;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use milepost_schemas::{EventType, Position};

use super::Frame;
use super::event_row::{EventRow, EventView};
use super::format::number;
use super::handlers::{Trouble, frame_at, html, rows};
use crate::app::App;
use crate::http::api::events::Query;
use crate::http::at::At;
use crate::http::auth::Visitor;
use crate::http::problem::Problem;
use crate::log::{Direction, Found};

/// Events a page shows.
const EVENTS_SHOWN: usize = 100;

/// `GET /events`.
#[derive(Clone, Debug, Template)]
#[template(path = "events.html")]
pub struct EventsPage {
    frame: Frame,
    filters: Filters,
    rows: Vec<EventView>,
    blank: EventView,
    found: Reach,
}

/// What the events are filtered by, as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Streams; the form has room for one, links may name more.
    pub streams: Vec<String>,
    /// Types; likewise.
    pub kinds: Vec<String>,
    /// An agent and what belongs to it.
    pub agent: String,
    /// A node and what belongs to it.
    pub node: String,
    /// Who caused them.
    pub actor: String,
    /// What they say.
    pub text: String,
    /// From where on.
    pub from: String,
    /// Up to where.
    pub to: String,
}

/// How far a page reaches, and how it goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The cursor of the older page, if there is one.
    pub older: Option<u64>,
    /// The cursor of the newer page, if there is one.
    pub newer: Option<u64>,
    /// How far it was looked, when that was not to the end.
    pub looked_to: Option<u64>,
    /// Whether that was towards newer events.
    pub upward: bool,
    /// Whether new events come in by themselves.
    pub is_live: bool,
}

impl EventsPage {
    /// The page for events in any order.
    pub fn new(frame: Frame, filters: Filters, mut rows: Vec<EventRow>, found: Reach) -> Self {
        rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.position));
        let rows = rows.into_iter().map(|row| EventView::new(row, frame.now)).collect();
        Self { rows, blank: EventView::blank(), frame, filters, found }
    }

    /// Who must have caused what is shown, as events name them: the page's scripts compare.
    fn actor(&self) -> &str {
        let named = self.frame.people.iter().find(|(_, said)| *said == self.filters.actor);
        named.map_or(&self.filters.actor, |(written, _)| written)
    }

    fn types() -> impl Iterator<Item = &'static str> {
        EventType::ALL.iter().map(|kind| kind.name())
    }

    /// The address of the newer page, if there is one.
    fn newer(&self) -> Option<String> {
        self.found.newer.map(|position| self.address("after", position))
    }

    /// The address of the older page, if there is one.
    fn older(&self) -> Option<String> {
        self.found.older.map(|position| self.address("before", position))
    }

    /// The page of the same filters with a cursor.
    fn address(&self, cursor: &str, position: u64) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(self.filters.given());
        if self.frame.past.is_some() {
            query.append_pair("at", &self.frame.position.to_string());
        }
        format!("?{}", query.append_pair(cursor, &position.to_string()).finish())
    }

    /// Where the state at a position is looked at: of what is filtered by, else of everything.
    fn subject(&self) -> String {
        match (&*self.filters.agent, &*self.filters.node) {
            ("", "") => "/".to_owned(),
            ("", node) => format!("/nodes/{node}"),
            (agent, _) => format!("/agents/{agent}"),
        }
    }

    /// Whether there is anything newer to go to.
    fn leads_up(&self) -> bool {
        self.found.newer.is_some() || (!self.found.is_live && self.frame.past.is_none())
    }

    fn looked_to(&self) -> String {
        number(self.found.looked_to.unwrap_or_default())
    }
}

impl Filters {
    fn of(query: &str) -> Self {
        let mut filters = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = value.trim();
            let field = match &*name {
                // A form sends what is left empty all the same.
                _ if value.is_empty() => continue,
                "stream" => {
                    filters.streams.push(value.to_owned());
                    continue;
                }
                "type" => {
                    filters.kinds.push(value.to_owned());
                    continue;
                }
                "agent" => &mut filters.agent,
                "node" => &mut filters.node,
                "actor" => &mut filters.actor,
                "text" => &mut filters.text,
                "from" => &mut filters.from,
                "to" => &mut filters.to,
                _ => continue,
            };
            value.clone_into(field);
        }
        filters
    }

    /// What is filled in, by its parameter.
    fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let streams = self.streams.iter().map(|stream| ("stream", stream));
        let kinds = self.kinds.iter().map(|kind| ("type", kind));
        let others = [
            ("agent", &self.agent),
            ("node", &self.node),
            ("actor", &self.actor),
            ("text", &self.text),
            ("from", &self.from),
            ("to", &self.to),
        ];
        let given = streams.chain(kinds).chain(others).filter(|(_, value)| !value.is_empty());
        given.map(|(name, value)| (name, &**value))
    }

    /// The stream that the form and the page's scripts have room for.
    fn stream(&self) -> &str {
        self.streams.first().map_or("", String::as_str)
    }

    /// Likewise the type.
    fn kind(&self) -> &str {
        self.kinds.first().map_or("", String::as_str)
    }

    /// Whether the page's scripts can tell what matches.
    fn may_be_followed(&self) -> bool {
        let one = |values: &[String]| values.len() <= 1;
        let of_one_thing = self.agent.is_empty() || self.node.is_empty();
        one(&self.streams) && one(&self.kinds) && of_one_thing && self.to.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.given().next().is_none()
    }
}

/// `GET /events?stream=&type=&agent=&node=&actor=&text=&from=&to=&before=|after=&at=`.
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    RawQuery(query): RawQuery,
    at: Result<At, Problem>,
) -> Result<Response, Trouble> {
    let at = at?;
    let text = query.unwrap_or_default();
    let filters = Filters::of(&text);
    let mut query = Query::parse(&text)?;
    let (_, head) = app.log.head().await?;
    let head = at.position().unwrap_or(head);
    let cursor = (query.before, query.after);
    if query.after.is_none() {
        // The newest stand first: those before the end, unless others are asked for.
        query.before = Some(query.before.unwrap_or(head.next()).min(head.next()));
    }
    let found = query.find(&app, head, EVENTS_SHOWN).await?;
    let is_live = cursor == (None, None) && at.0.is_none() && filters.may_be_followed();
    let reach = Reach { is_live, ..reach(&found, query.direction(), cursor, head) };
    let rows = rows(&app, &found.events).await?;
    let scope = match (&*filters.agent, &*filters.node) {
        ("", "") => String::new(),
        ("", node) => format!("&node={node}"),
        (agent, _) => format!("&agent={agent}"),
    };
    let frame = frame_at(&app, &actor, "Events".to_owned(), head, (at, scope));
    Ok(html(&EventsPage::new(frame, filters, rows, reach)))
}

/// How to go on from what was found.
fn reach(
    found: &Found,
    direction: Direction,
    (before, after): (Option<Position>, Option<Position>),
    head: Position,
) -> Reach {
    let positions = found.events.iter().map(|event| event.position);
    let (lowest, highest) = (positions.clone().min(), positions.max());
    let stopped = !found.is_whole && found.events.len() < EVENTS_SHOWN;
    let (older, newer) = match direction {
        Direction::Down => {
            let older = (!found.is_whole).then_some(found.looked_to);
            let newer = before.filter(|before| *before <= head);
            (older, newer.map(|before| Position(before.0 - 1)).map(|it| highest.unwrap_or(it)))
        }
        Direction::Up => {
            let older = lowest.or(after.map(Position::next));
            (older, (!found.is_whole).then_some(found.looked_to))
        }
    };
    Reach {
        older: older.map(|position| position.0),
        newer: newer.map(|position| position.0),
        looked_to: stopped.then_some(found.looked_to.0),
        upward: direction == Direction::Up,
        is_live: false,
    }
}
