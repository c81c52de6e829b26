//! SHA-256 as RFC 6962 (2.1) uses it: a leaf and a node can never be taken for one another.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// What stands before a leaf's bytes.
pub const LEAF_PREFIX: u8 = 0x00;

/// What stands before the two hashes of a node.
pub const NODE_PREFIX: u8 = 0x01;

/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;

/// A hash in the tree; in text as hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; HASH_BYTES]);

impl Hash {
    /// The root of a tree without leaves: the hash of nothing.
    pub fn empty() -> Self {
        Self(Sha256::digest([]).into())
    }

    /// The hash of a leaf.
    pub fn of_leaf(leaf: &[u8]) -> Self {
        Self(Sha256::new().chain_update([LEAF_PREFIX]).chain_update(leaf).finalize().into())
    }

    /// The hash of a node.
    pub fn of_node(left: Self, right: Self) -> Self {
        let mut both = [NODE_PREFIX; 1 + 2 * HASH_BYTES];
        both[1..=HASH_BYTES].copy_from_slice(&left.0);
        both[1 + HASH_BYTES..].copy_from_slice(&right.0);
        Self(Sha256::digest(both).into())
    }

    /// The hashes that stand one behind the other in these bytes; `None` where they are not whole.
    pub fn all_in(bytes: &[u8]) -> Option<Vec<Self>> {
        let (hashes, rest) = bytes.as_chunks::<HASH_BYTES>();
        rest.is_empty().then(|| hashes.iter().map(|hash| Self(*hash)).collect())
    }
}

/// Hashes, one behind the other.
pub fn concatenated(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// The root over some subtrees of one size, of which the last may be smaller than the others.
///
/// # Panics
/// Without any subtree.
pub fn root_of(subtrees: &[Hash]) -> Hash {
    match subtrees {
        [] => panic!("there is no root over nothing"),
        [only] => *only,
        [left, right] => Hash::of_node(*left, *right),
        more => {
            let (left, right) = more.split_at(split(more.len() as u64) as usize);
            Hash::of_node(root_of(left), root_of(right))
        }
    }
}

/// Where RFC 6962 splits a tree of this size, of at least 2: at the largest power of two below it.
pub fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

impl From<Sha256> for Hash {
    fn from(digest: Sha256) -> Self {
        Self(digest.finalize().into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut hash = [0; HASH_BYTES];
        hex::decode_to_slice(text, &mut hash)?;
        Ok(Self(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roots_of_rfc_6962_come_out() {
        // Certificate Transparency's own test vectors: the roots over the first n leaves.
        let leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"];
        let last = "606162636465666768696a6b6c6d6e6f";
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let hashes: Vec<Hash> = leaves
            .iter()
            .chain([&last])
            .map(|leaf| Hash::of_leaf(&hex::decode(leaf).unwrap()))
            .collect();
        for (index, root) in roots.iter().enumerate() {
            assert_eq!(root_of(&hashes[..=index]).to_string(), *root);
        }
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Hash::empty().to_string(), nothing);
    }
}
