//! Doubles of outside services: real HTTP servers on loopback that hold state, check every
//! request against the service's facts, remember what they were asked, and fail on demand.
//!
//! A double whose service was asked something it does not take fails the test when it is dropped.

pub mod github;
pub mod hetzner;
pub mod tailscale;

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use milepost::clients::Time;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use hetzner::Hetzner;
pub use tailscale::Tailscale;

/// The largest body a double reads.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends, and nothing was done.
    CutBefore,
    /// It is done, and the connection ends without an answer.
    CutAfter,
    /// It is done, and what answers is no JSON.
    Garble,
    /// Nothing is done, and nothing is said.
    Hang,
    /// Nothing is done; the answer is this.
    Refuse(Reply),
    /// It is done; the answer is this all the same.
    RefuseAfter(Reply),
}

/// Which requests a fault is for.
#[derive(Clone, Debug)]
enum When {
    /// The next one of this kind, as `POST /servers`; once.
    Next(&'static str),
    /// Each of this kind.
    Each(&'static str),
    /// The one with this number, counted from 0; once.
    Number(usize),
}

/// What a double was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its method and path, with `{id}` where a path has one: as `DELETE /servers/{id}`.
    pub kind: String,
    /// The parts of the path that are ids.
    pub ids: Vec<String>,
    /// Its query.
    pub query: HashMap<String, String>,
    /// Its `Authorization`.
    pub authorization: String,
    /// Its body: JSON, or the fields of a form.
    pub body: Value,
}

/// What a double answers.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(&'static str, String)>,
    /// Its JSON.
    pub body: Value,
}

impl Reply {
    /// An answer without headers of its own.
    pub fn new(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    /// The same with a header that is a number.
    pub fn header(mut self, name: &'static str, value: impl Into<i64>) -> Self {
        self.headers.push((name, value.into().to_string()));
        self
    }
}

/// What a service is, apart from HTTP.
pub trait Service: Send + 'static {
    /// What it takes: for each kind of request the names of its query and the JSON Schema of its
    /// body.
    const FACTS: &'static str;

    /// Does what it is asked.
    fn answer(&mut self, asked: &Asked) -> Reply;
}

/// A running double; it ends with its owner.
pub struct Double<S: Service> {
    url: String,
    shared: Arc<Shared<S>>,
    server: JoinHandle<()>,
}

struct Shared<S> {
    facts: Value,
    service: Mutex<S>,
    asked: Mutex<Vec<Asked>>,
    faults: Mutex<Vec<(When, Fault)>>,
    violations: Mutex<Vec<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Service> Double<S> {
    /// Starts it on a port of its own.
    pub async fn start(service: S) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            facts: serde_json::from_str(S::FACTS).unwrap(),
            service: Mutex::new(service),
            asked: Mutex::default(),
            faults: Mutex::default(),
            violations: Mutex::default(),
        });
        let server = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Self { url, shared, server }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it holds.
    pub fn state(&self) -> MutexGuard<'_, S> {
        locked(&self.shared.service)
    }

    /// Everything it was asked, in order.
    pub fn asked(&self) -> Vec<Asked> {
        locked(&self.shared.asked).clone()
    }

    /// How often it was asked for this, as `POST /servers`.
    pub fn count(&self, kind: &str) -> usize {
        self.asked().iter().filter(|asked| asked.kind == kind).count()
    }

    /// The next request of this kind goes wrong; several faults come one after the other.
    pub fn fail_next(&self, kind: &'static str, fault: Fault) {
        locked(&self.shared.faults).push((When::Next(kind), fault));
    }

    /// Each request of this kind goes wrong.
    pub fn fail_each(&self, kind: &'static str, fault: Fault) {
        locked(&self.shared.faults).push((When::Each(kind), fault));
    }

    /// The request with this number, counted from 0, goes wrong.
    pub fn fail_number(&self, number: usize, fault: Fault) {
        locked(&self.shared.faults).push((When::Number(number), fault));
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        locked(&self.shared.faults).clear();
    }
}

