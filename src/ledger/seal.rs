//! Sealing: one process follows the log, grows the tree, and signs a checkpoint about once a second.
//!
//! The process that holds the advisory lock does so, on the very connection that holds it: when
//! that breaks, so does its right to write. It reads what its feed has, and the log for what that
//! has no more. A tree that is not the one it signed before is never signed over: it says why, and
//! waits for somebody to look.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use milepost_schemas::event::LogKeyRotated;
use milepost_schemas::{Event, Metadata, Position, StreamId};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::epoch;
use super::hash::Hash;
use super::key::{KeyFile, SigningKey, signed};
use super::leaf::Leaf;
use super::note::{self, Checkpoint, Note, VerifierKey};
use super::refusal::{Refusal, SealError};
use super::store::{self, ListedKey, SignedCheckpoint};
use super::tree::{Tile, TileId, Tree};
use crate::app::App;
use crate::log::{Committed, Decision, EventFilter, Expected, Since, floor};

/// The advisory lock of the process that seals: "seal" in ASCII.
pub const LOCK: i64 = 0x73_65_61_6c;

/// How often a checkpoint is signed while the log grows.
pub const SEAL_EVERY: Duration = Duration::from_secs(1);

/// How often new events are hashed between two checkpoints: the feed keeps those of a second and
/// more.
const BREATH: Duration = Duration::from_millis(100);

/// How long another process waits before it tries to take over.
const STANDBY: Duration = Duration::from_secs(2);

/// How long a process waits that has found something wrong.
const REFUSED: Duration = Duration::from_secs(10);

/// Of checkpoints, one in this time is kept when later ones are signed.
const KEPT_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// Events taken from the feed at once.
const TAKE_EVENTS_MAX: usize = 1_024;

/// Full tiles that are held before they are written: 2 MiB.
const TILES_MAX: usize = 256;

/// How long the event of a rotation may take.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Seals, or stands by, until this process appends no more: a server that was stopped leaves
/// nothing unsealed.
pub fn start(app: Arc<App>, file: KeyFile) {
    let sealing = app.sealing.clone();
    sealing.spawn(async move { lead(&app, &file).await });
}

async fn lead(app: &App, file: &KeyFile) {
    while !app.drained.is_cancelled() {
        let outcome = lead_once(app, file).await;
        let is_refused = matches!(outcome, Err(SealError::Refused(_) | SealError::Key(_)));
        app.metrics.seal_refused.set(i64::from(is_refused));
        app.metrics.seal_errors.inc_by(u64::from(outcome.is_err()));
        let pause = match outcome {
            Ok(()) => STANDBY,
            Err(error @ (SealError::Refused(_) | SealError::Key(_))) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the log is not sealed");
                REFUSED
            }
            Err(error @ (SealError::Database(_) | SealError::Append(_))) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "nothing is sealed now");
                STANDBY
            }
        };
        rest(app, pause).await;
    }
}

/// Waits, but not when it is time to seal for the last time.
async fn rest(app: &App, pause: Duration) {
    drop(tokio::time::timeout(pause, app.drained.cancelled()).await);
}

/// Seals as long as this process holds the lock.
async fn lead_once(app: &App, file: &KeyFile) -> Result<(), SealError> {
    let (client, mut gone) = app.log.database().dedicated().await?;
    let locked = client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?;
    if !locked.get::<_, bool>(0) {
        return Ok(());
    }
    let mut sealer = Sealer::resume(app, client, file).await?;
    tokio::select! {
        outcome = sealer.rounds() => outcome,
        () = async { while gone.recv().await.is_some() {} } => Ok(()),
    }
}

struct Sealer<'a> {
    app: &'a App,
    client: Client,
    file: &'a KeyFile,
    tree: Tree,
    filled: Vec<Tile>,
    epoch: i64,
    /// The size of the last checkpoint.
    sealed: u64,
    kept_at: Option<Timestamp>,
    /// The key in force; `None` before the first checkpoint of an epoch.
    listed: Option<VerifierKey>,
    /// What the tree must come to pass, as this machine has signed it.
    known: Option<Checkpoint>,
}

