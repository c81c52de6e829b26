//! Erasing the personal data of a subject: one event, and its key goes in the same transaction.

use std::sync::Arc;

use milepost_schemas::event::{PersonalDataErased, SubjectKind};
use milepost_schemas::{EventType, Metadata, Position, StreamId};

use super::{CONFLICTS_MAX, ExecuteError, command_deadline, unreadable};
use crate::app::App;
use crate::log::{AppendError, Committed, Decision, Expected};

/// Has the personal data of a subject erased, once; where that is recorded. From the answer on this
/// process opens none of it, and each other one from when it has seen the event.
///
/// # Errors
/// [`ExecuteError::UnknownSubject`], [`ExecuteError::OfSubject`]; else nothing is erased unless the
/// log was `Unavailable`.
pub async fn erase_personal_data(
    app: &App,
    subject: StreamId,
    erased_by: &str,
    reason: &str,
    metadata: impl Into<Arc<Metadata>>,
) -> Result<Position, ExecuteError> {
    let (metadata, deadline) = (metadata.into(), command_deadline());
    for _ in 0..CONFLICTS_MAX {
        let known = app.log.read_streams(&[subject]).await?;
        let code = EventType::PersonalDataErased.code();
        if let Some(first) = known.iter().find(|event| event.code == code) {
            app.log.keys().forget(subject);
            return Ok(first.position);
        }
        let kind = kind_of(subject, &known)?;
        let (erased_by, reason) = (erased_by.to_owned(), reason.to_owned());
        let event = PersonalDataErased { subject, kind, erased_by, reason };
        let version = known.last().map_or(0, |known| known.version);
        let decision = Decision {
            events: vec![(subject, event.into())],
            expected: vec![(subject, Expected::Version(version))],
            metadata: Arc::clone(&metadata),
            queue: None,
        };
        match app.log.append(decision, deadline).await {
            Err(AppendError::Conflict(_)) => {}
            appended => {
                let position = appended?.position();
                // The feed may have others' events to wait for before it comes to this one.
                app.log.keys().forget(subject);
                return Ok(position);
            }
        }
    }
    Err(ExecuteError::Unavailable)
}

/// What a stream with these events is the subject of: an agent, a node, or itself.
fn kind_of(subject: StreamId, events: &[Committed]) -> Result<SubjectKind, ExecuteError> {
    let first = events.first().ok_or(ExecuteError::UnknownSubject)?;
    match first.event().map_err(|error| unreadable(first, error))?.subject() {
        None => Ok(SubjectKind::Stream),
        Some((kind, owner)) if owner == subject => Ok(kind),
        Some((SubjectKind::Node, owner)) => Err(ExecuteError::OfSubject("node", owner)),
        Some((SubjectKind::Agent | SubjectKind::Stream, owner)) => {
            Err(ExecuteError::OfSubject("agent", owner))
        }
    }
}
