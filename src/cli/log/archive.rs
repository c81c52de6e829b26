//! `milepost log archive`: the oldest partitions leave the database for files.

use std::ops::ControlFlow;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::replay::Moment;
use super::{Place, operator};
use crate::app::App;
use crate::config::Config;
use crate::ledger::archive::{self, Before, Order, Part, Step};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only partitions wholly before this position, or recorded before this time
    #[arg(long)]
    before: Moment,
    /// The directory; the same one each time
    #[arg(long)]
    to: PathBuf,
    /// Only say which would be archived
    #[arg(long)]
    dry_run: bool,
    /// Leave the detached tables in the database, as event_<n>_archived
    #[arg(long)]
    keep_table: bool,
    #[command(flatten)]
    place: Place,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::of_tool(args.place.required_database_url()?, Vec::new());
    let app = App::open(config, CancellationToken::new()).await?;
    let before = match args.before {
        Moment::At(position) => Before::Position(position),
        Moment::When(time) => Before::Time(time),
    };
    let order = Order {
        before,
        // Whoever looks for it later does so from elsewhere.
        directory: std::path::absolute(&args.to)?,
        dry_run: args.dry_run,
        keep_table: args.keep_table,
        by: operator(),
    };
    let mut say = |part: &Part, step: Step| {
        // It goes on whether or not somebody reads along.
        drop(say!("positions {} to {}: {}", part.first(), part.last(), word(step)));
        ControlFlow::Continue(())
    };
    let archived = archive::archive(&app, &order, &mut say).await?;
    if args.dry_run {
        for part in &archived.parts {
            say!("positions {} to {} would be archived", part.first(), part.last())?;
        }
    }
    say!("The log is in archives up to position {}.", archived.floor)?;
    let (first, last) = (archived.next.first(), archived.next.last());
    say!("Positions {first} to {last} stay: {}.", archived.limit)?;
    Ok(())
}

fn word(step: Step) -> &'static str {
    match step {
        Step::Written => "written",
        Step::Verified => "read back and verified",
        Step::Recorded => "recorded",
        Step::Detached => "detached",
        Step::Dropped => "dropped",
    }
}