impl<'a> Sealer<'a> {
    /// Takes the tree up where it was left, and makes sure that it is the one that was signed.
    async fn resume(app: &'a App, client: Client, file: &'a KeyFile) -> Result<Self, SealError> {
        let epoch = app.log.feed().epoch();
        let head = app.log.head().await?.1.0;
        let keys = store::keys(&client).await?;
        let listed = keys.iter().rfind(|key| key.epoch == epoch);
        let listed = listed.and_then(ListedKey::parse);
        let latest = store::latest(&client, epoch).await?;
        let sealed = latest.as_ref().map_or(0, |latest| latest.size);
        if sealed > head {
            return Err(Refusal::Behind { head, signed: sealed }.into());
        }
        // What is archived cannot be hashed again: a new epoch takes its tiles over.
        let floor = floor(&client).await?;
        let tree = resume_tree(&client, sealed.max(floor.0)).await?;
        if let Some(latest) = &latest {
            let of_epoch: Vec<_> = keys.iter().filter_map(ListedKey::parse).collect();
            let wrong = |error: note::NoteError| Refusal::Checkpoint(error.to_string());
            let checkpoint = note::open(&latest.note, &of_epoch).map_err(wrong)?;
            if (checkpoint.size, checkpoint.root) != (tree.size(), tree.root()) {
                let (size, signed, found) = (checkpoint.size, checkpoint.root, tree.root());
                return Err(Refusal::Fork { size, signed, found }.into());
            }
        }
        let known = known(app, file, epoch, head).await?;
        if let Some(known) = known.as_ref().filter(|known| known.size <= sealed) {
            let found = store::root(&client, known.size).await?;
            require_root(known, found)?;
        }
        let kept_at = store::last_kept_at(&client, epoch).await?;
        let known = known.filter(|known| known.size > sealed);
        let filled = Vec::new();
        Ok(Self { app, client, file, tree, filled, epoch, sealed, kept_at, listed, known })
    }

    /// Hashes as the log grows, and signs when it is time; for the last time when all is drained.
    async fn rounds(&mut self) -> Result<(), SealError> {
        let mut head = self.app.log.feed().watch();
        let mut next_seal = Instant::now();
        loop {
            head.mark_unchanged();
            let is_last = self.app.drained.is_cancelled();
            self.take(None).await?;
            let rotates = self.rotate().await?;
            let grown = self.tree.size() > self.sealed;
            if rotates || (grown && (is_last || Instant::now() >= next_seal)) {
                self.seal().await?;
                next_seal = Instant::now() + SEAL_EVERY;
            }
            if is_last {
                return Ok(());
            }
            if self.tree.size() > self.sealed {
                rest(self.app, BREATH).await;
            } else {
                tokio::select! {
                    _ = head.changed() => {}
                    // A key may be put into the file while nothing happens.
                    () = rest(self.app, SEAL_EVERY) => {}
                }
            }
        }
    }

    /// Appends to the tree what the log has, up to a position if one is given.
    async fn take(&mut self, upto: Option<u64>) -> Result<(), SealError> {
        let feed = Arc::clone(self.app.log.feed());
        loop {
            let after = Position(self.tree.size());
            let wanted = upto.unwrap_or(feed.head().0).saturating_sub(after.0) as usize;
            match feed.since(after, wanted.min(TAKE_EVENTS_MAX)) {
                Since::Events(events) if events.is_empty() => return Ok(()),
                Since::Events(events) => {
                    for event in &events {
                        self.push(event)?;
                    }
                }
                Since::Older(upto) => {
                    let all = EventFilter::default();
                    let events = self.app.log.read(&all, after, upto, usize::MAX).await?;
                    if events.is_empty() {
                        let (head, signed) = (after.0, feed.head().0);
                        return Err(Refusal::Behind { head, signed }.into());
                    }
                    for event in &events {
                        self.push(event)?;
                    }
                }
            }
            if self.filled.len() >= TILES_MAX {
                store::write_tiles(&self.client, &self.filled).await?;
                self.filled.clear();
            }
            tokio::task::yield_now().await;
        }
    }

