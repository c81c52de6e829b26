//! The Merkle tree as it grows, and its tiles (C2SP tlog-tiles, height 8).
//!
//! What is kept in memory is the last tile of each level that is not full: from it come the root
//! and every further tile. A tree of 2^64 leaves has eight levels, so that is 64 KiB at the most.

use super::hash::{Hash, root_of};

/// Hashes of a full tile.
pub const TILE_WIDTH: usize = 256;

/// Levels of the binary tree that one tile spans.
pub const TILE_HEIGHT: u32 = 8;

/// Levels of tiles that a tree can have.
pub const LEVELS_MAX: usize = 8;

/// Which tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileId {
    /// 0 holds the hashes of leaves, 1 the roots of full tiles of level 0, and so on.
    pub level: u8,
    /// The place in its level, from 0.
    pub index: u64,
}

impl TileId {
    /// How many of its hashes a tree of this size has; 0 where it is not there yet.
    pub fn width(self, size: u64) -> usize {
        let hashes = size.checked_shr(TILE_HEIGHT * u32::from(self.level)).unwrap_or(0);
        let before = self.index.saturating_mul(TILE_WIDTH as u64);
        hashes.saturating_sub(before).min(TILE_WIDTH as u64) as usize
    }

    /// The first leaf below one of its hashes, from 0.
    pub fn first_leaf(self, entry: usize) -> u64 {
        (self.index * TILE_WIDTH as u64 + entry as u64) << (TILE_HEIGHT * u32::from(self.level))
    }

    /// The tiles that are not full in a tree of this size.
    pub fn open(size: u64) -> impl Iterator<Item = Self> {
        let of_level = move |level: u8| {
            let index = size.checked_shr(TILE_HEIGHT * (u32::from(level) + 1)).unwrap_or(0);
            Self { level, index }
        };
        (0..LEVELS_MAX as u8).map(of_level).filter(move |tile| tile.width(size) > 0)
    }
}

/// A tile with its hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Which.
    pub id: TileId,
    /// As many as there are, 256 at the most.
    pub hashes: Vec<Hash>,
}

/// A tree that grows at its right edge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// The tile of each level that is not full.
    edge: Vec<Vec<Hash>>,
}

impl Tree {
    /// A tree as it was at a size, from the tiles that were not full then. `None` where they are
    /// not those of such a tree.
    pub fn resume(size: u64, open: Vec<Tile>) -> Option<Self> {
        let mut edge = vec![Vec::new(); LEVELS_MAX];
        for tile in open {
            *edge.get_mut(usize::from(tile.id.level))? = tile.hashes;
        }
        let widths = |level: u8| {
            let index = size.checked_shr(TILE_HEIGHT * (u32::from(level) + 1)).unwrap_or(0);
            TileId { level, index }.width(size)
        };
        let whole = (0..LEVELS_MAX as u8).all(|it| edge[usize::from(it)].len() == widths(it));
        whole.then_some(Self { size, edge })
    }

    /// How many leaves it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf by its hash; tells of each tile that this fills.
    pub fn push(&mut self, leaf: Hash, mut filled: impl FnMut(Tile)) {
        self.size += 1;
        let mut hash = leaf;
        for level in 0..LEVELS_MAX {
            if self.edge.len() == level {
                self.edge.push(Vec::with_capacity(TILE_WIDTH));
            }
            let hashes = &mut self.edge[level];
            hashes.push(hash);
            if hashes.len() < TILE_WIDTH {
                return;
            }
            hash = root_of(hashes);
            let index = (self.size >> (TILE_HEIGHT * (level as u32 + 1))) - 1;
            let id = TileId { level: level as u8, index };
            filled(Tile { id, hashes: std::mem::replace(hashes, Vec::with_capacity(TILE_WIDTH)) });
        }
    }

    /// The root as it is now.
    pub fn root(&self) -> Hash {
        let mut below = None;
        for hashes in &self.edge {
            let subtrees: Vec<Hash> = hashes.iter().copied().chain(below).collect();
            below = (!subtrees.is_empty()).then(|| root_of(&subtrees));
        }
        below.unwrap_or_else(Hash::empty)
    }

    /// The tiles that are not full.
    pub fn open_tiles(&self) -> impl Iterator<Item = Tile> {
        TileId::open(self.size)
            .map(|id| Tile { id, hashes: self.edge[usize::from(id.level)].clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(number: u64) -> Hash {
        Hash::of_leaf(&number.to_be_bytes())
    }

    #[test]
    fn the_root_is_that_of_all_leaves_at_every_size() {
        let leaves: Vec<Hash> = (0..1_300).map(leaf).collect();
        let mut tree = Tree::default();
        assert_eq!(tree.root(), Hash::empty());
        for (index, hash) in leaves.iter().enumerate() {
            tree.push(*hash, |_| {});
            assert_eq!(tree.root(), root_of(&leaves[..=index]), "{}", index + 1);
        }
    }

    #[test]
    fn a_tree_goes_on_from_its_open_tiles() {
        for size in [0, 1, 255, 256, 257, 65_535, 65_536, 65_537, 66_000] {
            let (mut tree, mut filled) = (Tree::default(), 0);
            for number in 0..size {
                tree.push(leaf(number), |_| filled += 1);
            }
            assert_eq!(filled, size / 256 + size / 65_536, "{size}");
            let mut resumed = Tree::resume(size, tree.open_tiles().collect()).unwrap();
            assert_eq!(resumed.root(), tree.root(), "{size}");
            tree.push(leaf(size), |_| {});
            resumed.push(leaf(size), |_| {});
            assert_eq!(resumed.root(), tree.root(), "{size}");
            assert_eq!(resumed.size(), size + 1);
        }
    }

    #[test]
    fn tiles_that_do_not_fit_the_size_make_no_tree() {
        let mut tree = Tree::default();
        for number in 0..300 {
            tree.push(leaf(number), |_| {});
        }
        let tiles: Vec<Tile> = tree.open_tiles().collect();
        assert!(Tree::resume(301, tiles.clone()).is_none());
        assert!(Tree::resume(300, tiles[..1].to_vec()).is_none());
        assert!(Tree::resume(300, tiles).is_some());
    }
}
