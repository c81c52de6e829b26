//! `milepost log replay`: the states that the log gives, folded here, from a server or an export.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use milepost_projections::answers::InstanceAnswer;
use milepost_projections::board::agent_of;
use milepost_projections::{Agent, Board, Job, Node, Queue, Recorded};
use milepost_schemas::{AgentId, Event, EventType, Position, StreamId};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::app::Clock;
use crate::cli::client::Server;
use crate::ledger::{archive, bundle};

/// Events asked for at once.
const PAGE: usize = 1_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stop after this position, or after this time (2026-11-24T12:00:00Z)
    #[arg(long, visible_alias = "upto")]
    at: Option<Moment>,
    /// The state of this agent, node or job, of the queue or an instance, by its stream's id;
    /// without it, what a page shows of every agent
    #[arg(long)]
    stream: Vec<StreamId>,
    /// Print the events too
    #[arg(long)]
    events: bool,
    /// From an export in this directory instead of a server
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// Begin with the events that are archived in this directory, then go on with the server's
    #[arg(long, conflicts_with = "bundle")]
    archive: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
}

/// Where to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    At(Position),
    When(Timestamp),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(position) = text.parse() {
            return Ok(Self::At(Position(position)));
        }
        let time = text.parse().map(Self::When);
        time.map_err(|_| format!("{text} is neither a position nor a time"))
    }
}

impl Moment {
    fn is_before(self, line: &Line) -> bool {
        match self {
            Self::At(position) => position < line.position,
            Self::When(time) => time < line.recorded_at,
        }
    }
}

/// An event with its place.
struct Line {
    position: Position,
    stream: StreamId,
    version: u32,
    recorded_at: Timestamp,
    delivery_id: Option<String>,
    event: Event,
    text: String,
}

#[derive(Deserialize)]
struct Delivery {
    delivery_id: Option<String>,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut states = States { wanted: args.stream.clone(), ..States::default() };
    let mut printed = Ok(());
    let mut take = |line: &Line| {
        if args.at.is_some_and(|at| at.is_before(line)) {
            return false;
        }
        if args.events && states.wants(line.stream) {
            printed = say!("{}", line.text);
        }
        states.fold(line);
        printed.is_ok()
    };
    if let Some(directory) = &args.bundle {
        from_bundle(directory, &mut take)?;
    } else {
        let archived = match &args.archive {
            Some(directory) => from_archive(directory, &mut take)?,
            None => Some(Position::START),
        };
        if let Some(after) = archived {
            from_server(&args.server, after, &mut take).await?;
        }
    }
    printed?;
    for state in states.print(Clock.now()) {
        say!("{state}")?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Page {
    events: Vec<Box<RawValue>>,
    head: Position,
}

#[derive(Deserialize)]
struct Told<'a> {
    position: Position,
    stream: StreamId,
    version: u32,
    #[serde(rename = "type")]
    kind: String,
    schema_version: i16,
    recorded_at: Timestamp,
    #[serde(borrow)]
    data: &'a RawValue,
    metadata: Delivery,
}

async fn from_server(
    server: &Server,
    after: Position,
    take: &mut impl FnMut(&Line) -> bool,
) -> anyhow::Result<()> {
    let client = server.client()?;
    let mut after = after;
    let mut end = None;
    loop {
        let page: Page = client.get(&format!("/api/events?after={after}&limit={PAGE}")).await?;
        let end = *end.get_or_insert(page.head);
        for text in page.events {
            let told: Told<'_> = serde_json::from_str(text.get())?;
            after = told.position;
            let kind = EventType::from_name(&told.kind)
                .ok_or_else(|| anyhow::anyhow!("{} is not known to this version", told.kind))?;
            let body = told.data.get().as_bytes();
            let line = Line {
                position: told.position,
                stream: told.stream,
                version: told.version,
                recorded_at: told.recorded_at,
                delivery_id: told.metadata.delivery_id,
                event: Event::decode(kind.code(), told.schema_version, body)?,
                text: text.get().to_owned(),
            };
            if line.position > end || !take(&line) {
                return Ok(());
            }
        }
        if after >= end {
            return Ok(());
        }
    }
}

fn from_bundle(directory: &Path, take: &mut impl FnMut(&Line) -> bool) -> anyhow::Result<()> {
    let manifest = bundle::manifest(directory)?;
    let (mut goes_on, mut trouble) = (true, None);
    for (_, path) in bundle::parts(directory, &manifest) {
        bundle::read_part(&path, &manifest, |line| {
            if !goes_on || trouble.is_some() {
                return;
            }
            match line.map_err(anyhow::Error::msg).and_then(|line| decoded(&line)) {
                Ok(line) => goes_on = take(&line),
                Err(error) => trouble = Some(error),
            }
        })?;
        if !goes_on || trouble.is_some() {
            break;
        }
    }
    trouble.map_or(Ok(()), Err)
}

/// Takes what is archived; the last position of it, or `None` where nothing more is wanted.
fn from_archive(
    directory: &Path,
    take: &mut impl FnMut(&Line) -> bool,
) -> anyhow::Result<Option<Position>> {
    let mut lines = archive::Lines::all_in(directory)?;
    let mut last = Position::START;
    while let Some(line) = lines.next_line() {
        let line = decoded(&line?)?;
        last = line.position;
        if !take(&line) {
            return Ok(None);
        }
    }
    Ok(Some(last))
}

fn decoded(line: &bundle::Line) -> anyhow::Result<Line> {
    let header: Delivery = serde_json::from_slice(&line.header)?;
    Ok(Line {
        position: Position(line.position),
        stream: StreamId(line.stream),
        version: line.version,
        recorded_at: line.recorded_at,
        delivery_id: header.delivery_id,
        event: Event::decode(line.code, line.schema_version, &line.body)?,
        text: line.to_jsonl(),
    })
}

/// What the events give.
#[derive(Default)]
struct States {
    wanted: Vec<StreamId>,
    boards: BTreeMap<AgentId, Board>,
    streams: BTreeMap<StreamId, Folded>,
    last: Position,
}

/// The write-side states that a stream may have; its own events fill one of them.
#[derive(Default)]
struct Folded {
    agent: Option<Agent>,
    node: Option<Node>,
    job: Option<Job>,
    queue: Option<Queue>,
    version: u32,
}

impl States {
    fn wants(&self, stream: StreamId) -> bool {
        self.wanted.is_empty() || self.wanted.contains(&stream)
    }

