//! `milepost log restore`: what was archived comes back.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::{Place, operator};
use crate::app::App;
use crate::config::Config;
use crate::ledger::archive;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory of the archive
    #[arg(long)]
    from: PathBuf,
    #[command(flatten)]
    place: Place,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::of_tool(args.place.required_database_url()?, Vec::new());
    let app = App::open(config, CancellationToken::new()).await?;
    let directory = std::path::absolute(&args.from)?;
    // It comes back whether or not somebody reads along.
    let told = |first, last| {
        drop(say!("positions {first} to {last}: verified, and here again"));
    };
    let restored = archive::restore(&app, &directory, &operator(), told).await?;
    if restored.ranges.is_empty() {
        say!("Nothing is archived.")?;
    }
    Ok(())
}
