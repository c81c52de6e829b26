//! Proofs of RFC 6962 and RFC 9162: that a leaf is in a tree, and that one tree begins another.
//!
//! A proof is planned first, which says which tiles it takes, then made from those tiles.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::hash::{Hash, root_of, split};
use super::tree::{TILE_HEIGHT, TILE_WIDTH, TileId};

/// Hashes a proof of a tree of 2^63 leaves may have; a longer one is none.
pub const PROOF_HASHES_MAX: usize = 64;

/// A proof, or a root, that is to be made: subtrees whose roots it consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    subtrees: Vec<Range<u64>>,
}

/// A tile is missing, or holds fewer hashes than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tile {} of level {} is missing, or too short", .0.index, .0.level)]
pub struct MissingTile(pub TileId);

impl Plan {
    /// That the leaf at `index`, from 0, is in the tree of the first `size` leaves; `None` where
    /// there is no such leaf.
    pub fn inclusion(index: u64, size: u64) -> Option<Self> {
        let mut subtrees = Vec::new();
        (index < size).then(|| descend(index, 0..size, &mut subtrees))?;
        Some(Self { subtrees })
    }

    /// That the tree of the first `from` leaves begins the tree of the first `to` leaves; `None`
    /// where it cannot.
    pub fn consistency(from: u64, to: u64) -> Option<Self> {
        let mut subtrees = Vec::new();
        match from {
            0 => {}
            _ if from > to => return None,
            _ => compare(from, 0..to, true, &mut subtrees),
        }
        Some(Self { subtrees })
    }

    /// The root of the tree of the first `size` leaves, of at least one.
    pub fn root(size: u64) -> Self {
        let whole = 0..size;
        Self { subtrees: [whole].to_vec() }
    }

    /// The roots of the subtrees that some leaves consist of, as [`aligned`] has them.
    pub fn aligned(leaves: Range<u64>) -> Self {
        Self { subtrees: aligned(leaves).collect() }
    }

    /// The hash of one leaf.
    pub fn leaf(index: u64) -> Self {
        let leaf = index..index + 1;
        Self { subtrees: [leaf].to_vec() }
    }

    /// The tiles it takes.
    pub fn tiles(&self) -> BTreeSet<TileId> {
        self.subtrees.iter().flat_map(|it| nodes(it.clone())).map(|node| node.tile().0).collect()
    }

    /// The hashes, from tiles that were fetched.
    ///
    /// # Errors
    /// [`MissingTile`] where one is not among them.
    pub fn hashes(&self, tiles: &HashMap<TileId, Vec<Hash>>) -> Result<Vec<Hash>, MissingTile> {
        self.subtrees.iter().map(|it| subtree_root(it.clone(), tiles)).collect()
    }
}

/// The largest whole subtrees of the tree that some leaves consist of, from left to right.
pub fn aligned(leaves: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut start = leaves.start;
    std::iter::from_fn(move || {
        let left = leaves.end.checked_sub(start).filter(|left| *left > 0)?;
        let level = start.trailing_zeros().min(left.ilog2());
        let subtree = start..start + (1 << level);
        start = subtree.end;
        Some(subtree)
    })
}

/// A subtree of 2^level leaves, as all but those at the right edge are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    level: u32,
    index: u64,
}

impl Node {
    /// The tile that holds it, and which of its hashes lie below it.
    fn tile(self) -> (TileId, Range<usize>) {
        let below = self.level % TILE_HEIGHT;
        let first = self.index << below;
        let id =
            TileId { level: (self.level / TILE_HEIGHT) as u8, index: first / TILE_WIDTH as u64 };
        let entry = (first % TILE_WIDTH as u64) as usize;
        (id, entry..entry + (1 << below))
    }
}

/// The whole subtrees that leaves consist of, from left to right.
fn nodes(leaves: Range<u64>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut start = leaves.start;
    while start < leaves.end {
        let level = (leaves.end - start).ilog2();
        nodes.push(Node { level, index: start >> level });
        start += 1 << level;
    }
    nodes
}

fn subtree_root(
    leaves: Range<u64>,
    tiles: &HashMap<TileId, Vec<Hash>>,
) -> Result<Hash, MissingTile> {
    let mut root = None;
    for node in nodes(leaves).into_iter().rev() {
        let (id, entries) = node.tile();
        let hashes = tiles.get(&id).and_then(|hashes| hashes.get(entries));
        let hash = root_of(hashes.ok_or(MissingTile(id))?);
        root = Some(root.map_or(hash, |right| Hash::of_node(hash, right)));
    }
    Ok(root.unwrap_or_else(Hash::empty))
}