    fn fold(&mut self, line: &Line) {
        self.last = line.position;
        let recorded = Recorded {
            position: line.position,
            stream: line.stream,
            version: line.version,
            recorded_at: line.recorded_at,
            delivery_id: line.delivery_id.as_deref(),
            event: &line.event,
        };
        if self.wanted.is_empty() {
            if let Some(agent) = agent_of(&line.event) {
                self.boards.entry(agent).or_default().fold(&recorded);
            }
        } else if self.wanted.contains(&line.stream) {
            let folded = self.streams.entry(line.stream).or_default();
            folded.version = line.version;
            Agent::apply(&mut folded.agent, &recorded);
            Node::apply(&mut folded.node, &recorded);
            Job::apply(&mut folded.job, &recorded);
            if line.stream == StreamId::QUEUE {
                folded.queue = Queue::after(&recorded).or(folded.queue.take());
            }
        }
    }

    fn print(&self, now: Timestamp) -> Vec<Value> {
        if self.wanted.is_empty() {
            let answers = self.boards.values().filter_map(|board| InstanceAnswer::of(board, now));
            return answers.map(|answer| json!(answer)).collect();
        }
        let state = |(stream, folded): (&StreamId, &Folded)| {
            let (kind, state) = match folded {
                Folded { job: Some(job), .. } => ("job", json!(job)),
                Folded { agent: Some(agent), .. } => ("agent", json!(agent)),
                Folded { node: Some(node), .. } => ("node", json!(node)),
                Folded { queue: Some(queue), .. } => ("queue", json!(queue)),
                Folded { .. } => ("other", Value::Null),
            };
            json!({
                "stream": stream,
                "kind": kind,
                "version": folded.version,
                "position": self.last,
                "state": state,
            })
        };
        self.streams.iter().map(state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_position_or_a_time() {
        assert_eq!("17".parse(), Ok(Moment::At(Position(17))));
        let time = "2026-11-24T12:00:00Z";
        assert_eq!(time.parse(), Ok(Moment::When(time.parse().unwrap())));
        assert!("yesterday".parse::<Moment>().is_err());
    }
}
