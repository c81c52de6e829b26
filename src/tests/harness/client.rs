//! What tests say to a server, and what they read from its streams.

use std::sync::atomic::{AtomicU64, Ordering};

use milepost::intake::github::Secret;
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{PATIENCE, documents, text};

static DELIVERIES: AtomicU64 = AtomicU64::new(0);

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// The server's address.
    pub url: String,
    /// Its token.
    pub token: String,
    secret: Secret,
}

impl Client {
    pub(super) fn new(url: String, token: String, secret: Secret) -> Self {
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        Self { http: http.build().unwrap(), url, token, secret }
    }

    /// A request that has not been sent yet, with no credentials.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// A form that has not been sent yet, with no credentials.
    pub fn form(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = self.request(Method::POST, path);
        request.header("content-type", "application/x-www-form-urlencoded").body(body)
    }

    /// Sends a request and checks its answer against the documents.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let request = request.build().unwrap();
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let sent = request.body().and_then(reqwest::Body::as_bytes).map(<[u8]>::to_vec);
        let response = self.http.execute(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.unwrap().to_vec();
        documents::check_answer(&method, &path, status, &headers, &body);
        if let Some(sent) = sent.filter(|_| status.is_success()) {
            documents::check_taken(&method, &path, &sent);
        }
        Answer { status, headers, body }
    }

    /// Sends a request that no document describes; its status.
    pub async fn raw_status(&self, request: RequestBuilder) -> u16 {
        let request = request.build().unwrap();
        self.http.execute(request).await.unwrap().status().as_u16()
    }

    /// Writes bytes to the server and reads all it has to say, until it closes.
    pub async fn raw(&self, request: &[u8]) -> String {
        let mut socket = self.connect().await;
        socket.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
        // A server that refuses a body closes with some of it unread: the answer is there before.
        drop(read.expect("the server is silent"));
        String::from_utf8(answer).unwrap()
    }

