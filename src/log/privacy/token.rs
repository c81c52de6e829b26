//! A sealed text: `mp1.<subject, 32 hex digits>.<base64url of nonce, ciphertext and tag>.`
//!
//! No character of it means anything to JSON or HTML, so that it passes through both unchanged, and
//! its last dot ends it whatever stands behind. AES-256-GCM with a fresh random nonce; what is
//! authenticated beside the text is whose it is.

use std::sync::LazyLock;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use memchr::memmem::Finder;
use milepost_schemas::StreamId;
use uuid::Uuid;

/// What every sealed text begins with.
const PREFIX: &str = "mp1.";

/// What takes its place in a text that came from outside: nobody brings in a sealed text.
const DEFUSED: &str = "mp1:";

/// Hexadecimal digits of a subject.
const SUBJECT_DIGITS: usize = 32;

/// Bytes of a subject's key.
pub const DATA_KEY_BYTES: usize = 32;

static BEGINNING: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(PREFIX));

/// A sealed text within another one.
pub(super) struct Token<'a> {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) subject: StreamId,
    encoded: &'a [u8],
}

/// The sealed texts within a text, in order.
pub(super) fn tokens(text: &[u8]) -> impl Iterator<Item = Token<'_>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let start = from + BEGINNING.find(text.get(from..)?)?;
            from = start + PREFIX.len();
            if let Some(token) = token_at(text, start) {
                from = token.end;
                return Some(token);
            }
        }
    })
}

fn token_at(text: &[u8], start: usize) -> Option<Token<'_>> {
    let rest = &text[start + PREFIX.len()..];
    let (digits, rest) = rest.split_at_checked(SUBJECT_DIGITS)?;
    let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    let rest = rest.strip_prefix(b".").filter(|_| digits.iter().all(is_digit))?;
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let length = rest.iter().take_while(|byte| is_base64(byte)).count();
    let ended = length > 0 && rest.get(length) == Some(&b'.');
    let subject = Uuid::try_parse_ascii(digits).ok().filter(|_| ended)?;
    let before = PREFIX.len() + SUBJECT_DIGITS + 1;
    let end = start + before + length + 1;
    Some(Token { start, end, subject: StreamId(subject), encoded: &rest[..length] })
}

/// Whether a text has a sealed one inside it.
pub fn has_token(text: &[u8]) -> bool {
    tokens(text).next().is_some()
}

/// The text with the beginning of each sealed one inside it changed, so that it opens nowhere.
pub fn defuse(text: &str) -> String {
    text.replace(PREFIX, DEFUSED)
}

/// The key of one subject.
pub struct DataKey {
    subject: StreamId,
    secret: [u8; DATA_KEY_BYTES],
    key: RandomizedNonceKey,
}

impl DataKey {
    /// The key of a subject with these bytes.
    pub fn new(subject: StreamId, secret: [u8; DATA_KEY_BYTES]) -> Self {
        let key = RandomizedNonceKey::new(&AES_256_GCM, &secret);
        Self { subject, secret, key: key.expect("the key has the length of its algorithm") }
    }

    /// Bytes for a new key.
    pub fn random() -> [u8; DATA_KEY_BYTES] {
        let mut secret = [0; DATA_KEY_BYTES];
        aws_lc_rs::rand::fill(&mut secret).expect("the system has randomness");
        secret
    }

