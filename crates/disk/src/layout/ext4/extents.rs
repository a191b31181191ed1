//! The blocks of an inode: a tree of extents, or blocks that lead to blocks.
//!
//! ```text
//!  header  │ magic f30a │ entries │ most │ depth │ generation │          12 bytes each
//!  leaf    │ file block u32 │ length u16 │ block, high u16 │ block, low u32 │
//!  node    │ file block u32 │ child, low u32 │ child, high u16 │ – │
//! ```
//!
//! A tree that leads to itself, or to one node from everywhere, would be walked for ever. So a child begins with the file block that its
//! parent says it begins with, every entry with a greater one than that before it, and none reaches beyond where the parent's next
//! begins (`ext4_valid_extent_entries` in `fs/ext4/extents.c`): then no block of the file is come by twice.

use super::super::bytes::{index, joined, u16_le, u32_le};
use super::super::{Blocks, LayoutError, Malformed};
use super::inode::MAP;
use super::superblock::Superblock;

const MAGIC: u16 = 0xf30a;
const ENTRY: usize = 12;
/// Levels below the root (`EXT4_MAX_EXTENT_DEPTH`).
const MAX_DEPTH: u16 = 5;
/// A longer extent is one that was not written yet (`EXT_INIT_MAX_LEN`).
const WRITTEN: u16 = 1 << 15;
/// Nodes and extents of one inode that are read: a file of 16 TiB in pieces of 16 MiB has as many extents. What is beyond has no owner here.
const MAX_NODES: usize = 1 << 16;
const MAX_EXTENTS: usize = 1 << 20;

/// Blocks of a file that follow each other on the disk as in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first block's number in the file.
    pub file_block: u32,
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

/// A node whose children are visited.
struct Level {
    bytes: Vec<u8>,
    depth: u16,
    next: u16,
    entries: u16,
    /// No file block from here on may come below it.
    end: u64,
}

impl Extents {
    /// Reads the tree whose root is in an inode. `claim` says whether a node is nobody else's: one that many inodes had would be read
    /// for each of them.
    ///
    /// # Errors
    /// If a node cannot be read, or cannot be right.
    pub fn of_tree(
        root: &[u8; MAP],
        of: &Superblock,
        disk: &impl Blocks,
        claim: &mut impl FnMut(u64) -> bool,
    ) -> Result<Self, LayoutError> {
        let mut found = Self::default();
        let mut least = 0;
        let mut stack = vec![open(root.to_vec(), None, u64::from(u32::MAX) + 1, 0)?];
        while let Some(level) = stack.last_mut() {
            if level.next == level.entries {
                stack.pop();
                continue;
            }
            let entry = entry(level.next);
            level.next += 1;
            let word = |at: usize| u32_le(&level.bytes, entry + at).unwrap_or(0);
            let half = |at: usize| u16_le(&level.bytes, entry + at).unwrap_or(0);
            let file_block = word(0);
            let after = if level.next < level.entries {
                u64::from(u32_le(&level.bytes, self::entry(level.next)).unwrap_or(0))
            } else {
                level.end
            };
            let here = Malformed {
                what: "an extent tree out of order",
                at: 0,
            };
            if u64::from(file_block) < least || u64::from(file_block) >= after {
                return Err(here.into());
            }
            if level.depth > 0 {
                let child = joined(word(4), u32::from(half(8)));
                if found.nodes.len() == MAX_NODES {
                    found.is_cut = true;
                    return Ok(found);
                }
                let depth = level.depth - 1;
                let bytes = block(child, of, disk, claim)?;
                let child_level = open(bytes, Some((depth, file_block)), after, of.at(child))?;
                found.nodes.push(child);
                stack.push(child_level);
                continue;
            }
            let (raw, start) = (half(4), joined(word(8), u32::from(half(6))));
            let is_unwritten = raw > WRITTEN;
            let len = u32::from(if is_unwritten { raw - WRITTEN } else { raw });
            let end = u64::from(file_block).saturating_add(len.into());
            if len == 0 || end > after || start.saturating_add(len.into()) > of.blocks || start == 0 {
                return Err(here.into());
            }
            if found.extents.len() == MAX_EXTENTS {
                found.is_cut = true;
                return Ok(found);
            }
            least = end;
            found.extents.push(Extent {
                file_block,
                block: start,
                len,
                is_unwritten,
            });
        }
        Ok(found)
    }

