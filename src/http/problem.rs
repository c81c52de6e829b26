//! Errors as `application/problem+json` (RFC 9457), each with a stable `type`.

use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::SignedDuration;
use serde::Serialize;

use crate::accounts::AccountError;
use crate::domain::AccountRefusal;
use crate::domain::agent::AgentRefusal;
use crate::domain::job::JobRefusal;
use crate::domain::node::NodeRefusal;
use crate::domain::queue::QueueRefusal;
use crate::domain::upkeep::UpkeepRefusal;
use crate::execute::ExecuteError;
use crate::log::DatabaseError;

/// When a client should come back after a 503, in seconds.
const RETRY_AFTER_SECONDS: u64 = 2;

/// An error answer.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    /// When to come back, in seconds.
    #[serde(skip)]
    retry_after: Option<u64>,
    #[serde(flatten)]
    more: serde_json::Map<String, serde_json::Value>,
}

impl Problem {
    /// An error of a kind, in words.
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            kind: format!("urn:milepost:problem:{kind}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            retry_after: None,
            more: serde_json::Map::new(),
        }
    }

    /// With a further field.
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// The status code.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).expect("it was made from one")
    }

    /// When to come back, for a header.
    pub fn retry_after(&self) -> Option<HeaderValue> {
        self.retry_after.map(HeaderValue::from)
    }

    /// The words for people.
    pub fn words(&self) -> (&'static str, &str) {
        (self.title, &self.detail)
    }

    /// 400.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "The request makes no sense", detail)
    }

    /// 401.
    pub fn unauthorised(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorised", "Not authorised", detail)
    }

    /// 403.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Forbidden", detail)
    }

    /// 404.
    pub fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not-found",
            "Not found",
            format!("There is no such {what}"),
        )
    }

    /// 413.
    pub fn too_large(bytes_max: usize) -> Self {
        let detail = format!("The body has more than {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Too large", detail)
    }

    /// 415.
    pub fn not_json() -> Self {
        let detail = "The content type is not application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", "Not JSON", detail)
    }

    /// 405.
    pub fn not_allowed() -> Self {
        let detail = "The route takes other methods";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "Method not allowed",
            detail,
        )
    }

    /// 409.
    pub fn conflict(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, kind, "Conflict", detail)
    }

    /// 422, of a kind.
    pub fn unprocessable(kind: &'static str, detail: impl Into<String>) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self::new(status, kind, "It cannot be done", detail)
    }

    /// 500: what is stored contradicts itself.
    pub fn damaged(detail: impl Into<String>) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "damaged", "What is stored is damaged", detail)
    }

    /// 429: too many tries failed; come back when that time is over.
    pub fn too_many(left: SignedDuration) -> Self {
        let seconds = left.as_secs().unsigned_abs() + 1;
        let detail = format!("Too many log-ins have failed; try again in {seconds} s");
        let status = StatusCode::TOO_MANY_REQUESTS;
        let problem = Self::new(status, "too-many-tries", "Too many tries", detail);
        Self { retry_after: Some(seconds), ..problem }
    }

    /// 422: it could be read, and cannot be done.
    pub(super) fn refused(why: &impl ToString) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self::new(status, "refused", "The order is refused", why.to_string())
    }

    /// 410: it was here, and is in an archive now.
    fn archived(floor: milepost_schemas::Position, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "archived", "It is archived", detail).with("floor", floor.0)
    }

    /// 503: nothing was acknowledged; come back.
    pub fn unavailable() -> Self {
        Self::come_back("The log cannot be reached; nothing was acknowledged, try again")
    }

    /// 503: so many passwords are being looked at that this one was not.
    pub fn busy() -> Self {
        Self::come_back("Too many are logging in at once; nothing was looked at, try again")
    }

    fn come_back(detail: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let problem = Self::new(status, "unavailable", "Unavailable", detail);
        Self { retry_after: Some(RETRY_AFTER_SECONDS), ..problem }
    }

    /// 503: the log has lost events that were in it, and nothing is taken until somebody says so.
    pub fn set_back() -> Self {
        let detail = "The log was set back: nothing is taken until a new epoch begins, by \
                      milepost log new-epoch";
        Self::come_back(detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).expect("a problem is plain data");
        let mut response = (self.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<ExecuteError> for Problem {
    fn from(error: ExecuteError) -> Self {
        match error {
            ExecuteError::UnknownJob => Self::not_found("job"),
            ExecuteError::UnknownSubject => Self::not_found("agent, node or stream"),
            ExecuteError::OfSubject(_, subject) => {
                Self::conflict("not-a-subject", error.to_string())
                    .with("subject", subject.to_string())
            }
            ExecuteError::Job(refusal @ JobRefusal::Priority) => Self::refused(&refusal),
            ExecuteError::Job(refusal @ (JobRefusal::Status(_) | JobRefusal::Fenced(_))) => {
                Self::conflict("job-status", refusal.to_string())
            }
            ExecuteError::Agent(AgentRefusal::Unknown) => Self::not_found("agent"),
            ExecuteError::Agent(refusal @ AgentRefusal::Busy(job)) => {
                Self::conflict("agent-busy", refusal.to_string()).with("job_id", job.to_string())
            }
            ExecuteError::Agent(refusal @ AgentRefusal::Exists) => {
                Self::conflict("agent-exists", refusal.to_string())
            }
            ExecuteError::Agent(refusal @ (AgentRefusal::Name | AgentRefusal::Region)) => {
                Self::refused(&refusal)
            }
            ExecuteError::Node(NodeRefusal::Unknown) => Self::not_found("node"),
            ExecuteError::Node(refusal @ NodeRefusal::Busy(job)) => {
                Self::conflict("node-busy", refusal.to_string()).with("job_id", job.to_string())
            }
            ExecuteError::Node(refusal @ NodeRefusal::Exists(node)) => {
                Self::conflict("node-exists", refusal.to_string()).with("node_id", node.to_string())
            }
            ExecuteError::Node(refusal @ NodeRefusal::Decommissioned) => {
                Self::conflict("node-decommissioned", refusal.to_string())
            }
            ExecuteError::Node(
                refusal @ (NodeRefusal::Hostname
                | NodeRefusal::PublicIp
                | NodeRefusal::SshUser
                | NodeRefusal::SshPort),
            ) => Self::refused(&refusal),
            ExecuteError::Queue(QueueRefusal::Reason) => {
                Self::bad_request(QueueRefusal::Reason.to_string())
            }
            ExecuteError::Queue(refusal @ (QueueRefusal::Paused | QueueRefusal::NotPaused)) => {
                Self::conflict("queue-paused", refusal.to_string())
            }
            ExecuteError::Upkeep(UpkeepRefusal::Unknown) => Self::not_found("projection"),
            ExecuteError::Upkeep(UpkeepRefusal::Reason) => {
                Self::bad_request(UpkeepRefusal::Reason.to_string())
            }
            ExecuteError::Upkeep(refusal @ UpkeepRefusal::Busy(_)) => {
                Self::conflict("projection-busy", refusal.to_string())
            }
            ExecuteError::Upkeep(
                refusal @ (UpkeepRefusal::Nothing
                | UpkeepRefusal::SkipsTooMany
                | UpkeepRefusal::NotPoison
                | UpkeepRefusal::NoFormer
                | UpkeepRefusal::StillUnreadable),
            ) => Self::conflict("projection-state", refusal.to_string()),
            ExecuteError::Busy("node") => Self::conflict("node-busy", error.to_string()),
            ExecuteError::Busy(_) => Self::conflict("agent-busy", error.to_string()),
            ExecuteError::Moved | ExecuteError::Unavailable => Self::unavailable(),
            ExecuteError::Database(error) => error.into(),
            ExecuteError::Unreadable(why) => {
                tracing::error!(why, "an event cannot be read");
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                let detail =
                    "This version cannot read an event that it needs; its own log says which";
                Self::new(status, "unreadable", "An event cannot be read", detail)
            }
        }
    }
}

impl From<AccountError> for Problem {
    fn from(error: AccountError) -> Self {
        let refusal = match error {
            AccountError::Refused(refusal) => refusal,
            AccountError::Busy(_) => return Self::busy(),
            AccountError::Database(error) => return error.into(),
        };
        match refusal {
            AccountRefusal::Unknown => Self::not_found("account"),
            AccountRefusal::Exists => Self::conflict("account-exists", refusal.to_string()),
            AccountRefusal::LastAdmin => Self::conflict("last-admin", refusal.to_string()),
            AccountRefusal::Unchanged => Self::conflict("unchanged", refusal.to_string()),
            AccountRefusal::TokenExists => Self::conflict("token-exists", refusal.to_string()),
            AccountRefusal::Email
            | AccountRefusal::Password
            | AccountRefusal::TokenName
            | AccountRefusal::TokenExpiry => Self::refused(&refusal),
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(error: QueryRejection) -> Self {
        Self::bad_request(error.body_text())
    }
}

impl From<DatabaseError> for Problem {
    fn from(error: DatabaseError) -> Self {
        if let DatabaseError::Archived { floor } = error {
            return Self::archived(floor, error.to_string());
        }
        if let DatabaseError::NotFilled(_) = error {
            return Self::come_back(format!("Lists are not ready: {error}; try again"));
        }
        tracing::error!(error = &error as &dyn std::error::Error, "the database failed");
        Self::unavailable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_while_too_many_passwords_are_looked_at_is_told_when_to_come_back() {
        let answer = Problem::from(AccountError::Busy(crate::accounts::Busy)).into_response();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()[header::RETRY_AFTER], "2");
    }
}
