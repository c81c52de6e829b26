//! Shared pieces of the load tools.
