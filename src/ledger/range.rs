//! That a range of leaves is in a tree: the roots of the subtrees before and behind it are enough to
//! get from its leaves to the root, and they are at most 126.

use super::hash::Hash;
use super::proof::aligned;

/// Whole subtrees, joined as they come from left to right.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    size: u64,
    /// Each with the number of its leaves.
    subtrees: Vec<(u64, Hash)>,
}

impl Joined {
    /// The subtrees that the first `size` leaves consist of. `None` where these are not as many.
    pub fn before(size: u64, roots: &[Hash]) -> Option<Self> {
        let mut joined = Self::default();
        joined.extend(size, roots).then_some(joined)
    }

    /// How many leaves there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf by its hash.
    pub fn push(&mut self, leaf: Hash) {
        self.push_subtree(1, leaf);
    }

    /// Appends the subtrees up to `size`; whether these roots are as many as there are.
    pub fn extend(&mut self, size: u64, roots: &[Hash]) -> bool {
        let mut roots = roots.iter();
        for subtree in aligned(self.size..size) {
            let Some(root) = roots.next() else { return false };
            self.push_subtree(subtree.end - subtree.start, *root);
        }
        roots.next().is_none() && self.size == size
    }

    fn push_subtree(&mut self, leaves: u64, root: Hash) {
        self.size += leaves;
        let (mut leaves, mut root) = (leaves, root);
        // Subtrees are aligned, so two of a size that stand beside one another are siblings.
        while let Some((_, left)) = self.subtrees.pop_if(|(before, _)| *before == leaves) {
            root = Hash::of_node(left, root);
            leaves *= 2;
        }
        self.subtrees.push((leaves, root));
    }

    /// The root over all.
    pub fn root(&self) -> Hash {
        let mut subtrees = self.subtrees.iter().rev().map(|(_, root)| *root);
        let Some(last) = subtrees.next() else { return Hash::empty() };
        subtrees.fold(last, |right, left| Hash::of_node(left, right))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::hash::root_of;
    use super::*;

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|index| Hash::of_leaf(&index.to_be_bytes())).collect()
    }

    fn roots(leaves: &[Hash], from: u64, to: u64) -> Vec<Hash> {
        let root = |it: std::ops::Range<u64>| root_of(&leaves[it.start as usize..it.end as usize]);
        aligned(from..to).map(root).collect()
    }

    proptest! {
        #[test]
        fn any_range_leads_to_the_root(size in 1_u64..700, a in 0_u64..700, b in 0_u64..700) {
            let (from, to) = ((a % size).min(b % size), (a % size).max(b % size) + 1);
            let all = leaves(size);
            let before = roots(&all, 0, from);
            let mut joined = Joined::before(from, &before).unwrap();
            for leaf in &all[from as usize..to as usize] {
                joined.push(*leaf);
            }
            prop_assert!(joined.extend(size, &roots(&all, to, size)));
            prop_assert_eq!(joined.root(), root_of(&all));

            let mut other = Joined::before(from, &before).unwrap();
            let mut changed = all[from as usize..to as usize].to_vec();
            let at = (a + b) as usize % changed.len();
            changed[at].0[0] ^= 1;
            for leaf in changed {
                other.push(leaf);
            }
            prop_assert!(other.extend(size, &roots(&all, to, size)));
            prop_assert_ne!(other.root(), root_of(&all));
        }
    }

    #[test]
    fn roots_that_are_too_few_or_too_many_are_refused() {
        let all = leaves(11);
        let before = roots(&all, 0, 7);
        assert!(Joined::before(7, &before).is_some());
        assert!(Joined::before(7, &before[1..]).is_none());
        assert!(Joined::before(6, &before).is_none());
        assert_eq!(Joined::default().root(), Hash::empty());
    }
}
