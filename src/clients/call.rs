//! One request: its limits, its answer, and what its answer says about the next.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::refusal;
use super::{
    ClientError, MESSAGE_CHARS_MAX, Patience, RATE_LIMIT_PAUSE_MAX, Sensitive, Time, Trouble,
};
use crate::intake::Redactor;

/// The largest answer that is read: a list of some thousand devices is well below.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long a connection may take: a service that is there answers in much less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Seconds since 1970 are above this, seconds from now below.
const SECONDS_FROM_NOW_MAX: i64 = 1_000_000_000;

/// A request before it is sent.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Its path and query, under the service's base URL.
    pub path: String,
    /// Its body.
    pub body: Body,
}

/// The body of a request.
#[derive(Clone)]
pub enum Body {
    /// None.
    Empty,
    /// JSON.
    Json(Value),
    /// The fields of a form.
    Form(Vec<(&'static str, Sensitive)>),
}

impl fmt::Debug for Body {
    /// Bodies hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Json(_) => "Json",
            Self::Form(_) => "Form",
        })
    }
}

impl Call {
    /// A request without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: Body::Empty }
    }

    /// The same with a query.
    pub fn query<'a>(mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        self.path = format!("{}?{query}", self.path);
        self
    }

    /// The same with a body.
    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

/// What a service answered when it did not refuse.
pub struct Answer {
    service: &'static str,
    request: String,
    body: Vec<u8>,
}

impl Answer {
    /// Its JSON.
    ///
    /// # Errors
    /// [`Trouble::Unreadable`] when it is none of that form.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let trouble = Trouble::Unreadable(place_of(&error));
            ClientError { service: self.service, request: self.request.clone(), trouble }
        })
    }
}

/// What every request to an outside service goes through.
pub(super) fn http_client(answer_timeout: Duration) -> reqwest::Client {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT.min(answer_timeout))
        .timeout(answer_timeout)
        // A token goes where it is meant to go, and a POST that follows becomes a GET.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("milepost/", env!("CARGO_PKG_VERSION")))
        .build()
        .expect("these settings fit together")
}

/// Reads an answer's body to its end, and no further than anything has a use for.
///
/// # Errors
/// `Err` when the connection fails; `Ok(None)` when it is longer than [`ANSWER_BYTES_MAX`].
pub(super) async fn read_body(
    response: &mut reqwest::Response,
) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            return Ok(None);
        }
    }
    Ok(Some(body))
}

/// What is wrong with an answer's JSON, and where. The error's own words may quote the answer, and
/// that may hold a key.
pub(super) fn place_of(error: &serde_json::Error) -> String {
    let (kind, line, column) = (error.classify(), error.line(), error.column());
    format!("{kind:?} at line {line}, column {column}")
}

/// A service: where it is, and how it is asked.
#[derive(Debug)]
pub struct Service {
    name: &'static str,
    base_url: String,
    http: reqwest::Client,
    redactor: Redactor,
    /// The passing of time.
    pub time: Arc<dyn Time>,
    /// How patiently it is asked.
    pub patience: Patience,
    /// Nothing is asked before so much time has passed: the service's allowance is used up.
    quiet_until: Mutex<Option<Duration>>,
}

impl Service {
    /// A service at a base URL. The secrets are masked in what it says.
    pub fn new<'a>(
        name: &'static str,
        base_url: &str,
        secrets: impl IntoIterator<Item = &'a Sensitive>,
        time: Arc<dyn Time>,
        patience: Patience,
    ) -> Self {
        let http = http_client(patience.request_timeout);
        Self {
            name,
            base_url: base_url.trim_end_matches('/').to_owned(),
            http,
            redactor: Redactor::new(secrets.into_iter().map(Sensitive::expose)),
            time,
            patience,
            quiet_until: Mutex::default(),
        }
    }

    /// Where a path of it is.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    /// Asks again and again, with growing pauses, while that may help.
    ///
    /// # Errors
    /// The last error.
    pub async fn insist<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        mut ask: impl FnMut() -> F,
    ) -> Result<T, ClientError> {
        let mut tried = 1;
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.pause(tried, error).await?,
            }
            tried += 1;
        }
    }

    /// Pauses after a try (from 1) that failed.
    ///
    /// # Errors
    /// The error itself, when there is no point in another try.
    pub async fn pause(&self, tried: u32, error: ClientError) -> Result<(), ClientError> {
        let Some(delay) = self.patience.delay(tried, &error, self.time.random()) else {
            return Err(error);
        };
        let delay_ms = delay.as_millis() as u64;
        tracing::info!(error = &error as &dyn std::error::Error, tried, delay_ms, "trying again");
        self.time.sleep(delay).await;
        Ok(())
    }

    /// Sends a request once.
    ///
    /// # Errors
    /// [`ClientError`] with what the service said, or how it was not heard.
    pub async fn send(
        &self,
        call: &Call,
        token: Option<&Sensitive>,
    ) -> Result<Answer, ClientError> {
        self.keep_quiet().await;
        let request = format!("{} {}", call.method, call.path);
        let sent = self.request(call, token).send().await;
        match self.read(sent).await {
            Ok(body) => Ok(Answer { service: self.name, request, body }),
            Err(trouble) => Err(ClientError { service: self.name, request, trouble }),
        }
    }

    /// A trouble of this service with something that was asked before.
    pub fn error(&self, request: impl Into<String>, trouble: Trouble) -> ClientError {
        ClientError { service: self.name, request: request.into(), trouble }
    }

    /// What a service said, fit to be shown: no secret, no control characters, not too long.
    pub fn clean(&self, words: &str) -> String {
        let mut words = words.to_owned();
        self.redactor.mask_text(&mut words);
        let letters = words.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
        letters.take(MESSAGE_CHARS_MAX).collect()
    }

    fn request(&self, call: &Call, token: Option<&Sensitive>) -> reqwest::RequestBuilder {
        let mut request = self.http.request(call.method.clone(), self.url(&call.path));
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        match &call.body {
            Body::Empty => request,
            Body::Json(value) => request.json(value),
            Body::Form(fields) => {
                let pairs = fields.iter().map(|(name, value)| (*name, value.expose()));
                let form =
                    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
                request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
            }
        }
    }

    async fn read(
        &self,
        sent: Result<reqwest::Response, reqwest::Error>,
    ) -> Result<Vec<u8>, Trouble> {
        let mut response = sent.map_err(not_answered)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let Some(body) = read_body(&mut response).await.map_err(not_answered)? else {
            return Err(Trouble::Unreadable(format!("it is over {ANSWER_BYTES_MAX} bytes")));
        };
        let limits = Limits::read(&headers, self.time.now());
        if status.is_success() {
            if let Some(pause) = limits.used_up {
                *self.quiet_until() = Some(self.time.passed() + pause);
            }
            return Ok(body);
        }
        let status = status.as_u16();
        let (code, message) = refusal(status, &body, |words| self.clean(words));
        let limited = status == 429 || code == "rate_limit_exceeded";
        let retry_after = limits.retry_after.or(limits.until_reset.filter(|_| limited));
        Err(Trouble::Refused { status, code, message, retry_after })
    }

    async fn keep_quiet(&self) {
        let until = self.quiet_until().take();
        if let Some(pause) = until.and_then(|until| until.checked_sub(self.time.passed())) {
            self.time.sleep(pause).await;
        }
    }

    fn quiet_until(&self) -> std::sync::MutexGuard<'_, Option<Duration>> {
        self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a request was not answered. The URL is left out: it is said elsewhere.
