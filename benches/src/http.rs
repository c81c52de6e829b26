//! As much of an HTTP/1.1 client as a load tool needs, and no more: the less the client does, the
//! more of the machine is the server's.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A response larger than this is a mistake, not an answer.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// A server that takes longer than this for one answer hangs, and so would the tool.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the server under test listens: `http://host:port`, with or without a path.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The resolved address.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// What stands before every path, without the last slash.
    pub base: String,
}

impl Target {
    /// Parses and resolves a URL.
    pub fn parse(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").context("only http:// URLs are supported")?;
        let (host, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let address = with_port
            .to_socket_addrs()
            .with_context(|| format!("{host} does not resolve"))?
            .next()
            .with_context(|| format!("{host} has no address"))?;
        Ok(Self { address, host: host.to_owned(), base: base.trim_end_matches('/').to_owned() })
    }

    /// The head of a request with a body of `body_bytes` bytes, up to and with the empty line.
    /// `headers` are whole lines, each with its CR LF.
    pub fn head(&self, method: &str, path: &str, headers: &str, body_bytes: usize) -> String {
        let length = match method {
            "GET" => String::new(),
            _ => format!("Content-Length: {body_bytes}\r\n"),
        };
        let Self { host, base, .. } = self;
        format!("{method} {base}{path} HTTP/1.1\r\nHost: {host}\r\n{headers}{length}\r\n")
    }
}

/// One whole response.
#[derive(Debug, PartialEq)]
pub struct Response<'a> {
    /// The status code.
    pub status: u16,
    /// The body, without its framing.
    pub body: &'a [u8],
}

/// Cuts a keep-alive connection's bytes into responses.
#[derive(Debug, Default)]
pub struct ResponseReader {
    buffer: Vec<u8>,
    consumed: usize,
    unchunked: Vec<u8>,
}

/// Where a whole response is: its body in the buffer, or unchunked beside it.
struct Found {
    status: u16,
    body: Option<std::ops::Range<usize>>,
}

/// How the body of a response ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Framing {
    /// After this many bytes.
    Length(usize),
    /// With the empty chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// The head of a response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// How its body ends.
    pub framing: Framing,
    /// How many bytes the head took, with its empty line.
    pub bytes: usize,
}

/// Parses the head of a response; `None` while it is incomplete.
pub fn parse_head(bytes: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = response.parse(bytes)? else { return Ok(None) };
    let status = response.code.context("a complete response has a status")?;
    let mut framing =
        if matches!(status, 100..=199 | 204 | 304) { Framing::Length(0) } else { Framing::Close };
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(header.value)?.trim().parse()?;
            framing = Framing::Length(length);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            ensure!(header.value.eq_ignore_ascii_case(b"chunked"), "unknown transfer encoding");
            framing = Framing::Chunked;
        }
    }
    Ok(Some(Head { status, framing, bytes: head_bytes }))
}

impl ResponseReader {
    /// Adds bytes that came from the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        self.make_room();
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next whole response; `None` while it is incomplete.
    pub fn take(&mut self) -> Result<Option<Response<'_>>> {
        Ok(self.find()?.map(|found| self.response(found)))
    }

    fn find(&mut self) -> Result<Option<Found>> {
        let bytes = &self.buffer[self.consumed..];
        let Some(head) = parse_head(bytes)? else { return Ok(None) };
        let body_at = self.consumed + head.bytes;
        let body = &bytes[head.bytes..];
        match head.framing {
            Framing::Length(length) if body.len() < length => Ok(None),
            Framing::Length(length) => {
                self.consumed = body_at + length;
                Ok(Some(Found { status: head.status, body: Some(body_at..body_at + length) }))
            }
            Framing::Chunked => {
                self.unchunked.clear();
                let mut chunks = ChunkedDecoder::default();
                let mut rest = body;
                while let Some(payload) = chunks.take(&mut rest)? {
                    self.unchunked.extend_from_slice(payload);
                }
                if !chunks.ended() {
                    return Ok(None);
                }
                self.consumed = body_at + body.len() - rest.len();
                Ok(Some(Found { status: head.status, body: None }))
            }
            Framing::Close => bail!("a response with neither length nor chunks"),
        }
    }

    fn response(&self, found: Found) -> Response<'_> {
        let body = match found.body {
            Some(range) => &self.buffer[range],
            None => &self.unchunked,
        };
        Response { status: found.status, body }
    }

    fn make_room(&mut self) {
        if self.consumed == self.buffer.len() {
            self.buffer.clear();
        } else if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
        }
        self.consumed = 0;
    }
}

