//! The audit itself, event by event; where they come from is somebody else's business.
//!
//! What takes time and needs only the one event, an [`Examiner`] does, on as many threads as there
//! are. What needs the events in order, the [`Auditor`] does.

use std::collections::HashMap;
use std::sync::Arc;

use milepost_schemas::event::{LogEpochBegun, LogKeyRotated, LogRangeArchived};
use milepost_schemas::{CallbackEvidence, EventType};
use serde::Deserialize;
use uuid::Uuid;

use super::finding::{FINDINGS_MAX, Finding, Problem};
use super::keys::{Keys, Rotation};
use super::{Report, Told, Trust};
use crate::intake::github::Secret;
use crate::ledger::Hash;
use crate::ledger::leaf::Leaf;
use crate::ledger::note::{Checkpoint, Note, VerifierKey};
use crate::ledger::store::SignedCheckpoint;
use crate::ledger::tree::{Tile, TileId, Tree};

/// What there is to say of one event by itself.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Its position.
    pub position: u64,
    /// The hash of its leaf.
    pub leaf: Hash,
    stream: Uuid,
    version: u32,
    recorded_at_us: i64,
    callback: Signed,
    tells: Option<Tells>,
}

/// What there is to say of a callback's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Signed {
    /// It was not looked at, or the event is of no callback.
    NotAsked,
    Fits,
    Unchecked,
    Wrong(Problem),
}

/// What an event tells of the ledger itself.
#[derive(Clone, Debug)]
enum Tells {
    Rotation(LogKeyRotated),
    Epoch(LogEpochBegun),
    Archived(LogRangeArchived),
}

/// Looks at events one by one; cheap to clone, and the same on every thread.
#[derive(Clone)]
pub struct Examiner {
    secrets: Arc<[Secret]>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(flatten)]
    callback: Option<CallbackEvidence>,
}

impl Examiner {
    /// One that checks callbacks with these secrets; with none it does not look at them.
    pub fn new(secrets: &[Secret]) -> Self {
        Self { secrets: secrets.into() }
    }

    /// Looks at an event.
    pub fn examine(&self, position: u64, leaf: &Leaf<'_>) -> Examined {
        Examined {
            position,
            leaf: leaf.hash(),
            stream: leaf.stream,
            version: leaf.version,
            recorded_at_us: leaf.recorded_at_us,
            callback: self.check_callback(leaf.header),
            tells: tells(leaf),
        }
    }

    fn check_callback(&self, header: &[u8]) -> Signed {
        // Only what came as a callback has a form of signature.
        if self.secrets.is_empty() || memchr::memmem::find(header, b"\"signature_form\"").is_none()
        {
            return Signed::NotAsked;
        }
        let header: Result<Header, _> = serde_json::from_slice(header);
        let Ok(Header { callback: Some(evidence) }) = header else {
            return Signed::Wrong(Problem::Header);
        };
        let secret = self.secrets.iter().find(|secret| secret.key_id == evidence.key_id);
        match secret.and_then(|secret| secret.confirms(&evidence)) {
            None => Signed::Unchecked,
            Some(true) => Signed::Fits,
            Some(false) => Signed::Wrong(Problem::Callback { key_id: evidence.key_id }),
        }
    }
}

fn tells(leaf: &Leaf<'_>) -> Option<Tells> {
    if leaf.code == EventType::LogKeyRotated.code() {
        serde_json::from_slice(leaf.body).ok().map(Tells::Rotation)
    } else if leaf.code == EventType::LogEpochBegun.code() {
        serde_json::from_slice(leaf.body).ok().map(Tells::Epoch)
    } else if leaf.code == EventType::LogRangeArchived.code() {
        serde_json::from_slice(leaf.body).ok().map(Tells::Archived)
    } else {
        None
    }
}

/// What is told of a leaf beside the event: its hash as it was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealedHash {
    /// This.
    Hash(Hash),
    /// Nothing was sealed here yet.
    NotYet,
    /// Something was, and it is gone.
    Gone,
}

/// Where the event and its sealed hash disagree.
#[derive(Clone, Copy, Debug)]
struct Disagreement {
    position: u64,
    found: Hash,
    sealed: Hash,
}

