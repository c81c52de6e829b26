//! `milepost log export`: the log in a directory that proves itself.

use std::path::PathBuf;

use super::{CONNECTIONS, Place};
use crate::ledger::bundle::{self, Format};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory; parts that are in it stay
    directory: PathBuf,
    /// Lines of JSON, or batches of `CloudEvents` 1.0
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// Where the oldest events are, where they are archived
    #[arg(long)]
    archive: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let database = args.place.database()?;
    let archive = args.archive.as_deref();
    let (directory, format) = (&args.directory, args.format);
    let exported = bundle::export(&database, directory, format, CONNECTIONS, archive).await?;
    let manifest = exported.manifest;
    say!(
        "{} events of {} are in {}, under the root {}: {} parts written, {} were there",
        manifest.size,
        manifest.origin,
        args.directory.display(),
        manifest.root,
        exported.parts_written,
        exported.parts_kept,
    )?;
    say!("milepost log verify --bundle {} --key KEY", args.directory.display())?;
    Ok(())
}
