//! Publishes events at a rate, or as fast as they are answered, and notes when each was sent and
//! answered.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::callback::{Callback, Signer};
use crate::http::{ANSWER_TIMEOUT, Connection, Target};

/// One published event.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Its position in the log, or its number.
    pub position: u64,
    /// When its request was written.
    pub sent: Instant,
    /// When its answer had been read.
    pub answered: Instant,
}

/// What is published.
#[derive(Clone, Debug)]
pub enum Source {
    /// Signed callbacks of these jobs; the answer tells the position.
    Callbacks {
        /// Where they go.
        target: Target,
        /// What signs them.
        signer: Signer,
        /// The jobs they are for.
        jobs: Vec<String>,
        /// The name of this run.
        run: String,
    },
    /// Numbered messages, posted to a path; the number is the position.
    Numbered {
        /// Where they go.
        target: Target,
        /// The path that publishes.
        path: String,
        /// How long each message is.
        payload_bytes: usize,
        /// The number of the first.
        first: u64,
    },
}

/// How it is published.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many events.
    pub events: u64,
    /// How many connections they are spread over.
    pub connections: usize,
    /// How many requests a connection may have unanswered.
    pub depth: usize,
    /// Time from one event to the next; zero is as fast as they are answered.
    pub interval: Duration,
}

/// Publishes and waits for the last answer. The first event is due at once.
pub async fn publish(source: &Source, plan: Plan) -> Result<Vec<Published>> {
    let mut lanes = Vec::new();
    for index in 0..plan.connections.max(1) {
        lanes.push(Lane::open(source, plan, index).await?);
    }
    let start = Instant::now();
    let mut running = JoinSet::new();
    for lane in lanes {
        running.spawn(lane.run(start));
    }
    let mut published = Vec::with_capacity(plan.events as usize);
    while let Some(lane) = running.join_next().await {
        published.extend(lane??);
    }
    published.sort_unstable_by_key(|event| event.position);
    Ok(published)
}

/// One connection and its share of the events: every `stride`-th.
struct Lane {
    connection: Connection,
    messages: Messages,
    plan: Plan,
    next: u64,
    stride: u64,
}

enum Messages {
    Callbacks { callbacks: Vec<Callback>, signer: Signer },
    Numbered { target: Target, path: String, payload_bytes: usize, first: u64, request: Vec<u8> },
}

impl Lane {
    async fn open(source: &Source, plan: Plan, index: usize) -> Result<Self> {
        let stride = plan.connections.max(1);
        let (target, messages) = match source {
            Source::Callbacks { target, signer, jobs, run } => {
                // With fewer jobs than connections some share a job; never with none.
                let own = jobs.iter().cycle().skip(index).step_by(stride);
                let own = own.take(jobs.len().div_ceil(stride));
                let callbacks = own.map(|job| Callback::step(target, job, run)).collect();
                (target, Messages::Callbacks { callbacks, signer: signer.clone() })
            }
            Source::Numbered { target, path, payload_bytes, first } => {
                let messages = Messages::Numbered {
                    target: target.clone(),
                    path: path.clone(),
                    payload_bytes: *payload_bytes,
                    first: *first,
                    request: Vec::new(),
                };
                (target, messages)
            }
        };
        let connection = Connection::open(target).await?;
        Ok(Self { connection, messages, plan, next: index as u64, stride: stride as u64 })
    }

    async fn run(mut self, start: Instant) -> Result<Vec<Published>> {
        let mut published = Vec::new();
        let mut unanswered = VecDeque::new();
        while self.next < self.plan.events || !unanswered.is_empty() {
            let may_send = self.next < self.plan.events && unanswered.len() < self.plan.depth;
            let due = start + self.plan.interval * self.next as u32;
            if may_send && due <= Instant::now() {
                let event = self.next;
                let request = self.messages.request(event, event / self.stride);
                let sent = Instant::now();
                self.connection.send(request).await?;
                unanswered.push_back((event, sent));
                self.next += self.stride;
                continue;
            }
            let response = tokio::select! {
                response = timeout(ANSWER_TIMEOUT, self.connection.receive()),
                    if !unanswered.is_empty() => response.context("the server does not answer")??,
                () = tokio::time::sleep_until(due.into()), if may_send => continue,
            };
            let answered = Instant::now();
            let (event, sent) = unanswered.pop_front().context("an answer nobody asked for")?;
            let ok = (200..300).contains(&response.status);
            let text = || String::from_utf8_lossy(response.body).into_owned();
            ensure!(ok, "publishing was answered {} {}", response.status, text());
            let position = self.messages.position(event, response.body).with_context(text)?;
            published.push(Published { position, sent, answered });
        }
        Ok(published)
    }
}

#[derive(Deserialize)]
struct Received {
    position: u64,
    #[serde(default)]
    applied: Option<bool>,
}

impl Messages {
    /// The request of an event, which is the `turn`-th of its lane.
    fn request(&mut self, event: u64, turn: u64) -> &[u8] {
        match self {
            Messages::Callbacks { callbacks, signer } => {
                let index = turn as usize % callbacks.len();
                callbacks[index].signed(signer, event)
            }
            Messages::Numbered { target, path, payload_bytes, first, request } => {
                let body = numbered(*first + event, *payload_bytes);
                let headers = "Content-Type: application/json\r\n";
                request.clear();
                request.extend(target.head("POST", path, headers, body.len()).bytes());
                request.extend(body.bytes());
                request
            }
        }
    }

    fn position(&self, event: u64, body: &[u8]) -> Result<u64> {
        match self {
            Messages::Callbacks { .. } => {
                let received: Received = serde_json::from_slice(body)?;
                ensure!(received.applied != Some(false), "a callback was not applied");
                Ok(received.position)
            }
            Messages::Numbered { first, .. } => Ok(first + event),
        }
    }
}

fn numbered(position: u64, payload_bytes: usize) -> String {
    let bare = format!(r#"{{"position":{position},"pad":""}}"#);
    let pad = "x".repeat(payload_bytes.saturating_sub(bare.len()));
    format!(r#"{{"position":{position},"pad":"{pad}"}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_messages_are_json_of_the_length_asked_for() {
        for position in [1, 12_345] {
            let body = numbered(position, 200);
            assert_eq!(body.len(), 200);
            assert_eq!(serde_json::from_str::<Received>(&body).unwrap().position, position);
        }
    }
}
