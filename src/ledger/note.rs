//! Signed checkpoints: C2SP tlog-checkpoint in a C2SP signed-note, signed with Ed25519.
//!
//! ```text
//! milepost.example.com/log/1764000000     the origin, whose last part is the epoch
//! 4711                                    the size of the tree
//! 3q2+7w…=                                its root, base64
//!
//! — milepost.example.com/log/1764000000 S0meBase64…
//! ```

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::hash::{HASH_BYTES, Hash};

/// The largest note that is read, in bytes: one with a hundred signatures has less.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;

/// Signatures of a note that are looked at: the log's own, and those of witnesses.
pub const SIGNATURES_MAX: usize = 100;

/// The signature type of Ed25519 in a verifier key. Source: C2SP signed-note.
const ED25519_TYPE: u8 = 0x01;

/// Bytes of an Ed25519 public key.
pub const PUBLIC_KEY_BYTES: usize = 32;

/// Bytes of a key's id.
const KEY_ID_BYTES: usize = 4;

/// What begins the line of a signature.
const SIGNATURE_LINE: &str = "\u{2014} ";

/// What a note says: a tree of this size has this root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log, in which epoch.
    pub origin: String,
    /// How many leaves.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
}

/// Why a note is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It is no signed note.
    #[error("this is no signed note: {0}")]
    Note(&'static str),
    /// It is a signed note, and no checkpoint.
    #[error("this is no checkpoint: {0}")]
    Checkpoint(&'static str),
    /// A key that is known did not sign it, though it says so.
    #[error("the signature is wrong: the note was altered, or another key signed it")]
    Signature,
    /// No key that is known signed it.
    #[error("no known key signed it")]
    Unsigned,
}

/// A text that is no verifier key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no verifier key of the form <name>+<key id>+<base64>")]
pub struct KeyError;

/// A public key with the name it signs under; in text as C2SP has it: `<name>+<key id>+<base64>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    /// The name; for a log its origin.
    pub name: String,
    /// The key.
    pub public: [u8; PUBLIC_KEY_BYTES],
}

impl VerifierKey {
    /// The first bytes of SHA-256 over name and key: which key a signature says it is of.
    pub fn id(&self) -> [u8; KEY_ID_BYTES] {
        let hash = Sha256::new()
            .chain_update(&self.name)
            .chain_update([b'\n', ED25519_TYPE])
            .chain_update(self.public)
            .finalize();
        [hash[0], hash[1], hash[2], hash[3]]
    }

    /// Whether this key signed a text.
    pub fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.public).verify(text, signature).is_ok()
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = [&[ED25519_TYPE][..], &self.public].concat();
        write!(f, "{}+{}+{}", self.name, hex::encode(self.id()), STANDARD.encode(typed))
    }
}

impl FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(encoded)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(KeyError);
        };
        let typed = STANDARD.decode(encoded).map_err(|_| KeyError)?;
        let public = typed.strip_prefix(&[ED25519_TYPE]).and_then(|key| key.try_into().ok());
        let key = Self { name: name.to_owned(), public: public.ok_or(KeyError)? };
        let whole = is_name(name) && hex::encode(key.id()) == id;
        whole.then_some(key).ok_or(KeyError)
    }
}

/// A name may stand in a line of its own beside other words.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|it: char| it.is_whitespace() || it == '+')
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root.0))
    }

    /// The epoch that its origin names.
    pub fn epoch(&self) -> Option<i64> {
        self.origin.rsplit_once('/')?.1.parse().ok()
    }

    fn parse(text: &str) -> Result<Self, NoteError> {
        let wrong = NoteError::Checkpoint;
        let mut lines = text.strip_suffix('\n').ok_or(wrong("it ends early"))?.split('\n');
        let origin = lines.next().filter(|origin| !origin.is_empty());
        let origin = origin.ok_or(wrong("it names no origin"))?;
        let size = lines.next().unwrap_or_default();
        let number: Option<u64> = size.parse().ok();
        // The one way to write a number: no sign, no leading zero.
        let number = number.filter(|number| number.to_string() == size);
        let root = lines.next().and_then(|root| STANDARD.decode(root).ok());
        let root: Option<[u8; HASH_BYTES]> = root.and_then(|root| root.try_into().ok());
        if lines.any(str::is_empty) {
            return Err(wrong("it has an empty line"));
        }
        Ok(Self {
            origin: origin.to_owned(),
            size: number.ok_or(wrong("it has no size"))?,
            root: Hash(root.ok_or(wrong("it has no root"))?),
        })
    }
}

