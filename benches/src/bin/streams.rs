//! Server-Sent Events streams, few or thousands: speed, latency, memory, and whether every stream
//! gets every event exactly once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use milepost_benches::callback::Signer;
use milepost_benches::exactly_once::Faults;
use milepost_benches::http::Target;
use milepost_benches::milepost::{DevFile, Milepost, run_name};
use milepost_benches::process::{exit, memory_bytes, processor_time, raise_open_files_limit};
use milepost_benches::publish::{Plan, Published, Source, publish};
use milepost_benches::sse::PositionIn;
use milepost_benches::stats::{Latencies, Percentiles};
use milepost_benches::subscribe::{Delivery, Streams};
use serde::Serialize;

/// Without a delivery for so long, what is missing is lost.
const QUIET_MAX: Duration = Duration::from_secs(10);

const TICK: Duration = Duration::from_millis(50);

/// Opens streams, publishes, and checks and measures what arrives.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    measure: Measure,
    #[command(flatten)]
    server: Server,
}

#[derive(Subcommand)]
enum Measure {
    /// A burst of events to all streams: deliveries a second from the first publish to the last
    /// delivery.
    Burst {
        /// Events published as fast as they are answered.
        #[arg(long, default_value_t = 100)]
        events: u64,
    },
    /// A steady rate: milliseconds from the publisher's answer, and from its request, to each
    /// delivery.
    Latency {
        /// Events a second.
        #[arg(long, default_value_t = 100.0)]
        rate: f64,
        /// Seconds.
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
    /// The memory that streams without traffic cost the server.
    Idle {
        /// Seconds the streams are held; the default spans a heartbeat.
        #[arg(long, default_value_t = 20.0)]
        seconds: f64,
    },
    /// A single stream that missed many events: events a second, from the request to the last.
    Resume {
        /// Events missed; the log is filled up when it is shorter.
        #[arg(long, default_value_t = 100_000)]
        events: u64,
        /// The epoch of the log, when the API does not tell it.
        #[arg(long)]
        epoch: Option<String>,
    },
}

#[derive(Args)]
struct Server {
    /// Where the server listens, as `http://host:port`.
    #[arg(long, global = true)]
    url: Option<String>,
    /// Reads URL, token and secret from the `dev.json` of `milepost dev`.
    #[arg(long, global = true)]
    dev: Option<PathBuf>,
    /// What kind of server it is.
    #[arg(long, global = true, value_enum, default_value_t = Kind::Milepost)]
    kind: Kind,
    /// The bearer token.
    #[arg(long, global = true, default_value = "")]
    token: String,
    /// The callbacks' HMAC secret.
    #[arg(long, global = true, default_value = "secret")]
    secret: String,
    /// The path of the streams; `/api/events/stream` of a Milepost, else `/sub`.
    #[arg(long, global = true)]
    path: Option<String>,
    /// The path that publishes, of servers other than Milepost.
    #[arg(long, global = true, default_value = "/pub")]
    publish_path: String,
    /// The length of a message published there.
    #[arg(long, global = true, default_value_t = 400)]
    payload_bytes: usize,
    /// Streams.
    #[arg(long, global = true, default_value_t = 1)]
    streams: usize,
    /// Connections that publish to a Milepost. Others get one, which does not wait for answers:
    /// only so is the order of the numbers known.
    #[arg(long, global = true, default_value_t = 64)]
    publishers: usize,
    /// Processes of the server, for their memory and processor time.
    #[arg(long, global = true, value_delimiter = ',')]
    pid: Vec<u32>,
    /// What this server is called in the report.
    #[arg(long, global = true, default_value = "server")]
    label: String,
    /// One JSON object a line.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Kind {
    /// Ids are `<epoch>-<position>`; events are published as signed callbacks.
    Milepost,
    /// Messages are `{"position":N,…}`, posted to `--publish-path`.
    Nchan,
}

#[derive(Serialize)]
struct Report<'a> {
    measure: &'static str,
    target: &'a str,
    streams: usize,
    #[serde(flatten)]
    finding: Finding,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_processor_seconds: Option<f64>,
    client_processor_seconds: f64,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Finding {
    Burst {
        events: u64,
        deliveries: u64,
        seconds: f64,
        per_second: f64,
        published_per_second: f64,
        bytes_per_delivery: f64,
        lost: u64,
        repeated: u64,
    },
    Latency {
        rate: f64,
        published: u64,
        from_answer: Percentiles,
        from_send: Percentiles,
        before_answer: u64,
        answer: Percentiles,
        lost: u64,
        repeated: u64,
    },
    Idle {
        memory_before_bytes: u64,
        memory_after_bytes: u64,
        memory_peak_bytes: u64,
        bytes_per_stream: f64,
    },
    Resume {
        events: u64,
        seconds: f64,
        per_second: f64,
        first_event_ms: f64,
        bytes_per_delivery: f64,
        lost: u64,
        repeated: u64,
    },
}

fn main() -> ExitCode {
    exit(run())
}

fn run() -> Result<()> {
    let mut options = Options::parse();
    if let Some(path) = &options.server.dev {
        let dev = DevFile::read(path)?;
        options.server.url = Some(dev.url);
        options.server.token = dev.admin_token;
        options.server.secret = dev.callback_secret;
    }
    let open_files = raise_open_files_limit()?;
    let server = &options.server;
    ensure!(server.url.is_some(), "--url or --dev is missing");
    ensure!(
        (server.streams as u64) < open_files.saturating_sub(200),
        "only {open_files} files may be open"
    );
    let bench = Bench::new(server)?;
    let server_time_before = processor_time(&server.pid)?;
    let client_time_before = processor_time(&[std::process::id()])?;
    let (measure, streams, finding) = match &options.measure {
        Measure::Burst { events } => ("burst", server.streams, bench.burst(*events)?),
        Measure::Latency { rate, seconds } => {
            ("latency", server.streams, bench.latency(*rate, *seconds)?)
        }
        Measure::Idle { seconds } => ("idle", server.streams, bench.idle(*seconds)?),
        Measure::Resume { events, epoch } => ("resume", 1, bench.resume(*events, epoch.clone())?),
    };
    let server_time = processor_time(&server.pid)?.saturating_sub(server_time_before);
    let client_time = processor_time(&[std::process::id()])?.saturating_sub(client_time_before);
    let report = Report {
        measure,
        target: &server.label,
        streams,
        finding,
        server_processor_seconds: (!server.pid.is_empty()).then_some(server_time.as_secs_f64()),
        client_processor_seconds: client_time.as_secs_f64(),
    };
    report.print(server.json)
}

struct Bench<'a> {
    server: &'a Server,
    target: Target,
    milepost: Option<Milepost>,
    runtime: tokio::runtime::Runtime,
}

