//! What comes from outside, verified once: `verify(secrets, headers, body)` gives a
//! [`Verified`] value, and nobody checks again.

pub mod github;
pub mod lines;
mod redact;
pub mod workflow_run;

pub use redact::{Redactor, plain};

/// Something whose signature was checked, with what proves it.
#[derive(Debug)]
pub struct Verified<T> {
    /// What was said.
    pub value: T,
    /// What an auditor needs to check it again.
    pub evidence: milepost_schemas::CallbackEvidence,
}
