//! What may go wrong with a request, and whether trying again may help.

use std::time::Duration;

use serde::Deserialize;

/// Codes that may be gone at the next try.
pub const RETRYABLE_CODES: [&str; 10] = [
    "rate_limit_exceeded",
    "conflict",
    "locked",
    "resource_unavailable",
    "placement_error",
    "timeout",
    "bad_gateway",
    "server_error",
    "service_error",
    "maintenance",
];

/// Codes that stay until somebody changes something.
pub const FINAL_CODES: [&str; 5] =
    ["invalid_input", "unauthorized", "forbidden", "token_readonly", "resource_limit_exceeded"];

/// As much of a service's own words as is kept, in characters: enough to tell, too little to
/// flood a log.
pub const MESSAGE_CHARS_MAX: usize = 500;

/// Whether trying again may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It may.
    Retryable,
    /// It will not, until somebody changes something.
    Final,
}

/// A request that did not do what it should. Its forms hold no secret.
#[derive(Debug, thiserror::Error)]
#[error("{service}: {request} failed")]
pub struct ClientError {
    /// Which service.
    pub service: &'static str,
    /// Which request: its method and path.
    pub request: String,
    /// What went wrong.
    #[source]
    pub trouble: Trouble,
}

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The service refused.
    #[error("{code} ({status}): {message}")]
    Refused {
        /// The status of its answer.
        status: u16,
        /// Its own code; made from the status where it gives none.
        code: String,
        /// Its own words, cut to [`MESSAGE_CHARS_MAX`].
        message: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// There was no connection: nothing was asked.
    #[error("the service cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// The request may have arrived, and may have been done; no whole answer came.
    #[error("the answer was lost")]
    AnswerLost(#[source] reqwest::Error),
    /// An answer came that cannot be read: {0} says where, never what.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    /// What was begun by a request ended in failure.
    #[error("action {id} failed: {code}: {message}")]
    ActionFailed {
        /// The action.
        id: u64,
        /// The service's own code.
        code: String,
        /// The service's own words, cut to [`MESSAGE_CHARS_MAX`].
        message: String,
    },
    /// What was begun by a request has not ended in time.
    #[error("action {id} is still running after {} s", waited.as_secs())]
    ActionTooSlow {
        /// The action.
        id: u64,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The request cannot be made: a setting is no URL or no header.
    #[error("the request cannot be made; are the address and the token right?")]
    Unsendable(#[source] reqwest::Error),
}

impl ClientError {
    /// Whether trying again may help.
    pub fn class(&self) -> Class {
        match &self.trouble {
            Trouble::Refused { status, code, .. } => class_of(code, *status),
            // What fails under way without a known final reason may well succeed anew.
            Trouble::ActionFailed { code, .. } if FINAL_CODES.contains(&code.as_str()) => {
                Class::Final
            }
            Trouble::ActionFailed { .. }
            | Trouble::ActionTooSlow { .. }
            | Trouble::Unreachable(_)
            | Trouble::AnswerLost(_)
            | Trouble::Unreadable(_) => Class::Retryable,
            Trouble::Unsendable(_) => Class::Final,
        }
    }

    /// The service's own code, if it gave one.
    pub fn code(&self) -> Option<&str> {
        match &self.trouble {
            Trouble::Refused { code, .. } | Trouble::ActionFailed { code, .. } => Some(code),
            _ => None,
        }
    }

    /// The status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self.trouble {
            Trouble::Refused { status, .. } => Some(status),
            _ => None,
        }
    }

    /// How long the service asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.trouble {
            Trouble::Refused { retry_after, .. } => retry_after,
            _ => None,
        }
    }

    /// Whether the request may have been done all the same. What changes something must then be
    /// looked for before it is asked for again.
    pub fn may_be_done(&self) -> bool {
        match self.trouble {
            Trouble::AnswerLost(_) | Trouble::Unreadable(_) => true,
            Trouble::Refused { status, .. } => status >= 500,
            Trouble::Unreachable(_)
            | Trouble::ActionFailed { .. }
            | Trouble::ActionTooSlow { .. }
            | Trouble::Unsendable(_) => false,
        }
    }
}

