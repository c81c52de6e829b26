//! `milepost log`: follow the log, fold it, prove it, take it along.

mod archive;
mod epoch;
mod export;
mod keys;
mod replay;
mod restore;
mod tail;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Deserialize;

use crate::cli::dev;
use crate::ledger::KeyFile;
use crate::log::Database;

/// Connections that an audit or an export reads over: a reader keeps a processor busy, and so does
/// what is made of it.
const CONNECTIONS: usize = 2;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print each event as it is recorded, a line of JSON each
    Tail(tail::Args),
    /// Fold the log from its beginning, here, and print the states it gives
    Replay(replay::Args),
    /// Read the whole log, and prove that nobody has changed it
    ///
    /// Exit codes: 0 it is as it was signed; 1 it cannot be said; 3 something is wrong.
    #[command(verbatim_doc_comment)]
    Verify(verify::Args),
    /// Write the log into a directory that proves itself; goes on where it broke off
    Export(export::Args),
    /// Take the oldest partitions out of the database, into files that prove themselves
    Archive(archive::Args),
    /// Bring back what was archived, verified first
    Restore(restore::Args),
    /// Put a new key behind the one that seals the log; the server takes it over by itself
    RotateKey(keys::Args),
    /// Go on in a new epoch after a restore that has lost events
    NewEpoch(epoch::Args),
}

/// Where the log lives, for what talks to the database itself.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// The database; that of `milepost dev` in --data-dir when not given
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// The keys that seal the log; those of --data-dir when not given
    #[arg(long, env = "MILEPOST_SEAL_KEY_FILE")]
    key_file: Option<PathBuf>,
    /// Where `milepost dev` keeps its data
    #[arg(long, default_value = "data")]
    data_dir: PathBuf,
}

#[derive(Deserialize)]
struct Dev {
    database_url: String,
}

impl Place {
    /// The database's address, where it is known.
    fn database_url(&self) -> Option<String> {
        let given = self.database_url.clone().filter(|url| !url.is_empty());
        given.or_else(|| {
            let ready = std::fs::read(self.data_dir.join("dev.json")).ok()?;
            Some(serde_json::from_slice::<Dev>(&ready).ok()?.database_url)
        })
    }

    /// The database's address.
    fn required_database_url(&self) -> anyhow::Result<String> {
        let url = self.database_url();
        url.context("where is the log? Set DATABASE_URL, or run `milepost dev` here")
    }

    /// The database.
    fn database(&self) -> anyhow::Result<Database> {
        Ok(Database::new(&self.required_database_url()?)?)
    }

    /// The keys that seal the log, whether or not the file is there.
    fn key_file(&self) -> KeyFile {
        let given = self.key_file.clone();
        KeyFile::new(given.unwrap_or_else(|| dev::seal_key_file(&self.data_dir)))
    }

    /// Where a private Postgres would be.
    fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

/// Who works here.
fn operator() -> String {
    std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned())
}

pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Tail(args) => tail::run(args).await,
        Command::Replay(args) => replay::run(args).await,
        Command::Verify(args) => return verify::run(args).await,
        Command::Export(args) => export::run(args).await,
        Command::Archive(args) => archive::run(args).await,
        Command::Restore(args) => restore::run(args).await,
        Command::RotateKey(args) => keys::run(&args),
        Command::NewEpoch(args) => epoch::run(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}