    fn push(&mut self, event: &Committed) -> Result<(), SealError> {
        if event.position.0 != self.tree.size() + 1 {
            let (head, signed) = (self.tree.size(), event.position.0);
            return Err(Refusal::Behind { head, signed }.into());
        }
        let filled = &mut self.filled;
        self.tree.push(Leaf::of(event).hash(), |tile| filled.push(tile));
        if let Some(known) = self.known.take_if(|known| known.size == event.position.0) {
            require_root(&known, self.tree.root())?;
        }
        Ok(())
    }

    /// Signs the tree as it is, and keeps what that takes.
    async fn seal(&mut self) -> Result<(), SealError> {
        let keys = self.file.read()?;
        let now = self.app.clock.now();
        let origin = self.origin();
        let size = self.tree.size();
        let checkpoint = Checkpoint { origin, size, root: self.tree.root() };
        let (signers, newly_listed) = self.signers(&keys, &checkpoint.origin)?;
        let made;
        let signers = if signers.is_empty() {
            made = [self.file.add()?];
            vec![&made[0]]
        } else {
            signers
        };
        let last = signers.last().expect("somebody signs").verifier(&checkpoint.origin);
        let note = signed(&checkpoint, &signers);
        let rested = self.kept_at.is_none_or(|at| now.duration_since(at) >= KEPT_EVERY);
        let kept = newly_listed || rested;
        let mut tiles = std::mem::take(&mut self.filled);
        tiles.extend(self.tree.open_tiles());
        let transaction = self.client.transaction().await?;
        store::write_tiles(&transaction, &tiles).await?;
        if newly_listed {
            let key = ListedKey {
                epoch: self.epoch,
                from_size: if self.listed.is_some() { size } else { 0 },
                verifier_key: last.to_string(),
            };
            store::write_key(&transaction, &key).await?;
        }
        let root = checkpoint.root.0.to_vec();
        let row = SignedCheckpoint {
            epoch: self.epoch,
            size,
            root,
            note: note.clone(),
            sealed_at: now,
            kept,
        };
        store::write_checkpoint(&transaction, &row).await?;
        // Before anybody sees it: whatever was given out, this machine knows that it has signed it.
        self.file.keep_note(&note)?;
        transaction.commit().await?;
        self.sealed = size;
        self.listed = Some(last);
        self.kept_at = if kept { Some(now) } else { self.kept_at };
        self.app.metrics.log_sealed_position.set(size as f64);
        Ok(())
    }