/// Takes the chunks' framing off a body, in whatever pieces it comes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChunkedDecoder {
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Size { so_far: usize, digits: u8 },
    SizeLineEnd { size: usize },
    Data { left: usize },
    DataEnd,
    Trailer { line_bytes: u8 },
    End,
}

impl Default for At {
    fn default() -> Self {
        At::Size { so_far: 0, digits: 0 }
    }
}

impl ChunkedDecoder {
    /// Takes bytes off `input` up to the next piece of payload; `None` when `input` is used up, or
    /// the body has ended.
    pub fn take<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>> {
        loop {
            if let At::Data { left } = self.at {
                if input.is_empty() {
                    return Ok(None);
                }
                let (payload, rest) = input.split_at(left.min(input.len()));
                *input = rest;
                self.at = match left - payload.len() {
                    0 => At::DataEnd,
                    left => At::Data { left },
                };
                return Ok(Some(payload));
            }
            if self.at == At::End {
                return Ok(None);
            }
            let Some((byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            self.at = self.at.after(*byte)?;
        }
    }

    /// Whether the empty chunk and its trailers have been read.
    pub fn ended(&self) -> bool {
        self.at == At::End
    }
}

impl At {
    fn after(self, byte: u8) -> Result<Self> {
        Ok(match (self, byte) {
            (At::Size { so_far, digits }, _) if byte.is_ascii_hexdigit() => {
                ensure!(digits < 15, "a chunk size of more than 15 digits");
                let digit = char::from(byte).to_digit(16).unwrap_or_default() as usize;
                At::Size { so_far: so_far << 4 | digit, digits: digits + 1 }
            }
            (At::Size { so_far, digits: 1.. }, b'\r' | b';' | b' ') => {
                At::SizeLineEnd { size: so_far }
            }
            (At::SizeLineEnd { size: 0 }, b'\n') => At::Trailer { line_bytes: 0 },
            (At::SizeLineEnd { size }, b'\n') => At::Data { left: size },
            (At::SizeLineEnd { size }, _) => At::SizeLineEnd { size },
            (At::DataEnd, b'\r') => At::DataEnd,
            (At::DataEnd, b'\n') => At::default(),
            (At::Trailer { line_bytes: 0 }, b'\n') => At::End,
            (At::Trailer { .. }, b'\n') => At::Trailer { line_bytes: 0 },
            (At::Trailer { line_bytes }, b'\r') => At::Trailer { line_bytes },
            (At::Trailer { .. }, _) => At::Trailer { line_bytes: 1 },
            (at, byte) => bail!("byte {byte:#04x} is out of place in a chunk ({at:?})"),
        })
    }
}

/// A keep-alive connection that asks one thing at a time, or several without waiting.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    reader: ResponseReader,
    incoming: Box<[u8]>,
}

impl Connection {
    /// Connects, with Nagle's delay off.
    pub async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(target.address)
            .await
            .with_context(|| format!("cannot connect to {}", target.host))?;
        stream.set_nodelay(true)?;
        let incoming = vec![0; 16 << 10].into_boxed_slice();
        Ok(Self { stream, reader: ResponseReader::default(), incoming })
    }