/// The roots at the size of a checkpoint.
#[derive(Clone, Copy, Debug)]
struct Roots {
    of_events: Hash,
    as_sealed: Hash,
}

/// Audits events in order.
pub struct Auditor {
    told: Told,
    trust: Trust,
    kept: Vec<Checkpoint>,
    /// The tree that the events give.
    tree: Tree,
    /// The tree that the sealed hashes give, once it is another.
    sealed_tree: Option<Tree>,
    versions: HashMap<Uuid, u32>,
    last_recorded_at_us: i64,
    disagreements: Vec<Disagreement>,
    /// The sizes of checkpoints that are still to come, the smallest last.
    sizes: Vec<u64>,
    roots: HashMap<u64, Roots>,
    rotations: Vec<Rotation>,
    epochs: Vec<LogEpochBegun>,
    archives: Vec<LogRangeArchived>,
    /// Of streams not all events are taken: their versions only grow.
    sparse: bool,
    /// Tiles above level 0 that were filled, as the events and as the sealed hashes give them.
    upper: Vec<(Tile, Option<Tile>)>,
    report: Report,
    findings_max: usize,
}

impl Auditor {
    /// Begins an audit before the first event.
    pub fn new(told: Told, trust: Trust) -> Self {
        let kept: Vec<Checkpoint> = trust
            .notes
            .iter()
            .filter_map(|note| Note::parse(note).and_then(|note| note.checkpoint()).ok())
            .collect();
        let stored = told.checkpoints.iter().map(|it| it.size);
        let mut sizes: Vec<u64> = stored.chain(kept.iter().map(|it| it.size)).collect();
        sizes.sort_unstable_by(|one, other| other.cmp(one));
        sizes.dedup();
        let mut auditor = Self {
            told,
            trust,
            kept,
            tree: Tree::default(),
            sealed_tree: None,
            versions: HashMap::new(),
            last_recorded_at_us: i64::MIN,
            disagreements: Vec::new(),
            sizes,
            roots: HashMap::new(),
            rotations: Vec::new(),
            epochs: Vec::new(),
            archives: Vec::new(),
            sparse: false,
            upper: Vec::new(),
            report: Report::default(),
            findings_max: FINDINGS_MAX,
        };
        auditor.note_roots();
        auditor
    }

    /// The position that comes next.
    pub fn next(&self) -> u64 {
        self.tree.size() + 1
    }

    /// Takes the event at the next position, or says that there is none.
    pub fn take(&mut self, event: Option<&Examined>, sealed: SealedHash) {
        match event {
            Some(event) => self.check(event),
            None => self.find(self.next(), Problem::Missing),
        }
        self.append(event.map(|event| event.leaf), sealed);
    }

    /// Goes on behind an event that is archived and is not read.
    pub fn take_archived(&mut self, sealed: SealedHash) {
        self.report.archived += 1;
        self.append(None, sealed);
    }

    /// Whether what comes is only a part of each stream, as it stays of archived ranges.
    pub fn set_sparse(&mut self, sparse: bool) {
        self.sparse = sparse;
    }

    /// Compares an event that stays in the database beside its archive with what was sealed.
    pub fn compare_kept(&mut self, position: u64, found: Hash, sealed: SealedHash) {
        if let SealedHash::Hash(sealed) = sealed
            && found != sealed
        {
            self.disagreements.push(Disagreement { position, found, sealed });
        }
    }

    /// Goes on behind an event of which it was said what is wrong.
    pub fn pass_over(&mut self, sealed: SealedHash) {
        self.append(None, sealed);
    }

    fn append(&mut self, found: Option<Hash>, sealed: SealedHash) {
        let position = self.next();
        let sealed = match sealed {
            SealedHash::Hash(hash) => Some(hash),
            SealedHash::NotYet | SealedHash::Gone => None,
        };
        if let (Some(found), Some(sealed)) = (found, sealed)
            && found != sealed
        {
            self.sealed_tree.get_or_insert_with(|| self.tree.clone());
            if self.disagreements.len() < FINDINGS_MAX {
                self.disagreements.push(Disagreement { position, found, sealed });
            } else {
                self.report.found += 1;
            }
        }
        // In the place of an event that is gone the tree takes what was sealed, so that what comes
        // after it can still be judged.
        let of_event = found.or(sealed).unwrap_or_else(Hash::empty);
        self.grow(of_event, sealed.unwrap_or(of_event));
    }

