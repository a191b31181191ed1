//! The blocks of an inode: a list in it, or a tree (`struct xfs_bmbt_rec`).
//!
//! ```text
//!  unwritten, 1 bit │ file block, 54 bits │ packed block, 52 bits │ length, 21 bits
//! ```

use super::super::bytes::{index, u64_be};
use super::super::{Blocks, LayoutError, Malformed};
use super::inode::Fork;
use super::tree::{MAX_LEVELS, Tree, leaves, root_in_inode};
use super::{Inode, Superblock};

/// Extents of one inode that are read, and blocks that lead to them. What is beyond has no owner here.
const MAX_EXTENTS: usize = 1 << 20;

/// Blocks of a file that follow each other on the disk as in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first block's number in the file.
    pub file_block: u64,
    /// The first block on the disk.
    pub block: u64,
    /// How many.
    pub len: u32,
    /// Nothing was written there yet: it reads as zeros, whatever is there.
    pub is_unwritten: bool,
}

/// All that an inode has.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Extents {
    /// Its contents.
    pub extents: Vec<Extent>,
    /// Blocks that lead to them.
    pub nodes: Vec<u64>,
    /// There is more, beyond what is read of one inode.
    pub is_cut: bool,
}

impl Extent {
    /// Reads one; `None` if its blocks are not on the disk.
    fn parse(record: &[u8], of: &Superblock) -> Option<Self> {
        let (high, low) = (u64_be(record, 0)?, u64_be(record, 8)?);
        let block = of.block((high & 0x1ff) << 43 | low >> 21)?;
        let len = u32::try_from(low & 0x1f_ffff).ok()?;
        // All of it is in one group.
        let last = block.checked_add(u64::from(len).checked_sub(1)?)?;
        let group = |block: u64| block / u64::from(of.group_blocks.max(1));
        (last < of.blocks && group(block) == group(last)).then_some(Self {
            file_block: (high & !(1 << 63)) >> 9,
            block,
            len,
            is_unwritten: high >> 63 != 0,
        })
    }
}

impl Extents {
    /// Reads those of the inode with this number. `claim` says whether a node is nobody else's.
    ///
    /// # Errors
    /// If a node cannot be read, or cannot be right.
    pub fn of(
        inode: &Inode,
        number: u64,
        of: &Superblock,
        disk: &impl Blocks,
        claim: &mut impl FnMut(u64) -> bool,
    ) -> Result<Self, LayoutError> {
        let mut found = Self::default();
        let mut taking = Taking::default();
        let wrong = |what| LayoutError::from(Malformed { what, at: 0 });
        match &inode.fork {
            Fork::Local(_) => {}
            Fork::Extents(fork, count) => {
                let records = index(*count).checked_mul(16).and_then(|len| fork.get(..len));
                let records = records.ok_or_else(|| wrong("more extents than an inode has room for"))?;
                taking.take(records, of, &mut found);
            }
            Fork::Tree(fork) => {
                let (level, blocks) =
                    root_in_inode(fork, of).ok_or_else(|| wrong("no root of a tree of extents"))?;
                if level > MAX_LEVELS {
                    return Err(wrong("a tree of extents that is too high"));
                }
                for block in blocks {
                    let nodes = leaves(
                        Tree::Extents(number),
                        block,
                        level - 1,
                        of,
                        disk,
                        claim,
                        &mut |records| taking.take(records, of, &mut found),
                    )?;
                    found.nodes.extend(nodes);
                    if found.is_cut || taking.is_wrong {
                        break;
                    }
                }
            }
        }
        if taking.is_wrong {
            return Err(wrong("extents out of order, or not on the disk"));
        }
        Ok(found)
    }
}

/// Records that come one after the other.
#[derive(Debug, Default)]
struct Taking {
    least: u64,
    is_wrong: bool,
}

impl Taking {
    /// Whether to go on.
    fn take(&mut self, records: &[u8], of: &Superblock, into: &mut Extents) -> bool {
        for record in records.chunks_exact(16) {
            let Some(extent) = Extent::parse(record, of).filter(|extent| extent.file_block >= self.least)
            else {
                self.is_wrong = true;
                return false;
            };
            if into.extents.len() == MAX_EXTENTS {
                into.is_cut = true;
                return false;
            }
            self.least = extent.file_block.saturating_add(extent.len.into());
            into.extents.push(extent);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::superblock::tests::bytes;
    use super::*;

    fn record(unwritten: bool, file_block: u64, packed: u64, len: u64) -> Vec<u8> {
        let high = u64::from(unwritten) << 63 | file_block << 9 | packed >> 43;
        [high.to_be_bytes(), (packed << 21 | len).to_be_bytes()].concat()
    }

    fn superblock() -> Superblock {
        Superblock::parse(&bytes(|_| ()), 1 << 30).unwrap()
    }

    #[test]
    fn an_extent_says_where_and_how_many_and_whether_it_was_written() {
        let of = superblock();
        let found = Extent::parse(&record(true, 77, 2 << 12 | 9, 1000), &of);
        let expected = Extent {
            file_block: 77,
            block: 2 * 4096 + 9,
            len: 1000,
            is_unwritten: true,
        };
        assert_eq!(found, Some(expected));
        for (what, packed, len) in [
            ("none", 5, 0),
            ("beyond its group", 4000, 97),
            ("beyond the disk", 4 << 12, 1),
        ] {
            assert_eq!(Extent::parse(&record(false, 0, packed, len), &of), None, "{what}");
        }
    }

    #[test]
    fn max_extents_bounds_what_is_read_of_one_inode() {
        let of = superblock();
        let mut found = Extents {
            extents: vec![Extent::parse(&record(false, 0, 5, 1), &of).unwrap(); MAX_EXTENTS],
            ..Extents::default()
        };
        let mut taking = Taking::default();
        assert!(!taking.take(&record(false, 9, 5, 1), &of, &mut found));
        assert!(found.is_cut && found.extents.len() == MAX_EXTENTS);
    }

    #[test]
    fn extents_are_in_order_or_wrong() {
        let of = superblock();
        let (mut taking, mut found) = (Taking::default(), Extents::default());
        let records = [record(false, 0, 5, 4), record(false, 3, 20, 1)].concat();
        assert!(!taking.take(&records, &of, &mut found) && taking.is_wrong);
    }
}
