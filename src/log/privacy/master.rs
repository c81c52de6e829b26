//! The master keys: they wrap the keys of subjects and stand in the settings, never in the database.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use milepost_schemas::StreamId;

use super::KeyError;
use super::token::{DATA_KEY_BYTES, DataKey};

/// Bytes of a master key.
pub const MASTER_KEY_BYTES: usize = 32;

/// What a wrapped key is bound to, beside its subject.
const PURPOSE: &[u8] = b"milepost data key ";

/// A master key.
pub struct MasterKey(RandomizedNonceKey);

impl MasterKey {
    /// Reads a key as it stands in the settings: base64 of 32 bytes.
    ///
    /// # Errors
    /// In words, which do not repeat the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bytes = STANDARD.decode(text.trim()).unwrap_or_default();
        if bytes.len() != MASTER_KEY_BYTES {
            return Err(format!("a key is base64 of {MASTER_KEY_BYTES} bytes"));
        }
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes);
        Ok(Self(key.expect("the key has the length of its algorithm")))
    }

    /// A fresh one, as it stands in the settings.
    pub fn random() -> String {
        STANDARD.encode(DataKey::random())
    }
}

/// The master keys in force: the first one wraps, each unwraps.
#[derive(Default)]
pub struct MasterKeys(Vec<MasterKey>);

impl fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} master keys", self.0.len())
    }
}

impl MasterKeys {
    /// Reads the keys as they stand in the settings.
    ///
    /// # Errors
    /// As [`MasterKey::parse`].
    pub fn parse(keys: &[String]) -> Result<Self, String> {
        keys.iter().map(|key| MasterKey::parse(key)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Wraps the key of a subject under the first master key.
    ///
    /// # Errors
    /// [`KeyError::NoMaster`].
    pub fn wrap(
        &self,
        subject: StreamId,
        secret: &[u8; DATA_KEY_BYTES],
    ) -> Result<Vec<u8>, KeyError> {
        let master = self.0.first().ok_or(KeyError::NoMaster)?;
        let mut wrapped = secret.to_vec();
        let nonce = master.0.seal_in_place_append_tag(bound(subject), &mut wrapped);
        let nonce = nonce.expect("a key is far shorter than what a nonce is good for");
        wrapped.splice(0..0, nonce.as_ref().iter().copied());
        Ok(wrapped)
    }

    /// Unwraps the key of a subject; `None` where no master key given wrapped it.
    pub fn unwrap(&self, subject: StreamId, wrapped: &[u8]) -> Option<DataKey> {
        let secret = self.0.iter().find_map(|master| unwrap(master, subject, wrapped))?;
        Some(DataKey::new(subject, secret))
    }

    /// The same key wrapped under the first master key; `None` where it is already.
    ///
    /// # Errors
    /// [`KeyError`] where no master key given unwraps it.
    pub fn rewrap(&self, subject: StreamId, wrapped: &[u8]) -> Result<Option<Vec<u8>>, KeyError> {
        let first = self.0.first().ok_or(KeyError::NoMaster)?;
        if unwrap(first, subject, wrapped).is_some() {
            return Ok(None);
        }
        let secret = self.0.iter().find_map(|master| unwrap(master, subject, wrapped));
        self.wrap(subject, &secret.ok_or(KeyError::Locked(subject))?).map(Some)
    }
}

fn unwrap(master: &MasterKey, subject: StreamId, wrapped: &[u8]) -> Option<[u8; DATA_KEY_BYTES]> {
    let (nonce, sealed) = wrapped.split_at_checked(NONCE_LEN)?;
    let mut sealed = sealed.to_vec();
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let secret = master.0.open_in_place(nonce, bound(subject), &mut sealed).ok()?;
    (&*secret).try_into().ok()
}

fn bound(subject: StreamId) -> Aad<Vec<u8>> {
    Aad::from([PURPOSE, subject.0.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const SUBJECT: StreamId = StreamId(Uuid::from_u128(1));

    fn keys(fill: &[u8]) -> MasterKeys {
        let text: Vec<_> = fill.iter().map(|it| STANDARD.encode([*it; MASTER_KEY_BYTES])).collect();
        MasterKeys::parse(&text).unwrap()
    }

    #[test]
    fn the_first_key_wraps_and_each_unwraps() {
        let wrapped = keys(&[1]).wrap(SUBJECT, &[9; 32]).unwrap();
        assert!(keys(&[2, 1]).unwrap(SUBJECT, &wrapped).is_some());
        assert!(keys(&[2]).unwrap(SUBJECT, &wrapped).is_none());
        assert!(keys(&[1]).unwrap(StreamId(Uuid::from_u128(2)), &wrapped).is_none());
        assert!(matches!(keys(&[]).wrap(SUBJECT, &[9; 32]), Err(KeyError::NoMaster)));
    }

    #[test]
    fn a_key_that_was_wrapped_anew_needs_the_old_master_no_more() {
        let old = keys(&[1]).wrap(SUBJECT, &[9; 32]).unwrap();
        let new = keys(&[2, 1]).rewrap(SUBJECT, &old).unwrap().unwrap();
        let token = keys(&[1]).unwrap(SUBJECT, &old).unwrap().seal("Ada");
        let key = keys(&[2]).unwrap(SUBJECT, &new).unwrap();
        let found = super::super::token::tokens(token.as_bytes()).next().unwrap();
        assert_eq!(key.open(&found).as_deref(), Some("Ada"));
        assert!(keys(&[2, 1]).rewrap(SUBJECT, &new).unwrap().is_none());
        assert!(matches!(keys(&[3]).rewrap(SUBJECT, &new), Err(KeyError::Locked(_))));
    }

    #[test]
    fn a_key_that_is_none_is_refused_without_being_repeated() {
        for text in ["", "hunter2", "aHVudGVyMg==", &STANDARD.encode([0; 31])] {
            let error = MasterKey::parse(text).map(|_| ()).unwrap_err();
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        assert!(MasterKey::parse(&MasterKey::random()).is_ok());
    }
}
