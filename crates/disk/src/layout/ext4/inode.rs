//! What an inode says: what it is, and how its blocks are found.

use super::super::InodeKind;
use super::super::bytes::{joined, u16_le, u32_le};

const EXTENTS: u32 = 0x8_0000;
const INLINE_DATA: u32 = 0x1000_0000;
const ENCRYPTED: u32 = 0x800;

/// Bytes of the map in an inode.
pub(crate) const MAP: usize = 60;

/// How its blocks are found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Contents {
    /// Its contents are in the inode, or there are none.
    Inline,
    /// By the root of a tree of extents.
    Extents([u8; MAP]),
    /// By twelve blocks and three that lead to more (ext2 and ext3).
    Indirect([u8; MAP]),
}

/// An inode in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inode {
    /// What has it.
    pub kind: InodeKind,
    /// Bytes of its contents.
    pub bytes: u64,
    /// Tells it from the one that had its number before.
    pub generation: u32,
    /// How many names it has. One without is open still, or about to go.
    pub links: u16,
    /// What is in its blocks is enciphered.
    pub is_encrypted: bool,
    /// How its blocks are found.
    pub contents: Contents,
}

impl Inode {
    /// Reads one; `None` if it is not in use, or there are not enough bytes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mode = u16_le(bytes, 0)?;
        let links = u16_le(bytes, 0x1a)?;
        let deleted = u32_le(bytes, 0x14)?;
        if mode == 0 || (links == 0 && deleted != 0) {
            return None;
        }
        let kind = InodeKind::of_mode(mode);
        let flags = u32_le(bytes, 0x20)?;
        let mut map = [0; MAP];
        map.copy_from_slice(bytes.get(0x28..0x28 + MAP)?);
        let size = joined(u32_le(bytes, 0x4)?, u32_le(bytes, 0x6c)?);
        let contents = if kind == InodeKind::Other || flags & INLINE_DATA != 0 {
            Contents::Inline
        } else if flags & EXTENTS != 0 {
            Contents::Extents(map)
        } else if kind == InodeKind::Link && size < MAP as u64 {
            Contents::Inline
        } else {
            Contents::Indirect(map)
        };
        Some(Self {
            kind,
            bytes: size,
            generation: u32_le(bytes, 0x64)?,
            links,
            is_encrypted: flags & ENCRYPTED != 0,
            contents,
        })
    }
}
