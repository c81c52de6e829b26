//! The line between a workflow and the server: passes callbacks on, and falls silent when told to.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;
use tokio::net::TcpListener;

/// When the line says nothing.
#[derive(Clone, Debug)]
pub struct Silence {
    /// From the first callback of this name on.
    pub at: &'static str,
    /// For so long.
    pub lasts: Duration,
    /// Whether callbacks reach the server all the same, and only answers are lost.
    pub delivers: bool,
}

#[derive(Default)]
struct Held {
    server: String,
    silence: Option<Silence>,
    silent_until: Option<Instant>,
    /// Nobody is there from the first callback of this name on.
    down_at: Option<&'static str>,
    is_down: bool,
    heard: Vec<(String, u16)>,
}

/// A running line.
#[derive(Clone)]
pub struct Line {
    /// Its address, in place of the server's.
    pub url: String,
    held: Arc<Mutex<Held>>,
}

impl Line {
    /// Starts one that leads nowhere yet.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let line = Self { url, held: Arc::default() };
        let router = Router::new().fallback(pass).with_state(line.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        line
    }

    /// Leads it to a server.
    pub fn leads_to(&self, url: &str) {
        url.clone_into(&mut self.held().server);
    }

    /// It will fall silent.
    pub fn falls_silent(&self, silence: Silence) {
        self.held().silence = Some(silence);
    }

    /// It will be cut.
    pub fn goes_down_at(&self, callback: &'static str) {
        self.held().down_at = Some(callback);
    }

    /// It is mended.
    pub fn comes_up(&self) {
        let mut held = self.held();
        held.down_at = None;
        held.is_down = false;
    }

    /// The callbacks that came, in order, each with its answer's status; 0 for none.
    pub fn heard(&self) -> Vec<(String, u16)> {
        self.held().heard.clone()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    /// Where a callback goes, whether it is answered; `None` where nobody is there.
    fn takes(&self, name: &str) -> Option<(String, bool, bool)> {
        let mut held = self.held();
        if held.down_at == Some(name) {
            held.is_down = true;
        }
        if held.is_down {
            return None;
        }
        if let Some(silence) = held.silence.take_if(|silence| silence.at == name) {
            held.silent_until = Some(Instant::now() + silence.lasts);
            held.silence = Some(Silence { at: "", ..silence });
        }
        let silent = held.silent_until.is_some_and(|until| Instant::now() < until);
        let delivers = held.silence.as_ref().is_none_or(|silence| silence.delivers);
        Some((held.server.clone(), silent, delivers))
    }
}

/// The name of a callback: its step, or what it is.
pub fn name_of(body: &Value) -> String {
    let name = match (body["type"].as_str(), body["status"].as_str(), body["step"].as_str()) {
        (Some(kind), _, _) => kind,
        (None, Some("provisioning"), Some(step)) => step,
        (None, Some("provisioning"), None) => "started",
        (None, Some("running"), _) => "done",
        (None, Some(status), _) => status,
        (None, None, _) => "nothing",
    };
    name.to_owned()
}

async fn pass(State(line): State<Line>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let name = name_of(&serde_json::from_slice(&body).unwrap());
    let Some((server, silent, delivers)) = line.takes(&name) else {
        line.held().heard.push((name, 0));
        return StatusCode::BAD_GATEWAY.into_response();
    };
    if silent && !delivers {
        line.held().heard.push((name, 0));
        return std::future::pending().await;
    }
    let sent = reqwest::Client::new()
        .request(parts.method, format!("{server}{}", parts.uri))
        .headers(parts.headers)
        .body(body)
        .send()
        .await;
    let Ok(answer) = sent else {
        line.held().heard.push((name, 0));
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let status = answer.status();
    let body = answer.bytes().await.unwrap_or_default();
    if silent {
        line.held().heard.push((name, 0));
        return std::future::pending().await;
    }
    line.held().heard.push((name, status.as_u16()));
    (status, body).into_response()
}
