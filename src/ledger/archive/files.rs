//! The files of an archive: written durably, read line by line, checked against what was signed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use milepost_schemas::Position;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_postgres::GenericClient;

use super::{ArchiveError, Part, hexed};
use crate::ledger::bundle::Line;
use crate::ledger::durable::Durable;
use crate::ledger::hash::Hash;
use crate::ledger::leaf::Leaf;
use crate::ledger::note::{self, Checkpoint, Note, VerifierKey};
use crate::ledger::proof::Plan;
use crate::ledger::range::Joined;
use crate::ledger::read::{Piece, leaves};
use crate::ledger::store::{self, SignedCheckpoint};
use crate::log::{Database, DatabaseError};

/// What this version of Milepost writes.
const ARCHIVE_VERSION: u32 = 1;

/// The level of compression: beyond it a little is gained for much time.
const ZSTD_LEVEL: i32 = 3;

/// Connections the partition is read over; compressing keeps the other processor busy.
const CONNECTIONS: usize = 1;

/// Bytes read at once where a file is hashed.
const READ_BYTES: usize = 1 << 20;

/// Bytes of a line beyond which it is none: an event has a few hundred KiB at the most.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// `<first>-<last>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`ARCHIVE_VERSION`].
    pub version: u32,
    /// Which log, in the epoch it was archived in.
    pub origin: String,
    /// The first position.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// The file of the events, beside this one.
    pub file: String,
    /// Its SHA-256, in hex.
    pub file_sha256: String,
    /// Its bytes.
    pub file_bytes: u64,
    /// The roots of the subtrees before the first event, from left to right, in hex.
    pub before: Vec<String>,
    /// The roots of the subtrees behind the last event, up to the checkpoint's size.
    pub behind: Vec<String>,
    /// The signed checkpoint that these events are proven in.
    pub checkpoint: String,
}

impl Manifest {
    /// Where the manifest of a range is.
    pub fn path(directory: &Path, first: u64, last: u64) -> PathBuf {
        directory.join(format!("{}.json", stem(first, last)))
    }

    /// Where its events are.
    pub fn events_path(&self, directory: &Path) -> PathBuf {
        directory.join(&self.file)
    }

    fn joined_before(&self) -> Option<Joined> {
        Joined::before(self.first - 1, &parsed(&self.before)?)
    }
}

/// What is wrong with an archive, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The position.
    pub position: u64,
    /// In words.
    pub why: String,
}

fn stem(first: u64, last: u64) -> String {
    format!("{first:012}-{last:012}")
}

fn parsed(hashes: &[String]) -> Option<Vec<Hash>> {
    hashes.iter().map(|hash| hash.parse().ok()).collect()
}

/// Writes the events of a partition and their manifest; both are on the disk then.
///
/// # Errors
/// [`ArchiveError`]; no manifest is there then.
pub(super) async fn write(
    database: &Database,
    directory: &Path,
    part: &Part,
    checkpoint: &SignedCheckpoint,
) -> Result<Manifest, ArchiveError> {
    std::fs::create_dir_all(directory).map_err(ArchiveError::io(directory))?;
    let (first, last) = (part.first().0, part.last().0);
    let file = format!("{}.jsonl.zst", stem(first, last));
    let path = directory.join(&file);
    let (file_sha256, file_bytes) = write_events(database, &path, first, last).await?;
    let note = Note::parse(&checkpoint.note).and_then(|note| note.checkpoint());
    let signed = note.map_err(|error| ArchiveError::Note(path.clone(), error))?;
    let client = database.get().await?;
    let manifest = Manifest {
        version: ARCHIVE_VERSION,
        origin: signed.origin,
        first,
        last,
        file,
        file_sha256,
        file_bytes,
        before: hexed(&store::hashes(&**client, &Plan::aligned(0..first - 1)).await?),
        behind: hexed(&store::hashes(&**client, &Plan::aligned(last..signed.size)).await?),
        checkpoint: checkpoint.note.clone(),
    };
    let mut text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain data");
    text.push(b'\n');
    let path = Manifest::path(directory, first, last);
    let write = || {
        let mut file = Durable::create(&path)?;
        file.write_all(&text)?;
        file.finish()
    };
    write().map_err(ArchiveError::io(&path))?;
    Ok(manifest)
}