    /// A connection to the server.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.url.strip_prefix("http://").unwrap()).await.unwrap()
    }

    /// A header with this client's token.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// Asks for something; its status and JSON.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let request = self.request(Method::GET, path).bearer_auth(&self.token);
        self.send(request).await.into_json()
    }

    /// Asks for something that is there.
    pub async fn read(&self, path: &str) -> Value {
        let (status, value) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    /// What Prometheus reads.
    pub async fn metrics(&self) -> String {
        let request = self.request(Method::GET, "/metrics").bearer_auth(&self.token);
        let answer = self.send(request).await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.text().to_owned()
    }

    /// A number of what Prometheus reads, a whole one.
    pub async fn metric(&self, name: &str) -> u64 {
        let metrics = self.metrics().await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse::<f64>().unwrap() as u64
    }

    /// Orders something.
    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.request(Method::POST, path).bearer_auth(&self.token).json(body);
        self.send(request).await.into_json()
    }

    /// A new agent.
    pub async fn agent(&self, name: &str) -> String {
        let (status, agent) = self.post("/api/agents", &json!({"name": name})).await;
        assert_eq!(status, StatusCode::CREATED, "{agent}");
        text(&agent, "id")
    }

    /// A new agent with a queued job: both ids.
    pub async fn job(&self, name: &str) -> (String, String) {
        let agent = self.agent(name).await;
        let path = format!("/api/agents/{agent}/provision");
        let (status, accepted) = self.post(&path, &json!({})).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{accepted}");
        (agent, text(&accepted, "job_id"))
    }

    /// Posts a callback, signed in the first form.
    pub async fn callback(&self, body: &Value) -> (StatusCode, Value) {
        self.send(self.signed(body.to_string())).await.into_json()
    }

    /// Posts a callback with a delivery id of its own.
    pub async fn deliver(&self, mut body: Value) -> (StatusCode, Value) {
        let number = DELIVERIES.fetch_add(1, Ordering::Relaxed);
        body["delivery_id"] = format!("delivery-{number}").into();
        self.callback(&body).await
    }

    /// A callback that has not been sent yet, signed in the first form.
    pub fn signed(&self, body: String) -> RequestBuilder {
        let signature = self.secret.sign(body.as_bytes());
        self.unsigned(body).header("x-signature", signature)
    }

    /// A callback that has not been sent yet, and is not signed.
    pub fn unsigned(&self, body: String) -> RequestBuilder {
        let request = self.request(Method::POST, "/api/webhooks/github");
        request.header("content-type", "application/json").body(body)
    }

    /// Every event of the log, in order.
    pub async fn events(&self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let path = format!("/api/events?after={}&limit=1000", events.len());
            let Value::Array(page) = self.read(&path).await["events"].take() else { panic!() };
            if page.is_empty() {
                return events;
            }
            events.extend(page);
        }
    }

    /// Opens a stream, from an id on if one is given.
    pub async fn stream(&self, path: &str, last_event_id: Option<&str>) -> Messages {
        self.try_stream(path, last_event_id).await.expect("the stream opens")
    }

    /// Opens a stream, if the server lets it.
    pub async fn try_stream(&self, path: &str, last_event_id: Option<&str>) -> Option<Messages> {
        let mut request = self.request(Method::GET, path).bearer_auth(&self.token);
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        self.follow(request).await
    }

    /// Opens the stream a request asks for, if the server lets it.
    pub async fn follow(&self, request: RequestBuilder) -> Option<Messages> {
        let response = request.send().await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let path = response.url().path().to_owned();
        documents::check_answer(&Method::GET, &path, response.status(), response.headers(), b"");
        Some(Messages { response, path, buffer: Vec::new(), id: String::new() })
    }

    /// The same client, of a server elsewhere or by another way.
    pub fn at(&self, url: String) -> Self {
        Self { url, ..self.clone() }
    }

    /// The id of the position before the first event.
    pub async fn beginning(&self) -> String {
        format!("{}-0", self.read("/readyz").await["epoch"])
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Its status and its body as JSON, `null` where it is none.
    pub fn into_json(self) -> (StatusCode, Value) {
        (self.status, serde_json::from_slice(&self.body).unwrap_or(Value::Null))
    }

    /// Its body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// A header; empty where it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// One message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The last id told.
    pub id: String,
    /// Its name.
    pub event: String,
    /// Its data.
    pub data: String,
}

impl Message {
    /// Its data as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

/// An open stream.
pub struct Messages {
    response: reqwest::Response,
    path: String,
    buffer: Vec<u8>,
    id: String,
}

impl Messages {
    /// The next message; `None` when the stream has ended.
    pub async fn next(&mut self) -> Option<Message> {
        tokio::time::timeout(PATIENCE, self.next_block()).await.expect("the stream is silent")
    }

    /// The next message of that name; others are passed over.
    pub async fn next_named(&mut self, event: &str) -> Message {
        // Bookmarks go on whatever happens, and are no sign that it will.
        let found = async {
            loop {
                let message = self.next().await.expect("the stream goes on");
                if message.event == event {
                    return message;
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("the stream has no {event}"))
    }

    async fn next_block(&mut self) -> Option<Message> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(message) = self.parse(&String::from_utf8(block).unwrap()) {
                    return Some(message);
                }
                continue;
            }
            let chunk = self.response.chunk().await.ok()??;
            self.buffer.extend_from_slice(&chunk);
        }
    }

    fn parse(&mut self, block: &str) -> Option<Message> {
        let mut message = Message { id: String::new(), event: String::new(), data: String::new() };
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("id", value)) => value.clone_into(&mut self.id),
                Some(("event", value)) => value.clone_into(&mut message.event),
                Some(("data", value)) => value.clone_into(&mut message.data),
                _ => {}
            }
        }
        message.id.clone_from(&self.id);
        let message = (!message.data.is_empty()).then_some(message)?;
        documents::check_message(&self.path, &message);
        Some(message)
    }
}
