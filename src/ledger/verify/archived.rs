//! Ranges that are archived: from the archive, or what stays of them and what was sealed.

use std::path::Path;

use tokio_postgres::{Client, Row};

use super::database::{MISSING_MAX, Tiles};
use super::events::Auditor;
use super::examine::Examiner;
use super::finding::{FINDINGS_MAX, Problem};
use crate::ledger::archive::{self, ArchiveError, ArchivedRange, Reader};
use crate::ledger::hash::Hash;
use crate::ledger::tree::Tree;
use crate::log::DatabaseError;

/// Rows read at once.
const ROWS_AT_ONCE: i64 = 1_000;

/// Audits a range that comes next: from its archive, or else by what stays of it and what was sealed.
/// Ends before it does where too much of that is missing.
pub(super) async fn audit_range(
    client: &Client,
    directory: Option<&Path>,
    range: &ArchivedRange,
    examiner: &Examiner,
    tiles: &mut Tiles<'_>,
    auditor: &mut Auditor,
) -> Result<(), ArchiveError> {
    find_doubled(client, range, auditor).await?;
    match directory {
        Some(directory) => from_archive(client, directory, range, examiner, tiles, auditor).await,
        None => Ok(from_kept(client, range, examiner, tiles, auditor).await?),
    }
}

/// Says which positions have several events; what follows reads one of them.
async fn find_doubled(
    client: &Client,
    range: &ArchivedRange,
    auditor: &mut Auditor,
) -> Result<(), DatabaseError> {
    let sql = "SELECT position FROM event WHERE position >= $1 AND position <= $2 \
               GROUP BY position HAVING count(*) > 1 ORDER BY position LIMIT $3";
    let limit = FINDINGS_MAX as i64;
    let bounds = (range.first as i64, range.last as i64);
    for row in client.query(sql, &[&bounds.0, &bounds.1, &limit]).await? {
        auditor.find(position(&row), Problem::Twice);
    }
    Ok(())
}

/// Audits a range from its archive, and beside it what stays of it in the database.
async fn from_archive(
    client: &Client,
    directory: &Path,
    range: &ArchivedRange,
    examiner: &Examiner,
    tiles: &mut Tiles<'_>,
    auditor: &mut Auditor,
) -> Result<(), ArchiveError> {
    let (first, last) = (range.first, range.last);
    let directory_of = || directory.to_owned();
    let manifest = archive::manifest(directory, first, last)?
        .ok_or_else(|| ArchiveError::NotThere { directory: directory_of(), first, last })?;
    let kept = kept_hashes(client, range, auditor).await?;
    let mut kept = kept.into_iter().peekable();
    let mut reader = Reader::open(directory, &manifest)?;
    while let Some(line) = reader.next_line() {
        let line = match line {
            Ok(line) => line,
            Err(wrong) => {
                auditor.find(wrong.position, Problem::Archive(wrong.why));
                break;
            }
        };
        let sealed = tiles.at(line.position, auditor).await?;
        if let Some((_, found)) = kept.next_if(|(position, _)| *position == line.position) {
            auditor.compare_kept(line.position, found, sealed);
        }
        auditor.take(Some(&examiner.examine(line.position, &line.leaf())), sealed);
    }
    while auditor.next() <= last && auditor.unproven() < MISSING_MAX {
        let sealed = tiles.at(auditor.next(), auditor).await?;
        if let Some((position, found)) = kept.next_if(|(at, _)| *at == auditor.next()) {
            auditor.compare_kept(position, found, sealed);
        }
        auditor.take_archived(sealed);
    }
    Ok(())
}

/// Positions and leaves of what stays of a range.
async fn kept_hashes(
    client: &Client,
    range: &ArchivedRange,
    auditor: &mut Auditor,
) -> Result<Vec<(u64, Hash)>, DatabaseError> {
    let (mut after, mut hashes) = (range.first - 1, Vec::new());
    loop {
        let rows = rows(client, after, range.last).await?;
        for row in &rows {
            after = position(row);
            match archive::leaf(row) {
                Ok(leaf) => hashes.push((after, leaf.hash())),
                Err(_) => auditor.find(after, Problem::Torn),
            }
        }
        if rows.is_empty() {
            let mut tree = Tree::default();
            for (_, hash) in &hashes {
                tree.push(*hash, drop);
            }
            compare(range, &tree, auditor);
            return Ok(hashes);
        }
    }
}

/// Audits what stays of a range; what was sealed stands in for the rest.
async fn from_kept(
    client: &Client,
    range: &ArchivedRange,
    examiner: &Examiner,
    tiles: &mut Tiles<'_>,
    auditor: &mut Auditor,
) -> Result<(), DatabaseError> {
    let (mut after, mut tree) = (range.first - 1, Tree::default());
    auditor.set_sparse(true);
    loop {
        let rows = rows(client, after, range.last).await?;
        for row in &rows {
            after = position(row);
            take_archived_to(after - 1, tiles, auditor).await?;
            if auditor.next() < after {
                return Ok(());
            }
            let sealed = tiles.at(after, auditor).await?;
            if let Ok(leaf) = archive::leaf(row) {
                let event = examiner.examine(after, &leaf);
                tree.push(event.leaf, drop);
                auditor.take(Some(&event), sealed);
            } else {
                auditor.find(after, Problem::Torn);
                auditor.pass_over(sealed);
            }
        }
        if rows.is_empty() {
            break;
        }
    }
    take_archived_to(range.last, tiles, auditor).await?;
    auditor.set_sparse(false);
    compare(range, &tree, auditor);
    Ok(())
}

async fn take_archived_to(
    last: u64,
    tiles: &mut Tiles<'_>,
    auditor: &mut Auditor,
) -> Result<(), DatabaseError> {
    while auditor.next() <= last && auditor.unproven() < MISSING_MAX {
        let sealed = tiles.at(auditor.next(), auditor).await?;
        auditor.take_archived(sealed);
    }
    Ok(())
}

/// Says whether what stays is what stayed.
fn compare(range: &ArchivedRange, kept: &Tree, auditor: &mut Auditor) {
    if (kept.size(), &kept.root().0[..]) != (range.kept_events, &range.kept_root[..]) {
        let (last, expected, found) = (range.last, range.kept_events, kept.size());
        auditor.find(range.first, Problem::Kept { last, expected, found });
    }
}

async fn rows(client: &Client, after: u64, last: u64) -> Result<Vec<Row>, DatabaseError> {
    let sql = "SELECT DISTINCT ON (position) position, stream_id, version, type, schema_version, recorded_at, header, body \
               FROM event WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3";
    Ok(client.query(sql, &[&(after as i64), &(last as i64), &ROWS_AT_ONCE]).await?)
}

fn position(row: &Row) -> u64 {
    row.get::<_, i64>(0) as u64
}
