//! The leaf of an event: the bytes that the tree holds fast, made so that anybody can make them again.
//!
//! All numbers are big-endian.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 1 | `0x01`, the version of this layout |
//! | 1 | 16 | the stream's UUID |
//! | 17 | 4 | the version in the stream, unsigned |
//! | 21 | 2 | the code of the type, signed |
//! | 23 | 2 | the schema version, signed |
//! | 25 | 8 | `recorded_at`, microseconds since 1970-01-01T00:00:00Z, signed |
//! | 33 | 4 | *h*, the length of the header, unsigned |
//! | 37 | *h* | the header, as stored |
//! | 37 + *h* | 4 | *b*, the length of the body, unsigned |
//! | 41 + *h* | *b* | the body, as stored |
//!
//! Every part has a length that is fixed or is said before it, so no two events share a leaf. The
//! position is not in it: that is the leaf's place in the tree. Nor is the epoch: what a restore has
//! kept is still proven by what was signed before it (`.github/decisions/0020`).

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::hash::{Hash, LEAF_PREFIX};
use crate::log::Committed;

/// The version of the layout.
pub const LEAF_VERSION: u8 = 0x01;

/// Bytes of a leaf beside its header and body.
pub const LEAF_FIXED_BYTES: usize = 41;

/// Bytes before the header.
const FRONT_BYTES: usize = 37;

/// What a leaf is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf<'a> {
    /// The stream.
    pub stream: Uuid,
    /// The place in it, from 1.
    pub version: u32,
    /// The type's code.
    pub code: i16,
    /// The version of the type.
    pub schema_version: i16,
    /// When the log took it, in microseconds since 1970.
    pub recorded_at_us: i64,
    /// The header as stored.
    pub header: &'a [u8],
    /// The body as stored.
    pub body: &'a [u8],
}

impl<'a> Leaf<'a> {
    /// The leaf of an event in the log.
    pub fn of(event: &'a Committed) -> Self {
        Self {
            stream: event.stream.0,
            version: event.version,
            code: event.code,
            schema_version: event.schema_version,
            recorded_at_us: microseconds(event.recorded_at),
            header: &event.header,
            body: &event.body,
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEAF_FIXED_BYTES + self.header.len() + self.body.len());
        bytes.extend_from_slice(&self.front());
        bytes.extend_from_slice(self.header);
        bytes.extend_from_slice(&length(self.body));
        bytes.extend_from_slice(self.body);
        bytes
    }

    /// Its hash in the tree. The same as that of its bytes, which need not be put together for it.
    pub fn hash(&self) -> Hash {
        Sha256::new()
            .chain_update([LEAF_PREFIX])
            .chain_update(self.front())
            .chain_update(self.header)
            .chain_update(length(self.body))
            .chain_update(self.body)
            .into()
    }

    fn front(&self) -> [u8; FRONT_BYTES] {
        let mut front = [0; FRONT_BYTES];
        front[0] = LEAF_VERSION;
        front[1..17].copy_from_slice(self.stream.as_bytes());
        front[17..21].copy_from_slice(&self.version.to_be_bytes());
        front[21..23].copy_from_slice(&self.code.to_be_bytes());
        front[23..25].copy_from_slice(&self.schema_version.to_be_bytes());
        front[25..33].copy_from_slice(&self.recorded_at_us.to_be_bytes());
        front[33..].copy_from_slice(&length(self.header));
        front
    }
}

/// A time as a leaf has it.
pub fn microseconds(time: Timestamp) -> i64 {
    time.as_microsecond()
}

fn length(bytes: &[u8]) -> [u8; 4] {
    // A bytea has less than 1 GiB.
    (bytes.len() as u32).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: Leaf<'static> = Leaf {
        stream: Uuid::from_u128(0x0198_f3b2_6a4d_7e55_8a47_6baf_dcd0_6e05),
        version: 3,
        code: 15,
        schema_version: 1,
        recorded_at_us: 1_764_000_000_000_001,
        header: br#"{"actor":"system:dev"}"#,
        body: b"{}",
    };

    #[test]
    fn the_layout_is_what_is_documented() {
        let expected = concat!(
            "01",
            "0198f3b26a4d7e558a476bafdcd06e05",
            "00000003",
            "000f",
            "0001",
            "0006445941624001",
            "00000016",
            "7b226163746f72223a2273797374656d3a646576227d",
            "00000002",
            "7b7d",
        );
        assert_eq!(hex::encode(LEAF.bytes()), expected);
        assert_eq!(LEAF.bytes().len(), LEAF_FIXED_BYTES + LEAF.header.len() + LEAF.body.len());
    }

    #[test]
    fn the_hash_is_that_of_the_bytes() {
        assert_eq!(LEAF.hash(), Hash::of_leaf(&LEAF.bytes()));
    }

    #[test]
    fn every_field_changes_the_leaf() {
        let changed = [
            Leaf { stream: Uuid::nil(), ..LEAF },
            Leaf { version: 4, ..LEAF },
            Leaf { code: 16, ..LEAF },
            Leaf { schema_version: 2, ..LEAF },
            Leaf { recorded_at_us: LEAF.recorded_at_us + 1, ..LEAF },
            Leaf { header: b"{}", ..LEAF },
            Leaf { body: b"{ }", ..LEAF },
            // What moves from the header into the body is not lost in between.
            Leaf { header: b"", body: br#"{"actor":"system:dev"}{}"#, ..LEAF },
        ];
        for (number, leaf) in changed.iter().enumerate() {
            assert_ne!(leaf.hash(), LEAF.hash(), "{number}");
        }
    }
}
