//! GitHub's REST API, as far as Actions need it: dispatch a workflow, find, read and cancel its
//! runs. Authenticated by a token, or as the installation of a GitHub App.
//!
//! What matters most about a dispatch is whether it was taken, so each failure says: *definite*
//! (it was not), or *open* (nobody can tell but by looking for the run). [`GithubError`].

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Sensitive;
use super::call::{ANSWER_BYTES_MAX, http_client, place_of, read_body};

/// Where the API is unless told otherwise.
pub const API_URL: &str = "https://api.github.com";

/// The file name of the workflow that provisions an agent.
pub const WORKFLOW: &str = "provision-agent.yml";

/// The branch a workflow is taken from.
pub const REFERENCE: &str = "main";

/// The version of the API that these requests are written for: the one before knows no run
/// details, the one after has no `return_run_details`.
const API_VERSION: &str = "2022-11-28";

/// How long an answer may take: GitHub itself gives up after 10 s.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs asked for at once; more GitHub does not give.
pub const RUNS_A_PAGE: usize = 100;

/// How long an App's own token is good for; GitHub takes 10 minutes at most.
const JWT_LIFETIME: SignedDuration = SignedDuration::from_mins(9);

/// How far GitHub's clock may be behind ours.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(60);

/// An installation's token is renewed this long before it ends.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_mins(5);

/// How long to wait after a secondary limit that names no time; GitHub asks for a minute.
const LIMITED_FOR: SignedDuration = SignedDuration::from_secs(60);

/// The longest wait taken from a header: the limits are by the hour.
const LIMITED_MAX: SignedDuration = SignedDuration::from_hours(1);

/// Characters of GitHub's own words that go into a reason.
const MESSAGE_CHARS_MAX: usize = 300;

/// Where the workflow is and how to get at it; as they stand in the environment, unchecked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the API is; no trailing slash.
    pub api_url: String,
    /// `owner/name`.
    pub repository: Option<String>,
    /// The workflow's file name.
    pub workflow: String,
    /// The branch or tag it is taken from.
    pub reference: String,
    /// A token that may write actions.
    pub token: Option<Sensitive>,
    /// A GitHub App's id, or client id.
    pub app_id: Option<String>,
    /// The id of its installation.
    pub app_installation_id: Option<String>,
    /// Its private key, PEM.
    pub app_private_key: Option<Sensitive>,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            api_url: API_URL.to_owned(),
            repository: None,
            workflow: WORKFLOW.to_owned(),
            reference: REFERENCE.to_owned(),
            token: None,
            app_id: None,
            app_installation_id: None,
            app_private_key: None,
            timeout: ANSWER_TIMEOUT,
        }
    }
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum GithubError {
    /// Definite: a setting is missing or wrong, in words; nothing was sent.
    #[error("{0}")]
    Settings(String),
    /// Definite: GitHub said no.
    #[error("GitHub answered {status}: {message}")]
    Refused {
        /// The status.
        status: u16,
        /// GitHub's words.
        message: String,
    },
    /// Definite: too many requests; not before this.
    #[error("GitHub's rate limit is reached: {message}")]
    Limited {
        /// When to come back.
        until: Timestamp,
        /// GitHub's words.
        message: String,
    },
    /// Definite: no connection came about, so nothing was sent.
    #[error("GitHub cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Open: an error of GitHub's own; it may have done it all the same.
    #[error("GitHub answered {status}: {message}")]
    Failing {
        /// The status.
        status: u16,
        /// GitHub's words.
        message: String,
    },
    /// Open: it was sent, and no answer came, or none that can be read.
    #[error("GitHub's answer was lost")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl GithubError {
    /// The whole chain in one line, for people.
    pub fn words(&self) -> String {
        let chain = std::iter::successors(Some(self as &dyn std::error::Error), |it| it.source());
        chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
}

/// What GitHub says of a dispatch it took, where it says more than that it did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Dispatched {
    /// The run.
    pub workflow_run_id: u64,
    /// Where a person looks at it.
    pub html_url: String,
}

