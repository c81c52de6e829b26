//! Reading an export, and auditing it with nothing else at hand.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};

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
pub fn verify(directory: &Path, trust: Trust) -> Result<Report, BundleError> {
    let manifest = manifest(directory)?;
    let told = told(directory, &manifest)?;
    let listed: Vec<_> = told.checkpoints.iter().map(|it| it.note.clone()).collect();
    let examiner = Examiner::new(&trust.secrets);
    let head = manifest.size;
    let mut auditor = Auditor::new(told, trust);
    for (first, path) in parts(directory, &manifest) {
        let last = (first + PART_EVENTS - 1).min(head);
        read_part(&path, manifest.format, |line| {
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
    check_note(directory, &listed, &mut auditor)?;
    Ok(auditor.finish())
}

/// The parts of an export, each with its first position.
pub fn parts(directory: &Path, manifest: &Manifest) -> Vec<(u64, PathBuf)> {
    (1..=manifest.size)
        .step_by(PART_EVENTS as usize)
        .map(|first| (first, part_path(directory, first, manifest.format)))
        .collect()
}

/// Reads a part, event by event.
///
/// # Errors
/// [`BundleError::Io`].
pub fn read_part(
    path: &Path,
    format: Format,
    mut take: impl FnMut(Result<Line, String>),
) -> Result<(), BundleError> {
    let file = std::fs::File::open(path).map_err(BundleError::io(path))?;
    for line in std::io::BufReader::new(file).split(b'\n') {
        let line = line.map_err(BundleError::io(path))?;
        let Ok(text) = std::str::from_utf8(&line) else {
            take(Err("a line is no text".to_owned()));
            continue;
        };
        match format {
            Format::Jsonl => take(Line::from_jsonl(text)),
            Format::Cloudevents if text == "[" || text == "]" => {}
            Format::Cloudevents => {
                take(Line::from_cloudevent(text.strip_suffix(',').unwrap_or(text)));
            }
        }
    }
    Ok(())
}

/// `bundle.json`.
///
/// # Errors
/// [`BundleError`].
pub fn manifest(directory: &Path) -> Result<Manifest, BundleError> {
    let path = directory.join("bundle.json");
    let text = std::fs::read(&path).map_err(BundleError::io(&path))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(BundleError::json(&path))?;
    if manifest.version != BUNDLE_VERSION {
        let why = format!("it is of version {}", manifest.version);
        return Err(BundleError::File(path, why));
    }
    Ok(manifest)
}

fn told(directory: &Path, manifest: &Manifest) -> Result<Told, BundleError> {
    let checkpoints: Vec<KeptCheckpoint> = lines(&directory.join("checkpoints.jsonl"))?;
    let path = directory.join("keys.json");
    let text = std::fs::read(&path).map_err(BundleError::io(&path))?;
    let keys: Vec<KeptKey> = serde_json::from_slice(&text).map_err(BundleError::json(&path))?;
    Ok(Told {
        epoch: manifest.epoch,
        head: manifest.size,
        checkpoints: checkpoints.into_iter().map(SignedCheckpoint::from).collect(),
        keys: keys.into_iter().map(ListedKey::from).collect(),
        archived: Vec::new(),
        // It ends with what was signed.
        at: None,
    })
}

fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>, BundleError> {
    let text = std::fs::read_to_string(path).map_err(BundleError::io(path))?;
    text.lines().map(|line| serde_json::from_str(line).map_err(BundleError::json(path))).collect()
}

/// Checks the proofs that came along, each by itself. That their roots are those that were signed
/// follows from the events.
fn check_proofs(
    directory: &Path,
    manifest: &Manifest,
    auditor: &mut Auditor,
) -> Result<(), BundleError> {
    for proof in lines::<KeptProof>(&directory.join("proofs.jsonl"))? {
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
                        root_hash == manifest.root
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
    }
    Ok(())
}

/// The note that came along must be one of the checkpoints that are checked.
fn check_note(
    directory: &Path,
    listed: &[String],
    auditor: &mut Auditor,
) -> Result<(), BundleError> {
    let path = directory.join("checkpoint");
    let note = std::fs::read_to_string(&path).map_err(BundleError::io(&path))?;
    if !listed.contains(&note) {
        let size = Note::parse(&note).and_then(|it| it.checkpoint()).map_or(0, |it| it.size);
        let why = "the file `checkpoint` is none of those in checkpoints.jsonl".to_owned();
        auditor.find(0, Problem::Checkpoint { size, why });
    }
    Ok(())
}

fn parsed(hashes: &[String]) -> Option<Vec<Hash>> {
    hashes.iter().map(|hash| hash.parse().ok()).collect()
}
