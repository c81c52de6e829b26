//! Milepost.

pub mod http;
