//! The end of a server, as an operator orders it.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::streams_cut::fill;
use super::{Load, RawStream};
use crate::harness::{Client, Server};

const STREAMS: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_end_cleanly_and_at_once() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let paths = [
        "/api/events/stream".to_owned(),
        "/api/stream?agent=all".to_owned(),
        format!("/api/stream?agent={agent}&job={job}&events={agent}"),
        format!("/api/jobs/{job}/stream"),
    ];
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        streams.push(RawStream::open(&client, &paths[number % paths.len()], None, None).await);
    }
    let caller = Caller::begin(&client, &job).await;

    let (took, answer) = tokio::join!(server.stop(), async {
        // The first to end says that the server is ending; the caller is still under way.
        assert!(streams.pop().unwrap().finish().await.1);
        caller.finish().await
    });
    println!("{STREAMS} streams ended, and the server with them, in {} ms", took.as_millis());
    assert!(took.as_secs() < 3, "{took:?}");
    assert_eq!(answer["applied"], true, "{answer}");
    for stream in streams {
        let (text, clean) = stream.finish().await;
        assert!(clean, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_behind_gets_no_broken_message_at_the_end() {
    let mut server = Server::start().await;
    let client = server.client();
    fill(&server.database_url(), 500, 4_000).await;
    let beginning = client.beginning().await;
    let mut readers = Vec::new();
    for _ in 0..50 {
        let path = "/api/events/stream";
        readers.push(RawStream::open(&client, path, Some(&beginning), Some(2_048)).await);
    }
    let readers: Vec<_> = readers.into_iter().map(|reader| tokio::spawn(reader.finish())).collect();
    server.stop().await;
    for reader in readers {
        let (text, _) = reader.await.unwrap();
        for (index, message) in text.split("\n\n").filter(|it| it.contains("data: ")).enumerate() {
            let (_, data) = message.split_once("data: ").unwrap();
            let event: Value = serde_json::from_str(data).unwrap();
            assert_eq!(event["position"], index as u64 + 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_under_way_get_answers_that_hold() {
    let mut server = Server::start().await;
    let load = Load::start(&[server.client()], 0).await;
    load.more(200).await;
    server.stop().await;
    server.restart().await;
    load.more(50).await;
    let answered = load.stop().await;
    super::check_log(&server.database_url(), &answered).await;
}

/// A caller that has sent half a callback, which the server is reading.
struct Caller {
    socket: TcpStream,
    rest: String,
}

impl Caller {
    async fn begin(client: &Client, job: &str) -> Self {
        let body = json!({"job_id": job, "status": "provisioning"}).to_string();
        let request = client.signed(body.clone()).build().unwrap();
        let signature = request.headers()["x-signature"].to_str().unwrap();
        let address = client.url.strip_prefix("http://").unwrap();
        let mut socket = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /api/webhooks/github HTTP/1.1\r\nhost: {address}\r\nx-signature: {signature}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut go_on = [0; 25];
        socket.read_exact(&mut go_on).await.unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        let (begun, rest) = body.split_at(10);
        socket.write_all(begun.as_bytes()).await.unwrap();
        Self { socket, rest: rest.to_owned() }
    }

    async fn finish(mut self) -> Value {
        self.socket.write_all(self.rest.as_bytes()).await.unwrap();
        let mut answer = String::new();
        self.socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {}", StatusCode::OK)), "{answer}");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }
}
