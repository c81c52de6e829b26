//! What is said: every event Milepost records and every callback it understands.
//!
//! This crate holds shapes only. What an event *means* is in `projections`; what makes it
//! *happen* is in `milepost`. Beside the Rust types stand the JSON Schemas of every event
//! version (`events/`), of every callback (`callbacks/`), `openapi.json`, `asyncapi.json`, and
//! one golden example of every event version ever stored (`golden/`, never edited).

pub mod callback;
pub mod documents;
pub mod event;
mod ids;
pub mod metadata;
mod personal;
mod role;

pub use callback::{Callback, CallbackError, CallbackKind};
pub use event::{DecodeError, Event, EventType};
pub use ids::{
    AccountId, AgentId, Attempt, InstanceId, JobId, NodeId, Position, SessionId, StreamId, TokenId,
};
pub use metadata::{CallbackEvidence, Metadata, SignatureForm};
pub use role::{Right, Role};