    /// Whose signatures the next checkpoint carries, and whether the last of them is new. None
    /// where a first key is yet to be made.
    fn signers<'k>(
        &self,
        keys: &'k [SigningKey],
        origin: &str,
    ) -> Result<(Vec<&'k SigningKey>, bool), Refusal> {
        let Some(listed) = &self.listed else {
            return Ok((keys.last().into_iter().collect(), true));
        };
        let former = keys.iter().position(|key| key.public() == listed.public);
        let path = || self.file.path().display().to_string();
        let Some(former) = former else {
            return Err(Refusal::ForeignKey { listed: listed.to_string(), path: path() });
        };
        let last = keys.last().expect("one was found among them");
        if last.public() == listed.public {
            return Ok((vec![last], false));
        }
        debug_assert_eq!(listed.name, origin);
        // Both sign the checkpoint with which the new one takes over.
        Ok((vec![&keys[former], last], true))
    }

    /// Records that a new key is there, if one is; the checkpoint over that event is its first.
    async fn rotate(&mut self) -> Result<bool, SealError> {
        let Some(listed) = self.listed.clone() else { return Ok(false) };
        let keys = self.file.read()?;
        let (signers, newly_listed) = self.signers(&keys, &listed.name)?;
        if !newly_listed {
            return Ok(false);
        }
        let new = signers.last().expect("somebody signs").verifier(&listed.name);
        let all = store::keys(&self.client).await?;
        if all.iter().any(|it| it.verifier_key == new.to_string()) {
            let path = self.file.path().display().to_string();
            return Err(Refusal::OldKey { listed: listed.to_string(), path }.into());
        }
        let event = LogKeyRotated { former_key: listed.to_string(), key: new.to_string() };
        let position = match self.told_at(&event).await? {
            // Of a time at which the checkpoint over it could not be signed.
            Some(position) => position,
            None => self.tell(event).await?,
        };
        self.take(Some(position.0)).await?;
        tracing::info!(key = %new, %position, "a new key seals the log");
        Ok(true)
    }

    /// Where the log says so, if its last word about keys is this.
    async fn told_at(&self, rotation: &LogKeyRotated) -> Result<Option<Position>, SealError> {
        let events = self.app.log.read_streams(&[StreamId::LEDGER]).await?;
        let last = events.iter().rev().find_map(|event| match event.event() {
            Ok(Event::LogKeyRotated(it)) => Some((event.position, it)),
            _ => None,
        });
        Ok(last.filter(|(_, last)| *last == rotation).map(|(position, _)| position))
    }

    async fn tell(&self, event: LogKeyRotated) -> Result<Position, SealError> {
        let decision = Decision {
            events: vec![(StreamId::LEDGER, event.into())],
            expected: vec![(StreamId::LEDGER, Expected::Any)],
            metadata: Arc::new(Metadata {
                actor: "system:seal".to_owned(),
                correlation_id: StreamId::LEDGER.0,
                causation_id: None,
                callback: None,
            }),
            queue: None,
        };
        let deadline = Instant::now() + APPEND_TIMEOUT;
        Ok(self.app.log.append(decision, deadline).await?.position())
    }

    /// The name of the log in its epoch. Once a key is listed it stays, wherever the server moves.
    fn origin(&self) -> String {
        match &self.listed {
            Some(listed) => listed.name.clone(),
            None => origin(&self.app.config.public_url, self.epoch),
        }
    }
}

/// The origin of a log that is reached by a URL.
pub fn origin(public_url: &str, epoch: i64) -> String {
    let host = public_url.split_once("://").map_or(public_url, |(_, host)| host);
    let host: String =
        host.chars().map(|it| if it.is_whitespace() || it == '+' { '_' } else { it }).collect();
    format!("{}/log/{epoch}", host.trim_end_matches('/'))
}

async fn resume_tree(client: &Client, size: u64) -> Result<Tree, SealError> {
    let ids = TileId::open(size).collect();
    let mut tiles = store::tiles(client, &ids).await?;
    let open = ids.iter().filter_map(|id| {
        let mut hashes = tiles.remove(id)?;
        // Tiles may be written before the checkpoint over them.
        hashes.truncate(id.width(size));
        Some(Tile { id: *id, hashes })
    });
    let open: Vec<Tile> = open.collect();
    Tree::resume(size, open).ok_or_else(|| Refusal::Tiles(size).into())
}

/// What this machine has signed last, if the log may contradict it.
async fn known(
    app: &App,
    file: &KeyFile,
    epoch: i64,
    head: u64,
) -> Result<Option<Checkpoint>, SealError> {
    let Some(note) = file.last_note()? else { return Ok(None) };
    let wrong = |error: note::NoteError| {
        Refusal::Checkpoint(format!("{}: {error}", file.note_path().display()))
    };
    let checkpoint = Note::parse(&note).and_then(|it| it.checkpoint()).map_err(wrong)?;
    let known = checkpoint.epoch().unwrap_or(epoch);
    if known < epoch && epoch::is_told(&app.log, epoch).await? {
        // The event may be anybody's who writes in the database; what stands beside the key is not.
        if file.agreed_epoch()? == Some(epoch) {
            return Ok(None);
        }
        let path = file.epoch_path().display().to_string();
        return Err(Refusal::NotAgreed { found: epoch, known, path }.into());
    }
    if known != epoch {
        return Err(Refusal::Epoch { found: epoch, known }.into());
    }
    if checkpoint.size > head {
        return Err(Refusal::Behind { head, signed: checkpoint.size }.into());
    }
    Ok(Some(checkpoint))
}

fn require_root(known: &Checkpoint, found: Hash) -> Result<(), Refusal> {
    if known.root == found {
        return Ok(());
    }
    Err(Refusal::Fork { size: known.size, signed: known.root, found })
}