/// What is to be published, and over how many connections.
struct Prepared {
    source: Source,
    connections: usize,
    depth: usize,
}

impl<'a> Bench<'a> {
    fn new(server: &'a Server) -> Result<Self> {
        let target = Target::parse(server.url.as_deref().unwrap_or_default())?;
        let milepost = (server.kind == Kind::Milepost).then(|| Milepost {
            target: target.clone(),
            token: server.token.clone(),
            signer: Signer::new(&server.secret),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { server, target, milepost, runtime })
    }

    fn burst(&self, events: u64) -> Result<Finding> {
        let prepared = self.prepare()?;
        let mut streams = self.open_streams()?;
        let before = self.head()?;
        let bytes_before = streams.totals().bytes;
        let plan = prepared.plan(events, Duration::ZERO);
        let (mut deliveries, mut last_delivery) = (0, None);
        let published = publish_and_follow(&mut streams, &prepared.source, plan, |delivery| {
            if delivery.position > before {
                deliveries += 1;
                last_delivery = Some(delivery.at);
            }
        })?;
        let first_sent = published.iter().map(|event| event.sent).min();
        let last_answer = published.iter().map(|event| event.answered).max();
        let first_sent = first_sent.context("nothing was published")?;
        let elapsed = last_delivery.context("nothing was delivered")? - first_sent;
        let publishing = last_answer.unwrap_or(first_sent) - first_sent;
        let faults = judge(&streams, before, &published)?;
        Ok(Finding::Burst {
            events,
            deliveries,
            seconds: elapsed.as_secs_f64(),
            per_second: deliveries as f64 / elapsed.as_secs_f64(),
            published_per_second: events as f64 / publishing.as_secs_f64(),
            bytes_per_delivery: per(streams.totals().bytes - bytes_before, deliveries),
            lost: faults.lost,
            repeated: faults.repeated,
        })
    }

    fn latency(&self, rate: f64, seconds: f64) -> Result<Finding> {
        let prepared = self.prepare()?;
        let mut streams = self.open_streams()?;
        let before = self.head()?;
        let plan = prepared.plan((rate * seconds) as u64, Duration::from_secs_f64(1.0 / rate));
        let mut deliveries = Vec::with_capacity(plan.events as usize * streams.count());
        let published = publish_and_follow(&mut streams, &prepared.source, plan, |delivery| {
            deliveries.push((delivery.position, delivery.at));
        })?;
        let faults = judge(&streams, before, &published)?;
        let by_position: HashMap<u64, Published> =
            published.iter().map(|event| (event.position, *event)).collect();
        let (mut from_answer, mut from_send) = (Latencies::default(), Latencies::default());
        let mut before_answer = 0;
        for (position, at) in deliveries {
            let Some(event) = by_position.get(&position) else { continue };
            // A stream may be faster than the answer; that is a latency of nothing, not below it.
            before_answer += u64::from(at < event.answered);
            from_answer.record(at.saturating_duration_since(event.answered));
            from_send.record(at.saturating_duration_since(event.sent));
        }
        let mut answer = Latencies::default();
        for event in &published {
            answer.record(event.answered - event.sent);
        }
        Ok(Finding::Latency {
            rate,
            published: published.len() as u64,
            from_answer: from_answer.percentiles(),
            from_send: from_send.percentiles(),
            before_answer,
            answer: answer.percentiles(),
            lost: faults.lost,
            repeated: faults.repeated,
        })
    }

    fn idle(&self, seconds: f64) -> Result<Finding> {
        let pids = &self.server.pid;
        ensure!(!pids.is_empty(), "--pid is missing");
        let before = memory_bytes(pids)?;
        let mut streams = self.open_streams()?;
        let (mut peak, mut after) = (0, 0);
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let mut next_sample = Instant::now();
        while Instant::now() < until {
            streams.turn(TICK, |_| {})?;
            if Instant::now() >= next_sample {
                next_sample += Duration::from_secs(1);
                after = memory_bytes(pids)?;
                peak = peak.max(after);
            }
        }
        ensure!(streams.totals().ended == 0, "{} streams were ended", streams.totals().ended);
        Ok(Finding::Idle {
            memory_before_bytes: before,
            memory_after_bytes: after,
            memory_peak_bytes: peak,
            bytes_per_stream: per(peak.saturating_sub(before), streams.count() as u64),
        })
    }

    fn resume(&self, events: u64, epoch: Option<String>) -> Result<Finding> {
        let milepost = self.milepost.as_ref().context("only a Milepost can be resumed")?;
        let head = self.runtime.block_on(milepost.head())?;
        if head < events {
            let prepared = self.prepare()?;
            let missing = events.saturating_sub(self.head()?);
            let plan = prepared.plan(missing, Duration::ZERO);
            self.runtime.block_on(publish(&prepared.source, plan))?;
        }
        let head = self.runtime.block_on(milepost.head())?;
        let epoch = match epoch {
            Some(epoch) => epoch,
            None => self.runtime.block_on(milepost.epoch())?,
        };
        let since = head - events;
        let request = self.request(&format!("Last-Event-ID: {epoch}-{since}\r\n"));
        let mut streams = Streams::new()?;
        let (mut first, mut last) = (None, None);
        let mut note = |delivery: Delivery| {
            first.get_or_insert(delivery.at);
            if delivery.position <= head {
                last = Some(delivery.at);
            }
        };
        let start = Instant::now();
        streams.open(self.target.address, &request, 1, PositionIn::Id, &mut note)?;
        let mut quiet_since = Instant::now();
        while !streams.all_at(head) && quiet_since.elapsed() < QUIET_MAX {
            let before = streams.totals().bytes;
            streams.turn(TICK, &mut note)?;
            if streams.totals().bytes > before {
                quiet_since = Instant::now();
            }
        }
        ensure!(streams.totals().resets == 0, "the stream was reset: is {epoch} the epoch?");
        let elapsed = last.context("nothing was delivered")? - start;
        let faults = streams.judge(since + 1, head);
        let delivered = streams.totals().deliveries;
        Ok(Finding::Resume {
            events,
            seconds: elapsed.as_secs_f64(),
            per_second: events as f64 / elapsed.as_secs_f64(),
            first_event_ms: first.map_or(0.0, |at| (at - start).as_secs_f64() * 1e3),
            bytes_per_delivery: per(streams.totals().bytes, delivered),
            lost: faults.lost,
            repeated: faults.repeated + u64::from(delivered > events),
        })
    }

    fn position_in(&self) -> PositionIn {
        match self.server.kind {
            Kind::Milepost => PositionIn::Id,
            Kind::Nchan => PositionIn::Data,
        }
    }

    fn request(&self, headers: &str) -> Vec<u8> {
        let path = self.server.path.as_deref().unwrap_or(match self.server.kind {
            Kind::Milepost => "/api/events/stream",
            Kind::Nchan => "/sub",
        });
        let authorization = match self.server.token.as_str() {
            "" => String::new(),
            token => format!("Authorization: Bearer {token}\r\n"),
        };
        let headers = format!("Accept: text/event-stream\r\n{authorization}{headers}");
        self.target.head("GET", path, &headers, 0).into_bytes()
    }

    fn open_streams(&self) -> Result<Streams> {
        let mut streams = Streams::new()?;
        let request = self.request("");
        let count = self.server.streams;
        streams.open(self.target.address, &request, count, self.position_in(), |_| {})?;
        Ok(streams)
    }

    /// Makes ready what will be published. Before the streams are opened, so that what it appends
    /// itself does not reach them.
    fn prepare(&self) -> Result<Prepared> {
        let Some(milepost) = &self.milepost else {
            let source = Source::Numbered {
                target: self.target.clone(),
                path: self.server.publish_path.clone(),
                payload_bytes: self.server.payload_bytes,
                first: 1,
            };
            return Ok(Prepared { source, connections: 1, depth: 64 });
        };
        let connections = self.server.publishers;
        let run = run_name();
        let jobs = self.runtime.block_on(milepost.start_jobs(connections, &run))?;
        let (target, signer) = (self.target.clone(), milepost.signer.clone());
        let source = Source::Callbacks { target, signer, jobs, run };
        Ok(Prepared { source, connections, depth: 1 })
    }

    /// The last position before anything is published.
    fn head(&self) -> Result<u64> {
        match &self.milepost {
            Some(milepost) => self.runtime.block_on(milepost.head()),
            None => Ok(0),
        }
    }
}

/// Publishes from another thread while this one reads the streams, until every stream has every
/// event, or nothing has come for too long.
fn publish_and_follow(
    streams: &mut Streams,
    source: &Source,
    plan: Plan,
    mut on_delivery: impl FnMut(Delivery),
) -> Result<Vec<Published>> {
    thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build()?.block_on(publish(source, plan))
        });
        while !publisher.is_finished() {
            streams.turn(TICK, &mut on_delivery)?;
        }
        let published = publisher.join().map_err(|_| anyhow!("the publisher panicked"))??;
        let last = published.last().context("nothing was published")?.position;
        let mut quiet_since = Instant::now();
        while !streams.all_at(last) && quiet_since.elapsed() < QUIET_MAX {
            let before = streams.totals().deliveries;
            streams.turn(TICK, &mut on_delivery)?;
            if streams.totals().deliveries > before {
                quiet_since = Instant::now();
            }
        }
        Ok(published)
    })
}

impl Prepared {
    fn plan(&self, events: u64, interval: Duration) -> Plan {
        Plan { events, connections: self.connections, depth: self.depth, interval }
    }
}

/// Judges all streams by what was published after `before`.
fn judge(streams: &Streams, before: u64, published: &[Published]) -> Result<Faults> {
    let last = published.last().context("nothing was published")?.position;
    let totals = streams.totals();
    ensure!(totals.unplaced == 0, "{} events had no position", totals.unplaced);
    ensure!(totals.resets == 0, "{} streams were reset", totals.resets);
    Ok(streams.judge(before + 1, last))
}

fn per(amount: u64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { amount as f64 / count as f64 }
}

impl Finding {
    fn is_flawless(&self) -> bool {
        match self {
            Finding::Burst { lost, repeated, .. }
            | Finding::Latency { lost, repeated, .. }
            | Finding::Resume { lost, repeated, .. } => *lost == 0 && *repeated == 0,
            Finding::Idle { .. } => true,
        }
    }
}

impl Report<'_> {
    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            println!("{}", serde_json::to_string_pretty(self)?);
        }
        ensure!(self.finding.is_flawless(), "{}: lost or repeated events", self.target);
        Ok(())
    }
}
