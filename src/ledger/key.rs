//! The keys that checkpoints are signed with: in a file of the machine that seals, never in the
//! database, where whoever tampers with the log would find them.
//!
//! The file holds PKCS#8 keys in PEM, as `openssl genpkey -algorithm ed25519` makes them; the last
//! one signs. Beside it stands the last checkpoint that was signed, which is what this machine knows
//! when the database has been set back, and the epoch that may follow it: whoever changes the database
//! cannot agree to one.

use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use milepost_schemas::Position;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;

use super::durable::write_private;
use super::note::{Checkpoint, Note, PUBLIC_KEY_BYTES, VerifierKey, signature_line};
use crate::log::Signed;

/// Characters of a line of PEM.
const PEM_LINE: usize = 64;

/// A key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read or written.
    #[error("{0} cannot be read or written")]
    Io(PathBuf, #[source] std::io::Error),
    /// The file is something else.
    #[error("{0} holds no Ed25519 keys in PKCS#8")]
    NoKey(PathBuf),
    /// The file is to hold the number of an epoch.
    #[error("{0} holds no epoch")]
    NoEpoch(PathBuf),
    /// The system gives no randomness.
    #[error("no key can be made")]
    Generate,
}

/// A private key.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// A new one.
    ///
    /// # Errors
    /// [`KeyFileError::Generate`].
    pub fn generate() -> Result<Self, KeyFileError> {
        Ed25519KeyPair::generate().map(Self).map_err(|_| KeyFileError::Generate)
    }

    /// Its public half.
    pub fn public(&self) -> [u8; PUBLIC_KEY_BYTES] {
        let public = self.0.public_key().as_ref();
        public.try_into().expect("an Ed25519 public key has 32 bytes")
    }

    /// Its public half, under the name it signs as.
    pub fn verifier(&self, name: &str) -> VerifierKey {
        VerifierKey { name: name.to_owned(), public: self.public() }
    }

    /// The signature of a text.
    pub fn signature(&self, text: &[u8]) -> Vec<u8> {
        self.0.sign(text).as_ref().to_vec()
    }

    /// The signed note of a checkpoint.
    pub fn sign(&self, checkpoint: &Checkpoint) -> String {
        signed(checkpoint, &[self])
    }

    fn pem(&self) -> Result<String, KeyFileError> {
        let der = self.0.to_pkcs8v1().map_err(|_| KeyFileError::Generate)?;
        let encoded = STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = encoded
            .as_bytes()
            .chunks(PEM_LINE)
            .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
            .collect();
        Ok(format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            lines.join("\n")
        ))
    }
}

/// The note of a checkpoint that each of these keys has signed.
pub fn signed(checkpoint: &Checkpoint, keys: &[&SigningKey]) -> String {
    let text = checkpoint.text();
    let lines = keys.iter().map(|key| {
        signature_line(&key.verifier(&checkpoint.origin), &key.signature(text.as_bytes()))
    });
    let lines: String = lines.collect();
    format!("{text}\n{lines}")
}

