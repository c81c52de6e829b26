//! Durable callbacks a second over HTTP, at one and at many connections, on any URL.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use memchr::memmem;
use milepost_benches::callback::{Callback, Signer};
use milepost_benches::http::{ANSWER_TIMEOUT, Connection, Target};
use milepost_benches::milepost::{DevFile, Milepost, run_name};
use milepost_benches::process::{exit, raise_open_files_limit};
use milepost_benches::stats::{Latencies, Percentiles};
use serde::Serialize;
use tokio::task::LocalSet;
use tokio::time::timeout_at;

/// Posts signed step callbacks in closed loops, each as soon as the one before is answered.
#[derive(Parser)]
struct Options {
    /// Where the server listens, as `http://host:port`.
    #[arg(long, required_unless_present = "dev")]
    url: Option<String>,
    /// Reads URL, token and secret from the `dev.json` of `milepost dev`.
    #[arg(long)]
    dev: Option<PathBuf>,
    /// The callbacks' HMAC secret.
    #[arg(long, default_value = "secret")]
    secret: String,
    /// The server is a Milepost: create and start the jobs first, count the log afterwards.
    #[arg(long)]
    milepost: bool,
    /// The bearer token that creates jobs.
    #[arg(long, default_value = "")]
    token: String,
    /// Keep-alive connections; each number is a measurement of its own.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    connections: Vec<usize>,
    /// Seconds measured at each.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds before that.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Jobs, spread over the connections.
    #[arg(long, default_value_t = 1024)]
    jobs: usize,
    /// Keeps the jobs of a Milepost in this file, and takes them from it when it exists.
    #[arg(long)]
    jobs_file: Option<PathBuf>,
    /// What this server is called in the report.
    #[arg(long, default_value = "server")]
    label: String,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Measurement<'a> {
    measure: &'static str,
    target: &'a str,
    connections: usize,
    seconds: f64,
    per_second: f64,
    #[serde(flatten)]
    latency: Percentiles,
    /// All that were answered 200, warm-up included.
    acknowledged: u64,
    errors: u64,
    errors_by_kind: BTreeMap<String, u64>,
    /// How far the log's head moved, where there is a log.
    log_grew: Option<u64>,
    /// How much further it should have.
    missing: Option<u64>,
}

#[derive(Default)]
struct Totals {
    latencies: Latencies,
    acknowledged: u64,
    errors: BTreeMap<String, u64>,
}

#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    until: Instant,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    exit(run().await)
}

async fn run() -> Result<()> {
    let mut options = Options::parse();
    if let Some(path) = &options.dev {
        let dev = DevFile::read(path)?;
        options.url = Some(dev.url);
        options.token = dev.admin_token;
        options.secret = dev.callback_secret;
        options.milepost = true;
    }
    raise_open_files_limit()?;
    let target = Target::parse(options.url.as_deref().unwrap_or_default())?;
    let signer = Signer::new(&options.secret);
    let milepost = options.milepost.then(|| Milepost {
        target: target.clone(),
        token: options.token.clone(),
        signer: signer.clone(),
    });
    let jobs = jobs(&options, milepost.as_ref()).await?;
    let mut failed = false;
    for connections in &options.connections {
        let head_before = head(milepost.as_ref()).await?;
        let totals = drive(&target, &signer, &jobs, *connections, &options).await?;
        let head_after = head(milepost.as_ref()).await?;
        let latency = totals.latencies.percentiles();
        let log_grew = head_after.zip(head_before).map(|(after, before)| after - before);
        let measurement = Measurement {
            measure: "callbacks",
            target: &options.label,
            connections: *connections,
            seconds: options.seconds,
            per_second: latency.count as f64 / options.seconds,
            latency,
            acknowledged: totals.acknowledged,
            errors: totals.errors.values().sum(),
            errors_by_kind: totals.errors,
            log_grew,
            missing: log_grew.map(|grew| totals.acknowledged.saturating_sub(grew)),
        };
        failed |= measurement.print(options.json)?;
    }
    ensure!(!failed, "some callbacks were not acknowledged, or not in the log");
    Ok(())
}

async fn jobs(options: &Options, milepost: Option<&Milepost>) -> Result<Vec<String>> {
    let Some(milepost) = milepost else {
        // Shaped like the ids of real jobs: near each other in time, as UUIDv7 is.
        let base = 0x0193_4e5a_7c00_7000_8000_0000_0000_0000_u128;
        let ids = (0..options.jobs as u128).map(|job| uuid::Uuid::from_u128(base + (job << 66)));
        return Ok(ids.map(|id| id.to_string()).collect());
    };
    let Some(path) = &options.jobs_file else {
        return milepost.start_jobs(options.jobs, &run_name()).await;
    };
    if let Ok(text) = std::fs::read_to_string(path) {
        return Ok(text.lines().map(str::to_owned).collect());
    }
    let jobs = milepost.start_jobs(options.jobs, &run_name()).await?;
    std::fs::write(path, jobs.join("\n")).context("the jobs file cannot be written")?;
    Ok(jobs)
}

