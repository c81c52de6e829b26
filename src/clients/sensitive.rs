//! Text that must not be seen.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// A secret: a token, a key, or a text that holds one. It shows itself to nobody who does not ask
/// for it by name, and is serialised only into the request it is meant for.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Sensitive(String);

impl Sensitive {
    /// What is shown in its place.
    pub const MASK: &'static str = "[secret]";

    /// Takes a text for a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::MASK)
    }
}

impl Serialize for Sensitive {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_in_its_debug_form() {
        let secret = Sensitive::new("hunter2");
        assert_eq!(format!("{secret:?}"), Sensitive::MASK);
        assert_eq!(secret.expose(), "hunter2");
    }
}
