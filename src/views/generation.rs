//! Generations of a view's rows: a table each, and one of them the one that is read.

use milepost_projections::Projection;
use milepost_schemas::Position;
use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use crate::log::{DatabaseError, floor};

/// Former generations kept to go back to; older ones are dropped with the next switch.
pub const FORMER_KEPT: i64 = 1;

/// A generation of a view's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The view.
    pub projection: &'static str,
    /// Its number, from 1.
    pub number: i32,
    /// How far it has folded the log.
    pub position: Position,
}

impl Generation {
    /// The table that holds its rows. Source: `migrations/V11__view_generations.sql`.
    pub fn table(&self) -> String {
        format!("view_{}_{}", self.projection, self.number)
    }

    /// The one that is read, if there is one yet.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn active<P: Projection>(
        client: &impl GenericClient,
    ) -> Result<Option<Self>, DatabaseError> {
        Self::find::<P>(client, "active").await
    }

    /// The one to go back to, if there is one.
    ///
    /// # Errors
    /// [`DatabaseError`] when the database cannot be asked.
    pub async fn former<P: Projection>(
        client: &impl GenericClient,
    ) -> Result<Option<Self>, DatabaseError> {
        Self::find::<P>(client, "former").await
    }

    async fn find<P: Projection>(
        client: &impl GenericClient,
        state: &str,
    ) -> Result<Option<Self>, DatabaseError> {
        let row = client
            .query_opt(
                "SELECT generation, position FROM view_generation \
                 WHERE projection = $1 AND version = $2 AND state = $3 \
                 ORDER BY updated_at DESC, generation DESC LIMIT 1",
                &[&P::NAME, &P::VERSION, &state],
            )
            .await?;
        Ok(row.map(|row| Self {
            projection: P::NAME,
            number: row.get(0),
            position: Position(row.get::<_, i64>(1) as u64),
        }))
    }

    /// A new one, empty.
    ///
    /// # Errors
    /// [`DatabaseError`] when it cannot be made.
    pub async fn create<P: Projection>(client: &mut Client) -> Result<Self, DatabaseError> {
        let tx = client.transaction().await?;
        let row = tx
            .query_one(
                "INSERT INTO view_generation (projection, generation, version, state) \
                 SELECT $1, coalesce(max(generation), 0) + 1, $2, 'filling' \
                 FROM view_generation WHERE projection = $1 RETURNING generation",
                &[&P::NAME, &P::VERSION],
            )
            .await?;
        let number: i32 = row.get(0);
        tx.execute("SELECT create_view_table($1, $2)", &[&P::NAME, &number]).await?;
        tx.commit().await?;
        Ok(Self { projection: P::NAME, number, position: Position::START })
    }

    /// Tells the planner what it holds, once it is filled.
    ///
    /// # Errors
    /// [`DatabaseError`] when it cannot be looked at.
    pub async fn analyze(&self, client: &Client) -> Result<(), DatabaseError> {
        let sql = "SELECT analyze_view_table($1, $2)";
        client.execute(sql, &[&self.projection, &self.number]).await?;
        Ok(())
    }

    /// Keeps what its filling has come to where every process sees it.
    ///
    /// # Errors
    /// [`DatabaseError`] when it cannot be kept.
    pub async fn report(&self, client: &Client, progress: &Progress) -> Result<(), DatabaseError> {
        let progress = serde_json::to_value(progress).expect("progress is plain data");
        client
            .execute(
                "UPDATE view_generation SET progress = $3, updated_at = now() \
                 WHERE projection = $1 AND generation = $2",
                &[&self.projection, &self.number, &progress],
            )
            .await?;
        Ok(())
    }

    /// Drops what nobody reads: what was filled and is not read, for only who runs the view fills
    /// any, and one at a time; former generations but the latest, and those that the archive has
    /// overtaken; and what an older fold made, which code of before may still read for a day.
    ///
    /// # Errors
    /// [`DatabaseError`] when they cannot be dropped, as while somebody copies such a table: then
    /// all of them stay.
    pub async fn discard<P: Projection>(client: &Client) -> Result<(), DatabaseError> {
        let floor = floor(client).await?.0 as i64;
        let sql = format!(
            "WITH gone AS (UPDATE view_generation SET state = 'dropped', progress = NULL \
             WHERE projection = $1 AND (state = 'filling' AND version = $2 \
                 OR state <> 'dropped' AND version < $2 \
                 AND updated_at < now() - interval '1 day' \
                 OR state = 'former' AND version = $2 AND (position < $3 OR generation NOT IN ( \
                     SELECT f.generation FROM view_generation AS f \
                     WHERE f.projection = $1 AND f.version = $2 AND f.state = 'former' \
                     ORDER BY f.updated_at DESC, f.generation DESC LIMIT {FORMER_KEPT}))) \
             RETURNING generation), \
             poison AS (DELETE FROM view_poison WHERE projection = $1 \
             AND generation IN (SELECT generation FROM gone)) \
             SELECT drop_view_table($1, generation) FROM gone"
        );
        client.execute(&sql, &[&P::NAME, &P::VERSION, &floor]).await?;
        Ok(())
    }
}

/// What a rebuild or a verification is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The log is read and folded.
    Folding,
    /// The rows are written.
    Writing,
    /// What was appended meanwhile is folded.
    CatchingUp,
    /// The new rows are compared with those that are read.
    Comparing,
    /// Somebody must look at what differs.
    Waiting,
    /// The new rows take over.
    Switching,
}

impl Phase {
    /// The word in JSON and on pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Folding => "folding",
            Self::Writing => "writing",
            Self::CatchingUp => "catching_up",
            Self::Comparing => "comparing",
            Self::Waiting => "waiting",
            Self::Switching => "switching",
        }
    }
}

/// How far a rebuild or a verification is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is at.
    pub phase: Phase,
    /// Events folded.
    pub events: u64,
    /// The log's size when it began: what has to be folded before it catches up.
    pub target: u64,
    /// Milliseconds since it began.
    pub elapsed_ms: u64,
    /// Events folded a second, all in all.
    pub events_per_second: f64,
    /// Milliseconds until `target` is folded at that rate.
    pub remaining_ms: Option<u64>,
    /// Milliseconds until the log was folded up to `target`, and until the rows were written.
    pub folded_ms: Option<u64>,
    /// The same, with the indexes made.
    pub written_ms: Option<u64>,
    /// What differs from the rows that are read, once that is known.
    pub difference: Option<Difference>,
}

/// Two generations compared, at one position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The position of the log both hold for.
    pub position: Position,
    /// Rows of the generation that is read.
    pub rows_old: u64,
    /// Rows of the new one.
    pub rows_new: u64,
    /// Rows that differ, or are in one of the two only.
    pub differing: u64,
    /// The keys of the first of them.
    pub first: Vec<Uuid>,
    /// SHA-256 over all rows in order of their keys, in hex: of the one that is read.
    pub checksum_old: String,
    /// The same of the new one.
    pub checksum_new: String,
}