impl<S: Service> Drop for Double<S> {
    fn drop(&mut self) {
        self.server.abort();
        let violations = locked(&self.shared.violations);
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "asked what the service does not take: {violations:#?}");
        }
    }
}

async fn serve<S: Service>(listener: TcpListener, shared: Arc<Shared<S>>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let shared = Arc::clone(&shared);
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let shared = Arc::clone(&shared);
            async move { shared.handle(request.map(Body::new)).await }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(socket), service);
        tokio::spawn(connection);
    }
}

impl<S: Service> Shared<S> {
    /// An error ends the connection without an answer.
    async fn handle(&self, request: Request<Body>) -> io::Result<Response<Body>> {
        let asked = self.read(request).await;
        let fault = self.take_fault(&asked);
        match fault {
            None => Ok(response(&self.answer(&asked))),
            Some(Fault::CutBefore) => Err(cut()),
            Some(Fault::CutAfter) => {
                self.answer(&asked);
                Err(cut())
            }
            Some(Fault::Garble) => {
                self.answer(&asked);
                Ok(Response::new(Body::from("<html>welcome to the hotel's network</html>")))
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Refuse(reply)) => Ok(response(&reply)),
            Some(Fault::RefuseAfter(reply)) => {
                self.answer(&asked);
                Ok(response(&reply))
            }
        }
    }

    async fn read(&self, request: Request<Body>) -> Asked {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
        let header = |name: &str| {
            let value = parts.headers.get(name).map(|value| value.to_str().unwrap());
            value.unwrap_or_default().to_owned()
        };
        let form = |bytes: &[u8]| -> HashMap<String, String> {
            form_urlencoded::parse(bytes).into_owned().collect()
        };
        let body = match header("content-type").as_str() {
            "application/json" => serde_json::from_slice(&body).unwrap_or(Value::Null),
            "application/x-www-form-urlencoded" => serde_json::json!(form(&body)),
            _ => Value::Null,
        };
        let (kind, ids) = self.kind(parts.method.as_str(), parts.uri.path());
        let query = form(parts.uri.query().unwrap_or_default().as_bytes());
        Asked { kind, ids, query, authorization: header("authorization"), body }
    }

    /// The kind of request the facts have for a path, and the ids in it.
    fn kind(&self, method: &str, path: &str) -> (String, Vec<String>) {
        let parts: Vec<_> = path.split('/').collect();
        for kind in self.facts.as_object().unwrap().keys() {
            let (its_method, template) = kind.split_once(' ').unwrap();
            let template: Vec<_> = template.split('/').collect();
            let fits = |(part, given): (&&str, &&str)| part.starts_with('{') || part == given;
            let is_it = its_method == method && template.len() == parts.len();
            if is_it && template.iter().zip(&parts).all(fits) {
                let ids = template.iter().zip(&parts).filter(|(part, _)| part.starts_with('{'));
                return (kind.clone(), ids.map(|(_, given)| (*given).to_owned()).collect());
            }
        }
        (format!("{method} {path}"), Vec::new())
    }

    fn take_fault(&self, asked: &Asked) -> Option<Fault> {
        let number = {
            let mut all = locked(&self.asked);
            all.push(asked.clone());
            all.len() - 1
        };
        let mut faults = locked(&self.faults);
        let at = faults.iter().position(|(when, _)| match when {
            When::Next(kind) | When::Each(kind) => *kind == asked.kind,
            When::Number(wanted) => *wanted == number,
        })?;
        match &faults[at] {
            (When::Each(_), fault) => Some(fault.clone()),
            (When::Next(_) | When::Number(_), _) => Some(faults.remove(at).1),
        }
    }

    fn answer(&self, asked: &Asked) -> Reply {
        if let Some(violation) = self.violation(asked) {
            let violation = format!("{}: {violation}", asked.kind);
            locked(&self.violations).push(violation);
        }
        locked(&self.service).answer(asked)
    }

