//! Push: every change to every browser, over Server-Sent Events, without a gap or a repeat.
//!
//! The log's `Feed` holds the newest events and [`Hub`] the newest states; each subscriber has a
//! cursor, not a queue.
//! [`serve`] writes to the socket itself once hyper has sent the head.

pub mod encode;
mod hub;
pub mod serve;
mod states;
mod subscription;

pub use hub::{Hub, Topic};
pub use states::start as start_states;
pub use subscription::{Cursor, RESUME_READ_EVENTS, Subscription, WANTS_MAX, Wants};
