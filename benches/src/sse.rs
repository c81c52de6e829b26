//! A Server-Sent Events parser that keeps only what a checker needs: which position came.

use memchr::memchr2;

/// Only the beginning of a line is ever looked at; the rest of a long one is skipped.
const LINE_BYTES_KEPT: usize = 80;

/// Where an event's position stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PositionIn {
    /// `id: <epoch>-<position>`, as Milepost sends it.
    Id,
    /// `data: {"position":<position>…`, for servers whose ids are their own.
    Data,
}

/// One dispatched block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Frame {
    /// An event with its position.
    Event(u64),
    /// `event: bookmark`: how far a quiet stream is.
    Bookmark(u64),
    /// `event: reset`: the stream cannot be resumed.
    Reset,
    /// A block with data, but without a position where one was expected.
    Unplaced,
}

/// Parses one stream, in whatever pieces it comes. Small: there is one for each of 10,000 streams.
#[derive(Clone, Debug)]
pub struct Parser {
    position_in: PositionIn,
    line: [u8; LINE_BYTES_KEPT],
    line_bytes: u8,
    skip_line_feed: bool,
    block: Block,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Block {
    name: Name,
    has_data: bool,
    position: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Name {
    #[default]
    Any,
    Bookmark,
    Reset,
}

impl Parser {
    /// A parser at the beginning of a stream.
    pub fn new(position_in: PositionIn) -> Self {
        Self {
            position_in,
            line: [0; LINE_BYTES_KEPT],
            line_bytes: 0,
            skip_line_feed: false,
            block: Block::default(),
        }
    }

    /// Reads more bytes and hands over every block that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(Frame)) {
        if self.skip_line_feed && !bytes.is_empty() {
            self.skip_line_feed = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = memchr2(b'\n', b'\r', bytes) {
            let frame = self.end_line(&bytes[..end]);
            on_frame_if_some(frame, &mut on_frame);
            let line_end_bytes = match &bytes[end..] {
                [b'\r', b'\n', ..] => 2,
                [b'\r'] => {
                    self.skip_line_feed = true;
                    1
                }
                _ => 1,
            };
            bytes = &bytes[end + line_end_bytes..];
        }
        self.keep(bytes);
    }

    fn end_line(&mut self, rest: &[u8]) -> Option<Frame> {
        if self.line_bytes == 0 {
            return self.block.line(self.position_in, rest);
        }
        self.keep(rest);
        let line = self.line;
        let kept = &line[..usize::from(self.line_bytes)];
        self.line_bytes = 0;
        self.block.line(self.position_in, kept)
    }

    fn keep(&mut self, bytes: &[u8]) {
        let from = usize::from(self.line_bytes);
        let count = bytes.len().min(LINE_BYTES_KEPT - from);
        self.line[from..from + count].copy_from_slice(&bytes[..count]);
        self.line_bytes += count as u8;
    }
}

fn on_frame_if_some(frame: Option<Frame>, on_frame: &mut impl FnMut(Frame)) {
    if let Some(frame) = frame {
        on_frame(frame);
    }
}

impl Block {
    fn line(&mut self, position_in: PositionIn, line: &[u8]) -> Option<Frame> {
        match line.first() {
            None => return std::mem::take(self).dispatch(),
            Some(b'd') => {
                if let Some(value) = value_of(line, b"data") {
                    self.has_data = true;
                    if position_in == PositionIn::Data && self.position.is_none() {
                        let digits = value.strip_prefix(b"{\"position\":");
                        self.position = digits.and_then(leading_number);
                    }
                }
            }
            Some(b'i') => {
                if let (PositionIn::Id, Some(value)) = (position_in, value_of(line, b"id")) {
                    self.position = position_of_id(value);
                }
            }
            Some(b'e') => {
                self.name = match value_of(line, b"event") {
                    Some(b"bookmark") => Name::Bookmark,
                    Some(b"reset") => Name::Reset,
                    _ => Name::Any,
                };
            }
            Some(_) => {}
        }
        None
    }

    fn dispatch(self) -> Option<Frame> {
        match (self.name, self.position) {
            // As in a browser, a block without data is no event.
            _ if !self.has_data => None,
            (Name::Reset, _) => Some(Frame::Reset),
            (Name::Bookmark, Some(position)) => Some(Frame::Bookmark(position)),
            (Name::Any, Some(position)) => Some(Frame::Event(position)),
            (Name::Bookmark | Name::Any, None) => Some(Frame::Unplaced),
        }
    }
}

/// The position of `<epoch>-<position>`.
pub fn position_of_id(id: &[u8]) -> Option<u64> {
    let dash = memchr::memrchr(b'-', id)?;
    let digits = &id[dash + 1..];
    let all_digits = digits.iter().all(u8::is_ascii_digit);
    if all_digits { leading_number(digits) } else { None }
}

fn value_of<'a>(line: &'a [u8], field: &[u8]) -> Option<&'a [u8]> {
    let value = line.strip_prefix(field)?.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

fn leading_number(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit());
    let mut number = None;
    for digit in digits {
        let so_far = number.unwrap_or(0_u64);
        number = Some(so_far.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?);
    }
    number
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(position_in: PositionIn, pieces: &[&[u8]]) -> Vec<Frame> {
        let mut parser = Parser::new(position_in);
        let mut found = Vec::new();
        for piece in pieces {
            parser.feed(piece, |frame| found.push(frame));
        }
        found
    }