    /// What the service would not take of a request.
    fn violation(&self, asked: &Asked) -> Option<String> {
        let Some(facts) = self.facts.get(&asked.kind) else {
            return Some("no such request".into());
        };
        let known = facts["query"].as_array().cloned().unwrap_or_default();
        let unknown = asked.query.keys().find(|name| !known.contains(&Value::from(name.as_str())));
        if let Some(name) = unknown {
            return Some(format!("no query {name}"));
        }
        let Some(schema) = facts.get("body") else {
            return (!asked.body.is_null()).then(|| "no body is taken".to_owned());
        };
        let validator = jsonschema::validator_for(schema).unwrap();
        let error = validator.iter_errors(&asked.body).next()?;
        Some(format!("{} at {}", error, error.instance_path()))
    }
}

fn cut() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

fn response(reply: &Reply) -> Response<Body> {
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(*name, value);
    }
    let body = if reply.body.is_null() { String::new() } else { reply.body.to_string() };
    response.header("content-type", "application/json").body(Body::from(body)).unwrap()
}

/// Both services that servers are made with, and the machines: what Hetzner starts with a key of
/// Tailscale's joins the tailnet.
pub struct Clouds {
    /// Where servers run.
    pub hetzner: Double<Hetzner>,
    /// Where they are reached.
    pub tailscale: Double<Tailscale>,
}

impl Clouds {
    /// Starts both.
    pub async fn start() -> Self {
        let tailscale = Double::start(Tailscale::default()).await;
        let joins = Arc::clone(&tailscale.shared);
        let boot = move |user_data: &str| locked(&joins.service).boot(user_data);
        let hetzner = Double::start(Hetzner::new(boot)).await;
        Self { hetzner, tailscale }
    }

    /// The settings that lead to both.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("HCLOUD_ENDPOINT", self.hetzner.url().to_owned()),
            ("HCLOUD_TOKEN", hetzner::TOKEN.to_owned()),
            ("TAILSCALE_API_URL", self.tailscale.url().to_owned()),
            ("TAILSCALE_OAUTH_CLIENT_ID", tailscale::CLIENT_ID.to_owned()),
            ("TAILSCALE_OAUTH_CLIENT_SECRET", tailscale::CLIENT_SECRET.to_owned()),
        ]
    }

    /// What is left of all that was made.
    pub fn leftovers(&self) -> Vec<String> {
        let (hetzner, tailscale) = (self.hetzner.state(), self.tailscale.state());
        let servers = hetzner.servers.keys().map(|id| format!("server {id}"));
        let devices = tailscale.devices.keys().map(|id| format!("device {id}"));
        let keys = tailscale.keys.keys().map(|id| format!("key {id}"));
        servers.chain(devices).chain(keys).collect()
    }
}

/// Time that passes as soon as somebody waits for it, and says how long that was.
#[derive(Debug, Default)]
pub struct FlyingTime {
    slept: Mutex<Vec<Duration>>,
    step: Mutex<SignedDuration>,
}

impl FlyingTime {
    /// Every pause so far.
    pub fn pauses(&self) -> Vec<Duration> {
        locked(&self.slept).clone()
    }

    /// Somebody sets the clock by so much, now and at each pause.
    pub fn step(&self, by: SignedDuration) {
        *locked(&self.step) = by;
    }
}

impl Time for FlyingTime {
    fn now(&self) -> Timestamp {
        let steps = 1 + locked(&self.slept).len() as i32;
        let set = *locked(&self.step) * steps;
        Timestamp::from_second(1_800_000_000).unwrap() + self.passed() + set
    }

    fn passed(&self) -> Duration {
        locked(&self.slept).iter().sum()
    }

    fn random(&self) -> f64 {
        0.5
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        locked(&self.slept).push(duration);
        Box::pin(tokio::task::yield_now())
    }
}
