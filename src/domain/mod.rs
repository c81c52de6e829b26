//! Decisions: pure functions from a state and a command to events, or to a refusal.
//!
//! One file a stream. No clock, no ids, no I/O: time and ids are arguments.

pub mod agent;
pub mod job;
pub mod job_log;

pub use agent::AgentCommand;
pub use job::{JobAnswer, JobCommand, Limits, QueueState};
