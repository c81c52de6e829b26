//! `milepost privacy`: erase the personal data of one subject; change the master key.

use anyhow::Context as _;
use serde_json::json;

use super::client::Server;
use crate::config;
use crate::log::{Database, MasterKeys, rewrap, vacuum};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Destroy the key of an agent, a node or a stream, for good: what is personal of it reads as
    /// erased everywhere, and every proof still verifies
    Erase {
        /// The agent, the node, or the stream of a refused callback
        subject: String,
        /// Why; it stays readable, so name nobody
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        server: Server,
    },
    /// Wrap every key under the first of `MILEPOST_MASTER_KEY`, in the database of `DATABASE_URL`.
    /// The old master key then opens nothing there any more
    Rewrap,
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Erase { subject, reason, server } => {
            let body = json!({"subject": subject, "reason": reason});
            say!("{}", server.client()?.post("/api/privacy/erase", &body).await?)?;
            Ok(())
        }
        Command::Rewrap => wrap_anew().await,
    }
}

async fn wrap_anew() -> anyhow::Result<()> {
    let env = |name: &str| std::env::var(name).ok();
    let url = env("DATABASE_URL").context("DATABASE_URL is not set")?;
    let masters =
        MasterKeys::parse(&config::listed(&env, config::MASTER_KEY)).map_err(anyhow::Error::msg)?;
    let database = Database::new(&url)?;
    let count = rewrap(&database, &masters).await?;
    say!("{count} keys wrapped anew")?;
    vacuum(&database).await?.map_err(|owner| {
        anyhow::anyhow!(
            "keys that the old master key opens are still in the file of the table data_key: only \
             its owner may write that anew. Run this again as the role {owner}"
        )
    })
}
