//! Bringing ranges back from an archive, the newest first: what is archived begins the log always.

use std::path::Path;

use milepost_schemas::event::LogRangeRestored;
use milepost_schemas::{Event, Position};
use tokio_postgres::Client;
use uuid::Uuid;

use super::files::{self, Manifest};
use super::run::{detached, keys, last_told, record};
use super::{ArchiveError, ArchivedRange, Part, keep, lock, ranges, swap, unlock};
use crate::app::App;
use crate::ledger::bundle::Line;

/// Events written in one statement.
const ROWS_AT_ONCE: usize = 1_000;

/// What was brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// These ranges, by their first and last position, as they came back.
    pub ranges: Vec<(u64, u64)>,
    /// Up to here the log is in archives still.
    pub floor: Position,
}

/// Brings back every range that is archived, each verified before anybody sees it.
///
/// # Errors
/// [`ArchiveError`]. What was brought back before it stays; run again to go on.
pub async fn restore(
    app: &App,
    directory: &Path,
    by: &str,
    mut told: impl FnMut(u64, u64),
) -> Result<Restored, ArchiveError> {
    let mut client = app.log.database().owner().await?;
    lock(&client).await?;
    swap::sweep(&client).await?;
    let mut restored = Vec::new();
    for range in ranges(&client).await?.into_iter().rev() {
        restore_range(app, &mut client, directory, &range, by).await?;
        told(range.first, range.last);
        restored.push((range.first, range.last));
    }
    unlock(&client).await?;
    Ok(Restored { ranges: restored, floor: app.log.floor().await? })
}

async fn restore_range(
    app: &App,
    client: &mut Client,
    directory: &Path,
    range: &ArchivedRange,
    by: &str,
) -> Result<(), ArchiveError> {
    let (first, last) = (range.first, range.last);
    let manifest = files::manifest(directory, first, last)?;
    let directory_of = || directory.to_owned();
    let not_there = || ArchiveError::NotThere { directory: directory_of(), first, last };
    let manifest = manifest.ok_or_else(not_there)?;
    let width = last + 1 - if first == 1 { 0 } else { first };
    let part = Part { number: first / width, width };
    let table = format!("{}_restored", part.table());
    keep::create(client, &table, &part).await?;
    fill(client, directory, &manifest, &table).await?;
    keep::finish(client, &table).await?;
    if !matches!(last_told(app, first).await?, Some(Event::LogRangeRestored(_))) {
        let location = directory.display().to_string();
        let event = LogRangeRestored { first, last, location, restored_by: by.to_owned() };
        record(app, event.into(), "system:restore").await?;
    }
    // The table it was, where it was left here.
    swap::remove(client, &detached(&part)).await?;
    let kept = format!("{}_before", part.table());
    swap::swap(client, &part, &table, &kept, async |transaction| {
        let sql = "DELETE FROM archived_range WHERE first_position = $1";
        transaction.execute(sql, &[&(first as i64)]).await.map(|_| true)
    })
    .await?;
    swap::remove(client, &kept).await?;
    Ok(())
}

/// Writes the events of a range into a table that nobody sees yet, and verifies them on the way.
async fn fill(
    client: &Client,
    directory: &Path,
    manifest: &Manifest,
    table: &str,
) -> Result<(), ArchiveError> {
    let keys = keys(client).await?;
    let mut lines = Vec::with_capacity(ROWS_AT_ONCE);
    let take = async |line: Line| {
        lines.push(line);
        if lines.len() == ROWS_AT_ONCE {
            insert(client, table, &lines).await?;
            lines.clear();
        }
        Ok(())
    };
    files::check(directory, manifest, &keys, Some(client), take).await?;
    insert(client, table, &lines).await
}

async fn insert(client: &Client, table: &str, lines: &[Line]) -> Result<(), ArchiveError> {
    let positions: Vec<i64> = lines.iter().map(|line| line.position as i64).collect();
    let streams: Vec<Uuid> = lines.iter().map(|line| line.stream).collect();
    let versions: Vec<i32> = lines.iter().map(|line| line.version.cast_signed()).collect();
    let types: Vec<i16> = lines.iter().map(|line| line.code).collect();
    let schema_versions: Vec<i16> = lines.iter().map(|line| line.schema_version).collect();
    let times: Vec<jiff::Timestamp> = lines.iter().map(|line| line.recorded_at).collect();
    let headers: Vec<&[u8]> = lines.iter().map(|line| &line.header[..]).collect();
    let bodies: Vec<&[u8]> = lines.iter().map(|line| &line.body[..]).collect();
    client
        .execute(
            &format!(
                "INSERT INTO {table} (position, stream_id, version, type, schema_version, \
                 recorded_at, header, body) SELECT * FROM unnest($1::bigint[], $2::uuid[], \
                 $3::integer[], $4::smallint[], $5::smallint[], $6::timestamptz[], $7::bytea[], \
                 $8::bytea[])"
            ),
            &[&positions, &streams, &versions, &types, &schema_versions, &times, &headers, &bodies],
        )
        .await?;
    Ok(())
}
