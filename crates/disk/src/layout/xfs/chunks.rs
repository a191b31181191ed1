//! Chunks of inodes: 64 each, in a tree of each group (`struct xfs_agi`, `struct xfs_inobt_rec`).

use super::super::bytes::{u16_be, u32_be, u64_be};
use super::super::{Blocks, LayoutError, Malformed};
use super::Superblock;
use super::tree::{Tree, leaves};

const MAGIC: &[u8; 4] = b"XAGI";
/// Its sector in the group.
const SECTOR: u64 = 2;
/// Inodes of a chunk.
pub(super) const CHUNK: u32 = 64;
/// Inodes that one bit of a chunk's holes stands for.
const HOLE: u32 = 4;

/// Inodes that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chunk {
    /// The number of the first one in its group.
    pub(super) first: u32,
    /// Which of them are in use.
    pub(super) used: u64,
}

/// Where a group says how its inodes are found, in bytes from its beginning.
pub(super) fn header_at(of: &Superblock) -> u64 {
    SECTOR * u64::from(of.sector_bytes)
}

/// The chunks of a group, in their order. The blocks that lead to them.
pub(super) fn chunks(
    group: u32,
    of: &Superblock,
    disk: &impl Blocks,
    mut give: impl FnMut(Chunk),
) -> Result<Vec<u64>, LayoutError> {
    let at = of
        .at(u64::from(group) * u64::from(of.group_blocks))
        .saturating_add(header_at(of));
    let mut header = [0; 64];
    disk.read(at, &mut header)
        .map_err(|source| LayoutError::Read { at, source })?;
    let word = |at| u32_be(&header, at).unwrap_or(0);
    let wrong = |what| LayoutError::from(Malformed { what, at });
    if !header.starts_with(MAGIC) || word(8) != group {
        return Err(wrong("no header of a group's inodes"));
    }
    let root = of
        .in_group(group, word(20))
        .ok_or_else(|| wrong("a tree of inodes that is not in its group"))?;
    let level = word(24)
        .checked_sub(1)
        .and_then(|level| u16::try_from(level).ok())
        .ok_or_else(|| wrong("a tree of inodes without a level"))?;
    let (mut least, mut in_order) = (0_u32, true);
    let nodes = leaves(
        Tree::Chunks(group),
        root,
        level,
        of,
        disk,
        &mut |_| true,
        &mut |records| {
            for record in records.chunks_exact(16) {
                let first = u32_be(record, 0).unwrap_or(0);
                // A chunk that came by twice would be read for each time.
                if first < least || !first.is_multiple_of(of_block(of)) {
                    in_order = false;
                    return false;
                }
                least = first.saturating_add(CHUNK);
                let holes = if of.has_checksums {
                    holes(u16_be(record, 4).unwrap_or(0))
                } else {
                    0
                };
                let free = u64_be(record, 8).unwrap_or(0);
                give(Chunk {
                    first,
                    used: !free & !holes,
                });
            }
            true
        },
    )?;
    if in_order {
        Ok(nodes)
    } else {
        Err(wrong("a tree of inodes out of order"))
    }
}

/// Inodes that a chunk begins on a multiple of: those of a block, or the whole chunk where a block has more.
fn of_block(of: &Superblock) -> u32 {
    (1_u32 << of.inode_bits).min(CHUNK)
}

/// A bit for each inode of a chunk that is not on the disk: sparse chunks have some. (Where a file system has none, that half of the word
/// is a part of a count, which is 64 at most and has its bits in the other.)
fn holes(mask: u16) -> u64 {
    (0..16)
        .filter(|bit| mask >> bit & 1 != 0)
        .fold(0, |all, bit| all | 0xf << (bit * HOLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_four_inodes() {
        assert_eq!(holes(0), 0);
        assert_eq!(holes(1 << 15 | 1), 0xf << 60 | 0xf);
    }
}
