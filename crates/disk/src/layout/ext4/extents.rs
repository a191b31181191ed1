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
