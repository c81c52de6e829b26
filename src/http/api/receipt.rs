//! The receipt that an answer carries when it is asked for: a witness outside of the database.

use axum::http::HeaderMap;
use milepost_schemas::Position;
use serde::Serialize;

use crate::app::App;
use crate::ledger::{Leaf, store};
use crate::log::{DatabaseError, EventFilter};

/// The header it is asked for with (RFC 7240).
const PREFER: &str = "prefer";

/// What it is asked for by.
const RECEIPT: &str = "receipt";

/// What to keep elsewhere: an event has this leaf, and the log had this checkpoint.
#[derive(Debug, Serialize)]
pub struct Receipt {
    position: Position,
    leaf_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<String>,
}

/// Whether a request asks for one.
pub fn is_preferred(headers: &HeaderMap) -> bool {
    headers
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|preference| preference.trim().eq_ignore_ascii_case(RECEIPT))
}

/// The receipt of the event at a position. `None` where it cannot be had: the event is durable all
/// the same, and that is what the answer is for.
pub async fn of(app: &App, position: Position) -> Option<Receipt> {
    match read(app, position).await {
        Ok(receipt) => receipt,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "no receipt can be given");
            None
        }
    }
}

async fn read(app: &App, position: Position) -> Result<Option<Receipt>, DatabaseError> {
    let all = EventFilter::default();
    let after = Position(position.0.saturating_sub(1));
    let events = app.log.read(&all, after, position, 1).await?;
    let Some(event) = events.first() else { return Ok(None) };
    let leaf_hash = Leaf::of(event).hash().to_string();
    let client = app.log.database().get().await?;
    let latest = store::latest(&**client, app.log.feed().epoch()).await?;
    Ok(Some(Receipt { position, leaf_hash, checkpoint: latest.map(|latest| latest.note) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_asked_for_by_name() {
        let headers = |value: &str| {
            HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(PREFER),
                value.parse().unwrap(),
            )])
        };
        assert!(is_preferred(&headers("receipt")));
        assert!(is_preferred(&headers("respond-async, Receipt")));
        assert!(!is_preferred(&headers("receipts")));
        assert!(!is_preferred(&HeaderMap::new()));
    }
}
