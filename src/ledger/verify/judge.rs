//! The judgement, when all events were seen: by the keys that may sign, and the roots they signed.

use jiff::Timestamp;

use super::events::{Auditor, Disagreement};
use super::finding::{FINDINGS_MAX, Problem};
use super::keys::Keys;
use super::{BegunEpoch, Report, Told, UNSEALED_MAX};
use crate::ledger::Hash;
use crate::ledger::note::{self, Checkpoint, Note};
use crate::ledger::store::SignedCheckpoint;
use crate::ledger::tree::{TILE_WIDTH, TileId};

impl Auditor {
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
        let proven = [&signed[..], &kept].concat();
        let sealed = proven.iter().map(|(size, _)| *size).max().unwrap_or(0);
        self.judge(proven);
        self.check_end(sealed);
        let last = signed.iter().max_by_key(|(size, _)| *size);
        let streams = self.versions.len() as u64;
        let mut report = self.report;
        report.sealed = last.map_or(0, |(size, _)| *size);
        report.root = last.and_then(|(size, _)| self.roots.get(size)).map(|it| it.of_events);
        report.streams = streams;
        report.epochs = self.epochs;
        report.last_recorded_at = Timestamp::from_microsecond(self.last_recorded_at_us).ok();
        // What is of no position comes last.
        report.findings.sort_by_key(|finding| finding.position.wrapping_sub(1));
        report.findings.truncate(FINDINGS_MAX);
        report
    }

    /// What comes behind the last checkpoint must be too new for one. Where anything else is wrong,
    /// that is what takes events out of a checkpoint's reach, and is said already.
    fn check_end(&mut self, sealed: u64) {
        let head = self.told.head;
        if self.report.checkpoints == 0 && head > 0 {
            return self.find(0, Problem::Unsealed { head });
        }
        let first = self.behind.get(&sealed).and_then(|at| Timestamp::from_microsecond(*at).ok());
        let (Some(now), Some(recorded_at)) = (self.told.at, first) else { return };
        if self.report.found == 0 && now.duration_since(recorded_at) > UNSEALED_MAX {
            self.find(sealed + 1, Problem::UnsealedFrom { head, recorded_at });
        }
    }

    /// What is said to be archived must be told of, in a log that is sealed, and not as restored.
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

    fn check_epochs(&mut self) {
        let mut epochs: Vec<i64> = self.told.keys.iter().map(|key| key.epoch).collect();
        epochs.push(self.told.epoch);
        epochs.dedup();
        let untold: Vec<(i64, i64)> = epochs
            .windows(2)
            .map(|pair| (pair[0], pair[1]))
            .filter(|(former, epoch)| {
                let begun = |it: &BegunEpoch| (it.event.former_epoch, it.event.epoch);
                !self.epochs.iter().any(|it| begun(it) == (*former, *epoch))
            })
            .collect();
        for (former, epoch) in untold {
            self.find(0, Problem::Epoch { former, epoch });
        }
    }

    /// How many events of an epoch the log may still have.
    fn kept_of(&self, epoch: i64) -> Option<u64> {
        if epoch == self.told.epoch {
            return Some(self.told.head);
        }
        // A later restore may have lost more of it.
        let after = self.epochs.iter().filter(|it| it.event.former_epoch >= epoch);
        after.map(|it| it.event.size).min()
    }

    /// Checks every stored checkpoint; returns size and root of those that were signed.
    fn check_checkpoints(&mut self, keys: &Keys) -> Vec<(u64, Hash)> {
        let mut signed = Vec::new();
        for stored in std::mem::take(&mut self.told.checkpoints) {
            // Without a trusted key of the epoch there is nothing to hold against.
            if !keys.cover(stored.epoch, stored.size) {
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
        for text in &notes {
            let opened = Note::parse(text).and_then(|it| it.checkpoint());
            let epoch = opened.as_ref().ok().and_then(Checkpoint::epoch);
            let epoch = epoch.unwrap_or(self.told.epoch);
            let own = self.trust.keys.clone();
            let signed =
                keys.open(epoch, text).or_else(|error| note::open(text, &own).map_err(|_| error));
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
                    let index = (position - 1) / TILE_WIDTH as u64;
                    let entry = (position - 1) as usize % TILE_WIDTH;
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