    /// Writes bytes, whole requests, to the server.
    pub async fn send(&mut self, requests: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(requests).await?)
    }

    /// Waits for the next response. May be dropped and called again without losing anything.
    pub async fn receive(&mut self) -> Result<Response<'_>> {
        loop {
            if let Some(found) = self.reader.find()? {
                return Ok(self.reader.response(found));
            }
            let read = self.stream.read(&mut self.incoming).await?;
            ensure!(read > 0, "the server closed the connection");
            self.reader.push(&self.incoming[..read]);
            ensure!(self.reader.buffer.len() <= RESPONSE_BYTES_MAX, "a response without end");
        }
    }

    /// Asks and waits, however long.
    pub async fn ask(&mut self, request: &[u8]) -> Result<Response<'_>> {
        self.send(request).await?;
        self.receive().await
    }

    /// Asks and waits, up to [`ANSWER_TIMEOUT`].
    pub async fn ask_in_time(&mut self, request: &[u8]) -> Result<Response<'_>> {
        timeout(ANSWER_TIMEOUT, self.ask(request)).await.context("the server does not answer")?
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(pieces: &[&[u8]]) -> Vec<(u16, Vec<u8>)> {
        let mut reader = ResponseReader::default();
        let mut found = Vec::new();
        for piece in pieces {
            reader.push(piece);
            while let Some(response) = reader.take().unwrap() {
                found.push((response.status, response.body.to_vec()));
            }
        }
        found
    }

    fn two_answers() -> Vec<u8> {
        let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"position\":7}".to_vec();
        bytes.extend(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n");
        bytes.extend(b"transfer-encoding: chunked\r\n\r\n4\r\nbusy\r\nA;x=y\r\n, so later\r\n");
        bytes.extend(b"0\r\ntrailer: 1\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n");
        bytes
    }

    fn expected() -> Vec<(u16, Vec<u8>)> {
        vec![
            (200, b"{\"position\":7}".to_vec()),
            (503, b"busy, so later".to_vec()),
            (204, Vec::new()),
        ]
    }

    #[test]
    fn responses_are_whole_wherever_the_bytes_are_split() {
        let bytes = two_answers();
        for split in 0..=bytes.len() {
            let (left, right) = bytes.split_at(split);
            assert_eq!(read_all(&[left, right]), expected(), "split at {split}");
        }
        let single_bytes: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read_all(&single_bytes), expected());
    }

    #[test]
    fn a_response_without_length_is_an_error() {
        let mut reader = ResponseReader::default();
        reader.push(b"HTTP/1.1 200 OK\r\n\r\n");
        assert!(reader.take().is_err());
    }

    #[test]
    fn a_malformed_chunk_is_an_error() {
        for body in [&b"zz\r\n"[..], b"\r\n", b"2\r\nabc", b"1234567890123456\r\n"] {
            let mut chunks = ChunkedDecoder::default();
            let mut rest = body;
            let mut outcome = chunks.take(&mut rest);
            while let Ok(Some(_)) = outcome {
                outcome = chunks.take(&mut rest);
            }
            assert!(outcome.is_err(), "{body:?}");
        }
    }

    #[test]
    fn targets_keep_host_and_base() {
        let target = Target::parse("http://127.0.0.1:8080/base/").unwrap();
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(
            target.head("POST", "/x", "A: b\r\n", 3),
            "POST /base/x HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nA: b\r\nContent-Length: 3\r\n\r\n"
        );
        assert!(Target::parse("https://127.0.0.1").is_err());
    }

    proptest! {
        #[test]
        fn chunks_come_back_as_one_body(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            piece_bytes in 1_usize..20,
        ) {
            let mut bytes = Vec::new();
            for part in &parts {
                bytes.extend(format!("{:x}\r\n", part.len()).bytes());
                bytes.extend(part);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
            let mut chunks = ChunkedDecoder::default();
            let mut body = Vec::new();
            for piece in bytes.chunks(piece_bytes) {
                let mut rest = piece;
                while let Some(payload) = chunks.take(&mut rest).unwrap() {
                    body.extend_from_slice(payload);
                }
            }
            prop_assert!(chunks.ended());
            prop_assert_eq!(body, parts.concat());
        }
    }
}
