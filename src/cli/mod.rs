//! The command line: one file a command.

/// Prints a line as `println!` does; where that panics, as it does when nobody reads any more, this
/// gives the error.
macro_rules! say {
    ($($arguments:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($arguments)*)
    }};
}

mod callback;
mod client;
mod dev;
mod doctor;
mod job_log;
mod jobs;
mod log;
mod privacy;
mod projections;
mod rehearse;
mod serve;
mod supervise;
mod token;
mod user;
mod vm;
mod watch;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Signed callbacks in, an immutable event log in Postgres, every change pushed to browsers.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything on this machine: a private Postgres, the server, and a rehearsal
    Dev(dev::Args),
    /// Run the server; every setting comes from the environment
    Serve(serve::Args),
    /// Bring the database named by `DATABASE_URL` up to date
    Migrate,
    /// Follow a job or an agent in the terminal
    Watch(watch::Args),
    /// Sign one callback and send it
    Callback(callback::Args),
    /// Follow, replay, verify or export the event log
    #[command(subcommand)]
    Log(log::Command),
    /// List, cancel, repeat or move jobs, or read their logs; pause and resume the queue
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Erase the personal data of an agent or a node; change the master key
    #[command(subcommand)]
    Privacy(privacy::Command),
    /// How the views stand; rebuild, verify or roll back one
    #[command(subcommand)]
    Projections(projections::Command),
    /// Make, list or revoke the tokens of programs
    #[command(subcommand)]
    Token(token::Command),
    /// Make, list, change or disable people's accounts
    #[command(subcommand)]
    User(user::Command),
    /// Compare servers and devices with the log; say what serves nobody, and what is gone
    Doctor(doctor::Args),
    /// Make, undo or list the servers of attempts
    #[command(subcommand)]
    Vm(vm::Command),
    /// Run a program, and end it with all that it has started when standard input ends
    #[command(hide = true)]
    Supervise(supervise::Args),
    /// Play a workflow: the same signed callbacks, but no server is built
    Rehearse(rehearse::Args),
}

/// Runs one command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("the system has threads and sockets");
    match runtime.block_on(execute(cli.command)) {
        Ok(code) => code,
        Err(error) if is_unread(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("milepost: {error:#}");
            doctor::exit_code(&error).unwrap_or_else(|| vm::exit_code(&error))
        }
    }
}

/// Whether all that went wrong is that nobody reads on: who closes standard output has enough.
/// Errors of connections and of files that are made come with their own types.
fn is_unread(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

async fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dev(args) => dev::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Migrate => serve::migrate().await,
        Command::Watch(args) => watch::run(args).await,
        Command::Callback(args) => callback::run(args).await,
        Command::Log(command) => return log::run(command).await,
        Command::Jobs(command) => jobs::run(command).await,
        Command::Privacy(command) => privacy::run(command).await,
        Command::Projections(command) => projections::run(command).await,
        Command::Token(command) => token::run(command).await,
        Command::User(command) => user::run(command).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Vm(command) => vm::run(command).await,
        Command::Supervise(args) => return supervise::run(args).await,
        Command::Rehearse(args) => rehearse::run(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}
