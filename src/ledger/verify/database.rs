//! An audit of the log where it lives: events, tiles, checkpoints and keys from the database.

use std::ops::ControlFlow;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use milepost_schemas::Position;
use tokio_postgres::{Client, IsolationLevel};

use super::archived::audit_range;
use super::events::{Auditor, SealedHash};
use super::examine::{Examined, Examiner};
use super::finding::Problem;
use super::{Report, Told, Trust};
use crate::ledger::archive::{self, ArchiveError, ArchivedRange};
use crate::ledger::hash::{HASH_BYTES, Hash};
use crate::ledger::read::{GAPS_MAX, Piece, leaves};
use crate::ledger::tree::{TILE_WIDTH, Tile, TileId};
use crate::ledger::{Leaf, store};
use crate::log::{Database, DatabaseError};

/// Tiles of level 0 read at once: 512 KiB.
const TILES_AT_ONCE: i64 = 64;

/// Positions with nothing at them that are looked at one by one, which takes seconds; where more are
/// missing the log's word for its size is worth no more, and one finding says as much.
pub(super) const MISSING_MAX: u64 = 1 << 20;

/// Audits the log in a database as it is now, reading events over so many connections at once, and
/// those that are archived from the directory of the archive. Without one, what was sealed of them
/// and what stays of them is audited, and the report says that they were not read.
///
/// # Errors
/// [`ArchiveError`] when the database cannot be asked, or a range is not in the archive. What is
/// wrong with the log stands in the report.
pub async fn database(
    database: &Database,
    trust: Trust,
    connections: usize,
    now: Timestamp,
) -> Result<Report, ArchiveError> {
    let (mut client, _gone) = database.dedicated().await?;
    let (mut told, outside, last) = told(&mut client, now).await?;
    let (head, archived) = (told.head, told.archived.clone());
    let signed = told.checkpoints.iter().map(|it| it.size).max().unwrap_or(0);
    // Where neither events nor checkpoints reach, the head's word is enough for one finding.
    told.head = head.min(last.max(signed));
    let (said, head) = (head, told.head);
    let examiner = Examiner::new(&trust.secrets);
    let archive = trust.archive.clone();
    let mut auditor = Auditor::new(told, trust);
    if said > head {
        auditor.find(head + 1, Problem::MissingUpTo { last: said });
    }
    for position in outside {
        auditor.find(position, Problem::Outside { head: said });
    }
    let mut tiles = Tiles::new(&client, auditor.sealed_size());
    let mut refused = false;
    for range in &archived {
        refused = !is_next(range, auditor.next(), last.min(head));
        if refused {
            auditor.find(auditor.next(), Problem::Unarchived { last: range.last });
            break;
        }
        let directory = archive.as_deref();
        audit_range(&client, directory, range, &examiner, &mut tiles, &mut auditor).await?;
        compare_filled(&client, &mut auditor).await?;
        if auditor.next() <= range.last {
            auditor.find(auditor.next(), Problem::MissingUpTo { last: range.last });
            return Ok(auditor.finish());
        }
    }
    let examine = move |position, leaf: &Leaf<'_>| examiner.examine(position, leaf);
    let (after, upto) = (Position(auditor.next() - 1), Position(head));
    let mut chunks = std::pin::pin!(leaves(database, after, upto, connections, examine));
    while let Some(piece) = chunks.next().await {
        let piece = match piece {
            // What is missing is said to be in an archive that was refused above.
            Err(DatabaseError::Archived { .. }) if refused => return Ok(auditor.finish()),
            piece => piece?,
        };
        if take(piece, &mut tiles, &mut auditor).await?.is_break() {
            return Ok(auditor.finish());
        }
        compare_filled(&client, &mut auditor).await?;
    }
    compare_filled(&client, &mut auditor).await?;
    for (tile, as_sealed) in auditor.open() {
        compare(&client, &mut auditor, &tile, as_sealed.as_ref()).await?;
    }
    find_stray_tiles(&client, &mut auditor).await?;
    Ok(auditor.finish())
}

