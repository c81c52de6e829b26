//! A client of a running Milepost: where it is, and its streams.

use anyhow::Context as _;
use async_stream::try_stream;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_stream::{Stream, StreamExt as _};

/// How long to wait before a broken stream is opened again.
const RECONNECT: std::time::Duration = std::time::Duration::from_secs(1);

/// Where the server is, and how to come in.
#[derive(Clone, Debug, clap::Args)]
pub struct Server {
    /// The server; found in data/dev.json when not given
    #[arg(long, env = "MILEPOST_URL")]
    url: Option<String>,
    /// A token; found in data/dev.json when not given
    #[arg(long, env = "MILEPOST_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Where `milepost dev` keeps its data
    #[arg(long, default_value = "data")]
    data_dir: std::path::PathBuf,
}

#[derive(Deserialize)]
struct Dev {
    url: String,
    admin_token: String,
    callback_secret: String,
}

/// A server that was found.
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

/// One message of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Its id, or the one before it.
    pub id: String,
    /// Its name.
    pub event: String,
    /// Its data.
    pub data: String,
}

impl Server {
    fn dev(&self) -> Option<Dev> {
        serde_json::from_slice(&std::fs::read(self.data_dir.join("dev.json")).ok()?).ok()
    }

    /// The secret callbacks are signed with, where `milepost dev` runs here.
    pub fn callback_secret(&self) -> Option<String> {
        self.dev().map(|dev| dev.callback_secret)
    }

    /// The server's address.
    pub fn url(&self) -> anyhow::Result<String> {
        let url = self.url.clone().or_else(|| self.dev().map(|dev| dev.url));
        url.context("where is the server? Give --url, or run `milepost dev` here")
    }

    /// A client that may come in.
    pub fn client(&self) -> anyhow::Result<Client> {
        let token = self.token.clone().or_else(|| self.dev().map(|dev| dev.admin_token));
        let token = token.context("no token: give --token, or run `milepost dev` here")?;
        Ok(Client { http: reqwest::Client::new(), url: self.url()?, token })
    }
}

impl Client {
    /// Asks for something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let request = self.http.get(format!("{}{path}", self.url));
        answer(request.bearer_auth(&self.token).send().await?).await
    }

    /// Orders something.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{}{path}", self.url)).json(body);
        answer(request.bearer_auth(&self.token).send().await?).await
    }

    /// Follows a stream for ever, resuming where it broke off.
    pub fn stream(&self, path: String) -> impl Stream<Item = anyhow::Result<Message>> + '_ {
        try_stream! {
            let mut last_id = String::new();
            loop {
                let mut request = self.http.get(format!("{}{path}", self.url));
                if !last_id.is_empty() {
                    request = request.header("last-event-id", &last_id);
                }
                match request.bearer_auth(&self.token).send().await {
                    Ok(response) if response.status().is_success() => {
                        let mut parser = Parser { id: last_id.clone(), ..Parser::default() };
                        let mut chunks = response.bytes_stream();
                        while let Some(Ok(chunk)) = chunks.next().await {
                            for message in parser.feed(&chunk) {
                                last_id.clone_from(&message.id);
                                yield message;
                            }
                        }
                    }
                    Ok(response) => {
                        answer::<Value>(response).await?;
                    }
                    Err(error) if last_id.is_empty() => Err(error)?,
                    Err(_) => {}
                }
                tokio::time::sleep(RECONNECT).await;
            }
        }
    }
}

async fn answer<T: DeserializeOwned>(response: reqwest::Response) -> anyhow::Result<T> {
    let status = response.status();
    let body = response.bytes().await?;
    if !status.is_success() {
        let problem: Option<Value> = serde_json::from_slice(&body).ok();
        let detail = problem.as_ref().and_then(|it| it["detail"].as_str()).unwrap_or_default();
        anyhow::bail!("{status}: {detail}");
    }
    Ok(serde_json::from_slice(&body)?)
}

/// Reads an event stream as WHATWG HTML 9.2 says, from pieces of any size.
#[derive(Default)]
struct Parser {
    buffer: Vec<u8>,
    id: String,
    event: String,
    data: Vec<String>,
}

impl Parser {
    fn feed(&mut self, chunk: &[u8]) -> Vec<Message> {
        self.buffer.extend_from_slice(chunk);
        let mut messages = Vec::new();
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            messages.extend(self.line(line.trim_end_matches(['\r', '\n'])));
        }
        messages
    }

    fn line(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            let data = std::mem::take(&mut self.data);
            let message = Message { id: self.id.clone(), event, data: data.join("\n") };
            return (!data.is_empty()).then_some(message);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => value.clone_into(&mut self.id),
            "event" => value.clone_into(&mut self.event),
            "data" => self.data.push(value.to_owned()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_from_pieces_of_any_size() {
        let text = b": here\n\nid: 1-2\nevent: job\ndata: {\"a\":\ndata: 1}\n\nid: 1-3\n\n";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let messages: Vec<_> = text.chunks(size).flat_map(|piece| parser.feed(piece)).collect();
            let [message] = &messages[..] else { panic!("{messages:?}") };
            assert_eq!(message.id, "1-2");
            assert_eq!(message.event, "job");
            assert_eq!(message.data, "{\"a\":\n1}");
            assert_eq!(parser.id, "1-3");
        }
    }
}
