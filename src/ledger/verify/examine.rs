//! What there is to say of one event by itself: it takes time, and needs no other event, so it is done
//! on as many threads as there are.

use std::sync::Arc;

use milepost_schemas::event::{LogEpochBegun, LogKeyRotated, LogRangeArchived, LogRangeRestored};
use milepost_schemas::{CallbackEvidence, EventType};
use serde::Deserialize;
use uuid::Uuid;

use super::finding::Problem;
use crate::intake::github::Secret;
use crate::ledger::Hash;
use crate::ledger::leaf::Leaf;
use crate::log::has_token;

/// What there is to say of one event by itself.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Its position.
    pub position: u64,
    /// The hash of its leaf.
    pub leaf: Hash,
    pub(super) stream: Uuid,
    pub(super) version: u32,
    pub(super) recorded_at_us: i64,
    pub(super) callback: Signed,
    pub(super) tells: Option<Tells>,
}

/// What there is to say of a callback's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Signed {
    /// It was not looked at, or the event is of no callback.
    NotAsked,
    Fits,
    Unchecked,
    Wrong(Problem),
}

/// What an event tells of the ledger itself.
#[derive(Clone, Debug)]
pub(super) enum Tells {
    Rotation(LogKeyRotated),
    Epoch(LogEpochBegun),
    Archived(LogRangeArchived),
    Restored(LogRangeRestored),
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
        if evidence.body.as_ref().is_some_and(|body| has_token(body.as_bytes())) {
            // What was signed is sealed: an audit needs no key, and so cannot read it.
            return Signed::Unchecked;
        }
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
    } else if leaf.code == EventType::LogRangeRestored.code() {
        serde_json::from_slice(leaf.body).ok().map(Tells::Restored)
    } else {
        None
    }
}