    /// Seals a text.
    pub fn seal(&self, text: &str) -> String {
        let mut sealed = text.as_bytes().to_vec();
        let nonce = self.key.seal_in_place_append_tag(self.bound(), &mut sealed);
        let nonce = nonce.expect("a text is far shorter than what a nonce is good for");
        sealed.splice(0..0, nonce.as_ref().iter().copied());
        let mut token = String::with_capacity(sealed.len() * 4 / 3 + 48);
        token.push_str(PREFIX);
        token.push_str(&self.subject.0.simple().to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(sealed, &mut token);
        token.push('.');
        token
    }

    /// Opens a sealed text; `None` where it was sealed under another key, or is none.
    pub(super) fn open(&self, token: &Token<'_>) -> Option<String> {
        let mut sealed = URL_SAFE_NO_PAD.decode(token.encoded).ok()?;
        let (nonce, text) = sealed.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let text = self.key.open_in_place(nonce, self.bound(), text).ok()?;
        String::from_utf8(text.to_vec()).ok()
    }

    /// A stream named after a text, by a keyed hash of it.
    pub(super) fn name(&self, text: &str) -> StreamId {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let tag = hmac::sign(&key, text.as_bytes());
        let bytes = tag.as_ref()[..16].try_into().expect("the tag has 32 bytes");
        StreamId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// Whose text it is goes with it: it opens as nobody else's.
    fn bound(&self) -> Aad<[u8; 16]> {
        Aad::from(self.subject.0.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(subject: u128) -> DataKey {
        DataKey::new(StreamId(Uuid::from_u128(subject)), [7; DATA_KEY_BYTES])
    }

    fn open(key: &DataKey, token: &str) -> Option<String> {
        let found: Vec<_> = tokens(token.as_bytes()).collect();
        assert_eq!(found.len(), 1, "{token}");
        assert_eq!((found[0].start, found[0].end), (0, token.len()));
        key.open(&found[0])
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_to_what_it_was(text in any::<String>()) {
            let key = key(1);
            let token = key.seal(&text);
            prop_assert_eq!(open(&key, &token), Some(text.clone()));
            prop_assert_ne!(key.seal(&text), token.clone(), "a nonce was used twice");
            // It passes through JSON and HTML as it is.
            prop_assert_eq!(serde_json::to_string(&token).unwrap(), format!("\"{token}\""));
            prop_assert!(!token.contains(['<', '>', '&', '"', '\'']));
        }

        #[test]
        fn a_text_is_found_wherever_it_stands(before in "[a-z1.]{0,9}", after in "[a-z1.-]{0,9}") {
            let token = key(1).seal("Ada");
            let text = format!("{before}{token}{after}");
            let found: Vec<_> = tokens(text.as_bytes()).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(&text[found[0].start..found[0].end], token);
        }

        #[test]
        fn nothing_opens_that_was_changed(at in any::<prop::sample::Index>(), bit in 0..6_u8) {
            let token = key(1).seal("Ada");
            let mut bytes = token.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // Another spelling of the same bytes: the last digit carries bits that count for nothing.
            let same = |found: &Token<'_>| {
                URL_SAFE_NO_PAD.decode(found.encoded).ok()
                    == tokens(token.as_bytes()).next().and_then(|it| {
                        URL_SAFE_NO_PAD.decode(it.encoded).ok()
                    })
            };
            for found in tokens(&bytes) {
                let whose = found.subject == StreamId(Uuid::from_u128(1));
                prop_assert!(!whose || key(1).open(&found).is_none() || same(&found));
            }
        }
    }

    #[test]
    fn a_text_opens_as_nobody_else_s() {
        // The same bytes of a key, and another subject.
        assert_eq!(open(&key(2), &key(1).seal("Ada")), None);
        let moved = key(1).seal("Ada").replacen("01.", "02.", 1);
        assert_eq!(open(&key(2), &moved), None);
    }

    #[test]
    fn what_only_looks_like_a_sealed_text_is_left_alone() {
        let digits = "0".repeat(SUBJECT_DIGITS);
        for text in [
            "mp1.",
            "mp1.mp1.mp1.",
            &format!("mp1.{digits}"),
            &format!("mp1.{digits}."),
            &format!("mp1.{digits}.."),
            &format!("mp1.{digits}.AAAA"),
            &format!("mp1.{}.AAAA.", "A".repeat(SUBJECT_DIGITS)),
            &format!("mp1.{digits}+AAAA."),
        ] {
            assert!(!has_token(text.as_bytes()), "{text}");
        }
        assert!(has_token(format!("mp1.mp1.{digits}.AAAA.").as_bytes()));
    }

    #[test]
    fn a_defused_text_opens_nowhere() {
        let token = key(1).seal("Ada");
        let defused = defuse(&format!("x{token}{token}"));
        assert!(!has_token(defused.as_bytes()), "{defused}");
        assert_eq!(defuse("mp1.mp1."), "mp1:mp1:");
    }

    #[test]
    fn an_address_has_one_stream_for_each_key() {
        let other = DataKey::new(StreamId(Uuid::from_u128(1)), [8; DATA_KEY_BYTES]);
        assert_eq!(key(1).name("192.0.2.1"), key(2).name("192.0.2.1"));
        assert_ne!(key(1).name("192.0.2.1"), key(1).name("192.0.2.2"));
        assert_ne!(key(1).name("192.0.2.1"), other.name("192.0.2.1"));
    }
}
