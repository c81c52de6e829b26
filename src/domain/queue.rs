//! What may happen to the queue itself: somebody stops it, and lets it go on.

use milepost_projections::Queue;
use milepost_schemas::Event;
use milepost_schemas::event::{QueuePaused, QueueResumed};

use super::job::said;

/// An order to the queue.
#[derive(Clone, Debug)]
pub enum QueueCommand {
    /// Claim nothing more. What runs goes on, and its deadlines with it.
    Pause {
        /// Who says so.
        by: String,
        /// Why.
        reason: String,
    },
    /// Go on.
    Resume {
        /// Who says so.
        by: String,
        /// Why.
        reason: Option<String>,
    },
}

/// Why an order to the queue is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueRefusal {
    /// It is stopped.
    #[error("the queue is paused already")]
    Paused,
    /// It is not stopped.
    #[error("the queue is not paused")]
    NotPaused,
    /// Nobody would know why.
    #[error("say why the queue is paused")]
    Reason,
}

/// Decides what an order does.
///
/// # Errors
/// [`QueueRefusal`]: nothing happens then.
pub fn decide(queue: &Queue, command: QueueCommand) -> Result<Event, QueueRefusal> {
    match command {
        QueueCommand::Pause { .. } if queue.paused.is_some() => Err(QueueRefusal::Paused),
        QueueCommand::Pause { by, reason } => {
            let reason = said(&reason).ok_or(QueueRefusal::Reason)?;
            Ok(QueuePaused { paused_by: by, reason }.into())
        }
        QueueCommand::Resume { .. } if queue.paused.is_none() => Err(QueueRefusal::NotPaused),
        QueueCommand::Resume { by, reason } => {
            Ok(QueueResumed { resumed_by: by, reason: reason.and_then(|reason| said(&reason)) }
                .into())
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use milepost_projections::Pause;

    use super::*;

    fn paused() -> Queue {
        let (by, reason) = ("account:ada@example.com".into(), "an outage".into());
        Queue { paused: Some(Pause { by, reason, since: Timestamp::UNIX_EPOCH }) }
    }

    fn pause(reason: &str) -> QueueCommand {
        QueueCommand::Pause { by: "token:ci".into(), reason: reason.into() }
    }

    fn resume() -> QueueCommand {
        QueueCommand::Resume { by: "token:ci".into(), reason: None }
    }

    #[test]
    fn a_queue_is_paused_with_a_reason_and_resumed() {
        let event = decide(&Queue::default(), pause(" an outage ")).unwrap();
        assert!(matches!(event, Event::QueuePaused(it) if it.reason == "an outage"));
        let event = decide(&paused(), resume()).unwrap();
        assert!(matches!(event, Event::QueueResumed(it) if it.resumed_by == "token:ci"));
    }

    #[test]
    fn what_is_so_already_is_refused() {
        assert_eq!(decide(&paused(), pause("again")), Err(QueueRefusal::Paused));
        assert_eq!(decide(&Queue::default(), resume()), Err(QueueRefusal::NotPaused));
        assert_eq!(decide(&Queue::default(), pause("  ")), Err(QueueRefusal::Reason));
    }
}