/// Takes "there is no such thing" for an answer.
pub fn found<T>(result: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match result {
        Ok(thing) => Ok(Some(thing)),
        Err(error) if error.status() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

fn class_of(code: &str, status: u16) -> Class {
    let by_status = matches!(status, 408 | 425 | 429 | 500..);
    let retryable = RETRYABLE_CODES.contains(&code) || (by_status && !FINAL_CODES.contains(&code));
    if retryable { Class::Retryable } else { Class::Final }
}

/// The body of a refusal: Hetzner's `{"error":{"code","message"}}`, Tailscale's `{"message"}`,
/// or that of OAuth, `{"error","error_description"}` (RFC 6749, 5.2).
#[derive(Default, Deserialize)]
struct Refusal {
    error: Option<RefusalError>,
    message: Option<String>,
    error_description: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RefusalError {
    Coded { code: String, message: String },
    Code(String),
}

/// The code and the words of a refusal; `clean` makes the words fit to be shown.
pub(super) fn refusal(
    status: u16,
    body: &[u8],
    clean: impl Fn(&str) -> String,
) -> (String, String) {
    let Refusal { error, message, error_description } =
        serde_json::from_slice(body).unwrap_or_default();
    let (code, words) = match error {
        Some(RefusalError::Coded { code, message }) => (Some(code), Some(message)),
        Some(RefusalError::Code(code)) => (Some(code), error_description),
        None => (None, None),
    };
    let code = code.map_or_else(|| code_of(status), |code| clean(&code));
    let words = words.or(message).map(|words| clean(&words));
    (code, words.unwrap_or_else(|| "the service says no more".to_owned()))
}

/// The code that stands for a status where the service gives none, as of a proxy before it.
fn code_of(status: u16) -> String {
    match status {
        400 | 422 => "invalid_input".to_owned(),
        401 => "unauthorized".to_owned(),
        403 => "forbidden".to_owned(),
        404 => "not_found".to_owned(),
        409 => "conflict".to_owned(),
        423 => "locked".to_owned(),
        429 => "rate_limit_exceeded".to_owned(),
        502 => "bad_gateway".to_owned(),
        408 | 504 => "timeout".to_owned(),
        500.. => "server_error".to_owned(),
        _ => format!("http_{status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str) -> ClientError {
        let (code, message) = (code.to_owned(), "no".to_owned());
        let trouble = Trouble::Refused { status, code, message, retry_after: None };
        ClientError { service: "Hetzner", request: "POST /servers".to_owned(), trouble }
    }

    #[test]
    fn the_listed_codes_have_their_class_whatever_the_status() {
        for status in [400, 403, 409, 422, 423, 429, 503] {
            for code in RETRYABLE_CODES {
                assert_eq!(refused(status, code).class(), Class::Retryable, "{code} {status}");
            }
            for code in FINAL_CODES {
                assert_eq!(refused(status, code).class(), Class::Final, "{code} {status}");
            }
        }
    }

    #[test]
    fn an_unknown_code_has_the_class_of_its_status() {
        assert_eq!(refused(422, "strange").class(), Class::Final);
        assert_eq!(refused(404, "not_found").class(), Class::Final);
        assert_eq!(refused(500, "strange").class(), Class::Retryable);
        assert_eq!(refused(429, "strange").class(), Class::Retryable);
    }

    #[test]
    fn every_form_of_a_refusal_is_read() {
        let read = |body: &str| refusal(403, body.as_bytes(), str::to_owned);
        let hetzner = r#"{"error":{"code":"token_readonly","message":"read only"}}"#;
        assert_eq!(read(hetzner), ("token_readonly".to_owned(), "read only".to_owned()));
        let tailscale = r#"{"message":"not allowed"}"#;
        assert_eq!(read(tailscale), ("forbidden".to_owned(), "not allowed".to_owned()));
        let oauth = r#"{"error":"invalid_client","error_description":"unknown"}"#;
        assert_eq!(read(oauth), ("invalid_client".to_owned(), "unknown".to_owned()));
        assert_eq!(read("<html>").0, "forbidden");
    }

    #[test]
    fn only_what_may_have_arrived_may_be_done() {
        assert!(refused(502, "bad_gateway").may_be_done());
        assert!(!refused(422, "invalid_input").may_be_done());
    }
}
