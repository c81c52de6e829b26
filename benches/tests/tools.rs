//! The tools against a server that does right, and one that does wrong.

mod stub;

use std::process::Command;

use serde_json::Value;
use stub::{Fault, start};

/// Runs a tool against a stub; gives whether it was content, and what it reported.
fn measure(tool: &str, fault: Fault, arguments: &[&str]) -> (bool, Value) {
    let url = format!("http://{}", start("127.0.0.1:0", fault));
    let output = Command::new(tool)
        .args(arguments)
        .args(["--url", &url, "--json", "--token", "t"])
        .output()
        .expect("a tool of this package can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{errors}"));
    (output.status.success(), report)
}

fn callbacks(fault: Fault) -> (bool, Value) {
    let arguments = "--milepost --connections 4 --jobs 8 --seconds 0.3 --warm-up 0.1";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    measure(env!("CARGO_BIN_EXE_callbacks"), fault, &arguments)
}

fn streams(fault: Fault, arguments: &str) -> (bool, Value) {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    measure(env!("CARGO_BIN_EXE_streams"), fault, &arguments)
}

#[test]
fn acknowledged_callbacks_are_in_the_log() {
    let (content, report) = callbacks(Fault::None);
    assert!(content, "{report}");
    assert!(report["acknowledged"].as_u64().unwrap() > 0);
    assert_eq!(report["log_grew"], report["acknowledged"]);
    assert_eq!(report["missing"], 0);
}

#[test]
fn a_forgotten_callback_is_noticed() {
    let (content, report) = callbacks(Fault::Forget);
    assert!(!content);
    assert!(report["missing"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_refused_callback_is_an_error_and_not_acknowledged() {
    let (content, report) = callbacks(Fault::Refuse);
    assert!(!content);
    assert_eq!(report["errors_by_kind"]["answered 503"], report["errors"]);
    assert_eq!(report["missing"], 0);
}

#[test]
fn a_burst_reaches_every_stream_once() {
    let (content, report) = streams(Fault::None, "burst --streams 20 --events 50 --publishers 4");
    assert!(content, "{report}");
    assert_eq!(report["deliveries"], 1000);
}

#[test]
fn a_lost_event_is_counted_on_every_stream() {
    // Four started callbacks come before the burst.
    let arguments = "burst --streams 20 --events 50 --publishers 4";
    let (content, report) = streams(Fault::Lose(30), arguments);
    assert!(!content);
    assert_eq!((&report["lost"], &report["repeated"]), (&20.into(), &0.into()));
}

#[test]
fn a_repeated_event_is_counted_on_every_stream() {
    let arguments = "burst --streams 20 --events 50 --publishers 4";
    let (content, report) = streams(Fault::Repeat(30), arguments);
    assert!(!content);
    assert_eq!((&report["lost"], &report["repeated"]), (&0.into(), &20.into()));
}

#[test]
fn latency_is_measured_for_every_delivery() {
    let arguments = "latency --streams 3 --rate 100 --seconds 0.3 --publishers 4";
    let (content, report) = streams(Fault::None, arguments);
    assert!(content, "{report}");
    assert_eq!(report["from_send"]["count"], 90);
    let p50_ms = |from: &str| report[from]["p50_ms"].as_f64().unwrap();
    assert!(p50_ms("from_send") >= p50_ms("from_answer"));
}

#[test]
fn a_resumed_stream_gets_what_it_missed_once() {
    let (content, report) = streams(Fault::None, "resume --events 2000 --publishers 4");
    assert!(content, "{report}");
    assert_eq!(report["events"], 2000);
}

#[test]
fn a_hole_in_a_resumed_stream_is_noticed() {
    let (content, report) = streams(Fault::Lose(1500), "resume --events 2000 --publishers 4");
    assert!(!content);
    assert_eq!(report["lost"], 1);
}
