//! Thousands of Server-Sent Events streams on one thread, with one read buffer for all of them.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::exactly_once::{Checker, Faults};
use crate::http::{ChunkedDecoder, Framing, parse_head};
use crate::sse::{Frame, Parser, PositionIn};

/// One read takes at most this much of a stream; a stream that has more waits for its next turn.
const READ_BYTES: usize = 256 << 10;

/// So many streams may wait for the head of their response at once: below the backlog of any
/// listener, so that connecting measures nothing.
const HEADS_AWAITED_MAX: usize = 100;

/// A head that takes longer never comes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A delivery: which stream, which position, when its bytes were read.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// The index of the stream.
    pub stream: usize,
    /// The position delivered.
    pub position: u64,
    /// When the bytes that completed it had been read.
    pub at: Instant,
}

/// Open streams.
pub struct Streams {
    poll: Poll,
    events: Events,
    open: Vec<Stream>,
    buffer: Vec<u8>,
    heads_awaited: usize,
    totals: Totals,
}

/// What all streams together have received since they were opened.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Events delivered.
    pub deliveries: u64,
    /// Bytes read, framing included.
    pub bytes: u64,
    /// `event: reset` blocks.
    pub resets: u64,
    /// Blocks with data and no position.
    pub unplaced: u64,
    /// Streams that the server ended.
    pub ended: u64,
}

struct Stream {
    socket: TcpStream,
    phase: Phase,
    parser: Parser,
    checker: Checker,
}

enum Phase {
    Head(Vec<u8>),
    Chunked(ChunkedDecoder),
    Plain,
    Ended,
}

impl Streams {
    /// Prepares to open streams.
    pub fn new() -> Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            open: Vec::new(),
            buffer: vec![0; READ_BYTES],
            heads_awaited: 0,
            totals: Totals::default(),
        })
    }

    /// Opens `count` streams by sending `request` on each, and waits until all have been answered
    /// 200.
    pub fn open(
        &mut self,
        address: SocketAddr,
        request: &[u8],
        count: usize,
        position_in: PositionIn,
        mut on_delivery: impl FnMut(Delivery),
    ) -> Result<()> {
        for _ in 0..count {
            self.connect(address, request, position_in)?;
            self.await_heads(HEADS_AWAITED_MAX, &mut on_delivery)?;
        }
        self.await_heads(0, &mut on_delivery)
    }

    fn connect(&mut self, address: SocketAddr, request: &[u8], at: PositionIn) -> Result<()> {
        let opened = self.open.len();
        let mut socket = std::net::TcpStream::connect(address)
            .with_context(|| format!("stream {opened} cannot connect"))?;
        socket.set_nodelay(true)?;
        socket.write_all(request)?;
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket);
        self.poll.registry().register(&mut socket, Token(opened), Interest::READABLE)?;
        let phase = Phase::Head(Vec::new());
        let parser = Parser::new(at);
        self.open.push(Stream { socket, phase, parser, checker: Checker::default() });
        self.heads_awaited += 1;
        Ok(())
    }

    fn await_heads(
        &mut self,
        at_most: usize,
        on_delivery: &mut impl FnMut(Delivery),
    ) -> Result<()> {
        let deadline = Instant::now() + HEAD_TIMEOUT;
        while self.heads_awaited > at_most {
            ensure!(Instant::now() < deadline, "{} streams got no answer", self.heads_awaited);
            self.turn(Duration::from_millis(100), &mut *on_delivery)?;
        }
        Ok(())
    }

    /// Waits for bytes, `timeout` at most, and reads what has come.
    pub fn turn(&mut self, timeout: Duration, mut on_delivery: impl FnMut(Delivery)) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            outcome => outcome?,
        }
        for event in &self.events {
            let index = event.token().0;
            let stream = &mut self.open[index];
            // Edge-triggered: read until a read comes back short.
            loop {
                let read = match stream.socket.read(&mut self.buffer) {
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                    Err(error) => return Err(error).context(format!("stream {index}")),
                };
                let at = Instant::now();
                if read == 0 {
                    stream.end(&mut self.totals)?;
                    break;
                }
                self.totals.bytes += read as u64;
                let awaited_head = matches!(stream.phase, Phase::Head(_));
                let deliver = |position| on_delivery(Delivery { stream: index, position, at });
                stream.read(&self.buffer[..read], &mut self.totals, deliver)?;
                if awaited_head && !matches!(stream.phase, Phase::Head(_)) {
                    self.heads_awaited -= 1;
                }
                if read < self.buffer.len() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// What all streams together have received.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many streams are open.
    pub fn count(&self) -> usize {
        self.open.len()
    }

    /// Whether every stream has come to `position`.
    pub fn all_at(&self, position: u64) -> bool {
        self.open.iter().all(|stream| stream.checker.last() >= position)
    }

    /// Judges every stream, each of which had to deliver `first` to `last`.
    pub fn judge(&self, first: u64, last: u64) -> Faults {
        let mut faults = Faults::default();
        for stream in &self.open {
            faults += stream.checker.judge(first, last);
        }
        faults
    }
}

impl Stream {
    fn end(&mut self, totals: &mut Totals) -> Result<()> {
        ensure!(!matches!(self.phase, Phase::Head(_)), "a stream was closed before its answer");
        if !matches!(self.phase, Phase::Ended) {
            totals.ended += 1;
            self.phase = Phase::Ended;
        }
        Ok(())
    }

    fn read(
        &mut self,
        bytes: &[u8],
        totals: &mut Totals,
        mut deliver: impl FnMut(u64),
    ) -> Result<()> {
        let Self { phase, parser, checker, .. } = self;
        let head_and_body;
        let mut body = bytes;
        if let Phase::Head(so_far) = phase {
            so_far.extend_from_slice(bytes);
            let Some(head) = parse_head(so_far)? else { return Ok(()) };
            if head.status != 200 {
                bail!("a stream was answered {}", String::from_utf8_lossy(so_far));
            }
            head_and_body = std::mem::take(so_far);
            body = &head_and_body[head.bytes..];
            *phase = match head.framing {
                Framing::Chunked => Phase::Chunked(ChunkedDecoder::default()),
                Framing::Close | Framing::Length(_) => Phase::Plain,
            };
        }
        let mut on_frame = |frame| match frame {
            Frame::Event(position) => {
                totals.deliveries += 1;
                checker.see(position);
                deliver(position);
            }
            Frame::Bookmark(_) => {}
            Frame::Reset => totals.resets += 1,
            Frame::Unplaced => totals.unplaced += 1,
        };
        match phase {
            Phase::Chunked(chunks) => {
                while let Some(payload) = chunks.take(&mut body)? {
                    parser.feed(payload, &mut on_frame);
                }
                if chunks.ended() {
                    self.end(totals)?;
                }
            }
            Phase::Plain => parser.feed(body, &mut on_frame),
            Phase::Head(_) | Phase::Ended => {}
        }
        Ok(())
    }
}
