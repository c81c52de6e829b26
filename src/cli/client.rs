//! A client of a running Milepost: where it is, and its streams.

use std::time::Duration;

use anyhow::Context as _;
use async_stream::try_stream;
use reqwest::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_stream::{Stream, StreamExt as _};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long something may take. A machine that vanishes says nothing, not even that it has.
#[derive(Clone, Copy)]
struct Deadlines {
    /// A whole answer.
    answer: Duration,
    /// The next bytes of a stream.
    silence: Duration,
    /// The pause before a broken stream is opened again.
    reconnect: Duration,
}

/// The slowest of streams says every 15 seconds that it is alive: three of these may get lost.
const DEADLINES: Deadlines = Deadlines {
    answer: Duration::from_secs(30),
    silence: Duration::from_secs(50),
    reconnect: Duration::from_secs(1),
};

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
    deadlines: Deadlines,
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
        let token = token.context("no token: set MILEPOST_TOKEN, or run `milepost dev` here")?;
        Client::new(self.url()?, token, DEADLINES)
    }
}

impl Client {
    fn new(url: String, token: String, deadlines: Deadlines) -> anyhow::Result<Self> {
        Ok(Self { http: http(deadlines)?, url, token, deadlines })
    }

    /// Asks for something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        answer(self.ask(path).await?).await
    }

    /// Asks for something that may not be there.
    pub async fn find<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Option<T>> {
        let response = self.ask(path).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        answer(response).await.map(Some)
    }

    async fn ask(&self, path: &str) -> reqwest::Result<reqwest::Response> {
        let request = self.http.get(format!("{}{path}", self.url));
        request.timeout(self.deadlines.answer).bearer_auth(&self.token).send().await
    }

    /// Orders something.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{}{path}", self.url)).json(body);
        let request = request.timeout(self.deadlines.answer);
        answer(request.bearer_auth(&self.token).send().await?).await
    }

    /// Follows a stream for ever, resuming where it broke off. Until its first message has come, an
    /// error is the end: then the address or the token is wrong.
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
                    Ok(response) if !last_id.is_empty() && will_pass(response.status()) => {}
                    Ok(response) => {
                        answer::<Value>(response).await?;
                    }
                    Err(error) if last_id.is_empty() => Err(error)?,
                    Err(_) => {}
                }
                tokio::time::sleep(self.deadlines.reconnect).await;
            }
        }
    }
}

/// A request for something that is answered in one piece.
pub fn post(url: String) -> anyhow::Result<reqwest::RequestBuilder> {
    Ok(http(DEADLINES)?.post(url).timeout(DEADLINES.answer))
}

fn http(deadlines: Deadlines) -> reqwest::Result<reqwest::Client> {
    let builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT);
    builder.read_timeout(deadlines.silence).build()
}

/// Whether a server may soon answer otherwise, as while another version of it is put in place.
fn will_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500..)
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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

    const UNAVAILABLE: &str =
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

    fn event(id: &str) -> String {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        format!("{head}id: {id}\nevent: job\ndata: {{}}\n\n")
    }

    /// A server that answers one request after the other so, each on a connection that it then
    /// ends, or keeps and says nothing more; and what it was asked, with what it keeps.
    async fn server(
        answers: Vec<String>,
        goes_silent: bool,
    ) -> (String, tokio::task::JoinHandle<(Vec<String>, Vec<tokio::net::TcpStream>)>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut asked, mut kept) = (Vec::new(), Vec::new());
            for answer in answers {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    assert_ne!(connection.read_buf(&mut request).await.unwrap(), 0);
                }
                asked.push(String::from_utf8(request).unwrap());
                connection.write_all(answer.as_bytes()).await.unwrap();
                kept.extend(goes_silent.then_some(connection));
            }
            (asked, kept)
        });
        (url, asked)
    }

    fn hasty(url: String) -> Client {
        let [answer, silence] = [Duration::from_millis(200); 2];
        let deadlines = Deadlines { answer, silence, reconnect: Duration::ZERO };
        Client::new(url, "mp_token".to_owned(), deadlines).unwrap()
    }

    async fn ids(url: String, count: usize) -> Vec<String> {
        let client = hasty(url);
        let stream = client.stream("/stream".to_owned()).take(count);
        stream.map(|message| message.unwrap().id).collect().await
    }

    #[tokio::test]
    async fn a_stream_that_goes_silent_is_opened_again_where_it_was() {
        let (url, asked) = server(vec![event("1-1"), event("1-2")], true).await;
        assert_eq!(ids(url, 2).await, ["1-1", "1-2"]);
        let (asked, _) = asked.await.unwrap();
        assert!(!asked[0].contains("last-event-id"), "{asked:?}");
        assert!(asked[1].contains("last-event-id: 1-1"), "{asked:?}");
    }

    #[tokio::test]
    async fn a_stream_outlives_a_server_that_is_unavailable_for_a_while() {
        let answers = vec![event("1-1"), UNAVAILABLE.to_owned(), event("1-2")];
        let (url, asked) = server(answers, false).await;
        assert_eq!(ids(url, 2).await, ["1-1", "1-2"]);
        assert!(asked.await.unwrap().0[2].contains("last-event-id: 1-1"));
    }

    #[tokio::test]
    async fn a_stream_that_never_began_ends_with_its_error() {
        let (url, _server) = server(vec![UNAVAILABLE.to_owned()], false).await;
        let client = hasty(url);
        let first = std::pin::pin!(client.stream("/stream".to_owned())).next().await;
        assert!(first.unwrap().unwrap_err().to_string().starts_with("503"));
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_an_error() {
        let (url, _server) = server(vec!["HTTP/1.1 200 OK\r\n".to_owned()], true).await;
        let error = hasty(url).get::<Value>("/").await.unwrap_err();
        assert!(error.downcast_ref::<reqwest::Error>().unwrap().is_timeout(), "{error:#}");
    }
}
