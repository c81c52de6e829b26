//! Milepost.

pub mod postgres;