/// A note: a text, and who signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note<'a> {
    text: &'a str,
    signatures: Vec<Signature<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature<'a> {
    name: &'a str,
    id: [u8; KEY_ID_BYTES],
    bytes: Vec<u8>,
}

impl<'a> Note<'a> {
    /// Takes a note apart.
    ///
    /// # Errors
    /// [`NoteError::Note`] for what is none.
    pub fn parse(note: &'a str) -> Result<Self, NoteError> {
        let wrong = NoteError::Note;
        if note.len() > NOTE_BYTES_MAX || note.contains(|it: char| it.is_control() && it != '\n') {
            return Err(wrong("it is too long, or holds control characters"));
        }
        let split = note.rfind("\n\n").ok_or(wrong("it has no signatures"))?;
        let (text, signatures) = (&note[..=split], &note[split + 2..]);
        let signatures = signatures.strip_suffix('\n').ok_or(wrong("it ends early"))?;
        let signatures: Vec<_> = signatures
            .split('\n')
            .take(SIGNATURES_MAX + 1)
            .map(Signature::parse)
            .collect::<Option<_>>()
            .ok_or(wrong("a line is no signature"))?;
        if signatures.len() > SIGNATURES_MAX {
            return Err(wrong("it has too many signatures"));
        }
        Ok(Self { text, signatures })
    }

    /// Which of these keys signed it. What signed beside them is nobody's business.
    ///
    /// # Errors
    /// [`NoteError::Signature`] where one of them did not, though the note says so, and
    /// [`NoteError::Unsigned`] where none did.
    pub fn signers<'k>(&self, keys: &'k [VerifierKey]) -> Result<Vec<&'k VerifierKey>, NoteError> {
        let mut signers = Vec::new();
        for key in keys {
            let id = key.id();
            let says = |it: &&Signature<'_>| it.name == key.name && it.id == id;
            let Some(signature) = self.signatures.iter().find(says) else { continue };
            if !key.verifies(self.text.as_bytes(), &signature.bytes) {
                return Err(NoteError::Signature);
            }
            signers.push(key);
        }
        if signers.is_empty() { Err(NoteError::Unsigned) } else { Ok(signers) }
    }

    /// What it says, whoever signed it.
    ///
    /// # Errors
    /// [`NoteError::Checkpoint`] where it is none.
    pub fn checkpoint(&self) -> Result<Checkpoint, NoteError> {
        Checkpoint::parse(self.text)
    }
}

impl<'a> Signature<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (name, encoded) = line.strip_prefix(SIGNATURE_LINE)?.split_once(' ')?;
        let bytes = STANDARD.decode(encoded).ok()?;
        let (id, bytes) = bytes.split_first_chunk::<KEY_ID_BYTES>()?;
        (is_name(name) && !bytes.is_empty()).then(|| Self { name, id: *id, bytes: bytes.to_vec() })
    }
}

/// Reads a signed checkpoint; one of the keys must have signed it under its origin.
///
/// # Errors
/// [`NoteError`].
pub fn open(note: &str, keys: &[VerifierKey]) -> Result<Checkpoint, NoteError> {
    let note = Note::parse(note)?;
    let checkpoint = note.checkpoint()?;
    let signers = note.signers(keys)?;
    let own = signers.iter().any(|key| key.name == checkpoint.origin);
    own.then_some(checkpoint).ok_or(NoteError::Unsigned)
}