/// Audits what was read; breaks where there is no use in going on.
async fn take(
    piece: Piece<Examined>,
    tiles: &mut Tiles<'_>,
    auditor: &mut Auditor,
) -> Result<ControlFlow<()>, DatabaseError> {
    match piece {
        Piece::Events(events) => {
            for event in &events {
                let sealed = tiles.at(event.position, auditor).await?;
                auditor.take(Some(event), sealed);
            }
        }
        Piece::Missing(first, last) if last - first >= MISSING_MAX => {
            auditor.find(first, Problem::MissingUpTo { last });
            return Ok(ControlFlow::Break(()));
        }
        Piece::Missing(first, last) => {
            for position in first..=last {
                let sealed = tiles.at(position, auditor).await?;
                auditor.take(None, sealed);
            }
        }
        Piece::Torn(position) => {
            auditor.find(position, Problem::Torn);
            let sealed = tiles.at(position, auditor).await?;
            auditor.pass_over(sealed);
        }
        Piece::Twice(position) => {
            auditor.find(position, Problem::Twice);
            // One of them may have been taken already.
            if auditor.next() == position {
                let sealed = tiles.at(position, auditor).await?;
                auditor.pass_over(sealed);
            }
        }
        Piece::GivenUp(position) => {
            auditor.find(position, Problem::GivenUp { gaps: GAPS_MAX });
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Whether a range that is said to be archived can be: ranges begin the log and have no gap, and the
/// event that tells of one comes behind it.
fn is_next(range: &ArchivedRange, next: u64, last: u64) -> bool {
    range.first == next && (next..last).contains(&range.last)
}

/// What the database tells of the log at one moment, positions of events outside of it, and that of
/// the last event there is.
async fn told(client: &mut Client, now: Timestamp) -> Result<(Told, Vec<u64>, u64), DatabaseError> {
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let row = transaction.query_one("SELECT epoch, size FROM log_head", &[]).await?;
    let (epoch, size): (i64, i64) = (row.get(0), row.get(1));
    let size = size.max(0);
    let outside = transaction
        .query(
            "SELECT position FROM event WHERE position < 1 OR position > $1 \
             ORDER BY position LIMIT 10",
            &[&size],
        )
        .await?;
    let outside = outside.iter().map(|row| row.get::<_, i64>(0).max(0) as u64).collect();
    let checkpoints = store::checkpoints(&transaction).await?;
    let keys = store::keys(&transaction).await?;
    let last: Option<i64> =
        transaction.query_one("SELECT max(position) FROM event", &[]).await?.get(0);
    let archived = archive::ranges(&transaction).await?;
    transaction.commit().await?;
    let told = Told { epoch, head: size as u64, checkpoints, keys, archived, at: Some(now) };
    Ok((told, outside, last.unwrap_or(0).max(0) as u64))
}

async fn compare_filled(client: &Client, auditor: &mut Auditor) -> Result<(), DatabaseError> {
    for (tile, as_sealed) in auditor.filled() {
        compare(client, auditor, &tile, as_sealed.as_ref()).await?;
    }
    Ok(())
}

async fn compare(
    client: &Client,
    auditor: &mut Auditor,
    tile: &Tile,
    as_sealed: Option<&Tile>,
) -> Result<(), DatabaseError> {
    let mut stored = store::tiles(client, &[tile.id].into()).await?;
    let stored = stored.remove(&tile.id).unwrap_or_default();
    auditor.compare(tile, as_sealed, &stored);
    Ok(())
}

/// Looks for tiles that no event has filled.
async fn find_stray_tiles(client: &Client, auditor: &mut Auditor) -> Result<(), DatabaseError> {
    // Later than the tiles were read: what was sealed meanwhile is covered by events.
    let rows = client
        .query(
            "SELECT t.level, t.tile_index, octet_length(t.hashes), h.size \
             FROM tree_tile AS t CROSS JOIN log_head AS h \
             WHERE t.level NOT BETWEEN 0 AND 7 OR t.tile_index < 0 \
             OR (t.tile_index::numeric * 256 + octet_length(t.hashes) / 32) \
                * 256::numeric ^ t.level::numeric > h.size \
             ORDER BY 1, 2 LIMIT 10",
            &[],
        )
        .await?;
    for row in rows {
        let (level, index): (i16, i64) = (row.get(0), row.get(1));
        let (bytes, size): (i32, i64) = (row.get(2), row.get(3));
        let tile = TileId { level: level as u8, index: index as u64 };
        let expected = tile.width(size as u64);
        let position = size as u64 + 1;
        auditor.find_tile_size(position, tile, bytes as usize / HASH_BYTES, expected);
    }
    Ok(())
}

/// The stored tiles of level 0, read in order.
pub(super) struct Tiles<'a> {
    client: &'a Client,
    sealed: u64,
    /// The index of the first tile that is held.
    first: u64,
    held: Vec<Option<Vec<Hash>>>,
    /// Tiles that were said to be too short.
    said: Option<u64>,
}

impl<'a> Tiles<'a> {
    fn new(client: &'a Client, sealed: u64) -> Self {
        Self { client, sealed, first: 0, held: Vec::new(), said: None }
    }

    /// What was sealed at a position; positions are asked for in order.
    pub(super) async fn at(
        &mut self,
        position: u64,
        auditor: &mut Auditor,
    ) -> Result<SealedHash, DatabaseError> {
        let (index, entry) =
            ((position - 1) / TILE_WIDTH as u64, ((position - 1) % TILE_WIDTH as u64) as usize);
        if index >= self.first + self.held.len() as u64 {
            self.read(index).await?;
            auditor.compared(self.held.iter().flatten().count() as u64);
        }
        let tile = self.held[(index - self.first) as usize].as_ref();
        if let Some(hash) = tile.and_then(|hashes| hashes.get(entry)) {
            return Ok(SealedHash::Hash(*hash));
        }
        if position > self.sealed {
            return Ok(SealedHash::NotYet);
        }
        if self.said.replace(index) != Some(index) {
            let id = TileId { level: 0, index };
            let stored = tile.map_or(0, Vec::len);
            auditor.find_tile_size(position, id, stored, id.width(self.sealed));
        }
        Ok(SealedHash::Gone)
    }

    async fn read(&mut self, index: u64) -> Result<(), DatabaseError> {
        let rows = store::tiles_from(self.client, 0, index, TILES_AT_ONCE).await?;
        self.first = index;
        self.held = vec![None; TILES_AT_ONCE as usize];
        for (at, bytes) in rows {
            // Bytes that are no whole hashes are as good as none.
            if let Some(place) = self.held.get_mut((at - index) as usize) {
                *place = Hash::all_in(&bytes);
            }
        }
        Ok(())
    }
}
