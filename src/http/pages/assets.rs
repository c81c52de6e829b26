//! Style sheets, scripts and pictures, inside the binary. Every address carries a hash over all of
//! them: any change gives all of them a new address, so a browser may keep each for ever, and
//! scripts find each other beside themselves.

use std::sync::LazyLock;

use sha2::{Digest, Sha256};

/// One file.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// What it holds.
    pub bytes: &'static [u8],
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// Its `ETag`, quotes included.
    pub etag: &'static str,
}

/// The style sheets, in the order pages name them.
pub const SHEETS: [&str; 8] = [
    "tokens.css",
    "layout.css",
    "board.css",
    "follow.css",
    "log.css",
    "projections.css",
    "accounts.css",
    "ledger.css",
];

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! files {
    ($($name:literal: $content_type:ident),+ $(,)?) => {
        const FILES: &[(&str, &str, &[u8])] =
            &[$(($name, $content_type, include_bytes!(concat!("assets/", $name))),)+];
    };
}

files! {
    "tokens.css": CSS,
    "layout.css": CSS,
    "board.css": CSS,
    "follow.css": CSS,
    "log.css": CSS,
    "accounts.css": CSS,
    "ledger.css": CSS,
    "ansi.js": JAVASCRIPT,
    "app.js": JAVASCRIPT,
    "events.js": JAVASCRIPT,
    "fill.js": JAVASCRIPT,
    "follow.js": JAVASCRIPT,
    "format.js": JAVASCRIPT,
    "integrity.js": JAVASCRIPT,
    "keys.js": JAVASCRIPT,
    "log.js": JAVASCRIPT,
    "merkle.js": JAVASCRIPT,
    "nodes.js": JAVASCRIPT,
    "overview.js": JAVASCRIPT,
    "projections.css": CSS,
    "projections.js": JAVASCRIPT,
    "refresh.js": JAVASCRIPT,
    "standing.js": JAVASCRIPT,
    "stream.js": JAVASCRIPT,
    "travel.js": JAVASCRIPT,
    "favicon.svg": SVG,
}

/// Digits of the hash in addresses: enough that two builds never share one.
const HASH_DIGITS: usize = 16;

static HASH: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = Sha256::new();
    for (name, _, bytes) in FILES {
        hasher.update(name.as_bytes());
        hasher.update((bytes.len() as u64).to_be_bytes());
        hasher.update(bytes);
    }
    hex::encode(hasher.finalize())[..HASH_DIGITS].to_owned()
});

static ETAG: LazyLock<String> = LazyLock::new(|| format!("\"{}\"", *HASH));

/// The file at `path`: what follows `/assets/` in its address. An older page may still ask under
/// an older hash; it gets nothing rather than a script that does not fit its markup.
pub fn get(path: &str) -> Option<Asset> {
    let (hash, name) = path.split_once('/')?;
    if hash != *HASH {
        return None;
    }
    let (_, content_type, bytes) = FILES.iter().find(|(known, ..)| *known == name)?;
    Some(Asset { bytes, content_type, etag: &ETAG })
}

/// The address of a file.
pub fn url(name: &str) -> String {
    format!("/assets/{}/{name}", *HASH)
}

/// The names of all files.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_found_at_its_address() {
        for (name, content_type, bytes) in FILES {
            let url = url(name);
            let asset = get(url.strip_prefix("/assets/").unwrap()).unwrap();
            assert_eq!((asset.bytes, asset.content_type), (*bytes, *content_type));
        }
        for sheet in SHEETS {
            assert!(FILES.iter().any(|(name, ..)| *name == sheet), "{sheet}");
        }
    }

    #[test]
    fn another_hash_finds_nothing() {
        assert!(get("0000000000000000/app.js").is_none());
        assert!(get("app.js").is_none());
        assert!(get(&format!("{}/../mod.rs", *HASH)).is_none());
    }
}
