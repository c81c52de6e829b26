//! Every route, as a client sees it; files mirror the URLs.

use reqwest::Method;
use serde_json::json;

use crate::harness::{Answer, Server};

mod accounts;
mod agents;
mod documents;
mod events;
mod health;
mod job_log;
mod jobs;
mod metrics;
mod nodes;
mod pages;
mod past;
mod queue;
mod session;
mod streams;
mod webhooks_github;

/// Logs in as the account that `dev` makes; returns the cookie's value.
pub(crate) async fn log_in(server: &Server) -> String {
    let client = server.client();
    let body = json!({"email": "admin@localhost", "password": server.ready("admin_password")});
    let answer = client.send(client.request(Method::POST, "/api/login").json(&body)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    cookie_of(&answer)
}

/// The session's token that an answer gives, or takes away; it has the flags it must have.
fn cookie_of(answer: &Answer) -> String {
    let cookie = answer.header("set-cookie").strip_prefix("session_token=").unwrap();
    let (token, flags) = cookie.split_once("; ").unwrap();
    let age = if token.is_empty() { 0 } else { 86_400 };
    assert_eq!(flags, format!("Path=/; HttpOnly; SameSite=Lax; Max-Age={age}"));
    token.to_owned()
}
