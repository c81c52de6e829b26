//! Milepost: the callbacks of provisioning workflows become an immutable event log in Postgres;
//! projections fold the log into state; browsers get every change by Server-Sent Events.
//!
//! `src/README.md` is the code map.

pub mod accounts;
pub mod app;
pub mod cli;
pub mod clients;
pub mod config;
pub mod domain;
pub mod execute;
pub mod http;
pub mod intake;
pub mod ledger;
pub mod log;
pub mod metrics;
pub mod migrate;
pub mod postgres;
pub mod push;
pub mod telemetry;
pub mod views;
pub mod work;
