//! `GET /api/events`: the log itself.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use milepost_schemas::{EventType, Position, StreamId};

use crate::app::App;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::log::{EventFilter, READ_EVENTS_MAX};

/// Events in an answer unless more are asked for.
const LIST_DEFAULT: usize = 100;

/// `GET /api/events?after=&limit=&stream=&type=` → `{"events":[…],"head":N}`, ascending; at most
/// 1,000 an answer, `stream` and `type` may be repeated.
///
/// # Errors
/// 400 for a filter that makes no sense.
pub async fn list(
    State(app): State<Arc<App>>,
    _: Actor,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref().unwrap_or_default())?;
    let (epoch, head) = app.log.head().await?;
    let limit = query.limit.unwrap_or(LIST_DEFAULT).min(READ_EVENTS_MAX);
    let after = query.after.unwrap_or(Position::START);
    let events = app.log.read(&query.filter, after, head, limit).await?;
    let mut body = b"{\"events\":[".to_vec();
    for (index, event) in events.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        event.write_json(&mut body);
    }
    body.extend_from_slice(format!("],\"epoch\":{epoch},\"head\":{head}}}").as_bytes());
    let mut response = Response::new(Body::from(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

/// What a query asks of the log.
#[derive(Debug, Default)]
pub struct Query {
    /// Only events after this.
    pub after: Option<Position>,
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
            match &*name {
                "after" => {
                    let after: u64 = value.parse().map_err(|_| wrong())?;
                    // Postgres counts in signed numbers.
                    parsed.after = Some(Position(after.min(i64::MAX as u64)));
                }
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
        Ok(parsed)
    }
}
