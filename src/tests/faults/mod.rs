//! What happens when parts fail: what was answered is in the log once, order holds, and whoever
//! follows misses nothing.

mod appends;
mod follow;
mod load;
mod partitions;
mod postgres_restarted;
mod raw;
mod rebuild;
mod server_killed;
mod shutdown;
mod slow_readers;
mod streams_cut;
mod two_nodes;
mod views;

use follow::Follower;
use load::{Load, check_log};
use raw::RawStream;
