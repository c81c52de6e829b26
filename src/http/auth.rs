//! The one place where a request becomes an actor, and where it is decided whether they may.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Redirect, Response};
use milepost_schemas::{Metadata, Right};
use uuid::Uuid;

use super::access::{Needs, needs};
use super::pages::Trouble;
use super::problem::Problem;
use crate::accounts::{self, Holder, Visit, Who};
use crate::app::App;
use crate::domain::access::roles_with;
use crate::push::serve::peer;

/// The cookie of a session.
pub const COOKIE_NAME: &str = "session_token";

/// Who makes a request, and may.
#[derive(Clone, Debug)]
pub struct Actor {
    /// `account:<account id>` or `token:<name>`, as events keep it.
    pub name: String,
    /// What they came in with.
    pub holder: Holder,
}

impl Actor {
    /// The header of events this actor causes by this request.
    pub fn metadata(&self, app: &App, correlation_id: Uuid) -> Metadata {
        Metadata {
            actor: self.name.clone(),
            correlation_id,
            causation_id: Some(format!("request:{}", app.clock.id())),
            callback: None,
        }
    }

    /// The e-mail address of a person; `None` for a program.
    pub fn email(&self) -> Option<&str> {
        match &self.holder.who {
            Who::Person { email, .. } => Some(email),
            Who::Program { .. } => None,
        }
    }

    fn is_person(&self) -> bool {
        matches!(self.holder.who, Who::Person { .. })
    }
}

/// Stands before every route but the webhooks': finds what the route needs in the table, who asks,
/// and lets through who may. A route without a row lets nobody through.
pub async fn gate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    // What no route takes is not found, whoever asks.
    let Some(route) = request.extensions().get::<MatchedPath>().cloned() else {
        return next.run(request).await;
    };
    let query = request.uri().query().unwrap_or_default();
    let needs = needs(route.as_str(), request.method(), query);
    let admitted = admit(&app, needs, route.as_str(), request.method(), request.headers()).await;
    match admitted {
        Ok(None) => next.run(request).await,
        Ok(Some(actor)) => {
            request.extensions_mut().insert(actor);
            next.run(request).await
        }
        Err(problem) if super::is_for_programs(request.uri().path()) => problem.into_response(),
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => to_log_in(&request),
        Err(problem) => Trouble::from(problem).into_response(),
    }
}

async fn admit(
    app: &App,
    needs: Option<(Needs, Option<Right>)>,
    route: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Option<Actor>, Problem> {
    let Some((needs, further)) = needs else {
        tracing::error!(route, "the route has no row in the table of rights");
        return Err(Problem::forbidden("Nobody may use this route"));
    };
    let right = match needs {
        // The router says that it takes other methods.
        Needs::OtherMethod => return Ok(None),
        Needs::Nobody => {
            refuse_cross_origin(method, headers)?;
            return Ok(None);
        }
        Needs::Somebody => None,
        Needs::Right(right) => Some(right),
    };
    let actor = authenticate(app, headers).await?;
    let actor = actor
        .ok_or_else(|| Problem::unauthorised("Log in, or send a token as Authorization: Bearer"))?;
    if actor.is_person() {
        refuse_cross_origin(method, headers)?;
    }
    match right.into_iter().chain(further).find(|right| !actor.holder.may(*right)) {
        Some(right) => Err(refuse(app, &actor, right, method, route).await),
        None => Ok(Some(actor)),
    }
}

/// The refusal, in words; of a run of them the log is told of the first, and ever fewer.
async fn refuse(app: &App, actor: &Actor, right: Right, method: &Method, route: &str) -> Problem {
    let stream = actor.holder.stream();
    if let Some(refusals) = app.refusals.count(stream, app.clock.now()) {
        let (place, metadata) = ((method.as_str(), route), actor.metadata(app, stream));
        let database = app.log.database();
        let holder = &actor.holder;
        let told =
            accounts::record_refusal(database, holder, place, right, refusals, &metadata).await;
        if let Err(error) = told {
            tracing::warn!(error = &error as &dyn std::error::Error, "a refusal is not in the log");
        }
    }
    let role = actor.holder.role;
    let narrowed = if actor.holder.scopes.is_empty() { "" } else { ", narrowed by its scopes" };
    let detail = format!("This takes the role {}; yours is {role}{narrowed}", roles_with(right));
    Problem::forbidden(detail).with("needs", right.as_str()).with("role", role.as_str())
}

/// A person who is not logged in is sent to do so, and comes back.
fn to_log_in(request: &Request) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let next = if request.method() == Method::GET { path } else { "/" };
    let next: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
    Redirect::to(&format!("/login?next={next}")).into_response()
}

impl FromRequestParts<Arc<App>> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        let admitted = parts.extensions.get::<Self>().cloned();
        admitted.ok_or_else(|| Problem::forbidden("Nobody may use this route"))
    }
}

/// A person at a page.
pub struct Visitor(pub Actor);