async fn head(milepost: Option<&Milepost>) -> Result<Option<u64>> {
    match milepost {
        Some(milepost) => Ok(Some(milepost.head().await?)),
        None => Ok(None),
    }
}

async fn drive(
    target: &Target,
    signer: &Signer,
    jobs: &[String],
    connections: usize,
    options: &Options,
) -> Result<Totals> {
    let run = run_name();
    let totals = Rc::new(RefCell::new(Totals::default()));
    let mut opened = Vec::with_capacity(connections);
    for _ in 0..connections {
        opened.push(Connection::open(target).await?);
    }
    let from = Instant::now() + Duration::from_secs_f64(options.warm_up);
    let window = Window { from, until: from + Duration::from_secs_f64(options.seconds) };
    let local = LocalSet::new();
    for (index, mut connection) in opened.into_iter().enumerate() {
        let own = jobs.iter().cycle().skip(index).step_by(connections);
        let own = own.take(jobs.len().div_ceil(connections));
        // The connection's number stands in the delivery id, so that no two connections repeat one.
        let run = format!("{run}-{index:03}");
        let mut callbacks: Vec<Callback> =
            own.map(|job| Callback::step(target, job, &run)).collect();
        let (signer, totals, target) = (signer.clone(), Rc::clone(&totals), target.clone());
        local.spawn_local(async move {
            let mut delivery = 0;
            while Instant::now() < window.until {
                // One timer for the whole loop, so that none is set for each request.
                let patience = window.until + ANSWER_TIMEOUT;
                let driven = closed_loop(
                    &mut connection,
                    &mut callbacks,
                    &signer,
                    &mut delivery,
                    window,
                    &totals,
                );
                let outcome = timeout_at(patience.into(), driven)
                    .await
                    .unwrap_or_else(|_| Err(anyhow!("the server does not answer")));
                let Err(error) = outcome else { break };
                *totals.borrow_mut().errors.entry(format!("{error:#}")).or_default() += 1;
                match Connection::open(&target).await {
                    Ok(reopened) => connection = reopened,
                    Err(_) => break,
                }
            }
        });
    }
    local.await;
    Rc::into_inner(totals).map(RefCell::into_inner).context("every connection has ended")
}

async fn closed_loop(
    connection: &mut Connection,
    callbacks: &mut [Callback],
    signer: &Signer,
    delivery: &mut u64,
    window: Window,
    totals: &RefCell<Totals>,
) -> Result<()> {
    let jobs = callbacks.len();
    loop {
        let request = callbacks[*delivery as usize % jobs].signed(signer, *delivery);
        *delivery += 1;
        let sent = Instant::now();
        if sent >= window.until {
            return Ok(());
        }
        let response = connection.ask(request).await?;
        let answered = Instant::now();
        let mut totals = totals.borrow_mut();
        if response.status != 200 {
            *totals.errors.entry(format!("answered {}", response.status)).or_default() += 1;
            continue;
        }
        // A job that has ended still answers 200, by a shorter way than the one to be measured.
        if memmem::find(response.body, br#""applied":false"#).is_some() {
            *totals.errors.entry("answered applied:false".to_owned()).or_default() += 1;
            continue;
        }
        totals.acknowledged += 1;
        // Those in flight at either end count where they are answered: in a closed loop as many
        // enter the window as leave it.
        if answered >= window.from && answered < window.until {
            totals.latencies.record(answered - sent);
        }
    }
}

impl Measurement<'_> {
    /// Prints, and says whether anything went wrong.
    fn print(&self, json: bool) -> Result<bool> {
        let lost = self.missing.is_some_and(|missing| missing > 0);
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            println!(
                "{:<10} {:>4} connections {:>8.0}/s   p50 {:>7.2} ms   p99 {:>7.2} ms   max {:>7.2} ms   errors {}",
                self.target,
                self.connections,
                self.per_second,
                self.latency.p50_ms,
                self.latency.p99_ms,
                self.latency.max_ms,
                self.errors,
            );
        }
        for (kind, count) in &self.errors_by_kind {
            eprintln!("{}: {count} times: {kind}", self.target);
        }
        if lost {
            eprintln!(
                "{}: acknowledged {}, but the log grew by {:?}",
                self.target, self.acknowledged, self.log_grew
            );
        }
        Ok(lost || self.errors > 0)
    }
}