/// The line of a signature.
pub fn signature_line(key: &VerifierKey, signature: &[u8]) -> String {
    let bytes = [&key.id()[..], signature].concat();
    format!("{SIGNATURE_LINE}{} {}\n", key.name, STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::key::SigningKey;
    use super::*;

    const ORIGIN: &str = "milepost.example.com/log/1764000000";

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: ORIGIN.into(), size: 4_711, root: Hash::of_leaf(b"mari") }
    }

    #[test]
    fn a_checkpoint_that_was_signed_is_read() {
        let key = SigningKey::generate().unwrap();
        let (note, verifier) = (key.sign(&checkpoint()), key.verifier(ORIGIN));
        assert_eq!(open(&note, &[verifier]).unwrap(), checkpoint());
        assert_eq!(checkpoint().epoch(), Some(1_764_000_000));
    }

    #[test]
    fn a_verifier_key_reads_back_and_a_wrong_one_does_not() {
        // The example of C2SP signed-note.
        let text = "example.com/foo+530d903e+ASl/pKtIV0a3gOzZbyEHvWTaJcpLHDoDAWBnW8x6xA4e";
        if let Ok(key) = text.parse::<VerifierKey>() {
            assert_eq!(key.to_string(), text);
        }
        let key = SigningKey::generate().unwrap().verifier(ORIGIN);
        assert_eq!(key.to_string().parse(), Ok(key.clone()));
        let other = key.to_string().replace("1764000000", "1764000001");
        for wrong in ["", "a+b", "a+b+c", &other, &key.to_string()[1..]] {
            assert_eq!(wrong.parse::<VerifierKey>(), Err(KeyError), "{wrong}");
        }
    }

    #[test]
    fn an_altered_note_is_refused() {
        let key = SigningKey::generate().unwrap();
        let (note, keys) = (key.sign(&checkpoint()), [key.verifier(ORIGIN)]);
        for (from, to) in [("4711", "4712"), ("milepost", "milestone"), ("=\n\n", "=\nmore\n\n")] {
            let altered = note.replace(from, to);
            assert_ne!(altered, note);
            assert!(open(&altered, &keys).is_err(), "{altered}");
        }
        // Every single byte counts, but for the padding bits that base64 has no use for.
        for place in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[place] ^= 1;
            let Ok(altered) = String::from_utf8(bytes) else { continue };
            assert!(open(&altered, &keys).is_err(), "{place}: {altered}");
        }
        for length in 0..note.len() {
            let Some(part) = note.get(..length) else { continue };
            assert!(open(part, &keys).is_err(), "{part}");
        }
    }

    #[test]
    fn a_note_of_another_key_or_name_is_refused() {
        let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let note = key.sign(&checkpoint());
        assert_eq!(open(&note, &[other.verifier(ORIGIN)]), Err(NoteError::Unsigned));
        assert_eq!(open(&note, &[key.verifier("elsewhere/1")]), Err(NoteError::Unsigned));
        assert_eq!(open(&note, &[]), Err(NoteError::Unsigned));
        // The key's own line, and a signature of the other key in it.
        let forged = format!(
            "{}\n{}",
            checkpoint().text(),
            signature_line(&key.verifier(ORIGIN), &other.signature(checkpoint().text().as_bytes()))
        );
        assert_eq!(open(&forged, &[key.verifier(ORIGIN)]), Err(NoteError::Signature));
        // Of two signatures one is enough, and a wrong one is too many.
        let both = format!("{note}{}", signature_line(&other.verifier(ORIGIN), &[7; 64]));
        assert!(open(&both, &[key.verifier(ORIGIN)]).is_ok());
        let keys = [key.verifier(ORIGIN), other.verifier(ORIGIN)];
        assert_eq!(open(&both, &keys), Err(NoteError::Signature));
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        let key = SigningKey::generate().unwrap();
        let root = STANDARD.encode([7; 32]);
        for text in [
            "only\n".to_owned(),
            format!("a\n01\n{root}\n"),
            format!("a\n+1\n{root}\n"),
            format!("a\n-1\n{root}\n"),
            format!("\n1\n{root}\n"),
            "a\n1\nAAAA\n".to_owned(),
            format!("a\n18446744073709551616\n{root}\n"),
        ] {
            let line = signature_line(&key.verifier("a"), &key.signature(text.as_bytes()));
            let note = format!("{text}\n{line}");
            let error = open(&note, &[key.verifier("a")]).unwrap_err();
            assert!(matches!(error, NoteError::Checkpoint(_)), "{text}: {error}");
        }
    }
}
