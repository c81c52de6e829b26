//! Whether the log is what it was: the latest checkpoint, and what a browser can check by itself.

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use jiff::Timestamp;
use milepost_schemas::EventType;
use serde::Deserialize;

use super::Frame;
use super::format::{Clock, number};
use super::handlers::{Trouble, frame, html};
use crate::app::App;
use crate::http::auth::Visitor;
use crate::http::problem::Problem;
use crate::ledger::store;

/// `GET /integrity`.
#[derive(Clone, Debug, Template)]
#[template(path = "integrity.html")]
pub struct IntegrityPage {
    frame: Frame,
    checkpoint: Option<CheckpointView>,
    position: String,
    /// The names of types by their codes, which leaves hold: `1 AgentCreated,…`.
    types: String,
}

/// The latest checkpoint, as the server has it.
#[derive(Clone, Debug)]
pub struct CheckpointView {
    /// Which log, in which epoch.
    origin: String,
    size: u64,
    /// The root, as the note writes it.
    root: String,
    /// The key that signs now.
    key: String,
    /// Since when it stands.
    age: Clock,
    note: String,
}

impl CheckpointView {
    /// The view of a signed note; `None` for a text that is none.
    pub fn new(note: String, key: String, sealed_at: Timestamp, now: Timestamp) -> Option<Self> {
        let mut lines = note.lines().map(str::to_owned);
        let (origin, size, root) = (lines.next()?, lines.next()?.parse().ok()?, lines.next()?);
        Some(Self { origin, size, root, key, age: Clock::up(sealed_at, now), note })
    }

    fn size_text(&self) -> String {
        number(self.size)
    }
}

impl IntegrityPage {
    /// The page for the latest checkpoint; `position` is an event that is to be checked.
    pub fn new(frame: Frame, checkpoint: Option<CheckpointView>, position: Option<u64>) -> Self {
        let position = position.map(|position| position.to_string()).unwrap_or_default();
        let types = EventType::ALL.iter().map(|kind| format!("{} {}", kind.code(), kind.name()));
        Self { frame, checkpoint, position, types: types.collect::<Vec<_>>().join(",") }
    }

    /// Events that came after the checkpoint.
    fn unsealed(&self, checkpoint: &CheckpointView) -> String {
        number(self.frame.position.saturating_sub(checkpoint.size))
    }
}

/// The query of the page.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    position: Option<u64>,
}

/// `GET /integrity?position=`.
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Visitor(actor): Visitor,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Trouble> {
    let Query(Wanted { position }) = query?;
    let (_, head) = app.log.head().await?;
    let frame = frame(&app, Some(&actor), "Integrity".to_owned(), head);
    let checkpoint = latest(&app, frame.now).await?;
    Ok(html(&IntegrityPage::new(frame, checkpoint, position)))
}

async fn latest(app: &App, now: Timestamp) -> Result<Option<CheckpointView>, Problem> {
    let client = app.log.database().get().await?;
    let epoch = app.log.feed().epoch();
    let Some(latest) = store::latest(&**client, epoch).await? else { return Ok(None) };
    let keys = store::keys(&**client).await?;
    let key = keys.into_iter().rev().find(|key| key.epoch == epoch && key.from_size <= latest.size);
    let key = key.map(|key| key.verifier_key).unwrap_or_default();
    Ok(CheckpointView::new(latest.note, key, latest.sealed_at, now))
}
