//! Archiving, partition by partition, the oldest first.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use milepost_schemas::event::LogRangeArchived;
use milepost_schemas::{Event, Metadata, Position, StreamId};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::files::{self, Manifest};
use super::keep::{self, Kept};
use super::limits::{Before, Limit, limit};
use super::{ArchiveError, Part, lock, ranges, swap, unlock};
use crate::app::App;
use crate::ledger::note::{Checkpoint, VerifierKey};
use crate::ledger::store::{self, ListedKey};
use crate::log::{DatabaseError, Decision, Expected};

/// How often what stays of a partition is chosen anew, for a job that was over goes on.
const BUILDS_MAX: usize = 10;

/// How long an event may take.
const APPEND_TIMEOUT: Duration = Duration::from_secs(30);

/// What is to be archived, and where to.
#[derive(Clone, Debug)]
pub struct Order {
    /// How far.
    pub before: Before,
    /// Where to.
    pub directory: PathBuf,
    /// Only say what would be.
    pub dry_run: bool,
    /// Leave the tables that were partitions in the database.
    pub keep_table: bool,
    /// Who says so.
    pub by: String,
}

/// How far a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its file and manifest are on the disk.
    Written,
    /// They were read back, and hold what was signed.
    Verified,
    /// What stays of it is ready, and an event says so.
    Recorded,
    /// It is no part of the log any more.
    Detached,
    /// Its table is gone.
    Dropped,
}

/// Hears of each step; may say to stop behind it.
pub type Watch<'a> = dyn FnMut(&Part, Step) -> ControlFlow<()> + Send + 'a;

/// What was archived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archived {
    /// These partitions, or would be.
    pub parts: Vec<Part>,
    /// Up to here the log is in archives now.
    pub floor: Position,
    /// The first partition that stays.
    pub next: Part,
    /// Why.
    pub limit: Limit,
}

/// Archives every partition that may be. One that is under way is finished first.
///
/// # Errors
/// [`ArchiveError`]. A partition is either in the log whole, or in its archive whole.
pub async fn archive(
    app: &App,
    order: &Order,
    watch: &mut Watch<'_>,
) -> Result<Archived, ArchiveError> {
    let mut client = app.log.database().owner().await?;
    lock(&client).await?;
    let archived = archive_locked(app, &mut client, order, watch).await?;
    unlock(&client).await?;
    Ok(archived)
}

async fn archive_locked(
    app: &App,
    client: &mut Client,
    order: &Order,
    watch: &mut Watch<'_>,
) -> Result<Archived, ArchiveError> {
    if !order.dry_run {
        swap::sweep(client).await?;
    }
    let width = width(client).await?;
    let archived = ranges(client).await?;
    let mut next = Part { number: 0, width };
    for range in &archived {
        let part = Part { number: range.first / width, width };
        next = Part { number: part.number + 1, width };
        if !order.keep_table && !order.dry_run && drop_table(client, &part).await? {
            go_on(watch(&part, Step::Dropped))?;
        }
    }
    let mut parts = Vec::new();
    loop {
        let (epoch, _) = app.log.head().await?;
        let sealed = store::latest(client, epoch).await?;
        if let Some(limit) = limit(client, &next, order.before, sealed.as_ref()).await? {
            let floor = Position(next.first().0 - 1);
            return Ok(Archived { parts, floor, next, limit });
        }
        if !order.dry_run {
            archive_part(app, client, order, &next, watch).await?;
        }
        parts.push(next.clone());
        next.number += 1;
    }
}

async fn width(client: &Client) -> Result<u64, ArchiveError> {
    let row = client.query_one("SELECT partition_width FROM log_layout", &[]).await?;
    Ok(row.get::<_, i64>(0) as u64)
}

async fn archive_part(
    app: &App,
    client: &mut Client,
    order: &Order,
    part: &Part,
    watch: &mut Watch<'_>,
) -> Result<(), ArchiveError> {
    let (first, last) = (part.first().0, part.last().0);
    // One of a run that did not come to its end is verified below, and not written again.
    let there = files::manifest(&order.directory, first, last)?;
    let manifest = if let Some(manifest) = there {
        manifest
    } else {
        let (epoch, _) = app.log.head().await?;
        let sealed = store::latest(client, epoch).await?;
        let sealed = sealed.expect("no partition goes that is not sealed");
        files::write(app.log.database(), &order.directory, part, &sealed).await?
    };
    go_on(watch(part, Step::Written))?;
    let keys = keys(client).await?;
    let take = async |_| Ok(());
    let proven = files::check(&order.directory, &manifest, &keys, Some(&*client), take).await?;
    go_on(watch(part, Step::Verified))?;
    exchange(app, client, order, part, &manifest, &proven, watch).await?;
    go_on(watch(part, Step::Detached))?;
    if !order.keep_table && drop_table(client, part).await? {
        go_on(watch(part, Step::Dropped))?;
    }
    Ok(())
}