/// A run of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: u64,
    /// Its name, as `run-name` made it.
    pub display_title: String,
    /// Where it is: `completed`, or `queued`, `in_progress` and others that it passes through.
    pub status: Option<String>,
    /// How it ended, once completed: `success`, `failure`, `cancelled`, `timed_out` and others.
    pub conclusion: Option<String>,
    /// From 1; higher when somebody ran it again.
    #[serde(default = "first")]
    pub run_attempt: u32,
    /// Where a person looks at it.
    pub html_url: String,
    /// When it was made.
    pub created_at: Timestamp,
}

const fn first() -> u32 {
    1
}

#[derive(Deserialize)]
struct Runs {
    workflow_runs: Vec<Run>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iat: i64,
    exp: i64,
    iss: &'a str,
}

#[derive(Clone, Deserialize)]
struct InstallationToken {
    token: String,
    expires_at: Timestamp,
}

enum Credentials {
    Token(String),
    App { id: String, installation_id: u64, key: Box<RsaKeyPair> },
}

/// What GitHub last said of the requests that are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests left until `reset_at`.
    pub remaining: Option<u64>,
    /// When there are new ones.
    pub reset_at: Option<Timestamp>,
}

/// A client of one workflow in one repository.
pub struct Github {
    http: reqwest::Client,
    settings: Settings,
    /// Checked once; what is wrong is said at each use.
    credentials: Result<Credentials, String>,
    installation: tokio::sync::Mutex<Option<InstallationToken>>,
    quota: Mutex<Quota>,
}

impl Github {
    /// A client; what its settings lack is said when it is used.
    pub fn new(settings: Settings) -> Self {
        let http = http_client(settings.timeout);
        let credentials = credentials(&settings);
        Self {
            http,
            settings,
            credentials,
            installation: tokio::sync::Mutex::default(),
            quota: Mutex::default(),
        }
    }

    /// What is wrong with the settings, if anything is.
    pub fn wrong_settings(&self) -> Option<&str> {
        self.credentials.as_ref().err().map(String::as_str)
    }

    /// What GitHub last said of the requests that are left.
    pub fn quota(&self) -> Quota {
        *self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a run. `None` where GitHub took it and does not say which run it became.
    ///
    /// # Errors
    /// [`GithubError`]; after one that is open the run may exist.
    pub async fn dispatch(
        &self,
        inputs: &Value,
        now: Timestamp,
    ) -> Result<Option<Dispatched>, GithubError> {
        let path = self.workflow_path("dispatches")?;
        let body = |details: bool| {
            let mut body = json!({"ref": self.settings.reference, "inputs": inputs});
            if details {
                body["return_run_details"] = true.into();
            }
            body
        };
        let sent = match self.send(Method::POST, &path, Some(&body(true)), now).await {
            // Servers from before `return_run_details` refuse a field they do not know.
            Err(GithubError::Refused { status: 400, .. }) => {
                self.send(Method::POST, &path, Some(&body(false)), now).await?
            }
            sent => sent?,
        };
        if sent.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        // It was taken, whatever the body looks like.
        Ok(json_of(sent).await.ok())
    }

    /// The newest dispatched runs of the workflow; `page` counts from 1.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn runs(&self, page: usize, now: Timestamp) -> Result<Vec<Run>, GithubError> {
        let query = format!("runs?event=workflow_dispatch&per_page={RUNS_A_PAGE}&page={page}");
        let path = self.workflow_path(&query)?;
        let answer = self.send(Method::GET, &path, None, now).await?;
        let runs: Runs = json_of(answer).await?;
        Ok(runs.workflow_runs)
    }

