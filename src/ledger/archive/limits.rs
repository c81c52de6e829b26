//! How far the log may be archived: nothing goes that a checkpoint does not cover or a view has not
//! folded.

use std::fmt;

use jiff::Timestamp;
use milepost_schemas::Position;
use tokio_postgres::Client;

use super::Part;
use crate::ledger::store::SignedCheckpoint;
use crate::log::DatabaseError;

/// What is to be archived: whole partitions before this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// This position.
    Position(Position),
    /// This time: their last event was recorded before it.
    Time(Timestamp),
}

/// Why a partition stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    /// It was not asked for.
    Before(Before),
    /// No checkpoint covers it yet.
    Unsealed {
        /// How far the latest one goes.
        sealed: u64,
    },
    /// A view has not folded all of it.
    Projection {
        /// Its name.
        name: String,
        /// Its version; also one that nobody folds any more can be rolled back to.
        version: i16,
        /// How far it is.
        position: u64,
    },
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before(Before::Position(position)) => {
                write!(f, "it is not wholly before position {position}")
            }
            Self::Before(Before::Time(time)) => write!(f, "it does not end before {time}"),
            Self::Unsealed { sealed } => {
                write!(f, "it is not sealed: the latest checkpoint is of {sealed} events")
            }
            Self::Projection { name, version, position } => {
                write!(f, "version {version} of the projection {name} is at position {position}")
            }
        }
    }
}

/// What holds a partition back, if anything does.
pub(super) async fn limit(
    client: &Client,
    part: &Part,
    before: Before,
    sealed: Option<&SignedCheckpoint>,
) -> Result<Option<Limit>, DatabaseError> {
    let last = part.last();
    let sealed = sealed.map_or(0, |checkpoint| checkpoint.size);
    if let Before::Position(position) = before
        && last >= position
    {
        return Ok(Some(Limit::Before(before)));
    }
    if sealed < last.0 {
        return Ok(Some(Limit::Unsealed { sealed }));
    }
    if let Before::Time(time) = before {
        let sql = "SELECT recorded_at FROM event WHERE position = $1";
        let row = client.query_opt(sql, &[&(last.0 as i64)]).await?;
        if row.is_none_or(|row| row.get::<_, Timestamp>(0) >= time) {
            return Ok(Some(Limit::Before(before)));
        }
    }
    let sql = "SELECT projection, version, position FROM view_generation \
               WHERE state = 'active' AND position < $1 ORDER BY position LIMIT 1";
    let row = client.query_opt(sql, &[&(last.0 as i64)]).await?;
    Ok(row.map(|row| Limit::Projection {
        name: row.get(0),
        version: row.get(1),
        position: row.get::<_, i64>(2) as u64,
    }))
}