    fn check(&mut self, event: &Examined) {
        self.report.events += 1;
        let version = self.versions.entry(event.stream).or_insert(0);
        let expected = *version + 1;
        *version = event.version;
        let fits = event.version == expected || (self.sparse && event.version > expected);
        if !fits {
            let (stream, found) = (event.stream, event.version);
            self.find(event.position, Problem::Version { stream, expected, found });
        }
        if event.recorded_at_us < self.last_recorded_at_us {
            self.find(event.position, Problem::Time);
        }
        self.last_recorded_at_us = event.recorded_at_us;
        match &event.callback {
            Signed::NotAsked => {}
            Signed::Fits => self.report.callbacks += 1,
            Signed::Unchecked => self.report.callbacks_unchecked += 1,
            Signed::Wrong(problem) => self.find(event.position, problem.clone()),
        }
        match &event.tells {
            None => {}
            Some(Tells::Epoch(begun)) => self.epochs.push(begun.clone()),
            Some(Tells::Archived(archived)) => self.archives.push(archived.clone()),
            Some(Tells::Rotation(rotated)) => self.rotations.push(Rotation {
                position: event.position,
                former: rotated.former_key.clone(),
                key: rotated.key.clone(),
            }),
        }
    }

    fn grow(&mut self, of_event: Hash, as_sealed: Hash) {
        let mut filled = Vec::new();
        self.tree.push(of_event, |tile| filled.push(tile));
        let mut filled_as_sealed = Vec::new();
        if let Some(tree) = &mut self.sealed_tree {
            tree.push(as_sealed, |tile| filled_as_sealed.push(tile));
        }
        let mut as_sealed = filled_as_sealed.into_iter();
        for tile in filled {
            let other = as_sealed.next();
            // Those of level 0 were compared hash by hash.
            if tile.id.level > 0 {
                self.upper.push((tile, other));
            }
        }
        self.note_roots();
    }

    fn note_roots(&mut self) {
        let size = self.tree.size();
        if self.sizes.pop_if(|next| *next == size).is_none() {
            return;
        }
        let of_events = self.tree.root();
        let as_sealed = self.sealed_tree.as_ref().map_or(of_events, Tree::root);
        self.roots.insert(size, Roots { of_events, as_sealed });
    }

    /// The tiles above level 0 that were filled since it was last asked, to be compared by
    /// [`Self::compare`].
    pub fn filled(&mut self) -> Vec<(Tile, Option<Tile>)> {
        std::mem::take(&mut self.upper)
    }

    /// The tiles above level 0 that are not full.
    pub fn open(&self) -> Vec<(Tile, Option<Tile>)> {
        let as_sealed: HashMap<TileId, Tile> = self
            .sealed_tree
            .iter()
            .flat_map(Tree::open_tiles)
            .map(|tile| (tile.id, tile))
            .collect();
        self.tree
            .open_tiles()
            .filter(|tile| tile.id.level > 0)
            .map(|tile| (tile.clone(), as_sealed.get(&tile.id).cloned()))
            .collect()
    }

    /// Compares a stored tile above level 0 with what it must be, up to what was sealed.
    pub fn compare(&mut self, tile: &Tile, as_sealed: Option<&Tile>, stored: &[Hash]) {
        self.report.tiles += 1;
        let expected = tile.id.width(self.sealed_size());
        if stored.len() < expected {
            let position = tile.id.first_leaf(stored.len()) + 1;
            self.find_tile_size(position, tile.id, stored.len(), expected);
        }
        for (entry, (stored, expected)) in stored.iter().zip(&tile.hashes).enumerate() {
            let sealed = as_sealed.and_then(|tile| tile.hashes.get(entry));
            // What follows from a hash of level 0 was found there.
            if stored != expected && Some(stored) != sealed {
                let (stored, expected) = (*stored, *expected);
                let position = tile.id.first_leaf(entry) + 1;
                let problem = Problem::Tile { tile: tile.id, entry, stored, expected };
                self.find(position, problem);
            }
        }
    }

