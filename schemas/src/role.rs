//! Roles and rights, in the words that events, tokens and pages use.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What somebody is here for; what each role may do stands in one matrix, `domain::access`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees how things stand.
    Viewer,
    /// Changes jobs, agents, nodes and the queue.
    Operator,
    /// Checks the log, and changes nothing.
    Auditor,
    /// May do everything, and says who else may do what.
    Admin,
}

/// One thing that a route, a form or a stream asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Read how agents, jobs, nodes and the queue stand, and what runs print.
    See,
    /// Read the events of the log as they were recorded.
    Events,
    /// Read proofs, exports and who may do what; check the log.
    Audit,
    /// Change jobs, agents, nodes and the queue.
    Operate,
    /// Change accounts, tokens and sessions, projections, retention and privacy.
    Administer,
}

/// A word that names no role, or no right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownWord;

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing has this name")
    }
}

impl std::error::Error for UnknownWord {}

macro_rules! words {
    ($name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $name {
            /// Every one there is, the least first.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word in events, in JSON and on pages.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text { $($word => Ok(Self::$variant),)+ _ => Err(UnknownWord) }
            }
        }
    };
}

words! { Role { Viewer = "viewer", Operator = "operator", Auditor = "auditor", Admin = "admin" } }
words! {
    Right {
        See = "see",
        Events = "events",
        Audit = "audit",
        Operate = "operate",
        Administer = "administer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_json_and_read_back() {
        for role in Role::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
            assert_eq!(role.as_str().parse(), Ok(*role));
        }
        for right in Right::ALL {
            assert_eq!(serde_json::to_value(right).unwrap(), right.as_str());
            assert_eq!(right.as_str().parse(), Ok(*right));
        }
        assert_eq!("root".parse::<Role>(), Err(UnknownWord));
    }
}
