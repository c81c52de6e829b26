//! Reading an export, and auditing it with nothing else at hand.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::line::LINE_BYTES_MAX;
use super::{
    BUNDLE_VERSION, BundleError, Format, KeptCheckpoint, KeptKey, KeptProof, Line, Manifest,
    PART_EVENTS, part_path,
};
use crate::ledger::Hash;
use crate::ledger::note::Note;
use crate::ledger::proof::{extends, includes};
use crate::ledger::store::{ListedKey, SignedCheckpoint};
use crate::ledger::verify::{Auditor, Examiner, Problem, Report, SealedHash, Told, Trust};

/// Audits an export.
///
/// # Errors
/// [`BundleError`] where it cannot be read. What is wrong with the log stands in the report.
pub fn verify(directory: &Path, mut trust: Trust) -> Result<Report, BundleError> {
    let manifest = manifest(directory)?;
    let told = told(directory, &manifest)?;
    // Whoever signed it has signed every event: it is checked as one that was kept.
    let note = note(directory)?;
    let listed = told.checkpoints.iter().any(|it| it.note == note);
    trust.notes.push(note.clone());
    let examiner = Examiner::new(&trust.secrets);
    let head = manifest.size;
    let mut auditor = Auditor::new(told, trust);
    for (first, path) in parts(directory, &manifest) {
        let last = first.saturating_add(PART_EVENTS - 1).min(head);
        read_part(&path, &manifest, |line| {
            let line = match line {
                Ok(line) => line,
                Err(why) => {
                    auditor.find(auditor.next(), Problem::Unreadable(why));
                    return;
                }
            };
            if line.position < auditor.next() || line.position > last {
                auditor.find(line.position, Problem::Outside { head });
                return;
            }
            while auditor.next() < line.position {
                auditor.take(None, SealedHash::Gone);
            }
            let event = examiner.examine(line.position, &line.leaf());
            auditor.take(Some(&event), SealedHash::Hash(line.leaf_hash));
        })?;
        while auditor.next() <= last {
            auditor.take(None, SealedHash::Gone);
        }
    }
    check_proofs(directory, &manifest, &mut auditor)?;
    check_note(&note, listed, &manifest, &mut auditor);
    Ok(auditor.finish())
}

/// The parts of an export, each with its first position.
pub fn parts(directory: &Path, manifest: &Manifest) -> impl Iterator<Item = (u64, PathBuf)> {
    (1..=manifest.size)
        .step_by(PART_EVENTS as usize)
        .map(|first| (first, part_path(directory, first, manifest.format)))
}

/// Reads a part, event by event; nothing comes after a line that is too long.
///
/// # Errors
/// [`BundleError::Io`].
pub fn read_part(
    path: &Path,
    manifest: &Manifest,
    mut take: impl FnMut(Result<Line, String>),
) -> Result<(), BundleError> {
    let mut lines = Lines::open(path)?;
    while let Some(line) = lines.next()? {
        let text = match line {
            Ok(text) => text,
            Err(why) => {
                take(Err(why.to_owned()));
                continue;
            }
        };
        match manifest.format {
            Format::Jsonl => take(Line::from_jsonl(text)),
            Format::Cloudevents if text == "[" || text == "]" => {}
            Format::Cloudevents => {
                let text = text.strip_suffix(',').unwrap_or(text);
                take(Line::from_cloudevent(text, &manifest.origin, manifest.epoch));
            }
        }
    }
    Ok(())
}

/// The lines of a file, none of them longer than [`LINE_BYTES_MAX`].
struct Lines<'a> {
    path: &'a Path,
    file: BufReader<std::fs::File>,
    line: Vec<u8>,
    too_long: bool,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> Result<Self, BundleError> {
        let file = std::fs::File::open(path).map_err(BundleError::io(path))?;
        Ok(Self { path, file: BufReader::new(file), line: Vec::new(), too_long: false })
    }

    /// The next one, or what is wrong with it; `None` behind the last, and behind one too long.
    fn next(&mut self) -> Result<Option<Result<&str, &'static str>>, BundleError> {
        self.line.clear();
        if self.too_long {
            return Ok(None);
        }
        let mut limited = (&mut self.file).take(LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut self.line).map_err(BundleError::io(self.path))?;
        if read == 0 {
            return Ok(None);
        }
        self.too_long = self.line.pop_if(|last| *last == b'\n').is_none()
            && self.line.len() as u64 == LINE_BYTES_MAX;
        if self.too_long {
            return Ok(Some(Err("a line is longer than any event")));
        }
        Ok(Some(std::str::from_utf8(&self.line).map_err(|_| "a line is no text")))
    }
}

/// A file that is read in one piece, and is no longer than a line may be.
fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(BundleError::io(path))?;
    file.take(LINE_BYTES_MAX).read_to_end(&mut bytes).map_err(BundleError::io(path))?;
    if bytes.len() as u64 == LINE_BYTES_MAX {
        return Err(BundleError::File(path.to_owned(), "it is too long".to_owned()));
    }
    Ok(bytes)
}