async fn write_events(
    database: &Database,
    path: &Path,
    first: u64,
    last: u64,
) -> Result<(String, u64), ArchiveError> {
    let io = ArchiveError::io;
    let file = Durable::create(path).map_err(io(path))?;
    let counted = Counted { file, sha256: Sha256::new(), bytes: 0 };
    let mut encoder = zstd::Encoder::new(counted, ZSTD_LEVEL).map_err(io(path))?;
    encoder.include_checksum(true).map_err(io(path))?;
    let render = |position: u64, leaf: &Leaf<'_>| Line::of(position, leaf).to_jsonl();
    let (after, upto) = (Position(first - 1), Position(last));
    let mut pieces = std::pin::pin!(leaves(database, after, upto, CONNECTIONS, render));
    while let Some(piece) = pieces.next().await {
        let lines = match piece? {
            Piece::Events(lines) => lines,
            Piece::Missing(position, _) | Piece::GivenUp(position) => {
                return Err(DatabaseError::Missing(Position(position)).into());
            }
            Piece::Torn(position) => return Err(DatabaseError::Torn(Position(position)).into()),
            Piece::Twice(position) => return Err(DatabaseError::Twice(Position(position)).into()),
        };
        for line in lines {
            encoder.write_all(line.as_bytes()).map_err(io(path))?;
            encoder.write_all(b"\n").map_err(io(path))?;
        }
    }
    let Counted { file, sha256, bytes } = encoder.finish().map_err(io(path))?;
    file.finish().map_err(io(path))?;
    Ok((hex::encode(sha256.finalize()), bytes))
}

/// A file, and the hash and number of the bytes that went into it.
struct Counted {
    file: Durable,
    sha256: Sha256,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.sha256.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The manifest of a range; `None` where there is none.
///
/// # Errors
/// [`ArchiveError`] where it cannot be read, or is of something else.
pub fn manifest(directory: &Path, first: u64, last: u64) -> Result<Option<Manifest>, ArchiveError> {
    let path = Manifest::path(directory, first, last);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ArchiveError::Io(path, error)),
    };
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| ArchiveError::File(path.clone(), error.to_string()))?;
    if manifest.version != ARCHIVE_VERSION {
        let why = format!("it is of version {}", manifest.version);
        return Err(ArchiveError::File(path, why));
    }
    let own_name = format!("{}.jsonl.zst", stem(first, last));
    if (manifest.first, manifest.last) != (first, last) || manifest.file != own_name {
        return Err(ArchiveError::File(path, "it is of other positions than its name".to_owned()));
    }
    Ok(Some(manifest))
}

/// The events of a range, one after the other; nothing comes after what is wrong.
pub struct Reader {
    lines: BufReader<zstd::Decoder<'static, BufReader<File>>>,
    next: u64,
    last: u64,
    failed: bool,
}

impl Reader {
    /// Opens a file.
    ///
    /// # Errors
    /// [`ArchiveError::Io`].
    pub fn open(directory: &Path, manifest: &Manifest) -> Result<Self, ArchiveError> {
        let path = manifest.events_path(directory);
        let file = File::open(&path).map_err(ArchiveError::io(&path))?;
        let lines = BufReader::new(zstd::Decoder::new(file).map_err(ArchiveError::io(&path))?);
        Ok(Self { lines, next: manifest.first, last: manifest.last, failed: false })
    }

    /// The next event, with the hash of its leaf as it gives it; `None` behind the last one.
    pub fn next_line(&mut self) -> Option<Result<Line, Wrong>> {
        if self.failed {
            return None;
        }
        let position = self.next;
        let line = self.read_line().transpose()?.and_then(|line| {
            if line.position != position {
                return Err(format!("the event of position {} stands here", line.position));
            }
            let found = line.leaf().hash();
            if found != line.leaf_hash {
                return Err(format!(
                    "its leaf is {found}, and {} stands beside it",
                    line.leaf_hash
                ));
            }
            Ok(line)
        });
        self.next += 1;
        self.failed = line.is_err();
        Some(line.map_err(|why| Wrong { position, why }))
    }

    fn read_line(&mut self) -> Result<Option<Line>, String> {
        let ended = self.next > self.last;
        let mut line = Vec::new();
        let mut limited = (&mut self.lines).take(LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut line).map_err(|error| error.to_string());
        match (read?, ended) {
            (0, true) => return Ok(None),
            (0, false) => return Err("the file ends before it".to_owned()),
            (_, true) => return Err("the file goes on behind its last position".to_owned()),
            (_, false) => {}
        }
        let text = std::str::from_utf8(&line).map_err(|_| "the line is no text".to_owned())?;
        Line::from_jsonl(text.trim_end_matches('\n')).map(Some)
    }
}

/// The events of successive ranges, one after the other.
pub struct Lines {
    directory: PathBuf,
    ranges: VecDeque<(u64, u64)>,
    reader: Option<(PathBuf, Reader)>,
}

impl Lines {
    /// Those of ranges that are in a directory.
    pub fn of(directory: &Path, ranges: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let ranges = ranges.into_iter().collect();
        Self { directory: directory.to_owned(), ranges, reader: None }
    }

