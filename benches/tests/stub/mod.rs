//! The smallest server that answers the load tools as Milepost does, and that can do wrong on
//! request: a tool that measures correctness has to notice.

use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// What the stub does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// No stream gets the event at this position.
    Lose(u64),
    /// Every stream gets the event at this position twice.
    Repeat(u64),
    /// Callbacks are acknowledged, and every tenth is not in the log.
    Forget,
    /// Every tenth callback is answered 503.
    Refuse,
}

struct Log {
    /// How many events there are; an event is nothing but its position.
    head: Mutex<(u64, u64)>,
    grown: Condvar,
    fault: Fault,
}

/// Starts a stub on a free port, for as long as the process lives.
pub fn start(address: &str, fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind(address).expect("a loopback port is free");
    let address = listener.local_addr().expect("a listener has an address");
    let log = Arc::new(Log { head: Mutex::new((0, 0)), grown: Condvar::new(), fault });
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let log = Arc::clone(&log);
            // The peer's leaving is how a connection ends.
            thread::spawn(move || drop(log.converse(stream)));
        }
    });
    address
}

impl Log {
    fn converse(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head)? == 0 {
                    return Ok(());
                }
            }
            let length = header(&head, "content-length").and_then(|value| value.parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            reader.read_exact(&mut body)?;
            let path = head.split(' ').nth(1).unwrap_or_default();
            if path == "/api/events/stream" {
                let since = header(&head, "last-event-id")
                    .and_then(|id| id.strip_prefix("7-")?.parse().ok());
                return self.follow(&mut stream, since);
            }
            let (status, answer) = self.answer(path);
            let length = answer.len();
            write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n{answer}")?;
        }
    }

    fn answer(&self, path: &str) -> (u16, String) {
        let mut state = self.head.lock().expect("no holder panics");
        if path == "/api/agents" {
            return (201, r#"{"id":"an-agent"}"#.to_owned());
        }
        if path.ends_with("/provision") {
            return (202, r#"{"job_id":"a-job"}"#.to_owned());
        }
        if path.starts_with("/api/events") {
            return (200, format!(r#"{{"events":[{{"id":"7-1"}}],"head":{}}}"#, state.0));
        }
        state.1 += 1;
        let is_tenth = state.1 > 100 && state.1.is_multiple_of(10);
        if is_tenth && self.fault == Fault::Refuse {
            return (503, "{}".to_owned());
        }
        if !(is_tenth && self.fault == Fault::Forget) {
            state.0 += 1;
            self.grown.notify_all();
        }
        (200, format!(r#"{{"received":true,"applied":true,"position":{}}}"#, state.0))
    }

    fn follow(&self, stream: &mut TcpStream, since: Option<u64>) -> Result<()> {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n: open\n\n\r\n",
        )?;
        let mut sent = since.unwrap_or(self.head.lock().expect("no holder panics").0);
        loop {
            let mut state = self.head.lock().expect("no holder panics");
            while state.0 == sent {
                state = self.grown.wait(state).expect("no holder panics");
            }
            let head = state.0;
            drop(state);
            let mut frames = Vec::new();
            for position in sent + 1..=head {
                let times = match self.fault {
                    Fault::Lose(lost) if lost == position => 0,
                    Fault::Repeat(repeated) if repeated == position => 2,
                    _ => 1,
                };
                for _ in 0..times {
                    write!(frames, "id: 7-{position}\nevent: StepRecorded\ndata: {{}}\n\n")?;
                }
            }
            sent = head;
            // An empty chunk would end the body.
            if !frames.is_empty() {
                let size = format!("{:x}\r\n", frames.len());
                stream.write_all(&[size.as_bytes(), &frames, b"\r\n"].concat())?;
            }
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}
