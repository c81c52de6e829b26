//! Writing an export, part by part.

use std::io::Write as _;
use std::path::Path;

use futures_util::StreamExt as _;
use milepost_schemas::Position;

use super::{
    BUNDLE_VERSION, BundleError, Format, KeptCheckpoint, KeptKey, KeptProof, Line, Manifest,
    PART_EVENTS, hexed, part_path,
};
use crate::ledger::Leaf;
use crate::ledger::archive::{self, Lines};
use crate::ledger::note::Note;
use crate::ledger::proof::Plan;
use crate::ledger::read::{Piece, leaves};
use crate::ledger::store::{self, ListedKey, SignedCheckpoint};
use crate::log::Database;

/// Consistency proofs of a bundle: of the checkpoints that were kept last.
const CONSISTENCIES_MAX: usize = 1_000;

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Which log, how far.
    pub manifest: Manifest,
    /// Parts that were there already.
    pub parts_kept: u64,
    /// Parts that were written.
    pub parts_written: u64,
}

/// Exports the log up to its latest checkpoint into a directory; parts that are there stay. What is
/// archived is read from the directory of the archive.
///
/// # Errors
/// [`BundleError`]. What was written stays, and the next call goes on behind it.
pub async fn export(
    database: &Database,
    directory: &Path,
    format: Format,
    connections: usize,
    archive: Option<&Path>,
) -> Result<Exported, BundleError> {
    let (client, _gone) = database.dedicated().await?;
    let epoch: i64 = client
        .query_one("SELECT epoch FROM log_head", &[])
        .await
        .map_err(crate::log::DatabaseError::from)?
        .get(0);
    let latest = store::latest(&client, epoch).await?.ok_or(BundleError::Unsealed)?;
    let manifest = manifest(&latest, format)?;
    let events = directory.join("events");
    std::fs::create_dir_all(&events).map_err(BundleError::io(&events))?;
    continue_only_the_same(directory, &manifest)?;
    let mut source = Source::open(database, &client, archive, connections).await?;
    let (mut parts_kept, mut parts_written) = (0, 0);
    let mut proofs = Vec::new();
    for first in (1..=manifest.size).step_by(PART_EVENTS as usize) {
        let last = (first + PART_EVENTS - 1).min(manifest.size);
        let path = part_path(directory, first, format);
        // One that was not full then may be now.
        if path.exists() && last == first + PART_EVENTS - 1 && is_full(&path, format)? {
            parts_kept += 1;
        } else {
            write_part(&mut source, &path, first, last, &manifest).await?;
            parts_written += 1;
        }
        for position in [first, last] {
            proofs.push(inclusion(&client, position, &manifest).await?);
        }
    }
    let checkpoints = store::checkpoints(&client).await?;
    let before = |it: &&SignedCheckpoint| (it.epoch, it.size) < (epoch, manifest.size);
    // The latest one of then is not there any more where a later one was signed meanwhile.
    let checkpoints: Vec<&SignedCheckpoint> =
        checkpoints.iter().filter(before).chain([&latest]).collect();
    proofs.extend(consistencies(&client, &checkpoints, epoch).await?);
    let keys = store::keys(&client).await?;
    let in_force = |key: &&ListedKey| (key.epoch, key.from_size) <= (epoch, manifest.size);
    let keys: Vec<KeptKey> = keys.iter().filter(in_force).map(KeptKey::from).collect();
    let checkpoints: Vec<_> = checkpoints.into_iter().map(KeptCheckpoint::from).collect();
    write(&directory.join("checkpoints.jsonl"), &lines(&checkpoints))?;
    write(&directory.join("proofs.jsonl"), &lines(&proofs))?;
    write(&directory.join("keys.json"), &pretty(&keys))?;
    write(&directory.join("checkpoint"), latest.note.as_bytes())?;
    write(&directory.join("bundle.json"), &pretty(&manifest))?;
    Ok(Exported { manifest, parts_kept, parts_written })
}

fn manifest(latest: &SignedCheckpoint, format: Format) -> Result<Manifest, BundleError> {
    let checkpoint = Note::parse(&latest.note).and_then(|note| note.checkpoint());
    let checkpoint = checkpoint.map_err(|_| BundleError::Unsealed)?;
    Ok(Manifest {
        version: BUNDLE_VERSION,
        format,
        origin: checkpoint.origin,
        epoch: latest.epoch,
        size: checkpoint.size,
        root: checkpoint.root.to_string(),
    })
}

fn continue_only_the_same(directory: &Path, manifest: &Manifest) -> Result<(), BundleError> {
    let path = directory.join("bundle.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Which log the parts of an export are of that broke off is said before the first.
            return write(&path, &pretty(&Manifest { size: 0, ..manifest.clone() }));
        }
        Err(error) => return Err(BundleError::Io(path, error)),
    };
    let before: Manifest = serde_json::from_slice(&text).map_err(BundleError::json(&path))?;
    let same = (before.format, &before.origin, before.version)
        == (manifest.format, &manifest.origin, manifest.version);
    if same && before.size <= manifest.size {
        return Ok(());
    }
    let what = format!("{} as {:?} up to {}", before.origin, before.format, before.size);
    Err(BundleError::Other(directory.to_owned(), what))
}

/// Whether a part holds as many events as one can.
fn is_full(path: &Path, format: Format) -> Result<bool, BundleError> {
    let text = std::fs::read(path).map_err(BundleError::io(path))?;
    let lines = memchr::memchr_iter(b'\n', &text).count() as u64;
    // A batch has a line before and one behind its events.
    let around = match format {
        Format::Jsonl => 0,
        Format::Cloudevents => 2,
    };
    Ok(lines == PART_EVENTS + around)
}

