//! What operators watch, for Prometheus. Each metric is declared here once, its unit in its name.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The labels of a callback's counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallbackLabels {
    /// `heartbeat`, `started`, `step`, `done`, `failed`, `unknown`.
    pub kind: &'static str,
    /// `applied`, or the reason why not, or `repeated`.
    pub outcome: &'static str,
}

/// The labels of a view's gauges.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ViewLabels {
    /// The projection's name.
    pub view: &'static str,
}

/// Every metric of a process.
pub struct Metrics {
    registry: Registry,
    /// Events a batch.
    pub append_batch_events: Histogram,
    /// From sending a batch to its commit.
    pub append_seconds: Histogram,
    /// Events this process has appended.
    pub events_appended: Counter,
    /// Batches that broke off.
    pub append_errors: Counter,
    /// Decisions that wait for the appender.
    pub append_queue_depth: Gauge,
    /// Callbacks by kind and outcome.
    pub callbacks: Family<CallbackLabels, Counter>,
    /// Callbacks refused for their signature.
    pub callbacks_unauthorised: Counter,
    /// Open streams.
    pub subscribers: Gauge,
    /// Messages written to streams.
    pub deliveries: Counter,
    /// From commit to the write of an event to a subscriber, while it is not far behind.
    pub delivery_lag_seconds: Histogram,
    /// Events a view is behind the log.
    pub view_lag_events: Family<ViewLabels, Gauge>,
    /// Streams a view has stopped folding.
    pub view_poisoned_streams: Family<ViewLabels, Gauge>,
    /// Jobs that have not ended, as the queue has them.
    pub jobs_active: Gauge,
    /// Attempts dispatched.
    pub dispatches: Counter,
    /// The log's size.
    pub log_position: Gauge<f64, AtomicU64>,
    /// The size of the last checkpoint this process signed.
    pub log_sealed_position: Gauge<f64, AtomicU64>,
    /// 1 while this process refuses to seal, for the log contradicts what was signed, or its key or
    /// what stands beside it cannot be read or written.
    pub seal_refused: Gauge,
    /// How often sealing ended by an error; it begins again each time.
    pub seal_errors: Counter,
}

impl Metrics {
    /// Declares them all.
    pub fn new() -> Arc<Self> {
        let seconds = || {
            Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0])
        };
        let mut metrics = Self {
            registry: Registry::with_prefix("milepost"),
            append_batch_events: Histogram::new([
                1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0,
            ]),
            append_seconds: seconds(),
            events_appended: Counter::default(),
            append_errors: Counter::default(),
            append_queue_depth: Gauge::default(),
            callbacks: Family::default(),
            callbacks_unauthorised: Counter::default(),
            subscribers: Gauge::default(),
            deliveries: Counter::default(),
            delivery_lag_seconds: seconds(),
            view_lag_events: Family::default(),
            view_poisoned_streams: Family::default(),
            jobs_active: Gauge::default(),
            dispatches: Counter::default(),
            log_position: Gauge::default(),
            log_sealed_position: Gauge::default(),
            seal_refused: Gauge::default(),
            seal_errors: Counter::default(),
        };
        metrics.register();
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "append_batch_events",
            "Events in a batch",
            self.append_batch_events.clone(),
        );
        registry.register(
            "append_seconds",
            "From sending a batch to its commit",
            self.append_seconds.clone(),
        );
        registry.register(
            "events_appended",
            "Events appended by this process",
            self.events_appended.clone(),
        );
        registry.register("append_errors", "Batches that broke off", self.append_errors.clone());
        registry.register(
            "append_queue_depth",
            "Decisions waiting for the appender",
            self.append_queue_depth.clone(),
        );
        registry.register("callbacks", "Callbacks by kind and outcome", self.callbacks.clone());
        registry.register(
            "callbacks_unauthorised",
            "Callbacks refused for their signature",
            self.callbacks_unauthorised.clone(),
        );
        registry.register("subscribers", "Open streams", self.subscribers.clone());
        registry.register("deliveries", "Messages written to streams", self.deliveries.clone());
        registry.register(
            "delivery_lag_seconds",
            "From commit to the write of an event to a subscriber that is not far behind",
            self.delivery_lag_seconds.clone(),
        );
        registry.register(
            "view_lag_events",
            "Events a view is behind the log",
            self.view_lag_events.clone(),
        );
        registry.register(
            "view_poisoned_streams",
            "Streams a view has stopped folding",
            self.view_poisoned_streams.clone(),
        );
        registry.register("jobs_active", "Jobs that have not ended", self.jobs_active.clone());
        registry.register("dispatches", "Attempts dispatched", self.dispatches.clone());
        registry.register("log_position", "The size of the log", self.log_position.clone());
        registry.register(
            "log_sealed_position",
            "The size of the last checkpoint signed by this process",
            self.log_sealed_position.clone(),
        );
        registry.register(
            "seal_refused",
            "1 while the log contradicts what was signed, or the key cannot be used",
            self.seal_refused.clone(),
        );
        registry.register("seal_errors", "Errors that ended sealing", self.seal_errors.clone());
    }

    /// The text Prometheus reads.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("a string takes every write");
        text
    }
}
