//! `milepost user`: people's accounts, on the database itself.

use std::io::Read as _;

use super::token::database;
use crate::accounts;
use crate::app::Clock;

/// The shortest password, in characters.
const PASSWORD_CHARS_MIN: usize = 12;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make an account, or change its password; the password is read from standard input
    Create {
        /// The e-mail address
        email: String,
    },
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    let Command::Create { email } = command;
    anyhow::ensure!(email.contains('@'), "{email} is no e-mail address");
    let mut password = String::new();
    std::io::stdin().read_to_string(&mut password)?;
    let password = password.trim_end_matches(['\r', '\n']);
    let length = password.chars().count();
    anyhow::ensure!(
        length >= PASSWORD_CHARS_MIN && password.len() <= accounts::PASSWORD_BYTES_MAX,
        "a password has at least {PASSWORD_CHARS_MIN} characters"
    );
    accounts::set_password(&database()?, Clock.id(), &email, password).await?;
    println!("{email} may log in");
    Ok(())
}
