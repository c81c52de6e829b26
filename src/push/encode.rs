//! Server-Sent Events on the wire: each message rendered once, already framed as one HTTP chunk,
//! so that a delivery copies nothing and many messages go out in one write.
//!
//! Source: WHATWG HTML, section 9.2 (the event stream format); RFC 9112, section 7.1 (chunks).

use std::borrow::Cow;
use std::io::Write as _;

use bytes::Bytes;
use milepost_schemas::Position;

use crate::log::{Committed, Escape, Opener};

/// What ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A chunk's size is written into this place once it is known; leading zeros are allowed.
const SIZE_PLACE: &[u8; 10] = b"00000000\r\n";

/// Bytes a message has beside its data, at the most.
const AROUND_DATA_BYTES: usize = 96;

/// Bytes an event's JSON has beside its body and header, at the most.
const AROUND_EVENT_BYTES: usize = 300;

/// One message, as a chunk. `data` may hold line breaks of any kind: each line becomes a field.
pub fn message(epoch: i64, position: Position, event: &'static str, data: &[u8]) -> Bytes {
    chunk(data.len() + AROUND_DATA_BYTES, |text| {
        write_id(text, epoch, position);
        write_fields(text, event, data);
    })
}

/// An event of the log, as a chunk, with its personal texts opened.
pub fn event(event: &Committed, opener: &Opener) -> Bytes {
    events([event], opener)
}

/// Events of the log, as one chunk, with their personal texts opened.
pub fn events<'a>(
    events: impl IntoIterator<Item = &'a Committed> + Clone,
    opener: &Opener,
) -> Bytes {
    let bytes = events.clone().into_iter().map(event_bytes_max).sum();
    chunk(bytes, |text| {
        for event in events {
            write_id(text, event.epoch, event.position);
            text.extend_from_slice(b"event: recorded\ndata: ");
            let start = text.len();
            event.write_json(text);
            if let Cow::Owned(opened) = opener.open(&text[start..], Escape::Json) {
                text.truncate(start);
                text.extend_from_slice(&opened);
            }
            if memchr::memchr2(b'\r', b'\n', &text[start..]).is_some() {
                // Not as Milepost wrote it: a line break would end the field.
                let data = text.split_off(start);
                text.truncate(start - b"event: recorded\ndata: ".len());
                write_fields(text, "recorded", &data);
            } else {
                text.extend_from_slice(b"\n\n");
            }
        }
    })
}

/// Bytes of an event as a message, at the most; where personal texts are opened in it, about as many.
pub fn event_bytes_max(event: &Committed) -> usize {
    event.body.len() + event.header.len() + AROUND_EVENT_BYTES + AROUND_DATA_BYTES
}

/// A message that many subscribers share but each resumes from elsewhere: [`id`] goes before it.
pub fn message_without_id(event: &'static str, data: &[u8]) -> Bytes {
    chunk(data.len() + AROUND_DATA_BYTES, |text| write_fields(text, event, data))
}

/// The id of the message that follows, as a chunk.
pub fn id(epoch: i64, position: Position) -> Bytes {
    chunk(AROUND_DATA_BYTES, |text| write_id(text, epoch, position))
}

/// A comment, as a chunk: keeps proxies from closing a quiet stream.
pub fn comment(words: &'static str) -> Bytes {
    chunk(words.len() + 4, |text| text.extend_from_slice(format!(": {words}\n\n").as_bytes()))
}

/// How long a browser waits before it comes back, as a chunk.
pub fn retry(milliseconds: u64) -> Bytes {
    let line = format!("retry: {milliseconds}\n\n");
    chunk(line.len(), |text| text.extend_from_slice(line.as_bytes()))
}

/// A chunk without its frame, for a peer that speaks HTTP/1.0.
pub fn unchunked(chunk: &Bytes) -> Bytes {
    let start = chunk.windows(2).position(|pair| pair == b"\r\n").map_or(0, |at| at + 2);
    chunk.slice(start..chunk.len().saturating_sub(2).max(start))
}

fn write_id(text: &mut Vec<u8>, epoch: i64, position: Position) {
    writeln!(text, "id: {epoch}-{position}").expect("a vector takes every write");
}

fn write_fields(text: &mut Vec<u8>, event: &'static str, data: &[u8]) {
    writeln!(text, "event: {event}").expect("a vector takes every write");
    for line in lines(data) {
        text.extend_from_slice(b"data: ");
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text.push(b'\n');
}

fn chunk(bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut framed = Vec::with_capacity(bytes + SIZE_PLACE.len() + 2);
    framed.extend_from_slice(SIZE_PLACE);
    write(&mut framed);
    let size = format!("{:08x}", framed.len() - SIZE_PLACE.len());
    framed[..size.len()].copy_from_slice(size.as_bytes());
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
        assert_eq!(&chunk[..], b"00000023\r\nid: 7-12\nevent: recorded\ndata: {}\n\n\r\n");
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

    #[test]
    fn events_go_together_in_one_chunk_and_none_can_break_out_of_its_field() {
        let committed =
            |position, body: &'static [u8]| Committed::stored(7, Position(position), body);
        let (one, two) = (committed(1, b"{}"), committed(2, b"{\n\nid: 9\n}"));
        let none = Opener::default();
        let chunk = events([&one, &two], &none);
        assert!(chunk.len() <= 12 + event_bytes_max(&one) + event_bytes_max(&two));
        let text = text(&chunk);
        assert_eq!(text.lines().filter(|line| line.starts_with("id: ")).count(), 2, "{text}");
        assert!(text.contains("\ndata: id: 9\n"), "{text}");
        assert_eq!(text, self::text(&event(&one, &none)) + &self::text(&event(&two, &none)));
    }
}
