//! Clients of outside services: a struct with a base URL each. They know nothing of jobs and
//! agents; they take plain ids, names and labels.
//!
//! What they share is here: one request with its limits ([`Service`]), what may go wrong with it
//! ([`ClientError`]), and when to try again ([`Patience`]).

mod call;
mod error;
pub mod github;
pub mod hetzner;
mod retry;
mod sensitive;
pub mod tailscale;

pub use call::{ANSWER_BYTES_MAX, Answer, Body, Call, Service};
pub use error::{Class, ClientError, FINAL_CODES, MESSAGE_CHARS_MAX, RETRYABLE_CODES, Trouble};
pub use retry::{Patience, RATE_LIMIT_PAUSE_MAX, RETRY_AFTER_MAX, Time};
pub use sensitive::Sensitive;
