//! `milepost token`: the tokens of programs, on the database itself.

use anyhow::Context as _;

use crate::accounts;
use crate::log::Database;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a token and print it, once
    Create {
        /// Which program it is for
        name: String,
    },
    /// Revoke a token
    Revoke {
        /// Which program it was for
        name: String,
    },
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    let database = database()?;
    match command {
        Command::Create { name } => {
            let token = accounts::secret("mp_");
            accounts::set_token(&database, &name, &token).await?;
            println!("{token}");
        }
        Command::Revoke { name } => {
            let revoked = accounts::revoke_token(&database, &name).await?;
            anyhow::ensure!(revoked, "there is no token of that name");
            println!("revoked");
        }
    }
    Ok(())
}

/// The database named by `DATABASE_URL`.
pub fn database() -> anyhow::Result<Database> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    Ok(Database::new(&url)?)
}
