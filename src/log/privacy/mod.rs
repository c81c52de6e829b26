//! Personal texts are sealed where a decision becomes bytes, and opened at the doors where they
//! leave for somebody who may see them.
//!
//! In between - log, folds, views, archives, exports - a sealed text is a string like any other, so
//! that nothing there needs a key, and one that is destroyed takes its texts with it everywhere at
//! once. A subject (an agent with its jobs and servers, a node with its jobs) has one key; what is of
//! neither is sealed under its stream's own.

mod decision;
mod master;
mod open;
mod store;
mod token;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use milepost_schemas::StreamId;
use uuid::Uuid;

use super::{Database, DatabaseError};

pub(super) use decision::Sealed;
pub use master::{MASTER_KEY_BYTES, MasterKey, MasterKeys};
pub use open::{ERASED, Escape, Opener, SEALED};
pub use store::{rewrap, vacuum};
pub use token::{DataKey, has_token};

/// Keys kept in memory, of 1 KiB each; one that is not costs a look-up.
const KEYS_CACHED_MAX: NonZeroUsize = NonZeroUsize::new(8_192).expect("it is not zero");

/// The key that streams of addresses are named with. It is no subject's and is never erased.
const ADDRESSES: StreamId = StreamId(Uuid::from_u128(0x0000_0000_0000_8000_8000_6164_6472_6573));

/// Why nothing can be sealed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The keys cannot be read or made now.
    #[error("the keys of personal data cannot be reached")]
    Database(#[from] DatabaseError),
    /// There is nothing to keep a key under.
    #[error("MILEPOST_MASTER_KEY is not set")]
    NoMaster,
    /// The key was wrapped by a master key that is not among those given.
    #[error("no master key given opens the key of {0}")]
    Locked(StreamId),
}

impl KeyError {
    /// As an error of the database that the keys are in.
    pub fn into_database(self) -> DatabaseError {
        match self {
            Self::Database(error) => error,
            Self::NoMaster | Self::Locked(_) => DatabaseError::Unexpected(self.to_string()),
        }
    }
}

/// What is known of a subject's key.
#[derive(Clone)]
enum Known {
    Key(Arc<DataKey>),
    Erased,
    /// It is there, and no master key given opens it.
    Locked,
}

/// The keys of subjects, as far as this process has needed them.
pub struct Keys {
    database: Database,
    masters: MasterKeys,
    cache: Mutex<Cache>,
}

struct Cache {
    known: LruCache<StreamId, Known>,
    /// Grows with each key that is erased: what was read or opened before may hold it.
    generation: u64,
}

impl Keys {
    /// None yet.
    pub fn new(database: Database, masters: MasterKeys) -> Self {
        let cache = Cache { known: LruCache::new(KEYS_CACHED_MAX), generation: 0 };
        Self { database, masters, cache: Mutex::new(cache) }
    }

    /// Makes sure that the master keys are those of this database.
    ///
    /// # Errors
    /// [`KeyError::Locked`] when they are not.
    pub async fn check(&self) -> Result<(), KeyError> {
        let Some((subject, wrapped)) = store::any(&self.database).await? else { return Ok(()) };
        if self.masters.is_empty() || self.masters.unwrap(subject, &wrapped).is_some() {
            return Ok(());
        }
        Err(KeyError::Locked(subject))
    }

    /// How many keys were erased as far as this process knows: a text that was opened under an
    /// earlier generation is not shown again.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Forgets a key that was erased: from here on its texts open nowhere in this process.
    pub fn forget(&self, subject: StreamId) {
        let mut cache = self.lock();
        cache.generation += 1;
        cache.known.put(subject, Known::Erased);
    }

    /// The stream of a host name or an address: a keyed hash, so that nobody who lacks the master
    /// key finds an address by trying all there are.
    ///
    /// # Errors
    /// [`KeyError`] when its key cannot be had.
    pub async fn address_stream(&self, address: &str) -> Result<StreamId, KeyError> {
        match self.of_subject(ADDRESSES).await? {
            Known::Key(key) => Ok(key.name(address)),
            Known::Erased | Known::Locked => Err(KeyError::Locked(ADDRESSES)),
        }
    }

    /// The key of a subject, made where it has none.
    async fn of_subject(&self, subject: StreamId) -> Result<Known, KeyError> {
        if let Some(known) = self.lock().known.get(&subject) {
            return Ok(known.clone());
        }
        let generation = self.generation();
        let mut wrapped = store::load(&self.database, &[subject]).await?;
        if wrapped.is_empty() {
            let fresh = self.masters.wrap(subject, &DataKey::random())?;
            store::insert(&self.database, subject, &fresh).await?;
            // Another process may have been first.
            wrapped = store::load(&self.database, &[subject]).await?;
        }
        let (_, wrapped) = wrapped.pop().ok_or(KeyError::Locked(subject))?;
        let known = self.unwrapped(subject, wrapped.as_deref());
        self.remember([(subject, known.clone())], generation);
        Ok(known)
    }

    fn unwrapped(&self, subject: StreamId, wrapped: Option<&[u8]>) -> Known {
        let Some(wrapped) = wrapped else { return Known::Erased };
        let key = self.masters.unwrap(subject, wrapped);
        key.map_or(Known::Locked, |key| Known::Key(Arc::new(key)))
    }

    /// Keeps what was read, unless a key was erased meanwhile: it may be one of these.
    fn remember(&self, keys: impl IntoIterator<Item = (StreamId, Known)>, generation: u64) {
        let mut cache = self.lock();
        if cache.generation != generation {
            return;
        }
        for (subject, known) in keys {
            if !matches!(known, Known::Locked) {
                cache.known.put(subject, known);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
