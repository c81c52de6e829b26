//! The tests that need a machine around them: Postgres, sockets, processes, a browser.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod arrows;
mod browser;
mod faults;
mod harness;
mod leases;
mod postgres;
mod rehearsal;
mod routes;
mod workflow;
