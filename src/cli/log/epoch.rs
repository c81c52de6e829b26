//! `milepost log new-epoch`: the log goes on, and says that a restore has lost events.

use super::{Place, operator};
use crate::app::Clock;
use crate::ledger::epoch::{self, Begun, EpochError};
use crate::log::Database;
use crate::postgres::Embedded;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What happened: it is kept in the log
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    place: Place,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let embedded = match args.place.database_url() {
        Some(_) => None,
        None => Some(Embedded::start(args.place.data_dir()).await?),
    };
    let url = embedded.as_ref().map(|embedded| embedded.database_url().to_owned());
    let url = url.or_else(|| args.place.database_url()).unwrap_or_default();
    let begun = begin(&args, url).await;
    if let Some(embedded) = embedded {
        embedded.stop().await?;
    }
    begun
}

async fn begin(args: &Args, url: String) -> anyhow::Result<()> {
    let reason = args.reason.trim();
    anyhow::ensure!(!reason.is_empty(), EpochError::Reason);
    let file = args.place.key_file();
    let database = Database::new(&url)?;
    let begun = epoch::begin(&database, Clock.now(), operator(), reason, &file).await?;
    let Begun { former_epoch, epoch, position, is_agreed } = begun;
    say!(
        "Epoch {epoch} has begun with position {position}, after epoch {former_epoch}. Subscribers \
         begin anew; checkpoints are signed under a new origin."
    )?;
    if !is_agreed {
        say!(
            "This machine has no key at {}. One that seals goes on only when it is told so there, \
             beside its key:\n\n    echo {epoch} > {}\n",
            file.path().display(),
            file.epoch_path().file_name().unwrap_or_default().display(),
        )?;
    }
    Ok(())
}