    /// One run; `None` where there is none of that id.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn run(&self, id: u64, now: Timestamp) -> Result<Option<Run>, GithubError> {
        let path = self.path(&format!("actions/runs/{id}"))?;
        match self.send(Method::GET, &path, None, now).await {
            Ok(answer) => json_of(answer).await.map(Some),
            Err(GithubError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks GitHub to end a run. A run that has ended is `Refused` with 409.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn cancel(&self, id: u64, now: Timestamp) -> Result<(), GithubError> {
        let path = self.path(&format!("actions/runs/{id}/cancel"))?;
        self.send(Method::POST, &path, None, now).await.map(drop)
    }

    fn workflow_path(&self, rest: &str) -> Result<String, GithubError> {
        self.path(&format!("actions/workflows/{}/{rest}", self.settings.workflow))
    }

    fn path(&self, rest: &str) -> Result<String, GithubError> {
        let repository = self.settings.repository.as_deref().unwrap_or_default();
        match &self.credentials {
            Ok(_) => Ok(format!("/repos/{repository}/{rest}")),
            Err(wrong) => Err(GithubError::Settings(wrong.clone())),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        now: Timestamp,
    ) -> Result<Response, GithubError> {
        let token = self.token(now).await?;
        let mut request = self.request(method, path).bearer_auth(&token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = self.exchange(request, now).await;
        if let Err(GithubError::Refused { status: 401, .. }) = answer {
            // Revoked, or of another time than ours: the next request asks for a new one.
            *self.installation.lock().await = None;
        }
        answer
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.settings.api_url))
            .header("accept", "application/vnd.github+json")
            .header("x-github-api-version", API_VERSION)
    }

    async fn exchange(
        &self,
        request: RequestBuilder,
        now: Timestamp,
    ) -> Result<Response, GithubError> {
        let answer = request.send().await.map_err(|error| {
            // The builder's and the connection's errors come before a byte was sent.
            if error.is_connect() || error.is_builder() {
                GithubError::Unreachable(error.without_url().into())
            } else {
                GithubError::Lost(error.without_url().into())
            }
        })?;
        self.note_quota(answer.headers());
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let headers = answer.headers().clone();
        let message = message(answer).await;
        if let Some(until) = limited_until(status, &headers, &message, now) {
            return Err(GithubError::Limited { until, message });
        }
        let status = status.as_u16();
        Err(if status >= 500 {
            GithubError::Failing { status, message }
        } else {
            GithubError::Refused { status, message }
        })
    }

    fn note_quota(&self, headers: &HeaderMap) {
        let quota = Quota {
            remaining: number(headers, "x-ratelimit-remaining").and_then(|it| it.try_into().ok()),
            reset_at: reset_at(headers),
        };
        if quota.remaining.is_some() {
            *self.quota.lock().unwrap_or_else(PoisonError::into_inner) = quota;
        }
    }

    async fn token(&self, now: Timestamp) -> Result<String, GithubError> {
        let (id, installation_id, key) = match &self.credentials {
            Err(wrong) => return Err(GithubError::Settings(wrong.clone())),
            Ok(Credentials::Token(token)) => return Ok(token.clone()),
            Ok(Credentials::App { id, installation_id, key }) => (id, installation_id, key),
        };
        // Held over the request: whoever else needs a token waits for this one.
        let mut kept = self.installation.lock().await;
        if let Some(kept) = kept.as_ref().filter(|it| now + RENEW_BEFORE < it.expires_at) {
            return Ok(kept.token.clone());
        }
        let path = format!("/app/installations/{installation_id}/access_tokens");
        let name = self.settings.repository.as_deref().and_then(|it| it.split_once('/'));
        let request = self.request(Method::POST, &path).bearer_auth(jwt(id, key, now)).json(
            // No more than is needed, whatever the App may do elsewhere.
            &json!({"repositories": name.map(|(_, name)| [name]), "permissions": {"actions": "write"}}),
        );
        let token: InstallationToken = match self.exchange(request, now).await {
            Ok(answer) => {
                json_of(answer).await.map_err(|it| GithubError::Unreachable(it.into()))?
            }
            // Whatever became of the token, the request it was for was not sent.
            Err(error @ (GithubError::Lost(_) | GithubError::Failing { .. })) => {
                return Err(GithubError::Unreachable(error.into()));
            }
            Err(error) => return Err(error),
        };
        Ok(kept.insert(token).token.clone())
    }
}

/// Reads the settings; what is wrong is said all at once.
fn credentials(settings: &Settings) -> Result<Credentials, String> {
    let mut wrong = Vec::new();
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let secret = |value: &Option<Sensitive>| {
        value.as_ref().map(Sensitive::expose).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    match given(&settings.repository) {
        None => wrong.push("MILEPOST_GITHUB_REPOSITORY is not set"),
        Some(name) if !is_repository(&name) => {
            wrong.push("MILEPOST_GITHUB_REPOSITORY is no owner/name");
        }
        Some(_) => {}
    }
    if !settings.workflow.bytes().all(is_name_byte) || settings.workflow.is_empty() {
        wrong.push("MILEPOST_GITHUB_WORKFLOW is no file name");
    }
    let mut credentials = None;
    let app = (
        given(&settings.app_id),
        given(&settings.app_installation_id),
        secret(&settings.app_private_key),
    );
    match (secret(&settings.token), app) {
        (Some(token), _) => credentials = Some(Credentials::Token(token)),
        (None, (Some(id), Some(installation), Some(key))) => {
            match (installation.parse(), read_key(&key)) {
                (Ok(installation_id), Some(key)) => {
                    credentials =
                        Some(Credentials::App { id, installation_id, key: Box::new(key) });
                }
                (Err(_), _) => wrong.push("MILEPOST_GITHUB_APP_INSTALLATION_ID is no number"),
                (_, None) => wrong.push("MILEPOST_GITHUB_APP_PRIVATE_KEY is no RSA key in PEM"),
            }
        }
        (None, (None, None, None)) => wrong.push("MILEPOST_GITHUB_TOKEN is not set, nor is an App"),
        (None, _) => wrong.push(
            "of MILEPOST_GITHUB_APP_ID, MILEPOST_GITHUB_APP_INSTALLATION_ID and \
             MILEPOST_GITHUB_APP_PRIVATE_KEY not all are set",
        ),
    }
    match credentials {
        Some(credentials) if wrong.is_empty() => Ok(credentials),
        _ => Err(wrong.join("; ")),
    }
}

fn is_repository(name: &str) -> bool {
    name.split_once('/').is_some_and(|(owner, name)| {
        let fine = |part: &str| !part.is_empty() && part.bytes().all(is_name_byte);
        fine(owner) && fine(name)
    })
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// GitHub gives PKCS #1; other tools make PKCS #8 of it.
fn read_key(pem: &str) -> Option<RsaKeyPair> {
    // In a one-line setting the line ends are written out.
    let pem = pem.replace("\\n", "\n");
    match PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()? {
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok(),
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
        _ => None,
    }
}

/// An App's own token: RS256, for a few minutes.
fn jwt(app_id: &str, key: &RsaKeyPair, now: Timestamp) -> String {
    let claims = Claims {
        iat: (now - CLOCK_SKEW).as_second(),
        exp: (now + JWT_LIFETIME).as_second(),
        iss: app_id,
    };
    let claims = serde_json::to_vec(&claims).expect("claims are plain data");
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","typ":"JWT"}"#);
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
        .expect("the signature has the key's length");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The JSON of an answer that was taken; what cannot be read is as good as lost.
async fn json_of<T: DeserializeOwned>(mut answer: Response) -> Result<T, GithubError> {
    let body = read_body(&mut answer).await;
    let body = body.map_err(|error| GithubError::Lost(error.without_url().into()))?;
    let body = body.ok_or_else(|| {
        GithubError::Lost(format!("the answer is over {ANSWER_BYTES_MAX} bytes").into())
    })?;
    serde_json::from_slice(&body)
        .map_err(|error| GithubError::Lost(format!("no such JSON: {}", place_of(&error)).into()))
}

/// GitHub's words in an error answer.
async fn message(answer: Response) -> String {
    #[derive(Deserialize)]
    struct Body {
        message: String,
    }
    let reason = answer.status().canonical_reason().unwrap_or("no reason").to_owned();
    let message = json_of(answer).await.map_or(reason, |body: Body| body.message);
    message.chars().take(MESSAGE_CHARS_MAX).collect()
}

/// When a request that was one too many may be sent again; `None` where it was refused for
/// another reason.
fn limited_until(
    status: StatusCode,
    headers: &HeaderMap,
    message: &str,
    now: Timestamp,
) -> Option<Timestamp> {
    if status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::FORBIDDEN {
        return None;
    }
    let retry_after = number(headers, RETRY_AFTER.as_str())
        .map(|seconds| now + SignedDuration::from_secs(seconds.clamp(0, LIMITED_MAX.as_secs())));
    let exhausted = number(headers, "x-ratelimit-remaining") == Some(0);
    let secondary = message.to_lowercase().contains("rate limit");
    let until = retry_after.or_else(|| reset_at(headers).filter(|_| exhausted));
    match until {
        Some(until) => Some(until.clamp(now, now + LIMITED_MAX)),
        None if secondary || status == StatusCode::TOO_MANY_REQUESTS => Some(now + LIMITED_FOR),
        None => None,
    }
}

fn reset_at(headers: &HeaderMap) -> Option<Timestamp> {
    Timestamp::from_second(number(headers, "x-ratelimit-reset")?).ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<i64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok().filter(|number| *number >= 0)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_756_461_600, 0);

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn after(status: StatusCode, pairs: &[(&'static str, &str)], message: &str) -> Option<i64> {
        let until = limited_until(status, &headers(pairs), message, NOW);
        until.map(|until| until.duration_since(NOW).as_secs())
    }

    fn settings() -> Settings {
        let repository = Some("milepost-dev/milepost".to_owned());
        Settings { repository, token: Some(Sensitive::new("t")), ..Settings::default() }
    }

    fn wrong(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = settings();
        change(&mut settings);
        Github::new(settings).wrong_settings().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_limit_says_when_to_come_back() {
        let (many, forbidden) = (StatusCode::TOO_MANY_REQUESTS, StatusCode::FORBIDDEN);
        assert_eq!(after(many, &[("retry-after", "7")], ""), Some(7));
        assert_eq!(after(forbidden, &[("retry-after", "7")], ""), Some(7));
        let reset = (NOW.as_second() + 90).to_string();
        let exhausted = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &*reset)];
        assert_eq!(after(forbidden, &exhausted, ""), Some(90));
        assert_eq!(after(many, &[], ""), Some(60));
        let secondary = "You have exceeded a secondary rate limit.";
        assert_eq!(after(forbidden, &[], secondary), Some(60));
        assert_eq!(after(many, &[("retry-after", "999999")], ""), Some(3_600));
        assert_eq!(after(many, &[("retry-after", "-3")], ""), Some(60));
    }

    #[test]
    fn a_refusal_is_no_limit() {
        let left = [("x-ratelimit-remaining", "4990"), ("x-ratelimit-reset", "1756465200")];
        let message = "Resource not accessible by personal access token";
        assert_eq!(after(StatusCode::FORBIDDEN, &left, message), None);
        assert_eq!(after(StatusCode::NOT_FOUND, &[("retry-after", "7")], "Not Found"), None);
    }

    #[test]
    fn what_the_settings_lack_is_said_in_their_names() {
        assert_eq!(wrong(|_| {}), "");
        assert!(wrong(|it| it.token = None).contains("MILEPOST_GITHUB_TOKEN"));
        assert!(wrong(|it| it.repository = None).contains("MILEPOST_GITHUB_REPOSITORY"));
        for name in ["milepost", "a/b/c", "a/", "/b", "a/b?x", "a b/c"] {
            let said = wrong(|it| it.repository = Some(name.to_owned()));
            assert!(said.contains("owner/name"), "{name}");
        }
        assert!(wrong(|it| it.workflow = "../x".to_owned()).contains("MILEPOST_GITHUB_WORKFLOW"));
        let app = |key: &str| {
            wrong(|it| {
                it.token = None;
                it.app_id = Some("7".to_owned());
                it.app_installation_id = Some("8".to_owned());
                it.app_private_key = Some(Sensitive::new(key));
            })
        };
        assert!(app("no key").contains("MILEPOST_GITHUB_APP_PRIVATE_KEY"));
        assert!(app("").contains("not all are set"));
    }

    #[test]
    fn an_app_signs_its_token_with_its_key() {
        let made = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = made.as_der().unwrap();
        let body = STANDARD.encode(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\\n{body}\\n-----END PRIVATE KEY-----\\n");
        let token = jwt("12345", &read_key(&pem).unwrap(), NOW);
        let [head, claims, signature] =
            token.split('.').collect::<Vec<_>>().try_into().expect("three parts");
        let read = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
        assert_eq!(read(head), br#"{"alg":"RS256","typ":"JWT"}"#);
        let claims: Value = serde_json::from_slice(&read(claims)).unwrap();
        assert_eq!(claims, json!({"iat": 1_756_461_540, "exp": 1_756_462_140, "iss": "12345"}));
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, made.public_key());
        let signed = token.rsplit_once('.').unwrap().0;
        public.verify(signed.as_bytes(), &read(signature)).unwrap();
    }
}
