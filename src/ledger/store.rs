//! The tree in the database: tiles, checkpoints, public keys. Source: `migrations/V10__merkle_log.sql`.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use tokio_postgres::GenericClient;

use super::hash::{Hash, concatenated};
use super::note::VerifierKey;
use super::proof::{MissingTile, Plan};
use super::tree::{Tile, TileId};
use crate::log::DatabaseError;

/// A checkpoint as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// The epoch it was signed in.
    pub epoch: i64,
    /// The size of the tree.
    pub size: u64,
    /// The root, as the database has it beside the note.
    pub root: Vec<u8>,
    /// The signed note.
    pub note: String,
    /// When it was signed.
    pub sealed_at: Timestamp,
    /// Whether it stays when a later one is signed.
    pub kept: bool,
}

/// A public key, in force in its epoch from a size on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedKey {
    /// The epoch.
    pub epoch: i64,
    /// The size of the tree from which on it signs.
    pub from_size: u64,
    /// The key, as the database has it.
    pub verifier_key: String,
}

impl ListedKey {
    /// The key, where it is one.
    pub fn parse(&self) -> Option<VerifierKey> {
        self.verifier_key.parse().ok()
    }
}

/// A proof cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The database cannot be asked.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A tile is not what it should be.
    #[error(transparent)]
    Tile(#[from] MissingTile),
}

/// The hashes a plan asks for.
///
/// # Errors
/// [`ProofError`].
pub async fn hashes<C: GenericClient>(client: &C, plan: &Plan) -> Result<Vec<Hash>, ProofError> {
    let tiles = tiles(client, &plan.tiles()).await?;
    Ok(plan.hashes(&tiles)?)
}

/// The hash of the leaf at an index, from the tiles.
///
/// # Errors
/// [`ProofError`].
pub async fn leaf_hash<C: GenericClient>(client: &C, index: u64) -> Result<Hash, ProofError> {
    let hashes = hashes(client, &Plan::leaf(index)).await?;
    Ok(hashes[0])
}

/// The root of the tree of the first `size` leaves, from the tiles.
///
/// # Errors
/// [`ProofError`].
pub async fn root<C: GenericClient>(client: &C, size: u64) -> Result<Hash, ProofError> {
    if size == 0 {
        return Ok(Hash::empty());
    }
    let roots = hashes(client, &Plan::root(size)).await?;
    Ok(roots[0])
}

/// Those of these tiles that are there, with all hashes they have.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn tiles<C: GenericClient>(
    client: &C,
    ids: &BTreeSet<TileId>,
) -> Result<HashMap<TileId, Vec<Hash>>, DatabaseError> {
    let levels: Vec<i16> = ids.iter().map(|id| i16::from(id.level)).collect();
    let indexes: Vec<i64> = ids.iter().map(|id| id.index as i64).collect();
    let rows = client
        .query(
            "SELECT t.level, t.tile_index, t.hashes FROM tree_tile AS t \
             JOIN unnest($1::smallint[], $2::bigint[]) AS wanted (level, tile_index) \
             USING (level, tile_index)",
            &[&levels, &indexes],
        )
        .await?;
    let tile = |row: &tokio_postgres::Row| {
        let (level, index): (i16, i64) = (row.get(0), row.get(1));
        let hashes = Hash::all_in(row.get(2)).unwrap_or_default();
        (TileId { level: level as u8, index: index as u64 }, hashes)
    };
    Ok(rows.iter().map(tile).collect())
}

/// Up to `limit` tiles of a level from an index on, by index.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn tiles_from<C: GenericClient>(
    client: &C,
    level: u8,
    index: u64,
    limit: i64,
) -> Result<Vec<(u64, Vec<u8>)>, DatabaseError> {
    let rows = client
        .query(
            "SELECT tile_index, hashes FROM tree_tile \
             WHERE level = $1 AND tile_index >= $2 ORDER BY tile_index LIMIT $3",
            &[&i16::from(level), &(index as i64), &limit],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get::<_, i64>(0) as u64, row.get(1))).collect())
}

