//! What a group descriptor says: where its inodes are.

use super::super::bytes::{joined, u16_le, u32_le};
use super::superblock::Superblock;

const INODE_UNINIT: u16 = 1;

/// A group's inodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// The first block of its inode table.
    pub inode_table: u64,
    /// How many of its inodes, from the first on, were ever used.
    pub inodes_used: u32,
}

impl Group {
    /// Reads one, as far as there are enough bytes; `None` if there are not, or its table is not on the disk.
    #[must_use]
    pub fn parse(bytes: &[u8], of: &Superblock) -> Option<Self> {
        let wide = of.descriptor_bytes >= 64;
        let high = |at: usize| if wide { u32_le(bytes, at) } else { Some(0) };
        let inode_table = joined(u32_le(bytes, 0x8)?, high(0x28)?);
        let table_bytes = u64::from(of.inodes_per_group).saturating_mul(of.inode_bytes.into());
        let end = inode_table.checked_add(table_bytes.div_ceil(of.block_bytes.max(1).into()))?;
        if end > of.blocks {
            return None;
        }
        let unused = if of.has_unused {
            let high = if wide { u16_le(bytes, 0x32)? } else { 0 };
            u32::from(high) << 16 | u32::from(u16_le(bytes, 0x1c)?)
        } else {
            0
        };
        let empty = of.has_unused && u16_le(bytes, 0x12)? & INODE_UNINIT != 0;
        let inodes_used = if empty {
            0
        } else {
            of.inodes_per_group.saturating_sub(unused)
        };
        Some(Self {
            inode_table,
            inodes_used,
        })
    }
}
