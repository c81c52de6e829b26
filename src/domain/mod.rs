//! Decisions: pure functions from a state and a command to events, or to a refusal.
//!
//! One file a stream. No clock, no ids, no I/O: time and ids are arguments.

pub mod access;
pub mod account;
pub mod agent;
pub mod job;
pub mod job_log;
pub mod node;
pub mod orphan;
pub mod queue;
pub mod server;
pub mod upkeep;

pub use account::{AccountCommand, AccountRefusal};
pub use agent::AgentCommand;
pub use job::{JobAnswer, JobCommand, Limits, QueueState, Report};
pub use node::NodeCommand;
pub use queue::QueueCommand;
pub use server::{AttemptId, ServerIdentity};
pub use upkeep::UpkeepCommand;
