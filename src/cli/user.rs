//! `milepost user`: people's accounts, on the database itself.

use std::io::{self, IsTerminal as _, Read as _, Stdin};

use anyhow::Context as _;
use milepost_schemas::{AccountId, Role};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use super::token::database;
use crate::accounts::{self, by_command_line};
use crate::app::Clock;
use crate::domain::AccountCommand;
use crate::log::Database;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make an account; the password is read from standard input
    Create {
        /// The e-mail address
        email: String,
        /// What it is for: viewer, operator, auditor or admin
        #[arg(long, value_parser = role)]
        role: Role,
    },
    /// List the accounts
    List,
    /// Change what an account is for; its sessions end
    Role {
        /// The e-mail address
        email: String,
        /// viewer, operator, auditor or admin
        #[arg(value_parser = role)]
        role: Role,
    },
    /// Let nobody log in with an account; its sessions end
    Disable {
        /// The e-mail address
        email: String,
        /// Let it log in again instead
        #[arg(long)]
        undo: bool,
    },
    /// Change an account's password, read from standard input; its sessions end
    Password {
        /// The e-mail address
        email: String,
    },
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    let database = database()?;
    match command {
        Command::Create { email, role } => {
            let id = AccountId(Clock.id());
            let metadata = by_command_line(id.0);
            accounts::create(&database, id, &email, &password()?, role, &metadata).await?;
            say!("{email} may log in as {role}")?;
        }
        Command::List => {
            for account in accounts::list_accounts(&database).await? {
                let disabled = account.disabled_at.map(|at| format!("  disabled {at:.0}"));
                let disabled = disabled.unwrap_or_default();
                say!("{}  {:8}  {}{disabled}", account.id, account.role.as_str(), account.email)?;
            }
        }
        Command::Role { email, role } => {
            change(&database, &email, AccountCommand::Role(role)).await?;
            say!("{email} is {role} now")?;
        }
        Command::Disable { email, undo: false } => {
            change(&database, &email, AccountCommand::Disable).await?;
            say!("{email} may not log in any more")?;
        }
        Command::Disable { email, undo: true } => {
            change(&database, &email, AccountCommand::Enable).await?;
            say!("{email} may log in again")?;
        }
        Command::Password { email } => {
            let id = account(&database, &email).await?;
            let metadata = by_command_line(id.0);
            accounts::set_password(&database, id, &password()?, None, &metadata).await?;
            say!("{email} has another password")?;
        }
    }
    Ok(())
}

async fn change(database: &Database, email: &str, command: AccountCommand) -> anyhow::Result<()> {
    let id = account(database, email).await?;
    accounts::change(database, id, command, Clock.now(), &by_command_line(id.0)).await?;
    Ok(())
}

async fn account(database: &Database, email: &str) -> anyhow::Result<AccountId> {
    let id = accounts::id_of(database, email).await?;
    id.with_context(|| format!("{email} has no account"))
}

/// What standard input holds, without the end of its line. Who sits at a terminal is asked, and
/// types unseen.
fn password() -> anyhow::Result<String> {
    let mut password = String::new();
    let input = io::stdin();
    if input.is_terminal() {
        let _unseen = Unseen::at(&input)?;
        eprint!("Password: ");
        input.read_line(&mut password)?;
    } else {
        input.lock().read_to_string(&mut password)?;
    }
    Ok(password.trim_end_matches(['\r', '\n']).to_owned())
}

/// A terminal that does not show what is typed, but for the end of a line.
struct Unseen<'a> {
    terminal: &'a Stdin,
    before: Termios,
}

impl<'a> Unseen<'a> {
    fn at(terminal: &'a Stdin) -> nix::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut unseen = before.clone();
        unseen.local_flags.remove(LocalFlags::ECHO);
        unseen.local_flags.insert(LocalFlags::ECHONL);
        tcsetattr(terminal, SetArg::TCSAFLUSH, &unseen)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Unseen<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, SetArg::TCSANOW, &self.before);
    }
}

/// The role a word names.
pub fn role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|_| "one of viewer, operator, auditor, admin".to_owned())
}
