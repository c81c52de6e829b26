//! The `milepost` program.
fn main() {}
