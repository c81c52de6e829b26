//! Shared pieces of the load tools and of the references they are compared with.
//!
//! Every tool speaks plain HTTP/1.1 to any URL. What can be wrong in a measurement (the parsers, the
//! exactly-once checker, the statistics) is here, under tests; the tools in `bin/` only put it
//! together.

pub mod callback;
pub mod exactly_once;
pub mod http;
pub mod milepost;
pub mod process;
pub mod publish;
pub mod report;
pub mod sse;
pub mod stats;
pub mod story;
pub mod subscribe;
