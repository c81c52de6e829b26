//! Reads the rounds of `benches/run`, prints what they come to, and writes it as JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use milepost_benches::process::exit;
use milepost_benches::report::{Comparison, Target, compare};
use milepost_benches::stats::{Spread, spread};
use serde_json::{Value, json};

/// Figures of the first table, by measure.
const FIGURES: &[(&str, &[(&str, &str)])] = &[
    ("conditions", &[("/busy_processors", "busy with others")]),
    ("flush", &[("/p50_ms", "flush p50 ms"), ("/p99_ms", "flush p99 ms")]),
    (
        "callbacks",
        &[
            ("/per_second", "/s"),
            ("/p50_ms", "p50 ms"),
            ("/p99_ms", "p99 ms"),
            ("/errors", "errors"),
        ],
    ),
    (
        "latency",
        &[
            ("/from_answer/p50_ms", "from answer p50 ms"),
            ("/from_answer/p99_ms", "from answer p99 ms"),
            ("/from_send/p50_ms", "from send p50 ms"),
            ("/from_send/p99_ms", "from send p99 ms"),
        ],
    ),
    (
        "burst",
        &[
            ("/per_second", "deliveries/s"),
            ("/lost", "lost"),
            ("/repeated", "repeated"),
            ("/bytes_per_delivery", "bytes a delivery"),
            ("/client_processor_seconds", "client CPU s"),
            ("/server_processor_seconds", "server CPU s"),
        ],
    ),
    ("idle", &[("/bytes_per_stream", "bytes a stream")]),
    ("resume", &[("/per_second", "events/s"), ("/first_event_ms", "first event ms")]),
    ("verify", &[("/per_second", "events/s"), ("/seconds", "s"), ("/peak_mib", "most memory MiB")]),
    ("seal", &[("/per_second", "callbacks/s"), ("/p99_ms", "p99 ms")]),
];

/// Prints medians (smallest to largest round) and compares them with the targets.
#[derive(Parser)]
struct Options {
    /// One JSON object a line, in the order of the rounds.
    rounds: PathBuf,
    /// Where the report goes.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    exit(run())
}

fn run() -> Result<()> {
    let options = Options::parse();
    let text = std::fs::read_to_string(&options.rounds).context("the rounds cannot be read")?;
    let results: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not a result: {line}")))
        .collect::<Result<_>>()?;
    print_figures(&results);
    let comparisons = compare(&results);
    print_comparisons(&comparisons);
    if let Some(path) = &options.out {
        let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let report =
            json!({ "processors": processors, "comparisons": comparisons, "results": results });
        std::fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

fn print_figures(results: &[Value]) {
    for (measure, figures) in FIGURES {
        let mut groups: BTreeMap<(u64, String), Vec<&Value>> = BTreeMap::new();
        for result in results.iter().filter(|result| result["measure"] == *measure) {
            let size = result["connections"].as_u64().or(result["streams"].as_u64()).unwrap_or(0);
            let target = result["target"].as_str().unwrap_or_default().to_owned();
            groups.entry((size, target)).or_default().push(result);
        }
        for ((size, target), rounds) in groups {
            println!("{measure} {target} {size} ({} rounds)", rounds.len());
            for (pointer, name) in *figures {
                let values: Vec<f64> =
                    rounds.iter().filter_map(|round| round.pointer(pointer)?.as_f64()).collect();
                if let Some(found) = spread(&values) {
                    println!("    {name:<20} {}", text_of(found));
                }
            }
        }
    }
}

fn print_comparisons(comparisons: &[Comparison]) {
    println!("\n{:<42} {:<34} {:>6} {:>10}  met", "", "median (min - max)", "rounds", "target");
    for Comparison { name, unit, measured, rounds, target, met } in comparisons {
        let target = match target {
            Target::AtLeast(bound) => format!(">= {}", number(*bound)),
            Target::AtMost(bound) => format!("<= {}", number(*bound)),
        };
        let met = if *met { "yes" } else { "NO" };
        println!(
            "{name:<42} {:<34} {rounds:>6} {target:>10}  {met}",
            format!("{} {unit}", text_of(*measured))
        );
    }
}

fn text_of(found: Spread) -> String {
    format!("{} ({} - {})", number(found.median), number(found.min), number(found.max))
}

fn number(value: f64) -> String {
    if value.abs() >= 1000.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value.abs() < 0.1 {
        format!("{value:.3}")
    } else {
        format!("{value:.2}")
    }
}