    /// Reads the twelve blocks of a file, and those that the three behind them lead to. `blocks` is how many the file may have.
    ///
    /// # Errors
    /// If a block cannot be read, or is not on the disk.
    pub fn of_blocks(
        map: &[u8; MAP],
        blocks: u64,
        of: &Superblock,
        disk: &impl Blocks,
        claim: &mut impl FnMut(u64) -> bool,
    ) -> Result<Self, LayoutError> {
        let mut found = Self::default();
        let each = u64::from(of.block_bytes / 4);
        let mut file_block = 0_u64;
        for number in 0..15_usize {
            let height = number.saturating_sub(11);
            let leads_to = u32_le(map, number * 4).unwrap_or(0);
            found.below((leads_to, height, file_block), blocks, of, disk, claim)?;
            let height = u32::try_from(height).unwrap_or(0);
            file_block = file_block.saturating_add(each.saturating_pow(height));
            if file_block >= blocks || found.is_cut {
                break;
            }
        }
        Ok(found)
    }

    /// What one block leads to over so many levels, at most three, from a block of the file on.
    fn below(
        &mut self,
        from: (u32, usize, u64),
        blocks: u64,
        of: &Superblock,
        disk: &impl Blocks,
        claim: &mut impl FnMut(u64) -> bool,
    ) -> Result<(), LayoutError> {
        let each = u64::from(of.block_bytes / 4);
        let mut stack = vec![from];
        while let Some((block_number, height, file_block)) = stack.pop() {
            if block_number == 0 || file_block >= blocks {
                continue;
            }
            if u64::from(block_number) >= of.blocks {
                return Err(Malformed {
                    what: "a block that is not on the disk",
                    at: of.at(block_number.into()),
                }
                .into());
            }
            let Some(lower) = height.checked_sub(1) else {
                self.one(file_block, block_number.into());
                if self.is_cut {
                    return Ok(());
                }
                continue;
            };
            if self.nodes.len() == MAX_NODES {
                self.is_cut = true;
                return Ok(());
            }
            self.nodes.push(block_number.into());
            let bytes = block(block_number.into(), of, disk, claim)?;
            let span = each.saturating_pow(u32::try_from(lower).unwrap_or(0));
            // The last first: the stack gives them in their order.
            for number in (0..each).rev() {
                let leads_to = u32_le(&bytes, index(number * 4)).unwrap_or(0);
                stack.push((
                    leads_to,
                    lower,
                    file_block.saturating_add(number.saturating_mul(span)),
                ));
            }
        }
        Ok(())
    }

    /// One more block, of the extent before it if it follows that.
    fn one(&mut self, file_block: u64, block: u64) {
        let Ok(file_block) = u32::try_from(file_block) else {
            self.is_cut = true;
            return;
        };
        if let Some(last) = self.extents.last_mut()
            && last.file_block.checked_add(last.len) == Some(file_block)
            && last.block.saturating_add(last.len.into()) == block
        {
            last.len += 1;
        } else if self.extents.len() == MAX_EXTENTS {
            self.is_cut = true;
        } else {
            self.extents.push(Extent {
                file_block,
                block,
                len: 1,
                is_unwritten: false,
            });
        }
    }
}

const fn entry(number: u16) -> usize {
    ENTRY * (number as usize + 1)
}

/// A node, whose depth and first file block its parent says.
fn open(bytes: Vec<u8>, said: Option<(u16, u32)>, end: u64, at: u64) -> Result<Level, LayoutError> {
    let wrong = |what| LayoutError::from(Malformed { what, at });
    let half = |at: usize| u16_le(&bytes, at).unwrap_or(0);
    let (entries, depth) = (half(2), half(6));
    if half(0) != MAGIC || entry(entries) > bytes.len() || depth > MAX_DEPTH {
        return Err(wrong("no node of an extent tree"));
    }
    if let Some((said, first)) = said
        && (depth != said || entries == 0 || u32_le(&bytes, ENTRY) != Some(first))
    {
        return Err(wrong("a node of another extent tree"));
    }
    Ok(Level {
        bytes,
        depth,
        next: 0,
        entries,
        end,
    })
}