/// Puts what stays of a partition in its place, and says so first.
async fn exchange(
    app: &App,
    client: &mut Client,
    order: &Order,
    part: &Part,
    manifest: &Manifest,
    proven: &Checkpoint,
    watch: &mut Watch<'_>,
) -> Result<(), ArchiveError> {
    for _ in 0..BUILDS_MAX {
        let (kept, size) = keep::build(client, part).await?;
        let told = LogRangeArchived {
            first: manifest.first,
            last: manifest.last,
            location: order.directory.display().to_string(),
            file_sha256: manifest.file_sha256.clone(),
            tree_size: proven.size,
            root: proven.root.to_string(),
            kept_events: kept.events,
            kept_root: kept.root.to_string(),
            archived_by: order.by.clone(),
        };
        record_unless_told(app, told).await?;
        go_on(watch(part, Step::Recorded))?;
        if detach(client, order, part, manifest, kept, size).await? {
            return Ok(());
        }
    }
    Err(ArchiveError::GoesOn(part.table()))
}

fn go_on(flow: ControlFlow<()>) -> Result<(), ArchiveError> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ArchiveError::Stopped),
    }
}

/// The keys that the log lists.
pub(super) async fn keys(client: &Client) -> Result<Vec<VerifierKey>, ArchiveError> {
    Ok(store::keys(client).await?.iter().filter_map(ListedKey::parse).collect())
}

/// The event comes before the partition goes: what is missing from the log is always told of.
async fn record_unless_told(app: &App, told: LogRangeArchived) -> Result<(), ArchiveError> {
    let by_hand = |event: &LogRangeArchived| LogRangeArchived {
        archived_by: told.archived_by.clone(),
        ..event.clone()
    };
    match last_told(app, told.first).await? {
        Some(Event::LogRangeArchived(event)) if by_hand(&event) == told => Ok(()),
        _ => record(app, told.into(), "system:archive").await,
    }
}

/// What the log says last of a range.
pub(super) async fn last_told(app: &App, first: u64) -> Result<Option<Event>, DatabaseError> {
    let events = app.log.read_streams(&[StreamId::LEDGER]).await?;
    let of_range = |event: &Event| match event {
        Event::LogRangeArchived(event) => event.first == first,
        Event::LogRangeRestored(event) => event.first == first,
        _ => false,
    };
    let events = events.iter().rev().filter_map(|event| event.event().ok());
    Ok(events.into_iter().find(|event| of_range(event)).cloned())
}

pub(super) async fn record(app: &App, event: Event, actor: &str) -> Result<(), ArchiveError> {
    let decision = Decision {
        events: vec![(StreamId::LEDGER, event)],
        expected: vec![(StreamId::LEDGER, Expected::Any)],
        metadata: Arc::new(Metadata {
            actor: actor.to_owned(),
            correlation_id: StreamId::LEDGER.0,
            causation_id: None,
            callback: None,
        }),
        queue: None,
    };
    app.log.append(decision, Instant::now() + APPEND_TIMEOUT).await?;
    Ok(())
}

/// The name of a table that was a partition.
pub(super) fn detached(part: &Part) -> String {
    format!("{}_archived", part.table())
}

/// Whether it was done: not where a job that was over when the log had `size` has gone on.
async fn detach(
    client: &mut Client,
    order: &Order,
    part: &Part,
    manifest: &Manifest,
    kept: Kept,
    size: i64,
) -> Result<bool, ArchiveError> {
    let old = detached(part);
    // Of a range that was archived with --keep-table and is here again.
    swap::remove(client, &old).await?;
    let location = order.directory.display().to_string();
    swap::swap(client, part, &keep::table(part), &old, async |transaction| {
        // Nobody appends now.
        if keep::goes_on(transaction, size).await? {
            return Ok(false);
        }
        transaction
            .execute(
                "INSERT INTO archived_range (first_position, last_position, partition_name, \
                 location, kept_events, kept_root) VALUES ($1, $2, $3, $4, $5, $6)",
                &[
                    &(manifest.first as i64),
                    &(manifest.last as i64),
                    &part.table(),
                    &location,
                    &(kept.events as i64),
                    &&kept.root.0[..],
                ],
            )
            .await
            .map(|_| true)
    })
    .await
}

async fn drop_table(client: &Client, part: &Part) -> Result<bool, ArchiveError> {
    Ok(swap::remove(client, &detached(part)).await?)
}
