//! `/metrics` and `/api/metrics`.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::{Server, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_finds_every_metric_under_its_name() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    client.callback(&json!({"job_id": job, "status": "provisioning"})).await;
    client.callback(&json!({"job_id": "nobody", "status": "provisioning"})).await;
    client.send(client.unsigned("{}".into())).await;
    let text = client.metrics().await;
    let names: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let expected = BTreeSet::from([
        "milepost_append_batch_events",
        "milepost_append_errors",
        "milepost_append_queue_depth",
        "milepost_append_seconds",
        "milepost_callbacks",
        "milepost_callbacks_unauthorised",
        "milepost_deliveries",
        "milepost_delivery_lag_seconds",
        "milepost_dispatches",
        "milepost_events_appended",
        "milepost_jobs_active",
        "milepost_log_position",
        "milepost_log_sealed_position",
        "milepost_seal_errors",
        "milepost_seal_refused",
        "milepost_subscribers",
        "milepost_view_lag_events",
        "milepost_view_poisoned_streams",
    ]);
    assert_eq!(names, expected);
    for line in [
        "milepost_callbacks_total{kind=\"started\",outcome=\"applied\"} 1",
        "milepost_callbacks_total{kind=\"started\",outcome=\"unknown_job\"} 1",
        "milepost_callbacks_unauthorised_total 1",
        "milepost_events_appended_total 6",
        "milepost_log_position 6.0",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_each_delivery_is_measured_and_an_idle_appender_has_no_queue() {
    let server = Server::start().await;
    let client = server.client();
    let mut stream = client.stream("/api/events/stream", None).await;
    client.agent("mari").await;
    stream.next_named("recorded").await;
    wait_until("the delivery is counted", || async {
        let counted = client.metric("milepost_delivery_lag_seconds_count").await;
        let depth = client.metric("milepost_append_queue_depth").await;
        ((counted, depth) == (1, 0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_counts_jobs_and_agents() {
    let server = Server::start().await;
    let client = server.client();
    let (_, running) = client.job("running").await;
    client.job("queued").await;
    let (_, done) = client.job("done").await;
    let (_, failed) = client.job("failed").await;
    let (_, cancelled) = client.job("cancelled").await;
    client.agent("new").await;
    client.callback(&json!({"job_id": running, "status": "provisioning"})).await;
    client.callback(&json!({"job_id": done, "status": "running"})).await;
    client.callback(&json!({"job_id": failed, "status": "failed"})).await;
    client.post(&format!("/api/jobs/{cancelled}/cancel"), &json!({})).await;
    let counts = client.read("/api/metrics").await;
    for (name, count) in [
        ("jobs_queued", 1),
        ("jobs_dispatching", 0),
        ("jobs_running", 1),
        ("jobs_retry_scheduled", 1),
        ("jobs_succeeded", 1),
        ("jobs_failed", 0),
        ("jobs_cancelled", 1),
        ("nodes_active", 0),
        ("sites_total", 0),
        ("agents_total", 6),
    ] {
        assert_eq!(counts[name], count, "{name}");
    }
    let expected = json!({"new": 1, "pending": 1, "provisioning": 1, "running": 1, "failed": 2});
    assert_eq!(counts["agents_by_instance_status"], expected);
}
