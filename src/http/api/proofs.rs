//! `GET /api/proofs/…`: that an event is in the log, and that the log only grew.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use milepost_schemas::Position;
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::ledger::Leaf;
use crate::ledger::proof::Plan;
use crate::ledger::store::{self, ProofError};
use crate::log::EventFilter;

/// What an inclusion is asked by.
#[derive(Debug, Deserialize)]
pub struct InclusionQuery {
    position: u64,
    size: Option<u64>,
}

/// That an event is in the tree of the first `tree_size` events.
#[derive(Debug, Serialize)]
pub struct Inclusion {
    position: u64,
    leaf_index: u64,
    tree_size: u64,
    leaf: String,
    leaf_hash: String,
    root_hash: String,
    hashes: Vec<String>,
}

/// `GET /api/proofs/inclusion?position=&size=`; without a size, that of the latest checkpoint.
///
/// # Errors
/// 404 for an event that is not there, 422 for a size that is not sealed yet, or is too small.
pub async fn inclusion(
    State(app): State<Arc<App>>,
    _: Actor,
    query: Result<Query<InclusionQuery>, QueryRejection>,
) -> Result<Json<Inclusion>, Problem> {
    let Query(InclusionQuery { position, size }) = query?;
    let sealed = sealed_size(&app).await?;
    let size = size.unwrap_or(sealed);
    let index = position.checked_sub(1).ok_or_else(|| Problem::not_found("event"))?;
    let plan = Plan::inclusion(index, size).filter(|_| size <= sealed);
    let plan = plan.ok_or_else(|| unsealed(position, sealed))?;
    let all = EventFilter::default();
    let (after, upto) = (Position(index), Position(position));
    let events = app.log.read(&all, after, upto, 1).await?;
    let event = events.first().ok_or_else(|| Problem::not_found("event"))?;
    let client = app.log.database().get().await?;
    let hashes = store::hashes(&**client, &plan).await?;
    let root = store::root(&**client, size).await?;
    let leaf = Leaf::of(event);
    Ok(Json(Inclusion {
        position,
        leaf_index: index,
        tree_size: size,
        leaf: STANDARD.encode(leaf.bytes()),
        leaf_hash: leaf.hash().to_string(),
        root_hash: root.to_string(),
        hashes: hashes.iter().map(ToString::to_string).collect(),
    }))
}

/// What a consistency is asked by.
#[derive(Debug, Deserialize)]
pub struct ConsistencyQuery {
    from: u64,
    to: Option<u64>,
}

/// That the tree of the first `to` events begins with that of the first `from`.
#[derive(Debug, Serialize)]
pub struct Consistency {
    from: u64,
    to: u64,
    from_root: String,
    to_root: String,
    hashes: Vec<String>,
}

/// `GET /api/proofs/consistency?from=&to=`; without `to`, up to the latest checkpoint.
///
/// # Errors
/// 422 for sizes that are not sealed yet, or stand the wrong way round.
pub async fn consistency(
    State(app): State<Arc<App>>,
    _: Actor,
    query: Result<Query<ConsistencyQuery>, QueryRejection>,
) -> Result<Json<Consistency>, Problem> {
    let Query(ConsistencyQuery { from, to }) = query?;
    let sealed = sealed_size(&app).await?;
    let to = to.unwrap_or(sealed);
    let plan = Plan::consistency(from, to).filter(|_| to <= sealed);
    let plan = plan.ok_or_else(|| unsealed(from, sealed))?;
    let client = app.log.database().get().await?;
    let hashes = store::hashes(&**client, &plan).await?;
    let from_root = store::root(&**client, from).await?.to_string();
    let to_root = store::root(&**client, to).await?.to_string();
    let hashes = hashes.iter().map(ToString::to_string).collect();
    Ok(Json(Consistency { from, to, from_root, to_root, hashes }))
}

/// The size of the latest checkpoint.
async fn sealed_size(app: &App) -> Result<u64, Problem> {
    let client = app.log.database().get().await?;
    let latest = store::latest(&**client, app.log.feed().epoch()).await?;
    Ok(latest.map_or(0, |latest| latest.size))
}

fn unsealed(asked: u64, sealed: u64) -> Problem {
    let detail = format!("No checkpoint proves this: the latest is of {sealed} events");
    Problem::unprocessable("not-sealed", detail).with("asked", asked).with("sealed", sealed)
}

impl From<ProofError> for Problem {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Database(error) => error.into(),
            ProofError::Tile(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "no proof can be made");
                Self::damaged(error.to_string())
            }
        }
    }
}
