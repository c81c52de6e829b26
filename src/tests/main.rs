//! The tests that need a machine around them: Postgres, sockets, processes, a browser.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod ansible_dispatch;
mod arrows;
mod browser;
mod command_line;
mod compensation;
mod doubles;
mod faults;
mod github_dispatch;
mod harness;
mod leases;
mod ledger;
mod log_scan;
mod postgres;
mod privacy;
mod rehearsal;
mod routes;
mod time_travel;
mod vm;
mod workflow;
mod workflow_file;
