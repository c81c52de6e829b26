//! The `milepost` program: one binary, its roles as subcommands.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    milepost::cli::run(milepost::cli::Cli::parse())
}
