//! The one place where a request becomes an actor.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::response::{IntoResponse as _, Redirect, Response};
use jiff::Timestamp;
use milepost_schemas::Metadata;
use uuid::Uuid;

use super::open;
use super::pages::Trouble;
use super::problem::Problem;
use crate::accounts;
use crate::app::App;

/// The cookie of a session.
pub const COOKIE_NAME: &str = "session_token";

/// Who makes a request.
#[derive(Clone, Debug)]
pub struct Actor {
    /// `account:<email>` or `token:<name>`, as events keep it.
    pub name: String,
    /// When the right to be here ends; a token's does not.
    pub expires_at: Option<Timestamp>,
    by_cookie: bool,
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
        self.name.strip_prefix("account:")
    }
}

impl FromRequestParts<Arc<App>> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let actor = authenticate(app, &parts.headers).await?;
        let actor = actor.ok_or_else(|| {
            Problem::unauthorised("Log in, or send a token as Authorization: Bearer")
        })?;
        if actor.by_cookie {
            refuse_cross_origin(&parts.method, &parts.headers)?;
        }
        open::allow(parts);
        Ok(actor)
    }
}

/// A person at a page: one who is not logged in is sent to do so.
pub struct Visitor(pub Actor);

impl FromRequestParts<Arc<App>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        match Actor::from_request_parts(parts, app).await {
            Ok(actor) => Ok(Self(actor)),
            Err(problem) if problem.status() == axum::http::StatusCode::UNAUTHORIZED => {
                let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
                let next = if parts.method == Method::GET { path } else { "/" };
                let next: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
                Err(Redirect::to(&format!("/login?next={next}")).into_response())
            }
            Err(problem) => Err(Trouble::from(problem).into_response()),
        }
    }
}

async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Option<Actor>, Problem> {
    let database = app.log.database();
    if let Some(value) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) {
        let Some((scheme, token)) = value.split_once(' ') else { return Ok(None) };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Ok(None);
        }
        let name = accounts::token_name(database, token.trim()).await?;
        return Ok(name.map(|name| Actor {
            name: format!("token:{name}"),
            expires_at: None,
            by_cookie: false,
        }));
    }
    let Some(token) = session_token(headers) else { return Ok(None) };
    let session = accounts::session(database, token, app.clock.now()).await?;
    Ok(session.map(|session| Actor {
        name: format!("account:{}", session.email),
        expires_at: Some(session.expires_at),
        by_cookie: true,
    }))
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
    fn the_session_is_found_among_other_cookies() {
        let found = headers(&[("cookie", "a=1; session_token=abc; b=2")]);
        assert_eq!(session_token(&found), Some("abc"));
        assert_eq!(session_token(&headers(&[("cookie", "xsession_token=abc")])), None);
    }
}
