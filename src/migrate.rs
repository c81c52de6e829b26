//! Migrations, once each, whoever comes first.

use crate::log::{Database, DatabaseError};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// The advisory lock of whoever migrates: "migrate" in ASCII.
const LOCK: i64 = 0x6d_69_67_72_61_74_65;

/// Migrations failed.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database cannot be reached.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// One of them was refused.
    #[error("a migration failed")]
    Migration(#[from] refinery::Error),
}

/// Applies what has not been applied yet; returns how many that were.
///
/// # Errors
/// [`MigrateError`]: what was applied before it stays.
pub async fn migrate(database: &Database) -> Result<usize, MigrateError> {
    let mut client = database.owner().await?;
    let lock = "SELECT pg_advisory_lock($1)";
    client.execute(lock, &[&LOCK]).await.map_err(DatabaseError::from)?;
    let report = embedded::migrations::runner().run_async(&mut client).await?;
    // The lock goes with the connection.
    Ok(report.applied_migrations().len())
}
