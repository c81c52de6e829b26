//! Rounds of measurements, compared: medians, spreads, ratios, and whether a target is met.

use serde::Serialize;
use serde_json::Value;

use crate::stats::{Spread, paired_ratio, spread};

/// Above this, somebody else is using the machine, and no figure of that run is worth keeping.
const BUSY_PROCESSORS_MAX: f64 = 0.2;

/// What a comparison measures and what it has to reach.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What is measured.
    pub name: String,
    /// The unit; `x` for a ratio.
    pub unit: &'static str,
    /// The figure, over all rounds.
    pub measured: Spread,
    /// How many rounds that are.
    pub rounds: usize,
    /// The bound its median has to keep.
    pub target: Target,
    /// Whether it does.
    pub met: bool,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Not less.
    AtLeast(f64),
    /// Not more.
    AtMost(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Target::AtLeast(bound) => value >= bound,
            Target::AtMost(bound) => value <= bound,
        }
    }
}

/// Some of the results: one measure of one target, with one size.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    /// `callbacks`, `burst`, …
    pub measure: &'a str,
    /// `milepost`, `insert`, …
    pub target: &'a str,
    /// The field that holds the size: `connections` or `streams`; none is any size.
    pub size: Option<(&'a str, u64)>,
}

impl Series<'_> {
    /// A figure of each round that has it, beside the round's number. `figure` is a JSON pointer.
    pub fn figures(&self, results: &[Value], figure: &str) -> Vec<(u64, f64)> {
        let held = results.iter().filter(|result| self.holds(result));
        let figures = held.filter_map(|result| {
            Some((result["round"].as_u64()?, result.pointer(figure)?.as_f64()?))
        });
        figures.collect()
    }

    fn holds(&self, result: &Value) -> bool {
        result["measure"] == self.measure
            && result["target"] == self.target
            && self.size.is_none_or(|(field, size)| result[field] == size)
    }
}

/// All comparisons that the results allow. One without results is left out, never guessed.
pub fn compare(results: &[Value]) -> Vec<Comparison> {
    let mut found = Vec::new();
    for (connections, at_least) in [(1, 0.9), (64, 3.0), (256, 4.0)] {
        let series = |target| Series {
            measure: "callbacks",
            target,
            size: Some(("connections", connections)),
        };
        let ratio = |other, figure| {
            let ours = series("milepost").figures(results, figure);
            let theirs = series(other).figures(results, figure);
            paired_ratio(&ours, &theirs)
        };
        let at = format!("at {connections}");
        let (per_second, p99) = ("/per_second", "/p99_ms");
        let mut push = |name: String, (measured, rounds), target| {
            found.extend(comparison(name, "x", measured, rounds, target));
        };
        let target = Target::AtLeast(at_least);
        push(format!("callbacks/s {at}, of INSERT's"), ratio("insert", per_second), target);
        if connections > 1 {
            let target = Target::AtLeast(0.5);
            push(
                format!("callbacks/s {at}, of signature's"),
                ratio("signature", per_second),
                target,
            );
            let target = Target::AtMost(0.5);
            push(format!("callback p99 {at}, of INSERT's"), ratio("insert", p99), target);
        }
    }
    let mut beside = Vec::new();
    let mut figure = |name: &str, unit, series: Series<'_>, pointer, target| {
        let figures: Vec<f64> =
            series.figures(results, pointer).into_iter().map(|(_, figure)| figure).collect();
        found.extend(comparison(name.to_owned(), unit, spread(&figures), figures.len(), target));
    };
    // What others do to the machine they do to every figure below.
    let machine = Series { measure: "conditions", target: "machine", size: None };
    let quiet = Target::AtMost(BUSY_PROCESSORS_MAX);
    figure("machine busy with others, worst round", "CPUs", machine, "/busy_processors", quiet);
    // An error is no callback, so one of a reference's would make Milepost look better than it is.
    for target in ["milepost", "insert", "signature"] {
        let all = Series { measure: "callbacks", target, size: None };
        figure(
            &format!("callback errors, {target}"),
            "errors",
            all,
            "/errors",
            Target::AtMost(0.0),
        );
    }
    let all = Series { measure: "callbacks", target: "milepost", size: None };
    figure("acknowledged, not in the log", "events", all, "/missing", Target::AtMost(0.0));
    let latency = |streams| Series {
        measure: "latency",
        target: "milepost",
        size: Some(("streams", streams)),
    };
    let answer_p50 = "/from_answer/p50_ms";
    figure("answer to browser p50, 1 stream", "ms", latency(1), answer_p50, Target::AtMost(2.0));
    let answer_p99 = "/from_answer/p99_ms";
    figure("answer to browser p99, 1 stream", "ms", latency(1), answer_p99, Target::AtMost(10.0));
    let thousand = latency(1000);
    figure(
        "answer to browser p50, 1,000 streams",
        "ms",
        thousand,
        answer_p50,
        Target::AtMost(12.0),
    );
    let burst = |target| Series { measure: "burst", target, size: Some(("streams", 10_000)) };
    let idle = Series { measure: "idle", target: "milepost", size: Some(("streams", 10_000)) };
    let resume = Series { measure: "resume", target: "milepost", size: None };
    figure("burst, lost", "events", burst("milepost"), "/lost", Target::AtMost(0.0));
    figure("burst, repeated", "events", burst("milepost"), "/repeated", Target::AtMost(0.0));
    figure(
        "memory of an idle stream",
        "bytes",
        idle,
        "/bytes_per_stream",
        Target::AtMost(10_240.0),
    );
    figure("resume", "events/s", resume, "/per_second", Target::AtLeast(150_000.0));
    figure("resume, lost", "events", resume, "/lost", Target::AtMost(0.0));
    figure("resume, repeated", "events", resume, "/repeated", Target::AtMost(0.0));
    for view in ["jobs", "board"] {
        let rebuild = Series { measure: "rebuild", target: view, size: None };
        let read = |connections| Series {
            measure: "read",
            target: "copy",
            size: Some(("connections", connections)),
        };
        let rate = "/per_second";
        let name = format!("rebuild of {view}");
        figure(&name, "events/s", rebuild, rate, Target::AtLeast(600_000.0));
        let ours = rebuild.figures(results, rate);
        for (connections, words) in [(1, "one reader"), (2, "two readers")] {
            let plain = read(connections).figures(results, rate);
            let (ratio, rounds) = paired_ratio(&ours, &plain);
            let name = format!("rebuild of {view}, of a plain read by {words}");
            beside.extend(comparison(name, "x", ratio, rounds, Target::AtLeast(0.8)));
        }
    }
    found.extend(beside);
    let rates =
        |measure, target| Series { measure, target, size: None }.figures(results, "/per_second");
    for (connections, words) in [(1, "one reader"), (2, "two readers")] {
        let by = |measure, target| {
            Series { measure, target, size: Some(("connections", connections)) }
                .figures(results, "/per_second")
        };
        let (ratio, rounds) = paired_ratio(&by("verify", "milepost"), &by("read", "copy"));
        let name = format!("verified events/s, of a plain read's by {words}");
        found.extend(comparison(name, "x", ratio, rounds, Target::AtLeast(0.7)));
    }
    let (ratio, rounds) = paired_ratio(&rates("seal", "sealed"), &rates("seal", "unsealed"));
    let name = "callbacks/s with sealing, of those without".to_owned();
    found.extend(comparison(name, "x", ratio, rounds, Target::AtLeast(0.95)));
    let ours = burst("milepost").figures(results, "/per_second");
    let theirs = burst("nchan").figures(results, "/per_second");
    let name = "burst deliveries/s at 10,000, of nchan's".to_owned();
    let (ratio, rounds) = paired_ratio(&ours, &theirs);
    found.extend(comparison(name, "x", ratio, rounds, Target::AtLeast(5.0)));
    found
}