    /// Says that a tile has another number of hashes than it should.
    pub fn find_tile_size(&mut self, position: u64, tile: TileId, stored: usize, expected: usize) {
        self.find(position, Problem::TileSize { tile, stored, expected });
    }

    /// Counts tiles that were compared hash by hash.
    pub fn compared(&mut self, tiles: u64) {
        self.report.tiles += tiles;
    }

    /// The size of the largest checkpoint that is told of the present epoch.
    pub fn sealed_size(&self) -> u64 {
        let of_epoch = self.told.checkpoints.iter().filter(|it| it.epoch == self.told.epoch);
        of_epoch.map(|it| it.size).max().unwrap_or(0)
    }

    /// Says that something is wrong.
    pub fn find(&mut self, position: u64, problem: Problem) {
        self.report.found += 1;
        if self.report.findings.len() < self.findings_max {
            self.report.findings.push(Finding { position, problem });
        }
    }

    /// Judges what was seen.
    pub fn finish(mut self) -> Report {
        // What was found on the way leaves room for what is found now, which may come before it.
        self.findings_max = 4 * FINDINGS_MAX;
        let mut findings = Vec::new();
        let Told { keys: listed, checkpoints, .. } = &self.told;
        let keys =
            Keys::follow(listed, &self.trust.keys, &self.rotations, checkpoints, &mut findings);
        for finding in findings {
            self.find(finding.position, finding.problem);
        }
        self.check_epochs();
        self.check_archives();
        let signed = self.check_checkpoints(&keys);
        let kept = self.check_kept(&keys);
        self.judge([&signed[..], &kept].concat());
        let head = self.told.head;
        if signed.is_empty() && head > 0 {
            self.find(0, Problem::Unsealed { head });
        }
        let last = signed.iter().max_by_key(|(size, _)| *size);
        let streams = self.versions.len() as u64;
        let mut report = self.report;
        report.sealed = last.map_or(0, |(size, _)| *size);
        report.root = last.and_then(|(size, _)| self.roots.get(size)).map(|it| it.of_events);
        report.streams = streams;
        report.last_recorded_at = jiff::Timestamp::from_microsecond(self.last_recorded_at_us).ok();
        // What is of no position comes last.
        report.findings.sort_by_key(|finding| finding.position.wrapping_sub(1));
        report.findings.truncate(FINDINGS_MAX);
        report
    }

    fn check_epochs(&mut self) {
        let mut epochs: Vec<i64> = self.told.keys.iter().map(|key| key.epoch).collect();
        epochs.push(self.told.epoch);
        epochs.dedup();
        let untold: Vec<(i64, i64)> = epochs
            .windows(2)
            .map(|pair| (pair[0], pair[1]))
            .filter(|(former, epoch)| {
                !self.epochs.iter().any(|it| (it.former_epoch, it.epoch) == (*former, *epoch))
            })
            .collect();
        for (former, epoch) in untold {
            self.find(0, Problem::Epoch { former, epoch });
        }
    }

    /// What is said to be archived must be told of, in a log that is sealed.
    fn check_archives(&mut self) {
        for range in std::mem::take(&mut self.told.archived) {
            let told = self.archives.iter().any(|it| {
                (it.first, it.last, it.kept_events) == (range.first, range.last, range.kept_events)
                    && it.kept_root == hex::encode(&range.kept_root)
            });
            if !told {
                self.find(range.first, Problem::Unarchived { last: range.last });
            }
            if self.report.archived > 0 {
                self.report.archives.push(range.location);
            }
        }
        self.report.archives.dedup();
    }

    /// How many events of an epoch the log still has.
    fn kept_of(&self, epoch: i64) -> Option<u64> {
        if epoch == self.told.epoch {
            return Some(self.told.head);
        }
        // A later restore may have lost more of it.
        let after = self.epochs.iter().filter(|it| it.former_epoch >= epoch);
        after.map(|it| it.size).min()
    }

