//! GitHub Actions, as far as a dispatcher sees them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What requests must look like: the facts of GitHub's own description.
static FACTS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("github.json")).unwrap());

/// The token the double takes.
pub const TOKEN: &str = "github-test-token";

/// The repository it holds.
pub const REPOSITORY: &str = "milepost-dev/milepost";

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing.
    Fine,
    /// The connection is reset before anything is done.
    ResetBefore,
    /// The connection is reset when all is done.
    ResetAfter,
    /// Nothing is done and nothing answered.
    Hang,
    /// All is done and nothing answered.
    HangAfter,
    /// Refused, with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// Done, and then said to have failed.
    StatusAfter(u16),
    /// Done, and answered without saying what became of it, as older servers do.
    Silent,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// What it was dispatched with.
    pub inputs: Value,
    /// Where it is.
    pub status: String,
    /// How it ended.
    pub conclusion: Option<String>,
    /// Which time it runs.
    pub times: u32,
    /// When it was made.
    made: Instant,
}

#[derive(Default)]
struct Held {
    runs: Vec<Run>,
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    always: BTreeMap<&'static str, Fault>,
    violations: Vec<String>,
    requests: Vec<(&'static str, Value)>,
    listed_after: Duration,
    knows_details: bool,
    /// What may be given as inputs, where the double knows the workflow.
    declared: Option<Value>,
}

/// A running double; it ends with its owner.
#[derive(Clone)]
pub struct Github {
    /// Where its API is.
    pub url: String,
    held: Arc<Mutex<Held>>,
}

#[derive(Clone)]
struct Cut(CancellationToken);

impl Github {
    /// Starts one that holds no runs.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let held = Held { knows_details: true, ..Held::default() };
        let github = Self { url, held: Arc::new(Mutex::new(held)) };
        let router = Router::new().fallback(serve).with_state(github.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // A connection that is dropped is reset, not closed politely.
                socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
                let cut = CancellationToken::new();
                let service =
                    TowerToHyperService::new(router.clone().layer(Extension(Cut(cut.clone()))));
                tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service);
                    tokio::select! {
                        _ = connection => {}
                        () = cut.cancelled() => {}
                    }
                });
            }
        });
        github
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    /// The settings of a server that dispatches here.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        [
            ("MILEPOST_DISPATCHER", "github"),
            ("MILEPOST_GITHUB_API_URL", &self.url),
            ("MILEPOST_GITHUB_REPOSITORY", REPOSITORY),
            ("MILEPOST_GITHUB_TOKEN", TOKEN),
            ("MILEPOST_GITHUB_SETTLE", "0.6"),
            ("MILEPOST_GITHUB_POLL", "0.1"),
            ("MILEPOST_GITHUB_BACK_OFF", "0.05"),
            ("MILEPOST_GITHUB_TIMEOUT", "1"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec()
    }

    /// The next requests of a kind go wrong like this, one after the other.
    pub fn fault(&self, kind: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.held().faults.entry(kind).or_default().extend(faults);
    }

    /// All requests of a kind go wrong like this, until told otherwise.
    pub fn always(&self, kind: &'static str, fault: Option<Fault>) {
        let mut held = self.held();
        match fault {
            Some(fault) => held.always.insert(kind, fault),
            None => held.always.remove(kind),
        };
    }

    /// Runs are listed only so long after they were made.
    pub fn list_after(&self, delay: Duration) {
        self.held().listed_after = delay;
    }

    /// As a server from before `return_run_details`.
    pub fn is_old(&self) {
        self.held().knows_details = false;
    }

    /// Takes only inputs that the workflow declares, as GitHub does.
    pub fn knows(&self, workflow: &Value) {
        self.held().declared = Some(workflow["on"]["workflow_dispatch"]["inputs"].clone());
    }

    /// Every run there is.
    pub fn runs(&self) -> Vec<Run> {
        self.held().runs.clone()
    }

    /// Changes a run.
    pub fn change(&self, id: u64, change: impl FnOnce(&mut Run)) {
        let mut held = self.held();
        change(held.runs.iter_mut().find(|run| run.id == id).unwrap());
    }

    /// A run has ended.
    pub fn complete(&self, id: u64, conclusion: &str) {
        assert!(FACTS["conclusions"].as_array().unwrap().contains(&conclusion.into()));
        self.change(id, |run| {
            "completed".clone_into(&mut run.status);
            run.conclusion = Some(conclusion.to_owned());
        });
    }

    /// The bodies of the requests of a kind.
    pub fn asked(&self, kind: &str) -> Vec<Value> {
        let held = self.held();
        held.requests.iter().filter(|(it, _)| *it == kind).map(|(_, body)| body.clone()).collect()
    }

    /// Panics if any request was not what GitHub takes.
    pub fn check(&self) {
        let violations = self.held().violations.clone();
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

async fn serve(
    State(github): State<Github>,
    Extension(cut): Extension<Cut>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let body: Value =
        if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let Some((kind, id)) = route(&parts.method, &path) else {
        github.held().violations.push(format!("{} {path}: no such route", parts.method));
        return error(StatusCode::NOT_FOUND, "Not Found");
    };
    let fault = {
        let mut held = github.held();
        held.requests.push((kind, body.clone()));
        let wrong = violations(kind, &parts.headers, &query, &body);
        held.violations
            .extend(wrong.into_iter().map(|it| format!("{} {path}: {it}", parts.method)));
        held.faults.get_mut(kind).and_then(VecDeque::pop_front).or(held.always.get(kind).cloned())
    };
    match &fault {
        Some(Fault::ResetBefore) => return reset(&cut).await,
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::Status(status, headers)) => {
            let status = StatusCode::from_u16(*status).unwrap();
            let mut answer = error(status, "as the test says");
            for (name, value) in headers {
                answer.headers_mut().insert(*name, value.parse().unwrap());
            }
            return answer;
        }
        Some(
            Fault::Fine
            | Fault::ResetAfter
            | Fault::HangAfter
            | Fault::StatusAfter(_)
            | Fault::Silent,
        )
        | None => {}
    }
    let answer = github.answer(kind, id, &query, &body);
    match fault {
        Some(Fault::ResetAfter) => reset(&cut).await,
        Some(Fault::HangAfter) => std::future::pending().await,
        Some(Fault::StatusAfter(status)) => {
            error(StatusCode::from_u16(status).unwrap(), "as the test says")
        }
        Some(Fault::Silent) if answer.status().is_success() => {
            StatusCode::NO_CONTENT.into_response()
        }
        _ => answer,
    }
}