/// Writes tiles; those that are there grow.
///
/// # Errors
/// [`DatabaseError`], also where one of them would be changed.
pub async fn write_tiles<C: GenericClient>(
    client: &C,
    tiles: &[Tile],
) -> Result<(), DatabaseError> {
    let levels: Vec<i16> = tiles.iter().map(|tile| i16::from(tile.id.level)).collect();
    let indexes: Vec<i64> = tiles.iter().map(|tile| tile.id.index as i64).collect();
    let hashes: Vec<Vec<u8>> = tiles.iter().map(|tile| concatenated(&tile.hashes)).collect();
    client
        .execute(
            "INSERT INTO tree_tile AS t (level, tile_index, hashes) \
             SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bytea[]) \
             ON CONFLICT (level, tile_index) DO UPDATE SET hashes = excluded.hashes \
             WHERE octet_length(t.hashes) < octet_length(excluded.hashes)",
            &[&levels, &indexes, &hashes],
        )
        .await?;
    Ok(())
}

const CHECKPOINT: &str = "SELECT epoch, size, root, note, sealed_at, kept FROM checkpoint";

/// Whoever writes in the database may have put there what is no time.
fn checkpoint(row: &tokio_postgres::Row) -> Result<SignedCheckpoint, tokio_postgres::Error> {
    Ok(SignedCheckpoint {
        epoch: row.get(0),
        size: row.get::<_, i64>(1) as u64,
        root: row.get(2),
        note: row.get(3),
        sealed_at: row.try_get(4)?,
        kept: row.get(5),
    })
}

/// The latest checkpoint of an epoch, if one was signed in it.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn latest<C: GenericClient>(
    client: &C,
    epoch: i64,
) -> Result<Option<SignedCheckpoint>, DatabaseError> {
    let sql = format!("{CHECKPOINT} WHERE epoch = $1 ORDER BY size DESC LIMIT 1");
    Ok(client.query_opt(&sql, &[&epoch]).await?.as_ref().map(checkpoint).transpose()?)
}

/// Every checkpoint that is kept, by epoch and size.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn checkpoints<C: GenericClient>(
    client: &C,
) -> Result<Vec<SignedCheckpoint>, DatabaseError> {
    let sql = format!("{CHECKPOINT} ORDER BY epoch, size");
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.iter().map(checkpoint).collect::<Result<_, _>>()?)
}

/// When the last checkpoint of an epoch that is kept was signed.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn last_kept_at<C: GenericClient>(
    client: &C,
    epoch: i64,
) -> Result<Option<Timestamp>, DatabaseError> {
    let sql = "SELECT max(sealed_at) FROM checkpoint WHERE epoch = $1 AND kept";
    Ok(client.query_one(sql, &[&epoch]).await?.try_get(0)?)
}

/// Puts a checkpoint in the place of the one before it, unless that is kept.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn write_checkpoint<C: GenericClient>(
    client: &C,
    checkpoint: &SignedCheckpoint,
) -> Result<(), DatabaseError> {
    let SignedCheckpoint { epoch, size, root, note, sealed_at, kept } = checkpoint;
    client
        .execute(
            "WITH replaced AS (DELETE FROM checkpoint WHERE epoch = $1 AND NOT kept) \
             INSERT INTO checkpoint (epoch, size, root, note, sealed_at, kept) \
             VALUES ($1, $2, $3, $4, $5, $6)",
            &[epoch, &(*size as i64), root, note, sealed_at, kept],
        )
        .await?;
    Ok(())
}

/// Every key, by epoch and size.
///
/// # Errors
/// [`DatabaseError`] when the database cannot be asked.
pub async fn keys<C: GenericClient>(client: &C) -> Result<Vec<ListedKey>, DatabaseError> {
    let sql = "SELECT epoch, from_size, verifier_key FROM sealing_key ORDER BY epoch, from_size";
    let key = |row: &tokio_postgres::Row| ListedKey {
        epoch: row.get(0),
        from_size: row.get::<_, i64>(1) as u64,
        verifier_key: row.get(2),
    };
    Ok(client.query(sql, &[]).await?.iter().map(key).collect())
}

/// Lists a key.
///
/// # Errors
/// [`DatabaseError`], also where another one is in force from the same size on.
pub async fn write_key<C: GenericClient>(client: &C, key: &ListedKey) -> Result<(), DatabaseError> {
    let sql = "INSERT INTO sealing_key (epoch, from_size, verifier_key) VALUES ($1, $2, $3)";
    client.execute(sql, &[&key.epoch, &(key.from_size as i64), &key.verifier_key]).await?;
    Ok(())
}
