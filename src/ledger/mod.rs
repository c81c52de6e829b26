//! Proof that nobody has changed the log: a Merkle tree over its events (RFC 6962), in tiles and
//! signed checkpoints as C2SP has them, and what checks them.
//!
//! [`leaf`], [`tree`], [`proof`] and [`note`] are pure; [`seal`] follows the log and signs, [`verify`]
//! takes nobody's word. Nothing here is on the way of an append.

pub mod archive;
pub mod bundle;
pub mod durable;
pub mod epoch;
pub mod hash;
pub mod key;
pub mod leaf;
pub mod note;
pub mod path;
pub mod proof;
pub mod range;
pub mod read;
pub mod refusal;
pub mod seal;
pub mod store;
pub mod tree;
pub mod verify;

pub use hash::Hash;
pub use key::KeyFile;
pub use leaf::Leaf;
pub use note::{Checkpoint, VerifierKey};
