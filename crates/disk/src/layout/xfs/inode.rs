//! What an inode says (`struct xfs_dinode`): what it is, and how its blocks are found.

use super::super::InodeKind;
use super::super::bytes::{index, u16_be, u32_be, u64_be};
use super::Superblock;

const MAGIC: u16 = 0x494e;
/// Bytes before the forks, of version 3 and before it.
const CORE: usize = 176;
const CORE_2: usize = 100;
/// Its contents are on another device (`di_flags`).
const REALTIME: u16 = 1;
/// It counts its extents with more bits (`di_flags2`).
const MANY_EXTENTS: u64 = 1 << 4;

/// How the blocks of its contents are found.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Fork {
    /// The contents are here, or there are none.
    Local(Box<[u8]>),
    /// A list of so many extents.
    Extents(Box<[u8]>, u64),
    /// The root of a tree of extents.
    Tree(Box<[u8]>),
}

/// An inode in use.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Inode {
    /// What has it.
    pub kind: InodeKind,
    /// Bytes of its contents.
    pub bytes: u64,
    /// Tells it from the one that had its number before.
    pub generation: u32,
    /// How many names it has.
    pub links: u32,
    /// How its blocks are found.
    pub fork: Fork,
}

impl Inode {
    /// Reads the inode with this number; `None` if it is not in use, or another one's.
    #[must_use]
    pub fn parse(bytes: &[u8], number: u64, of: &Superblock) -> Option<Self> {
        let bytes = bytes.get(..index(of.inode_bytes.into()))?;
        let (mode, version) = (u16_be(bytes, 2)?, *bytes.get(4)?);
        if u16_be(bytes, 0)? != MAGIC || mode == 0 || version == 0 || version > 3 {
            return None;
        }
        if of.has_checksums && (version != 3 || u64_be(bytes, 152)? != number) {
            return None;
        }
        let kind = InodeKind::of_mode(mode);
        let core = if version == 3 { CORE } else { CORE_2 };
        // Behind the fork of its contents is that of its attributes.
        let fork = match usize::from(*bytes.get(82)?).checked_mul(8)? {
            0 => bytes.get(core..)?,
            len => bytes.get(core..core.checked_add(len)?)?,
        };
        let flags2 = if version == 3 { u64_be(bytes, 120)? } else { 0 };
        let extents = if flags2 & MANY_EXTENTS == 0 {
            u32_be(bytes, 76)?.into()
        } else {
            u64_be(bytes, 24)?
        };
        let size = u64_be(bytes, 56)?;
        let is_elsewhere = u16_be(bytes, 90)? & REALTIME != 0;
        let fork = match *bytes.get(5)? {
            _ if kind == InodeKind::Other || is_elsewhere && kind == InodeKind::File => {
                Fork::Local(Box::default())
            }
            1 => Fork::Local(fork.get(..index(size))?.into()),
            2 => Fork::Extents(fork.into(), extents),
            3 => Fork::Tree(fork.into()),
            _ => return None,
        };
        Some(Self {
            kind,
            bytes: size,
            generation: u32_be(bytes, 92)?,
            links: if version == 1 {
                u16_be(bytes, 6)?.into()
            } else {
                u32_be(bytes, 16)?
            },
            fork,
        })
    }
}