/// A block that leads to others, if it is nobody else's.
fn block(
    number: u64,
    of: &Superblock,
    disk: &impl Blocks,
    claim: &mut impl FnMut(u64) -> bool,
) -> Result<Vec<u8>, LayoutError> {
    let at = of.at(number);
    if number == 0 || number >= of.blocks || !claim(number) {
        let what = "a node that is not on the disk, or another inode's";
        return Err(Malformed { what, at }.into());
    }
    let mut bytes = vec![0; of.block_len()];
    disk.read(at, &mut bytes)
        .map_err(|source| LayoutError::Read { at, source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::io;

    use super::*;

    const BLOCK: usize = 4096;

    /// A disk with some blocks; the others are zeros.
    #[derive(Default)]
    struct Disk(HashMap<u64, Vec<u8>>);

    impl Blocks for Disk {
        fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
            into.fill(0);
            if let Some(block) = self.0.get(&(at / BLOCK as u64)) {
                into.copy_from_slice(block);
            }
            Ok(())
        }

        fn len(&self) -> u64 {
            1 << 40
        }
    }

    fn of() -> Superblock {
        let bytes = super::super::superblock::tests::bytes(|bytes| {
            bytes[0x4..0x8].copy_from_slice(&(1_u32 << 28).to_le_bytes());
        });
        Superblock::parse(&bytes, 1 << 40).unwrap()
    }

    fn node(depth: u16, entries: &[[u8; ENTRY]], len: usize) -> Vec<u8> {
        let count = u16::try_from(entries.len()).unwrap();
        let mut bytes = [
            MAGIC.to_le_bytes(),
            count.to_le_bytes(),
            count.to_le_bytes(),
            depth.to_le_bytes(),
        ]
        .concat();
        bytes.extend([0; 4]);
        bytes.extend(entries.concat());
        bytes.resize(len, 0);
        bytes
    }

    fn leaf(file_block: u32, len: u16, block: u32) -> [u8; ENTRY] {
        let bytes = [
            &file_block.to_le_bytes()[..],
            &len.to_le_bytes(),
            &[0; 2],
            &block.to_le_bytes(),
        ]
        .concat();
        bytes.try_into().unwrap()
    }

    fn index_to(file_block: u32, block: u32) -> [u8; ENTRY] {
        let bytes = [&file_block.to_le_bytes()[..], &block.to_le_bytes(), &[0; 4]].concat();
        bytes.try_into().unwrap()
    }

    fn tree(root: &[u8], disk: &Disk) -> Result<Extents, LayoutError> {
        let mut claimed = HashSet::new();
        Extents::of_tree(root.try_into().unwrap(), &of(), disk, &mut |node| {
            claimed.insert(node)
        })
    }

    #[test]
    fn an_extent_may_be_long_or_not_written_yet() {
        let root = node(0, &[leaf(0, WRITTEN, 100), leaf(40_000, WRITTEN + 5, 9)], MAP);
        let found = tree(&root, &Disk::default()).unwrap().extents;
        assert_eq!((found[0].len, found[0].is_unwritten), (32_768, false));
        assert_eq!((found[1].len, found[1].is_unwritten), (5, true));
    }

    #[test]
    fn a_tree_that_leads_to_itself_or_to_one_node_from_everywhere_is_none() {
        let mut disk = Disk::default();
        // To itself, at the depth that its parent says.
        disk.0.insert(50, node(1, &[index_to(0, 50)], BLOCK));
        assert!(tree(&node(2, &[index_to(0, 50)], MAP), &disk).is_err());
        // Each entry to the same child: 340 to the power of the depth.
        let all: Vec<_> = (0..340).map(|number| index_to(number, 52)).collect();
        disk.0.insert(51, node(1, &all, BLOCK));
        disk.0.insert(52, node(0, &[leaf(0, 1, 9)], BLOCK));
        assert!(tree(&node(2, &[index_to(0, 51)], MAP), &disk).is_err());
    }

    #[test]
    fn what_is_out_of_order_or_off_the_disk_is_refused() {
        let disk = Disk::default();
        let leaves: [&[_]; 6] = [
            &[leaf(5, 1, 9), leaf(5, 1, 10)],
            &[leaf(5, 3, 9), leaf(7, 1, 20)],
            &[leaf(5, 0, 9)],
            &[leaf(5, 1, 0)],
            &[leaf(5, 2, (1 << 28) - 1)],
            &[leaf(u32::MAX, 2, 9)],
        ];
        for leaves in leaves {
            assert!(tree(&node(0, leaves, MAP), &disk).is_err(), "{leaves:?}");
        }
        let mut short = node(0, &[], MAP);
        short[2] = 5;
        assert!(tree(&short, &disk).is_err());
        assert!(tree(&node(1, &[index_to(0, 1 << 28)], MAP), &disk).is_err());
    }

    #[test]
    fn max_depth_bounds_the_levels() {
        let with = |depth: u16| {
            let mut disk = Disk::default();
            for level in 0..depth {
                let entry = if level == 0 {
                    leaf(0, 1, 9)
                } else {
                    index_to(0, 100 + u32::from(level) - 1)
                };
                disk.0
                    .insert(100 + u64::from(level), node(level, &[entry], BLOCK));
            }
            tree(
                &node(depth, &[index_to(0, 100 + u32::from(depth) - 1)], MAP),
                &disk,
            )
        };
        assert_eq!(with(MAX_DEPTH).unwrap().nodes.len(), usize::from(MAX_DEPTH));
        assert!(with(MAX_DEPTH + 1).is_err());
    }

    #[test]
    fn max_extents_and_max_nodes_bound_what_is_read_of_one_inode() {
        // Each node of the second level has 340 extents of one block, with holes between them.
        let each = 340;
        let mut disk = Disk::default();
        let mut tops = Vec::new();
        let mut first = 0;
        for top in 0..10_u32 {
            let mut children = Vec::new();
            let begins = first;
            for child in 0..each {
                let block = 1000 + top * each + child;
                let leaves: Vec<_> = (0..each).map(|number| leaf(first + number * 2, 1, 9)).collect();
                disk.0.insert(block.into(), node(0, &leaves, BLOCK));
                children.push(index_to(first, block));
                first += each * 2;
            }
            disk.0.insert(500 + u64::from(top), node(1, &children, BLOCK));
            tops.push(index_to(begins, 500 + top));
        }
        disk.0.insert(400, node(2, &tops, BLOCK));
        let found = tree(&node(3, &[index_to(0, 400)], MAP), &disk).unwrap();
        assert_eq!((found.extents.len(), found.is_cut), (MAX_EXTENTS, true));
        // Leaves without extents cost nothing but their reading.
        let mut disk = Disk::default();
        for number in 0..15_u32 {
            disk.0.insert(1000 + u64::from(number), vec![]);
        }
        let map: Vec<u8> = (0..12)
            .flat_map(|_| [0; 4])
            .chain([0; 8])
            .chain(77_u32.to_le_bytes())
            .collect();
        let top: Vec<u8> = (0..1024)
            .flat_map(|number: u32| (2000 + number).to_le_bytes())
            .collect();
        disk.0.insert(77, top);
        for number in 0..1024_u32 {
            let lower: Vec<u8> = (0..1024)
                .flat_map(|n: u32| (10_000 + number * 1024 + n).to_le_bytes())
                .collect();
            disk.0.insert(2000 + u64::from(number), lower);
        }
        let map: [u8; MAP] = map.try_into().unwrap();
        let found = Extents::of_blocks(&map, u64::MAX, &of(), &disk, &mut |_| true).unwrap();
        assert_eq!((found.nodes.len(), found.is_cut), (MAX_NODES, true));
    }
}