impl FromRequestParts<Arc<App>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let actor = Actor::from_request_parts(parts, app).await;
        actor.map(Self).map_err(|problem| Trouble::from(problem).into_response())
    }
}

async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Option<Actor>, Problem> {
    let (database, now) = (app.log.database(), app.clock.now());
    let credentials = headers.get(AUTHORIZATION).filter(|value| !is_basic(value));
    let holder = if let Some(value) = credentials {
        // Whoever sends both is taken for what they say, not for what their browser adds.
        let pair = value.to_str().ok().and_then(|value| value.split_once(' '));
        match pair.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) {
            Some((_, token)) => accounts::of_bearer(database, token.trim(), now).await?,
            None => None,
        }
    } else if let Some(token) = session_token(headers) {
        accounts::of_cookie(database, token, now).await?
    } else {
        None
    };
    Ok(holder.map(|holder| Actor { name: holder.name(), holder }))
}

/// Whether that is a password for a proxy in front of this server: browsers send it along with the
/// cookie, and there is no such way in here.
fn is_basic(value: &HeaderValue) -> bool {
    let scheme = value.as_bytes().split(|byte| *byte == b' ').next();
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic"))
}

/// Who stands at the door with a request.
pub fn visit<'a>(app: &App, headers: &'a HeaderMap, extensions: &Extensions) -> Visit<'a> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    Visit {
        id: app.clock.id(),
        now: app.clock.now(),
        address: client_address(&app.config.trusted_proxies, headers, peer(extensions)),
        user_agent: text(USER_AGENT),
        cookie: session_token(headers),
    }
}

/// Where a request comes from: the other end of the socket, or where that is a proxy that is
/// trusted, the last address in `X-Forwarded-For` that is none. Anybody can write that header.
fn client_address(trusted: &[ipnet::IpNet], headers: &HeaderMap, peer: Option<IpAddr>) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut address = peer.unwrap_or(Ipv4Addr::UNSPECIFIED.into()).to_canonical();
    let values = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = values.flat_map(|value| value.split(',')).collect();
    for hop in hops.iter().rev() {
        if !is_trusted(&address) {
            break;
        }
        let Ok(before) = hop.trim().parse::<IpAddr>() else { break };
        address = before.to_canonical();
    }
    address
}

/// The session's token in a request's cookies.
pub fn session_token(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='))
}

/// Whether a browser says that another site asks.
pub fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    site.is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

/// A browser sends cookies along with forms of other sites; it also says where they come from.
///
/// # Errors
/// 403 for a request that changes something and comes from another origin. Neither header: no
/// browser of the last years, so no cookie sent unasked.
pub fn refuse_cross_origin(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let same = match (header("sec-fetch-site"), header(ORIGIN.as_str())) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_some() && host == header(HOST.as_str())
        }
        (None, None) => true,
    };
    if same { Ok(()) } else { Err(Problem::forbidden("The request comes from another site")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_form_of_another_site_is_refused() {
        let post = |pairs| refuse_cross_origin(&Method::POST, &headers(pairs)).is_ok();
        assert!(post(&[("sec-fetch-site", "same-origin")]));
        assert!(post(&[("origin", "http://a:1"), ("host", "a:1")]));
        assert!(post(&[]));
        assert!(!post(&[("sec-fetch-site", "cross-site")]));
        assert!(!post(&[("sec-fetch-site", "same-site")]));
        assert!(!post(&[("origin", "http://b:1"), ("host", "a:1")]));
        assert!(!post(&[("origin", "null"), ("host", "a:1")]));
        let cross = headers(&[("sec-fetch-site", "cross-site")]);
        assert!(refuse_cross_origin(&Method::GET, &cross).is_ok());
    }

    #[test]
    fn only_a_trusted_proxy_says_where_a_request_comes_from() {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "192.0.2.9/32".parse().unwrap()];
        let from = |peer: &str, forwarded: &str| {
            let headers = headers(&[("x-forwarded-for", forwarded)]);
            client_address(&trusted, &headers, peer.parse().ok()).to_string()
        };
        assert_eq!(from("203.0.113.5", "198.51.100.1"), "203.0.113.5");
        assert_eq!(from("10.1.2.3", "198.51.100.1"), "198.51.100.1");
        assert_eq!(from("::ffff:10.1.2.3", "198.51.100.1"), "198.51.100.1");
        // What stands before the proxies' own words, the client made up.
        assert_eq!(from("10.1.2.3", "6.6.6.6, 198.51.100.1, 192.0.2.9"), "198.51.100.1");
        assert_eq!(from("10.1.2.3", "6.6.6.6, nonsense"), "10.1.2.3");
        assert_eq!(from("10.1.2.3", ""), "10.1.2.3");
    }

    #[test]
    fn the_session_is_found_among_other_cookies() {
        let found = headers(&[("cookie", "a=1; session_token=abc; b=2")]);
        assert_eq!(session_token(&found), Some("abc"));
        assert_eq!(session_token(&headers(&[("cookie", "xsession_token=abc")])), None);
    }
}
