//! `GET /log/…`: the log as C2SP tlog-tiles has it, for monitors and witnesses that know nothing of
//! Milepost.
//!
//! Checkpoint, keys and hashes are for everybody: they say how many events there are and nothing of
//! what is in them. The entries are the events.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use milepost_schemas::Position;
use serde::Serialize;

use crate::app::App;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::ledger::Leaf;
use crate::ledger::hash::concatenated;
use crate::ledger::path::TilePath;
use crate::ledger::store;
use crate::ledger::tree::TILE_WIDTH;
use crate::log::{DatabaseError, EventFilter};

/// How long a full tile may be kept. It never changes within an epoch, and its URL says none: after a
/// restore other hashes may stand there, and caches are to have them by the time anybody looks.
const FULL: &str = "public, max-age=300";

/// The same for what not everybody may see.
const FULL_PRIVATE: &str = "private, max-age=300";

/// `GET /log/checkpoint`: the latest signed checkpoint.
///
/// # Errors
/// 404 before anything was sealed.
pub async fn checkpoint(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let client = app.log.database().get().await?;
    let latest = store::latest(&**client, app.log.feed().epoch()).await?;
    let latest = latest.ok_or_else(|| Problem::not_found("checkpoint yet"))?;
    Ok(with_type("text/plain; charset=utf-8", "no-cache", latest.note.into_bytes()))
}

/// Every key that checkpoints were signed with.
#[derive(Debug, Serialize)]
pub struct SealingKeys {
    keys: Vec<ListedKey>,
}

/// A key, and the sizes it signed.
#[derive(Debug, Serialize)]
struct ListedKey {
    epoch: i64,
    from_size: u64,
    to_size: Option<u64>,
    verifier_key: String,
}

/// `GET /log/keys`: the public keys of checkpoints, each with the sizes of the log it signed.
///
/// # Errors
/// 503 when the database cannot be asked.
pub async fn keys(State(app): State<Arc<App>>) -> Result<Json<SealingKeys>, Problem> {
    let client = app.log.database().get().await?;
    let listed = store::keys(&**client).await?;
    let next = listed.iter().skip(1).map(Some).chain([None]);
    let keys = listed.iter().zip(next).map(|(key, next)| ListedKey {
        epoch: key.epoch,
        from_size: key.from_size,
        to_size: next.filter(|next| next.epoch == key.epoch).map(|next| next.from_size),
        verifier_key: key.verifier_key.clone(),
    });
    Ok(Json(SealingKeys { keys: keys.collect() }))
}

/// `GET /log/tile/<L>/<N>[.p/<W>]`: hashes of the tree.
///
/// # Errors
/// 404 for a path that is none, and for a tile that is not there yet.
pub async fn tile(
    State(app): State<Arc<App>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let wanted = path.ok().and_then(|Path(path)| TilePath::parse(&path));
    let wanted = wanted.ok_or_else(|| Problem::not_found("tile"))?;
    let client = app.log.database().get().await?;
    let mut tiles = store::tiles(&**client, &[wanted.tile()].into()).await?;
    let hashes = tiles.remove(&wanted.tile()).unwrap_or_default();
    let hashes = hashes.get(..wanted.width).ok_or_else(|| Problem::not_found("tile yet"))?;
    let caching = if wanted.is_full() { FULL } else { "no-cache" };
    Ok(with_type("application/octet-stream", caching, concatenated(hashes)))
}

/// `GET /log/tile/entries/<N>[.p/<W>]`: the leaves themselves, each behind its length in two bytes.
///
/// # Errors
/// 404 as for hashes, and where an entry is longer than two bytes can say: read those events at
/// `/api/events`. 503 where the log has fewer than were sealed.
pub async fn entries(
    State(app): State<Arc<App>>,
    _: Actor,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let wanted = path.ok().and_then(|Path(path)| TilePath::parse(&format!("entries/{path}")));
    let wanted = wanted.ok_or_else(|| Problem::not_found("tile"))?;
    let after = wanted.index * TILE_WIDTH as u64;
    let (after, upto) = (Position(after), Position(after + wanted.width as u64));
    let client = app.log.database().get().await?;
    let latest = store::latest(&**client, app.log.feed().epoch()).await?;
    drop(client);
    let sealed = latest.is_some_and(|latest| latest.size >= upto.0);
    if !sealed {
        return Err(Problem::not_found("tile yet"));
    }
    let events = app.log.read(&EventFilter::default(), after, upto, wanted.width).await?;
    if events.len() < wanted.width {
        return Err(DatabaseError::Missing(Position(after.0 + events.len() as u64 + 1)).into());
    }
    let mut bundle = Vec::new();
    for event in &events {
        let leaf = Leaf::of(event).bytes();
        let length = u16::try_from(leaf.len());
        let length = length.map_err(|_| Problem::not_found("tile: an entry is too long for it"))?;
        bundle.extend_from_slice(&length.to_be_bytes());
        bundle.extend_from_slice(&leaf);
    }
    let caching = if wanted.is_full() { FULL_PRIVATE } else { "no-cache" };
    Ok(with_type("application/octet-stream", caching, bundle))
}

fn with_type(media_type: &'static str, caching: &'static str, body: Vec<u8>) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    response
}
