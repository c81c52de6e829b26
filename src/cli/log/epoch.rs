//! `milepost log new-epoch`: the log goes on, and says that a restore has lost events.

use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::{Place, operator};
use crate::app::{App, Clock};
use crate::config::Config;
use crate::ledger::epoch::{self, EpochError};
use crate::log::Database;
use crate::postgres::Embedded;

/// How long the event may take.
const APPEND_TIMEOUT: Duration = Duration::from_secs(30);

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
    let former = epoch::raise(&Database::new(&url)?, Clock.now()).await?;
    let app = App::open(Config::of_tool(url, Vec::new()), CancellationToken::new()).await?;
    let (user, deadline) = (operator(), Instant::now() + APPEND_TIMEOUT);
    let file = args.place.key_file();
    let position = epoch::record(&app, former, user, reason, Some(&file), deadline).await?;
    println!(
        "Epoch {} has begun with position {position}, after epoch {former}. Subscribers begin anew; \
         checkpoints are signed under a new origin.",
        app.log.feed().epoch()
    );
    Ok(())
}