    /// Checks every stored checkpoint; returns size and root of those that were signed.
    fn check_checkpoints(&mut self, keys: &Keys) -> Vec<(u64, Hash)> {
        let mut signed = Vec::new();
        for stored in std::mem::take(&mut self.told.checkpoints) {
            // Without a trusted key of the epoch there is nothing to hold against.
            if !keys.has(stored.epoch) {
                continue;
            }
            match open_stored(keys, &stored) {
                Ok(checkpoint) => {
                    self.report.checkpoints += 1;
                    signed.extend(self.compare_root(&checkpoint, stored.epoch));
                }
                Err(why) => {
                    let size = stored.size;
                    self.find(0, Problem::Checkpoint { size, why });
                }
            }
        }
        signed
    }

    /// Checks the notes that the auditor has kept; returns size and root of those that were signed.
    fn check_kept(&mut self, keys: &Keys) -> Vec<(u64, Hash)> {
        let mut kept = Vec::new();
        let notes = std::mem::take(&mut self.trust.notes);
        for note in &notes {
            let opened = Note::parse(note).and_then(|it| it.checkpoint());
            let epoch = opened.as_ref().ok().and_then(Checkpoint::epoch);
            let epoch = epoch.unwrap_or(self.told.epoch);
            let own: Vec<VerifierKey> = self.trust.keys.clone();
            let signed = keys
                .open(epoch, note)
                .or_else(|error| crate::ledger::note::open(note, &own).map_err(|_| error));
            match signed {
                Ok(checkpoint) => {
                    self.report.checkpoints += 1;
                    kept.extend(self.compare_root(&checkpoint, epoch));
                }
                Err(error) => {
                    let size = opened.map_or(0, |checkpoint| checkpoint.size);
                    let why = format!("the one that was kept: {error}");
                    self.find(0, Problem::Checkpoint { size, why });
                }
            }
        }
        kept
    }

    /// Compares what was signed with what is there; size and root, where events cover it.
    fn compare_root(&mut self, checkpoint: &Checkpoint, epoch: i64) -> Option<(u64, Hash)> {
        let (size, signed) = (checkpoint.size, checkpoint.root);
        let kept = self.kept_of(epoch).unwrap_or(self.told.head);
        if size > kept {
            let problem = if epoch == self.told.epoch {
                Problem::Behind { signed: size }
            } else {
                Problem::Lost { epoch, signed: size }
            };
            // What a restore has lost and an event tells of is wrong only to who had it in hand.
            let in_hand = self.kept.iter().any(|it| it == checkpoint);
            if epoch == self.told.epoch || in_hand {
                self.find(kept + 1, problem);
            }
            return None;
        }
        self.roots.contains_key(&size).then_some((size, signed))
    }

    /// Says of each disagreement who is wrong, by the first signed root that covers it.
    fn judge(&mut self, mut signed: Vec<(u64, Hash)>) {
        signed.sort_unstable_by_key(|(size, _)| *size);
        for disagreement in std::mem::take(&mut self.disagreements) {
            let Disagreement { position, found, sealed } = disagreement;
            let covering = signed.iter().find(|(size, _)| *size >= position);
            let roots = covering.and_then(|(size, root)| Some((self.roots.get(size)?, root)));
            let problem = match roots {
                Some((roots, root)) if roots.as_sealed == *root => {
                    Problem::Changed { found, sealed }
                }
                Some((roots, root)) if roots.of_events == *root => {
                    let index = (position - 1) / 256;
                    let entry = ((position - 1) % 256) as usize;
                    let tile = TileId { level: 0, index };
                    Problem::Tile { tile, entry, stored: sealed, expected: found }
                }
                _ => Problem::Disagree { found, stored: sealed },
            };
            self.find(position, problem);
        }
        let mut good = 0;
        for (size, root) in signed {
            let Some(roots) = self.roots.get(&size) else { continue };
            if roots.of_events == root || roots.as_sealed == root {
                good = size;
                continue;
            }
            let found = roots.of_events;
            self.find(good + 1, Problem::Root { size, found, signed: root });
            // Every later one follows from this.
            break;
        }
    }
}

fn open_stored(keys: &Keys, stored: &SignedCheckpoint) -> Result<Checkpoint, String> {
    let checkpoint = keys.open(stored.epoch, &stored.note).map_err(|error| error.to_string())?;
    if checkpoint.size != stored.size || checkpoint.root.0 != stored.root[..] {
        return Err("the note says another size or root than stands beside it".to_owned());
    }
    Ok(checkpoint)
}
