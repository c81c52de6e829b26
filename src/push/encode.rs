//! Server-Sent Events on the wire: each message rendered once, already framed as one HTTP chunk,
//! so that a delivery copies nothing and many messages go out in one write.
//!
//! Source: WHATWG HTML, section 9.2 (the event stream format); RFC 9112, section 7.1 (chunks).

use std::io::Write as _;

use bytes::Bytes;
use milepost_schemas::Position;

use crate::log::Committed;

/// What ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// One message, as a chunk. `data` may hold line breaks of any kind: each line becomes a field.
pub fn message(epoch: i64, position: Position, event: &'static str, data: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(data.len() + event.len() + 64);
    writeln!(text, "id: {epoch}-{position}").expect("a vector takes every write");
    fields(&mut text, event, data);
    chunk(&text)
}

/// An event of the log, as a chunk.
pub fn event(event: &Committed) -> Bytes {
    let mut data = Vec::with_capacity(event.body.len() + event.header.len() + 300);
    event.write_json(&mut data);
    message(event.epoch, event.position, "recorded", &data)
}

/// A message that many subscribers share but each resumes from elsewhere: [`id`] goes before it.
pub fn message_without_id(event: &'static str, data: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(data.len() + event.len() + 32);
    fields(&mut text, event, data);
    chunk(&text)
}

/// The id of the message that follows, as a chunk.
pub fn id(epoch: i64, position: Position) -> Bytes {
    chunk(format!("id: {epoch}-{position}\n").as_bytes())
}

/// A comment, as a chunk: keeps proxies from closing a quiet stream.
pub fn comment(words: &'static str) -> Bytes {
    chunk(format!(": {words}\n\n").as_bytes())
}

/// How long a browser waits before it comes back, as a chunk.
pub fn retry(milliseconds: u64) -> Bytes {
    chunk(format!("retry: {milliseconds}\n\n").as_bytes())
}

/// A chunk without its frame, for a peer that speaks HTTP/1.0.
pub fn unchunked(chunk: &Bytes) -> Bytes {
    let start = chunk.windows(2).position(|pair| pair == b"\r\n").map_or(0, |at| at + 2);
    chunk.slice(start..chunk.len().saturating_sub(2).max(start))
}

fn fields(text: &mut Vec<u8>, event: &'static str, data: &[u8]) {
    writeln!(text, "event: {event}").expect("a vector takes every write");
    for line in lines(data) {
        text.extend_from_slice(b"data: ");
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text.push(b'\n');
}

fn chunk(text: &[u8]) -> Bytes {
    let mut framed = Vec::with_capacity(text.len() + 16);
    write!(framed, "{:x}\r\n", text.len()).expect("a vector takes every write");
    framed.extend_from_slice(text);
    framed.extend_from_slice(b"\r\n");
    framed.into()
}

/// The lines of some data as an event stream counts them: CR, LF and CRLF each end one.
fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
            rest = None;
            return Some(text);
        };
        let after = if text[end..].starts_with(b"\r\n") { end + 2 } else { end + 1 };
        rest = Some(&text[after..]);
        Some(&text[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(chunk: &Bytes) -> String {
        String::from_utf8(unchunked(chunk).to_vec()).unwrap()
    }

    #[test]
    fn a_message_is_one_chunk() {
        let chunk = message(7, Position(12), "recorded", b"{}");
        assert_eq!(&chunk[..], b"23\r\nid: 7-12\nevent: recorded\ndata: {}\n\n\r\n");
        assert_eq!(text(&chunk), "id: 7-12\nevent: recorded\ndata: {}\n\n");
    }

    #[test]
    fn line_breaks_in_data_inject_no_fields() {
        let chunk = message(7, Position(1), "job", b"a\rid: 9\nevent: x\r\nb");
        assert_eq!(
            text(&chunk),
            "id: 7-1\nevent: job\ndata: a\ndata: id: 9\ndata: event: x\ndata: b\n\n"
        );
    }
}