async fn reset(cut: &Cut) -> Response {
    cut.0.cancel();
    std::future::pending().await
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"message": message}))).into_response()
}

/// The kind of a request, and the number in its path.
fn route(method: &Method, path: &str) -> Option<(&'static str, u64)> {
    let app = path.strip_prefix("/app/installations/");
    if let Some(id) = app.and_then(|it| it.strip_suffix("/access_tokens")) {
        return (method == Method::POST).then_some(("access_token", id.parse().ok()?));
    }
    let rest = path.strip_prefix(&format!("/repos/{REPOSITORY}/actions/"))?;
    match (method.as_str(), rest.split('/').collect::<Vec<_>>().as_slice()) {
        ("POST", ["workflows", "provision-agent.yml", "dispatches"]) => Some(("dispatch", 0)),
        ("GET", ["workflows", "provision-agent.yml", "runs"]) => Some(("runs", 0)),
        ("GET", ["runs", id]) => Some(("run", id.parse().ok()?)),
        ("POST", ["runs", id, "cancel"]) => Some(("cancel", id.parse().ok()?)),
        _ => None,
    }
}

fn violations(kind: &str, headers: &HeaderMap, query: &str, body: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let facts = &FACTS[kind];
    let header = |name: &str| headers.get(name).map_or("", |it| it.to_str().unwrap());
    let mut check = |fine: bool, what: &str| {
        if !fine {
            wrong.push(what.to_owned());
        }
    };
    check(header("accept") == FACTS["accept"], "the media type");
    check(!header("user-agent").is_empty(), "no user agent");
    let versions = FACTS["versions"].as_array().unwrap();
    check(versions.contains(&header("x-github-api-version").into()), "the API's version");
    let token = header("authorization").strip_prefix("Bearer ").unwrap_or_default();
    if kind == "access_token" {
        check(is_jwt(token), "no JWT of an App");
    } else {
        check(token == TOKEN, "the token");
    }
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let allowed = facts["query"].as_array().is_some_and(|it| it.contains(&(&*name).into()));
        check(allowed, &format!("the query's {name}"));
        if name == "per_page" {
            check(
                value.parse::<u64>().unwrap() <= facts["per_page_max"].as_u64().unwrap(),
                "the page",
            );
        }
    }
    match (&facts["body"], body) {
        (Value::Null, body) => check(body.is_null(), "a body"),
        (facts, body) => {
            let empty = serde_json::Map::new();
            let members = body.as_object().unwrap_or(&empty);
            let list = |name: &str| facts[name].as_array().unwrap().clone();
            for name in list("required") {
                check(members.contains_key(name.as_str().unwrap()), &format!("no {name}"));
            }
            for name in members.keys() {
                check(
                    list("allowed").contains(&name.as_str().into()),
                    &format!("the body's {name}"),
                );
            }
        }
    }
    if let Some(inputs) = body["inputs"].as_object() {
        check(inputs.len() as u64 <= facts["inputs_max"].as_u64().unwrap(), "too many inputs");
        let chars = body["inputs"].to_string().chars().count() as u64;
        check(chars <= facts["inputs_chars_max"].as_u64().unwrap(), "inputs that are too long");
        check(inputs.values().all(Value::is_string), "inputs that are no strings");
    }
    wrong
}