    /// Those of all ranges that are in a directory, which must begin the log.
    ///
    /// # Errors
    /// [`ArchiveError`] where it cannot be read, and where a range is missing.
    pub fn all_in(directory: &Path) -> Result<Self, ArchiveError> {
        let mut ranges = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(ArchiveError::io(directory))? {
            let name = entry.map_err(ArchiveError::io(directory))?.file_name();
            let range = name.to_str().and_then(|name| name.strip_suffix(".json")?.split_once('-'));
            if let Some((Ok(first), Ok(last))) = range.map(|(a, b)| (a.parse(), b.parse())) {
                ranges.push((first, last));
            }
        }
        ranges.sort_unstable();
        let mut next = 1;
        for (first, last) in &ranges {
            if *first != next {
                let directory = directory.to_owned();
                return Err(ArchiveError::NotThere { directory, first: next, last: first - 1 });
            }
            next = last + 1;
        }
        Ok(Self::of(directory, ranges))
    }

    /// The next event; `None` behind the last range.
    pub fn next_line(&mut self) -> Option<Result<Line, ArchiveError>> {
        loop {
            if let Some((path, reader)) = &mut self.reader
                && let Some(line) = reader.next_line()
            {
                return Some(line.map_err(|wrong| ArchiveError::Wrong(path.clone(), wrong)));
            }
            let (first, last) = self.ranges.pop_front()?;
            match open(&self.directory, first, last) {
                Ok(opened) => self.reader = Some(opened),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn open(directory: &Path, first: u64, last: u64) -> Result<(PathBuf, Reader), ArchiveError> {
    let not_there = || ArchiveError::NotThere { directory: directory.to_owned(), first, last };
    let manifest = manifest(directory, first, last)?.ok_or_else(not_there)?;
    Ok((manifest.events_path(directory), Reader::open(directory, &manifest)?))
}

/// Reads an archived range back: each leaf against the tiles where a database is at hand, all of
/// them against the signed root, and the signature by these keys. `take` gets every event.
///
/// # Errors
/// [`ArchiveError`], with the first position that is wrong.
pub async fn check<C: GenericClient>(
    directory: &Path,
    manifest: &Manifest,
    keys: &[VerifierKey],
    tiles: Option<&C>,
    mut take: impl AsyncFnMut(Line) -> Result<(), ArchiveError>,
) -> Result<Checkpoint, ArchiveError> {
    let path = manifest.events_path(directory);
    let wrong = |position: u64, why: &str| {
        ArchiveError::Wrong(path.clone(), Wrong { position, why: why.to_owned() })
    };
    let of_manifest = Manifest::path(directory, manifest.first, manifest.last);
    let checkpoint = note::open(&manifest.checkpoint, keys)
        .map_err(|error| ArchiveError::Note(of_manifest.clone(), error))?;
    let broken = || ArchiveError::File(of_manifest.clone(), "its hashes are not whole".to_owned());
    let mut joined = manifest.joined_before().ok_or_else(broken)?;
    let mut reader = Reader::open(directory, manifest)?;
    let mut sealed: (u64, Vec<Hash>) = (u64::MAX, Vec::new());
    while let Some(line) = reader.next_line() {
        let line = line.map_err(|wrong| ArchiveError::Wrong(path.clone(), wrong))?;
        if let Some(client) = tiles {
            let (tile, entry) = ((line.position - 1) / 256, ((line.position - 1) % 256) as usize);
            if sealed.0 != tile {
                let found = store::tiles_from(client, 0, tile, 1).await?;
                let bytes = found.first().filter(|(index, _)| *index == tile);
                sealed = (tile, bytes.and_then(|it| Hash::all_in(&it.1)).unwrap_or_default());
            }
            if sealed.1.get(entry) != Some(&line.leaf_hash) {
                return Err(wrong(line.position, "the event is not the one that was sealed"));
            }
        }
        joined.push(line.leaf_hash);
        take(line).await?;
    }
    let behind = parsed(&manifest.behind).ok_or_else(broken)?;
    if !joined.extend(checkpoint.size, &behind) {
        return Err(broken());
    }
    if joined.root() != checkpoint.root {
        return Err(wrong(
            manifest.first,
            "the events from here on are not those that were signed",
        ));
    }
    if sha256_of(&path)? != manifest.file_sha256 {
        return Err(wrong(manifest.first, "the file has other bytes than its manifest says"));
    }
    Ok(checkpoint)
}

fn sha256_of(path: &Path) -> Result<String, ArchiveError> {
    let mut file = File::open(path).map_err(ArchiveError::io(path))?;
    let (mut sha256, mut buffer) = (Sha256::new(), vec![0; READ_BYTES]);
    loop {
        match file.read(&mut buffer).map_err(ArchiveError::io(path))? {
            0 => return Ok(hex::encode(sha256.finalize())),
            read => sha256.update(&buffer[..read]),
        }
    }
}