fn not_answered(error: reqwest::Error) -> Trouble {
    let error = error.without_url();
    if error.is_builder() {
        Trouble::Unsendable(error)
    } else if error.is_connect() {
        Trouble::Unreachable(error)
    } else {
        Trouble::AnswerLost(error)
    }
}

/// What an answer says about how soon the next request may come.
#[derive(Debug, Default, PartialEq, Eq)]
struct Limits {
    /// `Retry-After`: to be kept to the second.
    retry_after: Option<Duration>,
    /// `RateLimit-Reset`: all of the allowance is back then, some of it earlier.
    until_reset: Option<Duration>,
    /// The pause after a request that used up the last of the allowance.
    used_up: Option<Duration>,
}

impl Limits {
    fn read(headers: &HeaderMap, now: Timestamp) -> Self {
        let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
        let seconds = |seconds: i64| Duration::from_secs(seconds.max(0).cast_unsigned());
        let retry_after = text(RETRY_AFTER.as_str()).and_then(|text| match text.parse() {
            Ok(count) => Some(seconds(count)),
            Err(_) => jiff::fmt::rfc2822::parse(text)
                .ok()
                .map(|at| seconds(at.timestamp().as_second() - now.as_second())),
        });
        let reset: Option<i64> = text("ratelimit-reset").and_then(|text| text.parse().ok());
        let until_reset = reset.map(|reset| {
            let from_now =
                if reset > SECONDS_FROM_NOW_MAX { reset - now.as_second() } else { reset };
            seconds(from_now).min(RATE_LIMIT_PAUSE_MAX)
        });
        let used_up = until_reset.filter(|_| text("ratelimit-remaining") == Some("0"));
        Self { retry_after, until_reset, used_up }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn limits(pairs: &[(&'static str, &str)]) -> Limits {
        let headers = pairs.iter().map(|(name, value)| {
            (reqwest::header::HeaderName::from_static(name), value.parse().unwrap())
        });
        Limits::read(&headers.collect(), Timestamp::from_second(NOW).unwrap())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(limits(&[("retry-after", "7")]).retry_after, Some(Duration::from_secs(7)));
        let date = limits(&[("retry-after", "Fri, 15 Jan 2027 08:00:30 GMT")]);
        assert_eq!(date.retry_after, Some(Duration::from_secs(30)));
        let past = limits(&[("retry-after", "Fri, 15 Jan 2021 08:00:30 GMT")]);
        assert_eq!(past.retry_after, Some(Duration::ZERO));
        assert_eq!(limits(&[("retry-after", "soon")]), Limits::default());
    }

    #[test]
    fn a_reset_is_a_time_or_seconds_from_now_and_waited_for_within_reason() {
        let reset = |text: &str| limits(&[("ratelimit-reset", text)]).until_reset;
        assert_eq!(reset(&(NOW + 9).to_string()), Some(Duration::from_secs(9)));
        assert_eq!(reset("9"), Some(Duration::from_secs(9)));
        assert_eq!(reset(&(NOW - 9).to_string()), Some(Duration::ZERO));
        assert_eq!(reset(&(NOW + 3_000).to_string()), Some(RATE_LIMIT_PAUSE_MAX));
    }

    #[test]
    fn the_last_of_an_allowance_makes_a_pause() {
        let used_up = |remaining| {
            limits(&[("ratelimit-remaining", remaining), ("ratelimit-reset", "3")]).used_up
        };
        assert_eq!(used_up("1"), None);
        assert_eq!(used_up("0"), Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_request_shows_nothing_of_its_body() {
        let secret = Sensitive::new("hunter2");
        let call = Call::new(Method::POST, "/x").body(Body::Form(vec![("client_secret", secret)]));
        assert!(!format!("{call:?}").contains("hunter2"));
        let call = call.body(Body::Json(serde_json::json!("hunter2")));
        assert!(!format!("{call:?}").contains("hunter2"));
    }
}
