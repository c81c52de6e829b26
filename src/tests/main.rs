//! Tests that need a machine around them.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail like the test itself")]

mod postgres;
