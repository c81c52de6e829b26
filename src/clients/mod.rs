//! Clients of outside services: a struct with a base URL each; they know no domain.

pub mod github;
