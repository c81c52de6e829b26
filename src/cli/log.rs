//! `milepost log`: follow the log as it grows, or replay it through the folds.

use std::collections::BTreeMap;

use milepost_projections::answers::InstanceAnswer;
use milepost_projections::board::agent_of;
use milepost_projections::{Board, Recorded};
use milepost_schemas::{AgentId, Event, EventType, Position, StreamId};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_stream::StreamExt as _;

use super::client::Server;
use crate::app::Clock;

/// Events asked for at once.
const PAGE: usize = 1_000;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print each event as it is recorded, a line of JSON each
    Tail {
        /// Begin after this `<epoch>-<position>` instead of now
        #[arg(long)]
        since: Option<String>,
        /// Only this stream
        #[arg(long)]
        stream: Option<String>,
        /// Only this type
        #[arg(long = "type")]
        kind: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Fold the log from its beginning, here, and print the state of every agent
    Replay {
        /// Stop at this position
        #[arg(long)]
        upto: Option<u64>,
        /// Print the events too
        #[arg(long)]
        events: bool,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Deserialize)]
struct Page {
    events: Vec<Box<RawValue>>,
    head: Position,
}

#[derive(Deserialize)]
struct Line<'a> {
    position: Position,
    stream: StreamId,
    version: u32,
    #[serde(rename = "type")]
    kind: String,
    schema_version: i16,
    recorded_at: jiff::Timestamp,
    #[serde(borrow)]
    data: &'a RawValue,
    metadata: Delivery,
}

#[derive(Deserialize)]
struct Delivery {
    delivery_id: Option<String>,
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Tail { since, stream, kind, server } => tail(since, stream, kind, &server).await,
        Command::Replay { upto, events, server } => replay(upto, events, &server).await,
    }
}

async fn tail(
    since: Option<String>,
    stream: Option<String>,
    kind: Option<String>,
    server: &Server,
) -> anyhow::Result<()> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in [("since", since), ("stream", stream), ("type", kind)] {
        query.extend_pairs(value.map(|value| (name, value)));
    }
    let client = server.client()?;
    let mut messages =
        std::pin::pin!(client.stream(format!("/api/events/stream?{}", query.finish())));
    while let Some(message) = messages.next().await {
        let message = message?;
        match message.event.as_str() {
            "recorded" => println!("{}", message.data),
            "reset" => eprintln!("milepost: the log began anew: {}", message.data),
            _ => {}
        }
    }
    Ok(())
}

async fn replay(upto: Option<u64>, print: bool, server: &Server) -> anyhow::Result<()> {
    let client = server.client()?;
    let mut boards: BTreeMap<AgentId, Board> = BTreeMap::new();
    let mut after = Position::START;
    let mut end = upto.map(Position);
    loop {
        let page: Page = client.get(&format!("/api/events?after={after}&limit={PAGE}")).await?;
        let end = *end.get_or_insert(page.head);
        for text in &page.events {
            let line: Line<'_> = serde_json::from_str(text.get())?;
            after = line.position;
            if line.position > end {
                break;
            }
            if print {
                println!("{text}");
            }
            fold(&mut boards, &line)?;
        }
        if page.events.is_empty() || after >= end {
            break;
        }
    }
    let now = Clock.now();
    for answer in boards.values().filter_map(|board| InstanceAnswer::of(board, now)) {
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

fn fold(boards: &mut BTreeMap<AgentId, Board>, line: &Line<'_>) -> anyhow::Result<()> {
    let kind = EventType::from_name(&line.kind)
        .ok_or_else(|| anyhow::anyhow!("{} is not known to this version", line.kind))?;
    let event = Event::decode(kind.code(), line.schema_version, line.data.get().as_bytes())?;
    if let Some(agent) = agent_of(&event) {
        boards.entry(agent).or_default().fold(&Recorded {
            position: line.position,
            stream: line.stream,
            version: line.version,
            recorded_at: line.recorded_at,
            delivery_id: line.metadata.delivery_id.as_deref(),
            event: &event,
        });
    }
    Ok(())
}
