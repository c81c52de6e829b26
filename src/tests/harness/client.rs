//! What tests say to a server, and what they read from its streams.

use std::sync::atomic::{AtomicU64, Ordering};

use milepost::intake::github::Secret;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{PATIENCE, text};

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
        Self { http: reqwest::Client::new(), url, token, secret }
    }

    /// Asks for something; its status and JSON.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token);
        answer(request.send().await.unwrap()).await
    }

    /// Asks for something that is there.
    pub async fn read(&self, path: &str) -> Value {
        let (status, value) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    /// Orders something.
    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.http.post(format!("{}{path}", self.url)).json(body);
        answer(request.bearer_auth(&self.token).send().await.unwrap()).await
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
        let request = self.signed(body.to_string());
        answer(request.send().await.unwrap()).await
    }

    /// Posts a callback with a delivery id of its own.
    pub async fn deliver(&self, mut body: Value) -> (StatusCode, Value) {
        let number = DELIVERIES.fetch_add(1, Ordering::Relaxed);
        body["delivery_id"] = format!("delivery-{number}").into();
        self.callback(&body).await
    }

    /// A callback that has not been sent yet, signed in the first form.
    pub fn signed(&self, body: String) -> reqwest::RequestBuilder {
        let signature = self.secret.sign(body.as_bytes());
        self.unsigned(body).header("x-signature", signature)
    }

    /// A callback that has not been sent yet, and is not signed.
    pub fn unsigned(&self, body: String) -> reqwest::RequestBuilder {
        let url = format!("{}/api/webhooks/github", self.url);
        self.http.post(url).header("content-type", "application/json").body(body)
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
        let mut request = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token);
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.ok()?;
        let open = response.status() == StatusCode::OK;
        open.then_some(Messages { response, buffer: Vec::new(), id: String::new() })
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

async fn answer(response: reqwest::Response) -> (StatusCode, Value) {
    let status = response.status();
    let body = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
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
        loop {
            let message = self.next().await.expect("the stream goes on");
            if message.event == event {
                return message;
            }
        }
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
        (!message.data.is_empty()).then_some(message)
    }
}
