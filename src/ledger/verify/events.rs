//! The audit of events in order; where they come from is somebody else's business.

use std::collections::HashMap;

use milepost_schemas::event::LogRangeArchived;
use uuid::Uuid;

use super::examine::{Examined, Signed, Tells};
use super::finding::{FINDINGS_MAX, Finding, Problem};
use super::keys::Rotation;
use super::{BegunEpoch, Report, Told, Trust};
use crate::ledger::Hash;
use crate::ledger::note::{Checkpoint, Note};
use crate::ledger::tree::{Tile, TileId, Tree};

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
pub(super) struct Disagreement {
    pub position: u64,
    pub found: Hash,
    pub sealed: Hash,
}

/// The roots at the size of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Roots {
    pub of_events: Hash,
    pub as_sealed: Hash,
}

/// Audits events in order.
pub struct Auditor {
    pub(super) told: Told,
    pub(super) trust: Trust,
    pub(super) kept: Vec<Checkpoint>,
    /// The tree that the events give.
    tree: Tree,
    /// The tree that the sealed hashes give, once it is another.
    sealed_tree: Option<Tree>,
    pub(super) versions: HashMap<Uuid, u32>,
    pub(super) last_recorded_at_us: i64,
    pub(super) disagreements: Vec<Disagreement>,
    /// The sizes of checkpoints that are still to come, the smallest last.
    sizes: Vec<u64>,
    pub(super) roots: HashMap<u64, Roots>,
    /// When the first event behind each of those sizes was recorded.
    pub(super) behind: HashMap<u64, i64>,
    /// The size among them that was just reached.
    reached: Option<u64>,
    /// Whether there was a position of which nothing is known.
    blind: bool,
    /// Positions of archived events of which no hash is there.
    unproven: u64,
    pub(super) rotations: Vec<Rotation>,
    pub(super) epochs: Vec<BegunEpoch>,
    /// Ranges that are archived, as far as events tell.
    pub(super) archives: Vec<LogRangeArchived>,
    /// Of streams not all events are taken: their versions only grow.
    sparse: bool,
    /// Tiles above level 0 that were filled, as the events and as the sealed hashes give them.
    upper: Vec<(Tile, Option<Tile>)>,
    pub(super) report: Report,
    pub(super) findings_max: usize,
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
            behind: HashMap::new(),
            reached: Some(0),
            blind: false,
            unproven: 0,
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
        match sealed {
            SealedHash::Hash(_) => self.report.archived += 1,
            SealedHash::Gone => self.unproven += 1,
            // Only what was sealed is archived.
            SealedHash::NotYet => {
                self.unproven += 1;
                self.find(self.next(), Problem::Missing);
            }
        }
        self.append(None, sealed);
    }

    /// Archived events of which there is nothing, neither here nor in the tree.
    pub fn unproven(&self) -> u64 {
        self.unproven
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
            self.disagree(Disagreement { position, found, sealed });
        }
    }

    fn disagree(&mut self, disagreement: Disagreement) {
        if self.disagreements.len() < FINDINGS_MAX {
            self.disagreements.push(disagreement);
        } else {
            self.report.found += 1;
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
            self.disagree(Disagreement { position, found, sealed });
        }
        // In the place of an event that is gone the tree takes what was sealed, so that what comes
        // after it can still be judged. Where that is gone as well, no root says anything any more.
        self.blind |= found.is_none() && sealed.is_none();
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
        if let Some(size) = self.reached.take() {
            self.behind.insert(size, event.recorded_at_us);
        }
        match &event.callback {
            Signed::NotAsked => {}
            Signed::Fits => self.report.callbacks += 1,
            Signed::Unchecked => self.report.callbacks_unchecked += 1,
            Signed::Wrong(problem) => self.find(event.position, problem.clone()),
        }
        match &event.tells {
            None => {}
            Some(Tells::Epoch(begun)) => {
                self.epochs.push(BegunEpoch { position: event.position, event: begun.clone() });
            }
            Some(Tells::Archived(archived)) => self.archives.push(archived.clone()),
            Some(Tells::Restored(restored)) => {
                self.archives.retain(|archived| archived.first != restored.first);
            }
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
        if self.sizes.pop_if(|next| *next == size).is_none() || self.blind {
            return;
        }
        let of_events = self.tree.root();
        let as_sealed = self.sealed_tree.as_ref().map_or(of_events, Tree::root);
        self.reached = Some(size);
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
}