    fn milepost_stream() -> (Vec<u8>, Vec<Frame>) {
        let mut bytes =
            b": open\nretry: 2150\n\nid: 3-41\nevent: ServerCreated\ndata: {\"a\":1}\n\n\
            :\n\nid:3-42\r\ndata:{\"b\":\"id: 3-99\"}\r\n\r\nid: 3-43\rdata: x\rdata: y\r\r"
                .to_vec();
        bytes.extend(b"id: 3-44\ndata: ");
        bytes.extend([b'z'; 3 * LINE_BYTES_KEPT]);
        bytes.extend(b"\n\nid: 3-44\nevent: bookmark\ndata: 44\n\nid: 3-50\n\n");
        bytes.extend(b"event: reset\ndata: {}\n\ndata: lost\n\n");
        let frames = vec![
            Frame::Event(41),
            Frame::Event(42),
            Frame::Event(43),
            Frame::Event(44),
            Frame::Bookmark(44),
            Frame::Reset,
            Frame::Unplaced,
        ];
        (bytes, frames)
    }

    #[test]
    fn frames_are_the_same_wherever_the_bytes_are_split() {
        let (bytes, expected) = milepost_stream();
        for split in 0..=bytes.len() {
            let (left, right) = bytes.split_at(split);
            assert_eq!(frames(PositionIn::Id, &[left, right]), expected, "split at {split}");
        }
        let single_bytes: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(frames(PositionIn::Id, &single_bytes), expected);
    }

    #[test]
    fn positions_in_data_leave_the_id_alone() {
        let bytes = b"id: 1700000000:4\ndata: {\"position\":18,\"pad\":\"x\"}\n\n\
            id: 1700000000:5\ndata: {\"position\":19}\n\nid: 1700000000:6\ndata: hi\n\n";
        let expected = [Frame::Event(18), Frame::Event(19), Frame::Unplaced];
        assert_eq!(frames(PositionIn::Data, &[bytes]), expected);
    }

    #[test]
    fn ids_without_a_position_are_none() {
        assert_eq!(position_of_id(b"0193-7f-12"), Some(12));
        assert_eq!(position_of_id(b"12"), None);
        assert_eq!(position_of_id(b"3-"), None);
        assert_eq!(position_of_id(b"3-1x"), None);
        assert_eq!(position_of_id(b"3-99999999999999999999"), None);
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_same_frames(cuts in prop::collection::vec(0_usize..700, 0..12)) {
            let (bytes, expected) = milepost_stream();
            let mut cuts = cuts;
            cuts.retain(|cut| *cut < bytes.len());
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&bytes[from..cut]);
                from = cut;
            }
            pieces.push(&bytes[from..]);
            prop_assert_eq!(frames(PositionIn::Id, &pieces), expected);
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            frames(PositionIn::Id, &[&bytes]);
            frames(PositionIn::Data, &[&bytes]);
        }
    }
}
