//! Structured logs on standard error: JSON lines where nobody looks, text in a terminal.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging. `MILEPOST_LOG` filters as `RUST_LOG` would, default `info`.
pub fn start() {
    let filter = EnvFilter::try_from_env("MILEPOST_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,tokio_postgres=warn,refinery_core=warn"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        lines.with_target(false).compact().init();
    } else {
        lines.json().flatten_event(true).init();
    }
}