/// The file of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// The file at a path, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys, of which the last one signs; none where there is no file yet.
    ///
    /// # Errors
    /// [`KeyFileError`] where it holds anything but keys.
    pub fn read(&self) -> Result<Vec<SigningKey>, KeyFileError> {
        let Some(pem) = read_if_there(&self.path)? else { return Ok(Vec::new()) };
        let keys: Option<Vec<SigningKey>> = PrivatePkcs8KeyDer::pem_slice_iter(&pem)
            .map(|der| {
                let pair = Ed25519KeyPair::from_pkcs8(der.ok()?.secret_pkcs8_der()).ok()?;
                Some(SigningKey(pair))
            })
            .collect();
        keys.filter(|keys| !keys.is_empty()).ok_or_else(|| KeyFileError::NoKey(self.path.clone()))
    }

    /// Makes a key and puts it behind those that are there: from now on it signs.
    ///
    /// # Errors
    /// [`KeyFileError`]; the file is as it was then.
    pub fn add(&self) -> Result<SigningKey, KeyFileError> {
        let key = SigningKey::generate()?;
        let mut pem = read_if_there(&self.path)?.unwrap_or_default();
        pem.extend_from_slice(key.pem()?.as_bytes());
        write(&self.path, &pem)?;
        Ok(key)
    }

    /// The note of the last checkpoint that this machine signed, or knows of.
    ///
    /// # Errors
    /// [`KeyFileError::Io`].
    pub fn last_note(&self) -> Result<Option<String>, KeyFileError> {
        let note = read_if_there(&self.note_path())?;
        Ok(note.map(|note| String::from_utf8_lossy(&note).into_owned()))
    }

    /// How far this machine has signed the log, as that note says it; none where it does not, which
    /// whoever seals refuses.
    ///
    /// # Errors
    /// [`KeyFileError::Io`].
    pub fn signed(&self) -> Result<Option<Signed>, KeyFileError> {
        let note = self.last_note()?;
        let checkpoint = note.and_then(|note| Note::parse(&note).ok()?.checkpoint().ok());
        Ok(checkpoint.and_then(|it| Some(Signed { epoch: it.epoch()?, size: Position(it.size) })))
    }

    /// Keeps the note of the last checkpoint.
    ///
    /// # Errors
    /// [`KeyFileError::Io`].
    pub fn keep_note(&self, note: &str) -> Result<(), KeyFileError> {
        write(&self.note_path(), note.as_bytes())
    }

    /// Where the last checkpoint is.
    pub fn note_path(&self) -> PathBuf {
        self.path.with_extension("checkpoint")
    }

    /// The epoch that was begun on this machine, or agreed to here; none where none was.
    ///
    /// # Errors
    /// [`KeyFileError`] where it cannot be read, or holds no number.
    pub fn agreed_epoch(&self) -> Result<Option<i64>, KeyFileError> {
        let path = self.epoch_path();
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        let epoch = str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        epoch.map(Some).ok_or(KeyFileError::NoEpoch(path))
    }

    /// Agrees to an epoch: the checkpoint that was signed last may be followed by one of it.
    ///
    /// # Errors
    /// [`KeyFileError::Io`].
    pub fn agree(&self, epoch: i64) -> Result<(), KeyFileError> {
        write(&self.epoch_path(), format!("{epoch}\n").as_bytes())
    }

    /// Where that epoch is.
    pub fn epoch_path(&self) -> PathBuf {
        self.path.with_extension("epoch")
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, KeyFileError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KeyFileError::Io(path.to_owned(), error)),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), KeyFileError> {
    write_private(path, bytes).map_err(|error| KeyFileError::Io(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_kept_for_their_owner_only_and_the_last_one_signs() {
        let directory = tempfile::tempdir().unwrap();
        let file = KeyFile::new(directory.path().join("seal-key.pem"));
        assert!(file.read().unwrap().is_empty());
        let first = file.add().unwrap();
        let second = file.add().unwrap();
        let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let read: Vec<_> = file.read().unwrap().iter().map(SigningKey::public).collect();
        assert_eq!(read, [first.public(), second.public()]);
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = KeyFile::new(directory.path().join("seal-key.pem"));
        for text in ["", "hello", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
        {
            std::fs::write(file.path(), text).unwrap();
            assert!(matches!(file.read(), Err(KeyFileError::NoKey(_))), "{text}");
        }
    }

    #[test]
    fn the_last_checkpoint_is_kept_beside_the_keys() {
        let directory = tempfile::tempdir().unwrap();
        let file = KeyFile::new(directory.path().join("seal-key.pem"));
        assert_eq!(file.last_note().unwrap(), None);
        file.keep_note("a note").unwrap();
        assert_eq!(file.last_note().unwrap().as_deref(), Some("a note"));
        assert_eq!(file.note_path(), directory.path().join("seal-key.checkpoint"));
    }
}