/// RFC 6962, 2.1.1: PATH.
fn descend(index: u64, leaves: Range<u64>, siblings: &mut Vec<Range<u64>>) {
    let size = leaves.end - leaves.start;
    if size == 1 {
        return;
    }
    let middle = leaves.start + split(size);
    if index < middle {
        descend(index, leaves.start..middle, siblings);
        siblings.push(middle..leaves.end);
    } else {
        descend(index, middle..leaves.end, siblings);
        siblings.push(leaves.start..middle);
    }
}

/// RFC 6962, 2.1.2: SUBPROOF.
fn compare(from: u64, leaves: Range<u64>, known: bool, subtrees: &mut Vec<Range<u64>>) {
    if from == leaves.end {
        // The old root itself is known to whoever asks.
        subtrees.extend((!known).then_some(leaves));
        return;
    }
    let middle = leaves.start + split(leaves.end - leaves.start);
    if from <= middle {
        compare(from, leaves.start..middle, known, subtrees);
        subtrees.push(middle..leaves.end);
    } else {
        compare(from, middle..leaves.end, false, subtrees);
        subtrees.push(leaves.start..middle);
    }
}

/// Whether a proof shows that a leaf is in a tree. Size and root come from one checkpoint: by itself
/// a root says nothing of the size, and to a leaf far from the right edge all sizes up to the next
/// power of two look alike. Source: RFC 9162, 2.1.3.2.
pub fn includes(index: u64, size: u64, leaf: Hash, root: Hash, hashes: &[Hash]) -> bool {
    if index >= size || hashes.len() > PROOF_HASHES_MAX {
        return false;
    }
    let (mut node, mut last, mut reached) = (index, size - 1, leaf);
    for hash in hashes {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            reached = Hash::of_node(*hash, reached);
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            reached = Hash::of_node(reached, *hash);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    last == 0 && reached == root
}

/// Whether a proof shows that one tree begins another. Source: RFC 9162, 2.1.4.2.
pub fn extends(from: u64, to: u64, from_root: Hash, to_root: Hash, hashes: &[Hash]) -> bool {
    if from > to || hashes.len() > PROOF_HASHES_MAX {
        return false;
    }
    if from == 0 || from == to {
        // Every tree begins with the empty one, and with itself.
        let same = if from == to { from_root == to_root } else { from_root == Hash::empty() };
        return hashes.is_empty() && same;
    }
    let own = from.is_power_of_two().then_some(from_root);
    let mut path = own.into_iter().chain(hashes.iter().copied());
    let Some(first) = path.next() else { return false };
    let below = (from - 1).trailing_ones();
    let (mut node, mut last) = ((from - 1) >> below, (to - 1) >> below);
    let (mut old, mut new) = (first, first);
    for hash in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            old = Hash::of_node(hash, old);
            new = Hash::of_node(hash, new);
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            new = Hash::of_node(new, hash);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    // A power of two needs at least one hash more than itself.
    let enough = own.is_none() || !hashes.is_empty();
    enough && last == 0 && old == from_root && new == to_root
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::*;

    /// The tiles and roots of trees of up to so many leaves.
    fn grown(size: u64) -> (HashMap<TileId, Vec<Hash>>, Vec<Hash>, Vec<Hash>) {
        let (mut tree, mut tiles) = (Tree::default(), HashMap::new());
        let mut roots = vec![Hash::empty()];
        let leaves: Vec<Hash> =
            (0..size).map(|number| Hash::of_leaf(&number.to_be_bytes())).collect();
        for leaf in &leaves {
            tree.push(*leaf, |tile| drop(tiles.insert(tile.id, tile.hashes)));
            roots.push(tree.root());
        }
        tiles.extend(tree.open_tiles().map(|tile| (tile.id, tile.hashes)));
        (tiles, leaves, roots)
    }

    #[test]
    fn every_proof_of_every_small_tree_holds() {
        let (tiles, leaves, roots) = grown(70);
        for size in 1..=70 {
            for index in 0..size {
                let path = Plan::inclusion(index, size).unwrap().hashes(&tiles).unwrap();
                let (leaf, root) = (leaves[index as usize], roots[size as usize]);
                assert!(includes(index, size, leaf, root, &path), "{index} of {size}");
            }
            for from in 0..=size {
                let path = Plan::consistency(from, size).unwrap().hashes(&tiles).unwrap();
                let (old, new) = (roots[from as usize], roots[size as usize]);
                assert!(extends(from, size, old, new, &path), "{from} to {size}");
            }
        }
    }

    #[test]
    fn proofs_span_levels_of_tiles() {
        let (tiles, leaves, roots) = grown(66_100);
        for size in [255, 256, 257, 300, 511, 513, 65_535, 65_536, 65_537, 66_050, 66_100] {
            for index in [0, 1, size / 3, size / 2, size - 2, size - 1] {
                let plan = Plan::inclusion(index, size).unwrap();
                let needed = plan.tiles();
                assert!(needed.len() <= 6, "{}", needed.len());
                let few: HashMap<_, _> = needed.iter().map(|id| (*id, tiles[id].clone())).collect();
                let path = plan.hashes(&few).unwrap();
                let (leaf, root) = (leaves[index as usize], roots[size as usize]);
                assert!(includes(index, size, leaf, root, &path), "{index} of {size}");
                let from = index + 1;
                let path = Plan::consistency(from, size).unwrap().hashes(&tiles).unwrap();
                let (old, new) = (roots[from as usize], roots[size as usize]);
                assert!(extends(from, size, old, new, &path), "{from} to {size}");
            }
            let root = Plan::root(size).hashes(&tiles).unwrap();
            assert_eq!(root, [roots[size as usize]]);
        }
    }

    #[test]
    fn what_is_altered_is_refused() {
        let (tiles, leaves, roots) = grown(70);
        let (index, size) = (37_u64, 70_u64);
        let (leaf, root) = (leaves[37], roots[70]);
        let path = Plan::inclusion(index, size).unwrap().hashes(&tiles).unwrap();
        for place in 0..path.len() {
            let mut altered = path.clone();
            altered[place].0[31] ^= 1;
            assert!(!includes(index, size, leaf, root, &altered), "hash {place} is altered");
            let mut swapped = path.clone();
            swapped.swap(place, (place + 1) % path.len());
            assert!(!includes(index, size, leaf, root, &swapped), "hash {place} is swapped");
            assert!(!includes(index, size, leaf, root, &path[..place]), "{place} hashes");
        }
        let longer = [path.clone(), vec![root]].concat();
        assert!(!includes(index, size, leaf, root, &longer));
        for wrong in [0, 36, 38, 69, 70, u64::MAX] {
            assert!(!includes(wrong, size, leaf, root, &path), "index {wrong}");
        }
        for wrong in [0, 37, 38, 64, 129, u64::MAX] {
            assert!(!includes(index, wrong, leaf, root, &path), "size {wrong}");
        }
        assert!(!includes(index, size, leaves[38], root, &path));
        assert!(!includes(index, size, leaf, roots[69], &path));
    }

    #[test]
    fn a_tree_that_does_not_begin_another_is_refused() {
        let (tiles, _, roots) = grown(70);
        for (from, to) in [(32_u64, 70_u64), (37, 70), (1, 2), (64, 65)] {
            let path = Plan::consistency(from, to).unwrap().hashes(&tiles).unwrap();
            let (old, new) = (roots[from as usize], roots[to as usize]);
            assert!(extends(from, to, old, new, &path));
            for place in 0..path.len() {
                let mut altered = path.clone();
                altered[place].0[0] ^= 0x80;
                assert!(!extends(from, to, old, new, &altered), "{from} to {to}: hash {place}");
                assert!(!extends(from, to, old, new, &path[..place]), "{from} to {to}: {place}");
            }
            for place in 1..path.len() {
                let mut swapped = path.clone();
                swapped.swap(place - 1, place);
                assert!(!extends(from, to, old, new, &swapped), "{from} to {to}: swap {place}");
            }
            assert!(!extends(from, to, new, old, &path));
            assert!(!extends(to, from, old, new, &path));
            assert!(!extends(from + 1, to, old, new, &path) || from + 1 == to);
            assert!(!extends(from, to, roots[from as usize - 1], new, &path));
            assert!(!extends(from, to, old, new, &[path.clone(), vec![new]].concat()));
        }
        assert!(!extends(0, 5, roots[1], roots[5], &[]));
        assert!(!extends(5, 5, roots[5], roots[4], &[]));
        assert!(extends(5, 5, roots[5], roots[5], &[]));
        assert!(extends(0, 5, roots[0], roots[5], &[]));
        assert!(Plan::inclusion(5, 5).is_none() && Plan::consistency(6, 5).is_none());
    }
}
