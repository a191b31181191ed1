//! Blocks of the trees (`struct xfs_btree_block`): those of a group, with short pointers, and those of an inode, with long ones.
//!
//! A tree that leads to itself, or to one node from everywhere, would be walked for ever. So the root says how high it is, every level is
//! one less, and a block is visited once.

use std::collections::HashSet;

use super::super::bytes::{u16_be, u32_be, u64_be};
use super::super::{Blocks, LayoutError, Malformed};
use super::Superblock;

/// Levels below the root, more than the largest trees have (`XFS_BTREE_MAXLEVELS`).
pub(super) const MAX_LEVELS: u16 = 9;

/// Which tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tree {
    /// Chunks of inodes, of a group.
    Chunks(u32),
    /// Extents of an inode.
    Extents(u64),
}

impl Tree {
    fn magic(self, of: &Superblock) -> [u8; 4] {
        match (self, of.has_checksums) {
            (Self::Chunks(_), true) => *b"IAB3",
            (Self::Chunks(_), false) => *b"IABT",
            (Self::Extents(_), true) => *b"BMA3",
            (Self::Extents(_), false) => *b"BMAP",
        }
    }

    fn header(self, of: &Superblock) -> usize {
        match (self, of.has_checksums) {
            (Self::Chunks(_), true) => 56,
            (Self::Chunks(_), false) => 16,
            (Self::Extents(_), true) => 72,
            (Self::Extents(_), false) => 24,
        }
    }

    /// Whose the block says it is, if that is who it is for.
    fn is_owner(self, block: &[u8], of: &Superblock) -> bool {
        if !of.has_checksums {
            return true;
        }
        match self {
            Self::Chunks(group) => u32_be(block, 48) == Some(group),
            Self::Extents(inode) => u64_be(block, 56) == Some(inode),
        }
    }

    /// Bytes of a key and of a pointer.
    const fn widths(self) -> (usize, usize) {
        match self {
            Self::Chunks(_) => (4, 4),
            Self::Extents(_) => (8, 8),
        }
    }
}

/// Where the pointers of a node are, which has so many bytes for its entries.
pub(super) fn pointers_at(room: usize, key: usize, pointer: usize) -> usize {
    room / (key + pointer) * key
}

/// Visits the leaves below a block which is on this level, in their order; `give` gets the records of one after the other, 16 bytes each,
/// and says whether to go on. The blocks that were visited.
pub(super) fn leaves(
    tree: Tree,
    root: u64,
    level: u16,
    of: &Superblock,
    disk: &impl Blocks,
    claim: &mut impl FnMut(u64) -> bool,
    give: &mut impl FnMut(&[u8]) -> bool,
) -> Result<Vec<u64>, LayoutError> {
    let wrong = |what, block| {
        LayoutError::from(Malformed {
            what,
            at: of.at(block),
        })
    };
    if level > MAX_LEVELS {
        return Err(wrong("a tree that is too high", root));
    }
    let (mut stack, mut visited) = (vec![(root, level)], Vec::new());
    let mut seen = HashSet::new();
    let header = tree.header(of);
    while let Some((number, level)) = stack.pop() {
        if number == 0 || number >= of.blocks || !seen.insert(number) || !claim(number) {
            return Err(wrong("a node that is not on the disk, or another tree's", number));
        }
        let mut block = vec![0; of.block_len()];
        let at = of.at(number);
        disk.read(at, &mut block)
            .map_err(|source| LayoutError::Read { at, source })?;
        let is_own = block.starts_with(&tree.magic(of)) && tree.is_owner(&block, of);
        if !is_own || u16_be(&block, 4) != Some(level) {
            return Err(wrong("a node of another tree", number));
        }
        visited.push(number);
        let count = usize::from(u16_be(&block, 6).unwrap_or(0));
        let entries = block.get(header..).unwrap_or_default();
        if level == 0 {
            let records = entries
                .get(..count.saturating_mul(16))
                .ok_or_else(|| wrong("more records than a block has", number))?;
            if !give(records) {
                break;
            }
            continue;
        }
        let (key, pointer) = tree.widths();
        let pointers = entries
            .get(pointers_at(entries.len(), key, pointer)..)
            .and_then(|pointers| pointers.get(..count.checked_mul(pointer)?))
            .ok_or_else(|| wrong("more pointers than a block has", number))?;
        // The last first: the stack gives them in their order.
        for pointer in pointers.chunks_exact(pointer).rev() {
            let block = match tree {
                Tree::Chunks(group) => u32_be(pointer, 0).and_then(|block| of.in_group(group, block)),
                Tree::Extents(_) => u64_be(pointer, 0).and_then(|packed| of.block(packed)),
            };
            stack.push((block.unwrap_or(0), level - 1));
        }
    }
    Ok(visited)
}

