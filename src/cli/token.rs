//! `milepost token`: the tokens of programs, on the database itself.

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use milepost_schemas::{Right, Role, TokenId};

use super::user::role;
use crate::accounts::{self, NewToken, by_command_line};
use crate::app::Clock;
use crate::domain::access::READING;
use crate::log::Database;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a token and print it, once
    Create {
        /// Which program it is for
        name: String,
        /// What it is for: viewer, operator, auditor or admin
        #[arg(long, default_value = "operator", value_parser = role)]
        role: Role,
        /// Narrow it: see, events, audit, operate, administer, or read for the first three; may be
        /// repeated
        #[arg(long = "scope", value_name = "SCOPE", value_parser = scope)]
        scopes: Vec<Scope>,
        /// When it ends: so many days (`30d`) or hours (`12h`) from now, or a time
        #[arg(long, value_name = "WHEN")]
        expires: Option<String>,
    },
    /// List the tokens
    List,
    /// Revoke a token; its streams end
    Revoke {
        /// Which program it was for
        name: String,
    },
}

/// What a token is narrowed to by one word.
#[derive(Clone, Debug)]
pub struct Scope(Vec<Right>);

pub async fn run(command: Command) -> anyhow::Result<()> {
    let database = database()?;
    match command {
        Command::Create { name, role, scopes, expires } => {
            let (id, now) = (TokenId(Clock.id()), Clock.now());
            let expires_at = expires.map(|text| time(&text, now)).transpose()?;
            let scopes = scopes.into_iter().flat_map(|scope| scope.0).collect();
            let new = NewToken { name, role, scopes, expires_at };
            let metadata = by_command_line(id.0);
            say!("{}", accounts::create_token(&database, id, new, now, &metadata).await?)?;
        }
        Command::List => {
            for token in accounts::list_tokens(&database).await? {
                let scopes: Vec<_> = token.scopes.iter().map(|right| right.as_str()).collect();
                let at = |at: Option<Timestamp>| at.map_or("-".to_owned(), |at| format!("{at:.0}"));
                say!(
                    "{}  {:8}  {}  only {}  used {}  until {}",
                    token.id,
                    token.role.as_str(),
                    token.name,
                    if scopes.is_empty() { "-".to_owned() } else { scopes.join(",") },
                    at(token.last_used_at),
                    at(token.expires_at),
                )?;
            }
        }
        Command::Revoke { name } => {
            let id = accounts::token_named(&database, &name).await?;
            let id = id.context("there is no token of that name")?;
            accounts::revoke_token(&database, id, &by_command_line(id.0)).await?;
            say!("revoked")?;
        }
    }
    Ok(())
}

/// The database named by `DATABASE_URL`.
pub fn database() -> anyhow::Result<Database> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    Ok(Database::new(&url)?)
}

fn scope(text: &str) -> Result<Scope, String> {
    match text {
        "read" => Ok(Scope(READING.to_vec())),
        one => one
            .parse()
            .map(|right| Scope(vec![right]))
            .map_err(|_| "one of see, events, audit, operate, administer, read".to_owned()),
    }
}

/// `30d`, `12h`, or a time as RFC 3339 writes it.
fn time(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    let hours =
        |number: &str, hours: i64| number.parse().ok().map(|number: i32| hours * i64::from(number));
    let hours = match text.split_at_checked(text.len().saturating_sub(1)) {
        Some((number, "d")) => hours(number, 24),
        Some((number, "h")) => hours(number, 1),
        _ => None,
    };
    let at: Timestamp = match hours {
        Some(hours) => now.checked_add(SignedDuration::from_hours(hours))?,
        None => text
            .parse()
            .with_context(|| format!("{text} is no time: say 30d, 12h or 2027-01-31T00:00:00Z"))?,
    };
    anyhow::ensure!(at > now, "{text} is no time to come: the token would never be good");
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_one_or_a_number_of_days_or_hours() {
        let now: Timestamp = "2026-07-29T12:00:00Z".parse().unwrap();
        let of = |text| time(text, now).map(|at| at.to_string()).unwrap_or_default();
        assert_eq!(of("30d"), "2026-08-28T12:00:00Z");
        assert_eq!(of("12h"), "2026-07-30T00:00:00Z");
        assert_eq!(of("2027-01-31T00:00:00Z"), "2027-01-31T00:00:00Z");
        for wrong in ["", "d", "soon", "30", "99999999999d", "2147483647d"] {
            assert_eq!(of(wrong), "", "{wrong}");
        }
        for over in ["-5d", "-1h", "0h", "2026-07-29T12:00:00Z", "2025-07-29T12:00:00Z"] {
            assert_eq!(of(over), "", "{over}");
        }
    }
}