fn is_jwt(token: &str) -> bool {
    let part = |part: &str| -> Option<Value> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
    };
    let [head, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { return false };
    let (Some(head), Some(claims)) = (part(head), part(claims)) else { return false };
    let lifetime = claims["exp"].as_i64().unwrap_or(i64::MAX) - claims["iat"].as_i64().unwrap_or(0);
    head["alg"] == "RS256"
        && claims["iss"].is_string()
        && lifetime <= FACTS["access_token"]["jwt_seconds_max"].as_i64().unwrap()
        && !signature.is_empty()
}

impl Github {
    fn answer(&self, kind: &str, id: u64, query: &str, body: &Value) -> Response {
        let mut held = self.held();
        match kind {
            "access_token" => {
                let expires_at = jiff_in_an_hour();
                let token = json!({"token": TOKEN, "expires_at": expires_at});
                (StatusCode::CREATED, Json(token)).into_response()
            }
            "dispatch" => held.dispatch(&self.url, body),
            "runs" => {
                let page = |name: &str| {
                    let found =
                        form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
                    found.map(|(_, value)| value.parse::<usize>().unwrap())
                };
                let (size, page) = (page("per_page").unwrap_or(30), page("page").unwrap_or(1));
                let after = held.listed_after;
                let listed = held.runs.iter().rev().filter(|run| run.made.elapsed() >= after);
                let listed: Vec<Value> = listed.map(|run| run.json(&self.url)).collect();
                let runs: Vec<_> = listed.iter().skip((page - 1) * size).take(size).collect();
                Json(json!({"total_count": listed.len(), "workflow_runs": runs})).into_response()
            }
            "run" => match held.runs.iter().find(|run| run.id == id) {
                Some(run) => Json(run.json(&self.url)).into_response(),
                None => error(StatusCode::NOT_FOUND, "Not Found"),
            },
            "cancel" => match held.runs.iter_mut().find(|run| run.id == id) {
                None => error(StatusCode::NOT_FOUND, "Not Found"),
                Some(run) if run.status == "completed" => {
                    error(StatusCode::CONFLICT, "Cannot cancel a workflow run that is completed.")
                }
                Some(run) => {
                    "completed".clone_into(&mut run.status);
                    run.conclusion = Some("cancelled".to_owned());
                    (StatusCode::ACCEPTED, Body::from("{}")).into_response()
                }
            },
            other => panic!("{other}"),
        }
    }
}

impl Held {
    fn dispatch(&mut self, url: &str, body: &Value) -> Response {
        if !self.knows_details && body.get("return_run_details").is_some() {
            return error(StatusCode::BAD_REQUEST, "\"return_run_details\" is not permitted");
        }
        if let Some(declared) = &self.declared {
            for (name, input) in declared.as_object().unwrap() {
                let given = body["inputs"][name].as_str();
                let options = input["options"].as_array();
                let fine = match (given, options) {
                    (None, _) => input["required"] != true,
                    (Some(given), Some(options)) => options.contains(&given.into()),
                    (Some(given), None) => {
                        input["type"] != "number" || given.parse::<f64>().is_ok()
                    }
                };
                if !fine {
                    return error(StatusCode::UNPROCESSABLE_ENTITY, "an input is missing or wrong");
                }
            }
            let known = |name: &String| declared.get(name).is_some();
            if !body["inputs"].as_object().unwrap().keys().all(known) {
                return error(StatusCode::UNPROCESSABLE_ENTITY, "Unexpected inputs provided");
            }
        }
        let inputs = body["inputs"].clone();
        let word = |name: &str| inputs[name].as_str().unwrap_or_default().to_owned();
        let run = Run {
            id: 4_000 + self.runs.len() as u64,
            name: format!("provision {} attempt {}", word("job_id"), word("attempt")),
            status: "queued".to_owned(),
            conclusion: None,
            times: 1,
            made: Instant::now(),
            inputs,
        };
        let answer = json!({
            "workflow_run_id": run.id,
            "run_url": format!("{url}/repos/{REPOSITORY}/actions/runs/{}", run.id),
            "html_url": format!("https://github.example/{REPOSITORY}/actions/runs/{}", run.id),
        });
        self.runs.push(run);
        if body["return_run_details"] == true {
            Json(answer).into_response()
        } else {
            StatusCode::NO_CONTENT.into_response()
        }
    }
}

impl Run {
    fn json(&self, url: &str) -> Value {
        json!({
            "id": self.id,
            "name": "provision-agent",
            "display_title": self.name,
            "event": "workflow_dispatch",
            "status": self.status,
            "conclusion": self.conclusion,
            "run_attempt": self.times,
            "url": format!("{url}/repos/{REPOSITORY}/actions/runs/{}", self.id),
            "html_url": format!("https://github.example/{REPOSITORY}/actions/runs/{}", self.id),
            "created_at": milepost::app::Clock.now().to_string(),
        })
    }
}

fn jiff_in_an_hour() -> String {
    (milepost::app::Clock.now() + jiff::SignedDuration::from_hours(1)).to_string()
}
