//! Passwords, as Argon2id.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};
use tokio::sync::Semaphore;

/// Argon2id takes 19 MiB and a core for a while: no more than this many at once.
const HASHING_MAX: usize = 2;

/// Who may wait for a place: the last of them for some seconds. Whoever comes then is told to come
/// back.
const WAITING_MAX: usize = 64;

static PLACES: Places = Places::new();

struct Places {
    hashing: Semaphore,
    waiting: Semaphore,
}

impl Places {
    const fn new() -> Self {
        let hashing = Semaphore::const_new(HASHING_MAX);
        Self { hashing, waiting: Semaphore::const_new(WAITING_MAX) }
    }
}

/// So many wait that it would take too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords are being looked at")]
pub struct Busy;

/// What is checked where there is no account: the same work, and no password fits it.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5bm9ibw$\
     AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The hash of a password, with a salt of its own.
///
/// # Errors
/// [`Busy`].
pub(super) async fn hash(password: &str) -> Result<String, Busy> {
    let password = password.to_owned();
    hashing(&PLACES, move || {
        Argon2::default()
            .hash_password(password.as_bytes())
            .expect("a password of any length can be hashed")
            .to_string()
    })
    .await
}

/// Whether a password is the one behind a hash; with no hash it is not, and takes as long.
///
/// # Errors
/// [`Busy`]: it was not looked at.
pub(super) async fn verify(password: &str, hash: Option<String>) -> Result<bool, Busy> {
    let (password, known) = (password.to_owned(), hash.is_some());
    let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
    let fits = hashing(&PLACES, move || {
        PasswordHash::new(&hash).is_ok_and(|parsed| {
            Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok()
        })
    })
    .await?;
    Ok(fits && known)
}

async fn hashing<T: Send + 'static>(
    places: &'static Places,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Busy> {
    let waiting = places.waiting.try_acquire().map_err(|_| Busy)?;
    let place = places.hashing.acquire().await.expect("it is never closed");
    drop(waiting);
    // The work goes on when whoever asked is gone: the place is the work's.
    let working = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    Ok(working.await.expect("hashing does not panic"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Work that ends when it is told to, or when nobody can tell it any more.
    fn held() -> (mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
        let (end, told) = mpsc::channel();
        (end, move || _ = told.recv())
    }

    #[tokio::test]
    async fn a_place_is_taken_until_the_work_is_done_though_nobody_waits_for_it() {
        let places = Box::leak(Box::new(Places::new()));
        let (end, work) = held();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let asking = tokio::spawn(hashing(places, move || {
            begun.send(()).unwrap();
            work();
        }));
        begins.await.unwrap();
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        assert_eq!(places.hashing.available_permits(), HASHING_MAX - 1);
        end.send(()).unwrap();
        let all = places.hashing.acquire_many(HASHING_MAX as u32).await;
        assert!(all.is_ok(), "the work gives it back");
    }

    #[tokio::test]
    async fn no_more_wait_than_may_and_one_who_leaves_makes_room() {
        let places = Box::leak(Box::new(Places::new()));
        let all = places.hashing.acquire_many(HASHING_MAX as u32).await.unwrap();
        let ask = || Box::pin(hashing(places, || ()));
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| ask()).collect();
        for one in &mut waiting {
            assert!(futures_util::poll!(one).is_pending());
        }
        assert_eq!(ask().await, Err(Busy));
        waiting.pop();
        waiting.push(ask());
        assert!(futures_util::poll!(waiting.last_mut().unwrap()).is_pending());
        assert_eq!(ask().await, Err(Busy));
        drop(all);
        assert_eq!(futures_util::future::join_all(waiting).await, [Ok(()); WAITING_MAX]);
    }

    #[tokio::test]
    async fn the_work_for_nobody_is_the_same_work() {
        let made = hash("correct horse battery").await.unwrap();
        assert_eq!(verify("correct horse battery", Some(made.clone())).await, Ok(true));
        assert_eq!(verify("wrong horse battery", Some(made.clone())).await, Ok(false));
        assert_eq!(verify("correct horse battery", None).await, Ok(false));
        let cost = |hash: &str| {
            let parsed = PasswordHash::new(hash).unwrap();
            let length = parsed.hash.unwrap().as_bytes().len();
            (parsed.algorithm.to_string(), parsed.version, parsed.params.to_string(), length)
        };
        assert_eq!(cost(&made), cost(NOBODY));
    }
}
