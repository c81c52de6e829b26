//! Which keys may sign: those that are trusted from the start, and those they have handed over to.

use std::collections::HashMap;

use super::finding::{Finding, Problem};
use crate::ledger::note::{Checkpoint, Note, NoteError, VerifierKey};
use crate::ledger::store::{ListedKey, SignedCheckpoint};

/// A rotation that an event of the log tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The position of the event.
    pub position: u64,
    /// The key that signed until then.
    pub former: String,
    /// The key that signs from then on.
    pub key: String,
}

/// The keys in force, by epoch.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    by_epoch: HashMap<i64, Vec<(u64, VerifierKey)>>,
}

impl Keys {
    /// Follows the keys of a log from those that are trusted; with none, the first of each epoch is.
    pub fn follow(
        listed: &[ListedKey],
        trusted: &[VerifierKey],
        rotations: &[Rotation],
        checkpoints: &[SignedCheckpoint],
        findings: &mut Vec<Finding>,
    ) -> Self {
        let mut keys = Self::default();
        // A new epoch has another name, not another key: what vouches is the public key.
        let is_trusted = |key: &VerifierKey| {
            trusted.is_empty() || trusted.iter().any(|it| it.public == key.public)
        };
        let mut met = trusted.is_empty();
        for (index, it) in listed.iter().enumerate() {
            let mut refuse = |why| {
                let problem = Problem::Key { key: it.verifier_key.clone(), why };
                findings.push(Finding { position: 0, problem });
            };
            let Some(key) = it.parse() else {
                refuse("it is no verifier key");
                continue;
            };
            let before = listed[..index].last().filter(|before| before.epoch == it.epoch);
            let in_force = keys.by_epoch.entry(it.epoch).or_default();
            let handed_over = before.is_some_and(|before| {
                in_force.iter().any(|(_, former)| before.parse().as_ref() == Some(former))
                    && is_handed_over(before, it, rotations, checkpoints)
            });
            if handed_over || (before.is_none() && is_trusted(&key)) {
                met |= trusted.iter().any(|it| it.public == key.public);
                in_force.push((it.from_size, key));
            } else if trusted.iter().any(|it| it.public == key.public) {
                met = true;
                in_force.push((it.from_size, key));
            } else if before.is_some() && trusted.is_empty() {
                refuse("the key before it did not hand over to it");
            } else if met {
                refuse("neither trusted nor handed over to");
            } else {
                // Keys from before the one that is trusted: what they signed, it has signed again.
            }
        }
        for key in trusted.iter().filter(|_| !met) {
            let why = "the log was never signed with it";
            let problem = Problem::Key { key: key.to_string(), why };
            findings.push(Finding { position: 0, problem });
        }
        keys
    }

    /// Whether there is a key that may have signed the tree of that size. What was signed before the
    /// first key that is trusted, that one has signed again.
    pub fn cover(&self, epoch: i64, size: u64) -> bool {
        let first = self.by_epoch.get(&epoch).and_then(|keys| keys.first());
        first.is_some_and(|(from, _)| *from <= size)
    }

    /// Reads a note of an epoch; a key that was in force at its size must have signed it.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn open(&self, epoch: i64, note: &str) -> Result<Checkpoint, NoteError> {
        let note = Note::parse(note)?;
        let checkpoint = note.checkpoint()?;
        let listed = self.by_epoch.get(&epoch).map_or(&[][..], Vec::as_slice);
        let until = |index: usize| listed.get(index + 1).map_or(u64::MAX, |next| next.0);
        let in_force: Vec<VerifierKey> = listed
            .iter()
            .enumerate()
            .filter(|(index, (from, key))| {
                (*from..=until(*index)).contains(&checkpoint.size) && key.name == checkpoint.origin
            })
            .map(|(_, (_, key))| key.clone())
            .collect();
        note.signers(&in_force)?;
        Ok(checkpoint)
    }
}

/// Whether the key before has signed the checkpoint with which a key takes over, and an event of
/// the log below that tells of it.
fn is_handed_over(
    before: &ListedKey,
    key: &ListedKey,
    rotations: &[Rotation],
    checkpoints: &[SignedCheckpoint],
) -> bool {
    let told = rotations.iter().any(|it| {
        it.key == key.verifier_key
            && it.former == before.verifier_key
            && it.position <= key.from_size
    });
    let first = checkpoints.iter().find(|it| (it.epoch, it.size) == (key.epoch, key.from_size));
    let (Some(first), Some(former), Some(new)) = (first, before.parse(), key.parse()) else {
        return false;
    };
    let both = [former, new];
    let signers = Note::parse(&first.note).and_then(|note| note.signers(&both).map(|it| it.len()));
    told && signers == Ok(both.len())
}
