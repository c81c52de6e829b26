//! The `milepost` program: one binary, its roles as subcommands.

use std::process::ExitCode;

use clap::Parser as _;

/// A callback makes a few dozen short-lived allocations on one thread and frees many of them on
/// another; the system's allocator takes a quarter of the server's time for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    milepost::cli::run(milepost::cli::Cli::parse())
}
