//! Passwords, as Argon2id.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};
use tokio::sync::Semaphore;

/// Argon2id takes 19 MiB and a core for a while: no more than this many at once.
static HASHING: Semaphore = Semaphore::const_new(2);

/// What is checked where there is no account: the same work, and no password fits it.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5bm9ibw$\
     AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The hash of a password, with a salt of its own.
pub(super) async fn hash(password: &str) -> String {
    let password = password.to_owned();
    hashing(move || {
        Argon2::default()
            .hash_password(password.as_bytes())
            .expect("a password of any length can be hashed")
            .to_string()
    })
    .await
}

/// Whether a password is the one behind a hash; with no hash it is not, and takes as long.
pub(super) async fn verify(password: &str, hash: Option<String>) -> bool {
    let (password, known) = (password.to_owned(), hash.is_some());
    let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
    let fits = hashing(move || {
        PasswordHash::new(&hash).is_ok_and(|parsed| {
            Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok()
        })
    })
    .await;
    fits && known
}

async fn hashing<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let _place = HASHING.acquire().await.expect("it is never closed");
    tokio::task::spawn_blocking(work).await.expect("hashing does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_work_for_nobody_is_the_same_work() {
        let made = hash("correct horse battery").await;
        assert!(verify("correct horse battery", Some(made.clone())).await);
        assert!(!verify("wrong horse battery", Some(made.clone())).await);
        assert!(!verify("correct horse battery", None).await);
        let cost = |hash: &str| {
            let parsed = PasswordHash::new(hash).unwrap();
            let length = parsed.hash.unwrap().as_bytes().len();
            (parsed.algorithm.to_string(), parsed.version, parsed.params.to_string(), length)
        };
        assert_eq!(cost(&made), cost(NOBODY));
    }
}