/// `bundle.json`.
///
/// # Errors
/// [`BundleError`].
pub fn manifest(directory: &Path) -> Result<Manifest, BundleError> {
    let path = directory.join("bundle.json");
    let text = read(&path)?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(BundleError::json(&path))?;
    if manifest.version != BUNDLE_VERSION {
        let why = format!("it is of version {}", manifest.version);
        return Err(BundleError::File(path, why));
    }
    Ok(manifest)
}

fn told(directory: &Path, manifest: &Manifest) -> Result<Told, BundleError> {
    let mut checkpoints = Vec::new();
    let take = |kept: KeptCheckpoint| checkpoints.push(SignedCheckpoint::from(kept));
    each_line(&directory.join("checkpoints.jsonl"), take)?;
    let path = directory.join("keys.json");
    let text = read(&path)?;
    let keys: Vec<KeptKey> = serde_json::from_slice(&text).map_err(BundleError::json(&path))?;
    Ok(Told {
        epoch: manifest.epoch,
        head: manifest.size,
        checkpoints,
        keys: keys.into_iter().map(ListedKey::from).collect(),
        archived: Vec::new(),
        // It ends with what was signed.
        at: None,
    })
}

fn each_line<T: serde::de::DeserializeOwned>(
    path: &Path,
    mut take: impl FnMut(T),
) -> Result<(), BundleError> {
    let mut lines = Lines::open(path)?;
    while let Some(line) = lines.next()? {
        let line = line.map_err(|why| BundleError::File(path.to_owned(), why.to_owned()))?;
        take(serde_json::from_str(line).map_err(BundleError::json(path))?);
    }
    Ok(())
}

/// Checks the proofs that came along, each by itself. That their roots are those that were signed
/// follows from the events.
fn check_proofs(
    directory: &Path,
    manifest: &Manifest,
    auditor: &mut Auditor,
) -> Result<(), BundleError> {
    each_line(&directory.join("proofs.jsonl"), |proof| {
        let (position, holds) = match proof {
            KeptProof::Inclusion {
                position,
                leaf_index,
                tree_size,
                leaf_hash,
                root_hash,
                hashes,
            } => {
                let (leaf, root) = (leaf_hash.parse(), root_hash.parse());
                let holds = parsed(&hashes).zip(leaf.ok()).zip(root.ok()).is_some_and(
                    |((hashes, leaf), root)| {
                        (tree_size, &root_hash) == (manifest.size, &manifest.root)
                            && leaf_index.checked_add(1) == Some(position)
                            && includes(leaf_index, tree_size, leaf, root, &hashes)
                    },
                );
                (position, holds)
            }
            KeptProof::Consistency { from, to, from_root, to_root, hashes } => {
                let (old, new) = (from_root.parse(), to_root.parse());
                let holds = parsed(&hashes)
                    .zip(old.ok())
                    .zip(new.ok())
                    .is_some_and(|((hashes, old), new)| extends(from, to, old, new, &hashes));
                (from, holds)
            }
        };
        if !holds {
            auditor.find(position, Problem::Unreadable("its proof does not hold".to_owned()));
        }
    })
}

/// The note that came along.
fn note(directory: &Path) -> Result<String, BundleError> {
    let path = directory.join("checkpoint");
    String::from_utf8(read(&path)?).map_err(|error| BundleError::File(path, error.to_string()))
}

/// The note that came along must be one of the checkpoints, and the export what that one says: its
/// manifest is signed by nobody.
fn check_note(note: &str, listed: bool, manifest: &Manifest, auditor: &mut Auditor) {
    let Ok(signed) = Note::parse(note).and_then(|it| it.checkpoint()) else {
        // Said where its signature is looked for.
        return;
    };
    let mut find = |why: &str| {
        let (size, why) = (signed.size, why.to_owned());
        auditor.find(0, Problem::Checkpoint { size, why });
    };
    if !listed {
        find("the file `checkpoint` is none of those in checkpoints.jsonl");
    }
    let said = (manifest.size, &manifest.root, &manifest.origin, Some(manifest.epoch));
    if said != (signed.size, &signed.root.to_string(), &signed.origin, signed.epoch()) {
        find("bundle.json says another size, root, origin or epoch");
    }
}

fn parsed(hashes: &[String]) -> Option<Vec<Hash>> {
    hashes.iter().map(|hash| hash.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_longer_than_any_event_is_said_to_be_and_nothing_behind_it_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let manifest = Manifest {
            version: BUNDLE_VERSION,
            format: Format::Jsonl,
            origin: "m.example/log/1".to_owned(),
            epoch: 1,
            size: 1,
            root: String::new(),
        };
        let path = directory.path().join("part");
        let file = std::fs::File::create(&path).unwrap();
        // A hole in a file takes no room.
        for (bytes, expected) in [(1 << 20, "expected value"), (LINE_BYTES_MAX * 3, "longer")] {
            file.set_len(bytes).unwrap();
            let mut read = Vec::new();
            read_part(&path, &manifest, |line| read.push(line.unwrap_err())).unwrap();
            assert!(read.len() == 1 && read[0].contains(expected), "{read:?}");
        }
        assert!(matches!(read(&path), Err(BundleError::File(..))));
    }
}