async fn write_part(
    source: &mut Source,
    path: &Path,
    first: u64,
    last: u64,
    manifest: &Manifest,
) -> Result<(), BundleError> {
    let new = path.with_added_extension("new");
    let file = std::fs::File::create(&new).map_err(BundleError::io(&new))?;
    let mut file = std::io::BufWriter::new(file);
    let (format, origin, epoch) = (manifest.format, manifest.origin.clone(), manifest.epoch);
    let render = move |line: &Line| {
        let comma = format == Format::Cloudevents && line.position < last;
        let text = match format {
            Format::Jsonl => line.to_jsonl(),
            Format::Cloudevents => line.to_cloudevent(&origin, epoch),
        };
        text + if comma { ",\n" } else { "\n" }
    };
    let io = BundleError::io;
    if format == Format::Cloudevents {
        file.write_all(b"[\n").map_err(io(&new))?;
    }
    let mut next = first;
    while let Some(line) = source.archived_line(next, last)? {
        file.write_all(render(&line).as_bytes()).map_err(io(&new))?;
        next += 1;
    }
    let (after, upto) = (Position(next - 1), Position(last));
    let render = move |position: u64, leaf: &Leaf<'_>| render(&Line::of(position, leaf));
    let mut chunks =
        std::pin::pin!(leaves(&source.database, after, upto, source.connections, render));
    while let Some(chunk) = chunks.next().await {
        let Piece::Events(events) = chunk? else { return Err(BundleError::Missing(next)) };
        for text in events {
            next += 1;
            file.write_all(text.as_bytes()).map_err(io(&new))?;
        }
    }
    if next <= last {
        return Err(BundleError::Missing(next));
    }
    if format == Format::Cloudevents {
        file.write_all(b"]\n").map_err(io(&new))?;
    }
    file.into_inner().map_err(|error| BundleError::Io(new.clone(), error.into_error()))?;
    std::fs::rename(&new, path).map_err(BundleError::io(path))
}

/// Where events come from: the archive up to the floor, the database from there on.
struct Source {
    database: Database,
    connections: usize,
    archived: Option<Lines>,
    floor: u64,
}

impl Source {
    async fn open(
        database: &Database,
        client: &tokio_postgres::Client,
        archive: Option<&Path>,
        connections: usize,
    ) -> Result<Self, BundleError> {
        let ranges = archive::ranges(client).await?;
        let floor = ranges.last().map_or(0, |range| range.last);
        let ranges = ranges.iter().map(|range| (range.first, range.last));
        let archived = archive.map(|directory| Lines::of(directory, ranges));
        Ok(Self { database: database.clone(), connections, archived, floor })
    }

    /// The event at a position, if that is archived; positions are asked for in order. Without an
    /// archive the database is asked, which says what is missing.
    fn archived_line(&mut self, position: u64, last: u64) -> Result<Option<Line>, BundleError> {
        let Some(archived) = self.archived.as_mut().filter(|_| position <= self.floor.min(last))
        else {
            return Ok(None);
        };
        while let Some(line) = archived.next_line() {
            let line = line?;
            if line.position == position {
                return Ok(Some(line));
            }
        }
        Err(BundleError::Missing(position))
    }
}

async fn inclusion(
    client: &tokio_postgres::Client,
    position: u64,
    manifest: &Manifest,
) -> Result<KeptProof, BundleError> {
    let index = position - 1;
    let plan = Plan::inclusion(index, manifest.size).expect("the position is in the tree");
    let hashes = store::hashes(client, &plan).await?;
    let leaf = store::leaf_hash(client, index).await?;
    Ok(KeptProof::Inclusion {
        position,
        leaf_index: index,
        tree_size: manifest.size,
        leaf_hash: leaf.to_string(),
        root_hash: manifest.root.clone(),
        hashes: hexed(&hashes),
    })
}

async fn consistencies(
    client: &tokio_postgres::Client,
    checkpoints: &[&SignedCheckpoint],
    epoch: i64,
) -> Result<Vec<KeptProof>, BundleError> {
    let of_epoch: Vec<_> = checkpoints.iter().filter(|it| it.epoch == epoch).collect();
    let mut proofs = Vec::new();
    for pair in of_epoch.windows(2).rev().take(CONSISTENCIES_MAX) {
        let (from, to) = (pair[0].size, pair[1].size);
        let Some(plan) = Plan::consistency(from, to) else { continue };
        let hashes = store::hashes(client, &plan).await?;
        proofs.push(KeptProof::Consistency {
            from,
            to,
            from_root: hex::encode(&pair[0].root),
            to_root: hex::encode(&pair[1].root),
            hashes: hexed(&hashes),
        });
    }
    Ok(proofs)
}

fn lines<T: serde::Serialize>(items: &[T]) -> Vec<u8> {
    let line = |item| serde_json::to_string(item).expect("it is plain data") + "\n";
    items.iter().map(line).collect::<String>().into_bytes()
}

fn pretty(value: &impl serde::Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("it is plain data");
    text.push(b'\n');
    text
}

/// Writes a file that is there whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let new = path.with_added_extension("new");
    std::fs::write(&new, bytes).map_err(BundleError::io(&new))?;
    std::fs::rename(&new, path).map_err(BundleError::io(path))
}