fn comparison(
    name: String,
    unit: &'static str,
    measured: Option<Spread>,
    rounds: usize,
    target: Target,
) -> Option<Comparison> {
    let measured = measured?;
    // One lost event in one round is a lost event, and one busy round a spoilt one: both are judged
    // by their worst.
    let by_worst = [Target::AtMost(0.0), Target::AtMost(BUSY_PROCESSORS_MAX)].contains(&target);
    let judged = if by_worst { measured.max } else { measured.median };
    Some(Comparison { name, unit, measured, rounds, target, met: target.is_met(judged) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn callbacks(round: u64, target: &str, per_second: f64) -> Value {
        json!({ "measure": "callbacks", "target": target, "connections": 64, "round": round,
                "per_second": per_second, "p99_ms": 1.0 })
    }

    #[test]
    fn ratios_are_paired_by_round() {
        let results = [
            callbacks(1, "milepost", 30.0),
            callbacks(1, "insert", 10.0),
            callbacks(2, "insert", 1000.0),
            callbacks(3, "milepost", 3.0),
            callbacks(3, "insert", 1.0),
        ];
        let found = compare(&results);
        let ratio = &found[0];
        assert_eq!(ratio.name, "callbacks/s at 64, of INSERT's");
        assert_eq!(ratio.measured, Spread { median: 3.0, min: 3.0, max: 3.0 });
        assert!(ratio.met);
        assert_eq!(ratio.rounds, 2);
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        assert_eq!(compare(&[]), []);
        assert_eq!(compare(&[callbacks(1, "milepost", 30.0)]), []);
        let flawed = json!({ "measure": "resume", "target": "milepost", "round": 1, "lost": 0 });
        let names: Vec<String> = compare(&[flawed]).into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["resume, lost"]);
    }

    #[test]
    fn one_lost_event_in_one_round_misses_the_target() {
        let rounds = [0, 0, 1].map(|lost| {
            json!({ "measure": "resume", "target": "milepost", "round": 1, "lost": lost,
                    "repeated": 0, "per_second": 200_000.0 })
        });
        let met: Vec<bool> = compare(&rounds).iter().map(|found| found.met).collect();
        assert_eq!(met, [true, false, true]);
    }

    #[test]
    fn one_busy_round_spoils_the_run() {
        let rounds = [0.01, 0.02, 1.7].map(|busy| {
            json!({ "measure": "conditions", "target": "machine", "round": 1,
                    "busy_processors": busy })
        });
        let found = compare(&rounds);
        assert_eq!((found.len(), found[0].met), (1, false));
    }

    #[test]
    fn errors_of_a_reference_are_shown_beside_its_ratio() {
        let mut insert = callbacks(1, "insert", 10.0);
        insert["errors"] = 3.into();
        let found = compare(&[insert]);
        assert_eq!(found[0].name, "callback errors, insert");
        assert!(!found[0].met);
    }
}
