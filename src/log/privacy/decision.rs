//! The one place that seals: where a decision becomes the bytes that the log stores.

use std::sync::Arc;

use bytes::Bytes;
use milepost_schemas::{Callback, Event, Metadata, StreamId};
use serde::Deserialize as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::open::ERASED;
use super::token::{DataKey, defuse, has_token, tokens};
use super::{KeyError, Keys, Known};
use crate::log::Decision;

/// The bytes of a decision.
pub(in crate::log) struct Sealed {
    pub(in crate::log) header: Bytes,
    pub(in crate::log) bodies: Vec<Bytes>,
}

impl Keys {
    /// Seals every personal text of a decision, in place: what goes to the feed is what is stored.
    /// A subject that was erased has its texts replaced at once.
    ///
    /// What came from outside and looks like a sealed text is changed, so that nobody has another's
    /// text opened by bringing it in.
    ///
    /// # Errors
    /// [`KeyError`] when a key that is needed cannot be had.
    pub(in crate::log) async fn seal(&self, decision: &mut Decision) -> Result<Sealed, KeyError> {
        let mut bodies = Vec::with_capacity(decision.events.len());
        for (stream, event) in &mut decision.events {
            let mut sealer = Sealer::none();
            if is_personal(event) {
                sealer = self.sealer(subject_of(*stream, event)).await?;
                event.personal(&mut |text| sealer.seal(text));
            }
            let kind = event.event_type();
            let (body, changed) = sealer.bytes_of(&*event, |value| {
                let body = value.to_string();
                Event::decode(kind.code(), kind.schema_version(), body.as_bytes()).ok()
            });
            if let Some(changed) = changed {
                *event = changed;
            }
            bodies.push(body);
        }
        let header = self.seal_header(decision).await?;
        Ok(Sealed { header, bodies })
    }

    async fn seal_header(&self, decision: &mut Decision) -> Result<Bytes, KeyError> {
        let mut sealer = Sealer::none();
        let callback = decision.metadata.callback.as_ref();
        let body = callback.and_then(|callback| callback.body.as_deref());
        if let Some(body) = body
            && !Callback::holds_only_ids(body)
            && let Some((stream, event)) = decision.events.first()
        {
            sealer = self.sealer(subject_of(*stream, event)).await?;
            let kept = sealer.kept_body(body);
            let hash = kept.is_none().then(|| hex::encode(Sha256::digest(body)));
            let metadata = Arc::make_mut(&mut decision.metadata);
            if let Some(callback) = &mut metadata.callback {
                callback.body = kept;
                callback.body_sha256 = hash;
            }
        }
        let read = |value: &Value| Metadata::deserialize(value).ok();
        let (header, changed) = sealer.bytes_of(&*decision.metadata, read);
        if let Some(changed) = changed {
            decision.metadata = Arc::new(changed);
        }
        Ok(header)
    }

    async fn sealer(&self, subject: StreamId) -> Result<Sealer, KeyError> {
        match self.of_subject(subject).await? {
            Known::Key(key) => Ok(Sealer { key: Some(key), sealed: 0 }),
            Known::Erased => Ok(Sealer::none()),
            Known::Locked => Err(KeyError::Locked(subject)),
        }
    }
}

/// Whose texts an event holds.
fn subject_of(stream: StreamId, event: &Event) -> StreamId {
    event.subject().map_or(stream, |(_, subject)| subject)
}

/// Whether there is anything to seal; an empty text says nothing.
fn is_personal(event: &mut Event) -> bool {
    let mut found = false;
    event.personal(&mut |text| found |= !text.is_empty());
    found
}

/// Seals for one subject; without a key, for one that was erased.
struct Sealer {
    key: Option<Arc<DataKey>>,
    sealed: usize,
}

impl Sealer {
    fn none() -> Self {
        Self { key: None, sealed: 0 }
    }

    fn seal(&mut self, text: &mut String) {
        if text.is_empty() {
            return;
        }
        *text = match &self.key {
            Some(key) => {
                self.sealed += 1;
                if has_token(text.as_bytes()) { key.seal(&defuse(text)) } else { key.seal(text) }
            }
            None => ERASED.to_owned(),
        };
    }

    /// A callback's raw body, sealed. `None`, for its hash alone to be kept, where its subject was
    /// erased, or where it would have to be changed: its signature would prove nothing then.
    fn kept_body(&mut self, body: &str) -> Option<String> {
        let key = self.key.as_ref().filter(|_| !has_token(body.as_bytes()))?;
        self.sealed += 1;
        Some(key.seal(body))
    }

    /// The bytes of a fact or a header; and the fact anew, where something in it had to be changed:
    /// a text from outside that looks like a sealed one.
    fn bytes_of<T: serde::Serialize>(
        &self,
        fact: &T,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> (Bytes, Option<T>) {
        let bytes = serde_json::to_vec(fact).expect("an event and its header are plain data");
        if tokens(&bytes).count() == self.sealed {
            return (bytes.into(), None);
        }
        let mut value = serde_json::to_value(fact).expect("it was JSON just now");
        self.defuse_others(&mut value);
        let changed = read(&value);
        let fact = changed.as_ref().unwrap_or(fact);
        (serde_json::to_vec(fact).expect("it was JSON just now").into(), changed)
    }

    /// Changes every text, and every name of a field, that has a sealed one inside it which this
    /// sealer has not made.
    fn defuse_others(&self, value: &mut Value) {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
            Value::String(text) => {
                if has_token(text.as_bytes()) && !self.made(text) {
                    *text = defuse(text);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.defuse_others(item)),
            Value::Object(fields) => {
                let defused = |(name, mut field): (String, Value)| {
                    self.defuse_others(&mut field);
                    (if has_token(name.as_bytes()) { defuse(&name) } else { name }, field)
                };
                *fields = std::mem::take(fields).into_iter().map(defused).collect();
            }
        }
    }

    fn made(&self, text: &str) -> bool {
        let whole = tokens(text.as_bytes()).next().filter(|it| it.end - it.start == text.len());
        let opens = |key: &Arc<DataKey>| whole.as_ref().is_some_and(|it| key.open(it).is_some());
        self.key.as_ref().is_some_and(opens)
    }
}