/// The root of a tree in an inode (`struct xfs_bmdr_block`): its level, and the blocks below it.
pub(super) fn root_in_inode(fork: &[u8], of: &Superblock) -> Option<(u16, Vec<u64>)> {
    let (level, count) = (u16_be(fork, 0)?, usize::from(u16_be(fork, 2)?));
    let entries = fork.get(4..)?;
    let pointers = entries
        .get(pointers_at(entries.len(), 8, 8)..)?
        .get(..count.checked_mul(8)?)?;
    let blocks = pointers
        .chunks_exact(8)
        .map(|pointer| u64_be(pointer, 0).and_then(|packed| of.block(packed)));
    (level > 0).then_some((level, blocks.map(Option::unwrap_or_default).collect()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io;

    use super::super::superblock::tests::bytes;
    use super::*;

    /// A disk with some blocks; the others are zeros.
    struct Disk(HashMap<u64, Vec<u8>>);

    impl Blocks for Disk {
        fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
            into.fill(0);
            if let Some(block) = self.0.get(&(at / 4096)) {
                into.copy_from_slice(block);
            }
            Ok(())
        }

        fn len(&self) -> u64 {
            1 << 30
        }
    }

    fn superblock() -> Superblock {
        Superblock::parse(&bytes(|_| ()), 1 << 30).unwrap()
    }

    /// A block of the tree of extents of inode 7.
    fn block(level: u16, count: u16, entries: &[u8], at: usize) -> Vec<u8> {
        let mut block = vec![0; 4096];
        block[..4].copy_from_slice(b"BMA3");
        block[4..6].copy_from_slice(&level.to_be_bytes());
        block[6..8].copy_from_slice(&count.to_be_bytes());
        block[56..64].copy_from_slice(&7_u64.to_be_bytes());
        block[at..at + entries.len()].copy_from_slice(entries);
        block
    }

    fn node(level: u16, children: &[u64]) -> Vec<u8> {
        let pointers: Vec<u8> = children.iter().flat_map(|child| child.to_be_bytes()).collect();
        let at = 72 + pointers_at(4096 - 72, 8, 8);
        block(level, u16::try_from(children.len()).unwrap(), &pointers, at)
    }

    fn walk(
        blocks: impl IntoIterator<Item = (u64, Vec<u8>)>,
        level: u16,
    ) -> Result<(Vec<u64>, usize), LayoutError> {
        let disk = Disk(blocks.into_iter().collect());
        let mut records = 0;
        let visited = leaves(
            Tree::Extents(7),
            10,
            level,
            &superblock(),
            &disk,
            &mut |_| true,
            &mut |found| {
                records += found.len() / 16;
                true
            },
        );
        visited.map(|visited| (visited, records))
    }

    #[test]
    fn leaves_are_visited_in_their_order() {
        let leaf = || block(0, 3, &[0; 48], 72);
        let blocks = [(10, node(1, &[12, 11])), (11, leaf()), (12, leaf())];
        assert_eq!(walk(blocks, 1).unwrap(), (vec![10, 12, 11], 6));
    }

    #[test]
    fn a_tree_that_leads_to_itself_or_elsewhere_is_wrong() {
        let leaf = || block(0, 1, &[0; 16], 72);
        assert!(walk([(10, node(1, &[10]))], 1).is_err(), "itself");
        assert!(
            walk([(10, node(1, &[11, 11])), (11, leaf())], 1).is_err(),
            "twice"
        );
        assert!(walk([(10, node(1, &[5 << 12]))], 1).is_err(), "beyond the disk");
        assert!(
            walk([(10, node(2, &[11])), (11, leaf())], 2).is_err(),
            "a level less"
        );
        assert!(
            walk([(10, block(0, 300, &[], 72))], 0).is_err(),
            "more records than there is room"
        );
        assert!(walk([(10, vec![0; 4096])], 0).is_err(), "zeros");
    }

    #[test]
    fn max_levels_bounds_how_high_a_tree_is() {
        let chain = |levels: u16| {
            let mut blocks: Vec<(u64, Vec<u8>)> = (1..=levels)
                .map(|level| {
                    (
                        u64::from(levels - level) + 10,
                        node(level, &[u64::from(levels - level) + 11]),
                    )
                })
                .collect();
            blocks.push((u64::from(levels) + 10, block(0, 1, &[0; 16], 72)));
            walk(blocks, levels)
        };
        assert_eq!(chain(MAX_LEVELS).unwrap().1, 1);
        assert!(chain(MAX_LEVELS + 1).is_err());
    }
}
