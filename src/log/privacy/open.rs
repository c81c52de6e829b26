//! Opening: each sealed text within some bytes gives way to what it says.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use milepost_schemas::StreamId;

use super::token::{Token, tokens};
use super::{Keys, Known, store};
use crate::log::DatabaseError;

/// What stands where a text was whose key is destroyed.
pub const ERASED: &str = "[erased]";

/// What stands where a text is that cannot be opened here.
pub const SEALED: &str = "[sealed]";

/// What the bytes around a text are, so that it is written as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// Plain text.
    Text,
    /// Within a string of JSON.
    Json,
    /// Within HTML, an attribute's value included.
    Html,
}

/// The keys that some bytes need. It is made for these bytes and dropped with them: whoever keeps
/// what it opened asks [`Keys::generation`] before showing it again.
#[derive(Default)]
pub struct Opener(HashMap<StreamId, Known>);

impl Keys {
    /// The keys of all sealed texts within some bytes.
    ///
    /// # Errors
    /// [`DatabaseError`] when those that are not in memory cannot be read.
    pub async fn opener<'a>(
        &self,
        texts: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Opener, DatabaseError> {
        let wanted: BTreeSet<StreamId> =
            texts.into_iter().flat_map(tokens).map(|token| token.subject).collect();
        if wanted.is_empty() {
            return Ok(Opener::default());
        }
        let (mut known, generation) = self.cached(&wanted);
        let missing: Vec<StreamId> =
            wanted.into_iter().filter(|subject| !known.contains_key(subject)).collect();
        if !missing.is_empty() {
            let loaded = store::load(&self.database, &missing).await?;
            let loaded: Vec<_> = loaded
                .into_iter()
                .map(|(subject, wrapped)| (subject, self.unwrapped(subject, wrapped.as_deref())))
                .collect();
            self.remember(loaded.iter().cloned(), generation);
            known.extend(loaded);
        }
        Ok(Opener(known))
    }

    /// Opens the sealed texts within some bytes.
    ///
    /// # Errors
    /// As [`Self::opener`].
    pub async fn open(&self, bytes: Bytes, escape: Escape) -> Result<Bytes, DatabaseError> {
        let opener = self.opener([&*bytes]).await?;
        let opened = match opener.open(&bytes, escape) {
            Cow::Borrowed(_) => None,
            Cow::Owned(opened) => Some(opened),
        };
        Ok(opened.map_or(bytes, Bytes::from))
    }

    /// Opens the sealed texts within a text.
    ///
    /// # Errors
    /// As [`Self::opener`].
    pub async fn open_text(&self, text: &str) -> Result<String, DatabaseError> {
        Ok(self.opener([text.as_bytes()]).await?.text(text).into_owned())
    }

    fn cached(&self, wanted: &BTreeSet<StreamId>) -> (HashMap<StreamId, Known>, u64) {
        let mut cache = self.lock();
        let known = |subject: &StreamId| Some((*subject, cache.known.get(subject)?.clone()));
        (wanted.iter().filter_map(known).collect(), cache.generation)
    }
}

impl Opener {
    /// The bytes with each sealed text opened. What comes out is not looked at again.
    pub fn open<'a>(&self, bytes: &'a [u8], escape: Escape) -> Cow<'a, [u8]> {
        let mut opened = Vec::new();
        let mut rest = 0;
        for token in tokens(bytes) {
            opened.extend_from_slice(&bytes[rest..token.start]);
            write_escaped(&mut opened, &self.said(&token), escape);
            rest = token.end;
        }
        if rest == 0 {
            return Cow::Borrowed(bytes);
        }
        opened.extend_from_slice(&bytes[rest..]);
        Cow::Owned(opened)
    }

    /// The text with each sealed one inside it opened.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.open(text.as_bytes(), Escape::Text) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(opened) => String::from_utf8_lossy(&opened).into_owned().into(),
        }
    }

    fn said(&self, token: &Token<'_>) -> Cow<'static, str> {
        match self.0.get(&token.subject) {
            Some(Known::Key(key)) => key.open(token).map_or(SEALED.into(), Cow::Owned),
            Some(Known::Erased) => ERASED.into(),
            Some(Known::Locked) | None => SEALED.into(),
        }
    }
}

fn write_escaped(out: &mut Vec<u8>, text: &str, escape: Escape) {
    match escape {
        Escape::Text => out.extend_from_slice(text.as_bytes()),
        Escape::Json => {
            let quoted = serde_json::to_string(text).expect("a text is plain data");
            out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
        }
        Escape::Html => {
            for letter in text.chars() {
                match letter {
                    '&' => out.extend_from_slice(b"&#38;"),
                    '<' => out.extend_from_slice(b"&#60;"),
                    '>' => out.extend_from_slice(b"&#62;"),
                    '"' => out.extend_from_slice(b"&#34;"),
                    '\'' => out.extend_from_slice(b"&#39;"),
                    other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::super::token::DataKey;
    use super::*;

    fn subject(number: u128) -> StreamId {
        StreamId(Uuid::from_u128(number))
    }

    fn key(number: u128) -> DataKey {
        DataKey::new(subject(number), [7; 32])
    }

    fn opener() -> Opener {
        let key = Known::Key(Arc::new(key(1)));
        Opener(HashMap::from([(subject(1), key), (subject(2), Known::Erased)]))
    }

    proptest! {
        #[test]
        fn a_text_opens_within_json_to_what_it_was(text in any::<String>()) {
            let stored = serde_json::json!({"a": key(1).seal(&text), "b": [1, "x"]}).to_string();
            let opened = opener().open(stored.as_bytes(), Escape::Json).into_owned();
            let opened: serde_json::Value = serde_json::from_slice(&opened).unwrap();
            prop_assert_eq!(opened, serde_json::json!({"a": text, "b": [1, "x"]}));
        }

        #[test]
        fn nothing_that_is_opened_within_html_is_markup(text in any::<String>()) {
            let page = format!("<p title=\"{}\">", key(1).seal(&text));
            let opened = opener().open(page.as_bytes(), Escape::Html).into_owned();
            let opened = String::from_utf8(opened).unwrap();
            let inside = &opened["<p title=\"".len()..opened.len() - "\">".len()];
            prop_assert!(!inside.contains(['<', '>', '"', '\'']));
        }
    }

    #[test]
    fn what_is_erased_and_what_cannot_be_opened_say_so() {
        let (erased, unknown) = (key(2).seal("Ada"), key(3).seal("Ada"));
        let text = format!("{erased} {unknown} plain");
        assert_eq!(opener().text(&text), "[erased] [sealed] plain");
        // Sealed under a key of the same subject that is not this one.
        let other = DataKey::new(subject(1), [8; 32]).seal("Ada");
        assert_eq!(opener().text(&other), SEALED);
    }

    #[test]
    fn what_comes_out_is_not_opened_again() {
        let inner = key(1).seal("Ada");
        let outer = key(1).seal(&inner);
        assert_eq!(opener().text(&outer), inner);
    }

    #[test]
    fn bytes_without_a_sealed_text_are_not_copied() {
        let plain = b"mp1. is no sealed text";
        assert!(matches!(opener().open(plain, Escape::Json), Cow::Borrowed(_)));
    }
}
