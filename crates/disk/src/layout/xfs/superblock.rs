//! What the superblock says of the whole (`struct xfs_dsb`).

use super::super::bytes::{index, u16_be, u32_be, u64_be};
use super::super::{LayoutError, Malformed};

/// Its length in bytes, as far as it is read. It is the first thing of the file system.
pub(crate) const LEN: usize = 512;

const MAGIC: u32 = 0x5846_5342;

/// Features without which nothing else can be understood (`sb_features_incompat`).
mod incompat {
    pub(super) const FTYPE: u32 = 0x1;
    pub(super) const SPINODES: u32 = 0x2;
    pub(super) const META_UUID: u32 = 0x4;
    pub(super) const BIGTIME: u32 = 0x8;
    pub(super) const NREXT64: u32 = 0x20;
    pub(super) const EXCHRANGE: u32 = 0x40;
    pub(super) const PARENT: u32 = 0x80;
    pub(super) const KNOWN: u32 = FTYPE | SPINODES | META_UUID | BIGTIME | NREXT64 | EXCHRANGE | PARENT;
}

/// Version 4: names have their kinds (`sb_features2`).
const FTYPE_4: u32 = 0x200;
/// The second version of directories (`sb_versionnum`).
const DIRECTORIES_2: u16 = 0x2000;

/// Allocation groups at most: those of the largest file system there is, with groups of 1 TiB. It stops a superblock that says there are
/// as many as fit into a number.
pub(crate) const MAX_GROUPS: u32 = 1 << 23;

/// What is needed of a superblock, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Blocks of the file system.
    pub blocks: u64,
    /// Blocks of a group; the last may have less.
    pub group_blocks: u32,
    /// Groups.
    pub groups: u32,
    /// Bits of a packed block number that are within the group.
    pub group_bits: u8,
    /// Bytes of an inode.
    pub inode_bytes: u32,
    /// Bits of an inode's number that are within its block.
    pub inode_bits: u8,
    /// Bytes of a sector, in which the headers of a group are counted.
    pub sector_bytes: u32,
    /// Blocks of one block of a directory.
    pub directory_blocks: u32,
    /// The inode of the root directory.
    pub root: u64,
    /// The first block of the log; 0 if it is elsewhere.
    pub log_block: u64,
    /// Blocks of the log.
    pub log_blocks: u32,
    /// Blocks have checksums and say whose they are: version 5.
    pub has_checksums: bool,
    /// Names have the kinds of what they name beside them.
    pub has_kinds: bool,
    /// Names it: another one was made here if this changes.
    pub uuid: [u8; 16],
}

impl Superblock {
    /// Reads one.
    ///
    /// # Errors
    /// If it is none, cannot be right, or says that there is something which nobody here understands.
    pub fn parse(bytes: &[u8; LEN], disk_bytes: u64) -> Result<Self, LayoutError> {
        let word = |at: usize| u32_be(bytes, at).unwrap_or(0);
        let half = |at: usize| u16_be(bytes, at).unwrap_or(0);
        let long = |at: usize| u64_be(bytes, at).unwrap_or(0);
        let wrong = |what: &'static str, at: u64| LayoutError::from(Malformed { what, at });
        if word(0) != MAGIC {
            return Err(wrong("no XFS superblock", 0));
        }
        let version = half(100);
        let has_checksums = match version & 0xf {
            4 if version & DIRECTORIES_2 != 0 => false,
            5 => true,
            _ => return Err(LayoutError::Unsupported("a version of this XFS file system")),
        };
        if has_checksums && word(216) & !incompat::KNOWN != 0 {
            return Err(LayoutError::Unsupported("a feature of this XFS file system"));
        }
        let (block_log, group_bits) = (bytes[120], bytes[124]);
        if !(9..=16).contains(&block_log) || word(4) != 1 << block_log {
            return Err(wrong("blocks of an impossible size", 4));
        }
        let (block_bytes, blocks) = (word(4), long(8));
        if blocks == 0 || blocks.saturating_mul(block_bytes.into()) > disk_bytes {
            return Err(wrong("more blocks than the disk has", 8));
        }
        let (group_blocks, groups) = (word(84), word(88));
        // A group's number and a block's within it share a number of 64 bits.
        let bits_fit = group_bits <= 32 && u64::from(group_blocks) <= 1 << group_bits;
        let least = u64::from(groups.saturating_sub(1)) * u64::from(group_blocks);
        let most = u64::from(groups) * u64::from(group_blocks);
        if groups == 0 || groups > MAX_GROUPS || !bits_fit || blocks <= least || blocks > most {
            return Err(wrong("groups of an impossible size", 84));
        }
        let (inode_log, inode_bits) = (bytes[122], bytes[123]);
        let inode_bytes = u32::from(half(104));
        if !(8..=11).contains(&inode_log)
            || inode_bytes != 1 << inode_log
            || inode_log > block_log
            || inode_bits != block_log - inode_log
        {
            return Err(wrong("inodes of an impossible size", 104));
        }
        let sector_bytes = u32::from(half(102));
        if !sector_bytes.is_power_of_two() || !(512..=32768).contains(&sector_bytes) {
            return Err(wrong("sectors of an impossible size", 102));
        }
        if bytes[192] > 16 - block_log.min(16) {
            return Err(wrong("blocks of directories of an impossible size", 192));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[32..48]);
        let kinds = if has_checksums {
            word(216) & incompat::FTYPE != 0
        } else {
            word(200) & FTYPE_4 != 0
        };
        Ok(Self {
            block_bytes,
            blocks,
            group_blocks,
            groups,
            group_bits,
            inode_bytes,
            inode_bits,
            sector_bytes,
            directory_blocks: 1 << bytes[192],
            root: long(56),
            log_block: 0,
            log_blocks: word(96),
            has_checksums,
            has_kinds: kinds,
            uuid,
        }
        .with_log(long(48)))
    }

    fn with_log(mut self, packed: u64) -> Self {
        self.log_block = self.block(packed).unwrap_or(0);
        self
    }

    /// Where a block is, in bytes.
    #[must_use]
    pub fn at(&self, block: u64) -> u64 {
        block.saturating_mul(self.block_bytes.into())
    }

    /// Bytes of a block, as a length in memory.
    #[must_use]
    pub fn block_len(&self) -> usize {
        index(self.block_bytes.into())
    }

    /// The block of a group; `None` if it has no such block.
    #[must_use]
    pub fn in_group(&self, group: u32, block: u32) -> Option<u64> {
        if group >= self.groups || block >= self.group_blocks {
            return None;
        }
        let block = u64::from(group) * u64::from(self.group_blocks) + u64::from(block);
        (block < self.blocks).then_some(block)
    }

    /// The block with this packed number; `None` if there is none.
    #[must_use]
    pub fn block(&self, packed: u64) -> Option<u64> {
        let group = packed.checked_shr(self.group_bits.into())?;
        let block = packed & ((1_u64 << self.group_bits) - 1);
        self.in_group(u32::try_from(group).ok()?, u32::try_from(block).ok()?)
    }

    /// The block in which an inode is, and where in it.
    #[must_use]
    pub fn inode(&self, number: u64) -> Option<(u64, usize)> {
        let within = number & ((1_u64 << self.inode_bits) - 1);
        let block = self.block(number.checked_shr(self.inode_bits.into())?)?;
        Some((block, index(within.saturating_mul(self.inode_bytes.into()))))
    }

    /// The number of an inode that has this one in its group.
    #[must_use]
    pub fn number(&self, group: u32, inode: u32) -> u64 {
        u64::from(group) << (u32::from(self.group_bits) + u32::from(self.inode_bits)) | u64::from(inode)
    }

    /// The first inode that is in a block, as it is numbered.
    #[must_use]
    pub fn first_inode(&self, block: u64) -> u64 {
        let group = block / u64::from(self.group_blocks.max(1));
        let within = block % u64::from(self.group_blocks.max(1));
        (group << self.group_bits | within) << self.inode_bits
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A superblock of four groups of 4096 blocks of 4 KiB.
    pub(crate) fn bytes(change: impl FnOnce(&mut [u8; LEN])) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let words = [(0, MAGIC), (4, 4096), (84, 4096), (88, 4), (96, 2560), (216, 3)];
        for (at, word) in words {
            bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        let halves = [(100, 0xb4a5_u16), (102, 512), (104, 512)];
        for (at, half) in halves {
            bytes[at..at + 2].copy_from_slice(&half.to_be_bytes());
        }
        bytes[8..16].copy_from_slice(&16384_u64.to_be_bytes());
        bytes[48..56].copy_from_slice(&(2_u64 << 12 | 8).to_be_bytes());
        bytes[56..64].copy_from_slice(&128_u64.to_be_bytes());
        (bytes[120], bytes[122], bytes[123], bytes[124]) = (12, 9, 3, 12);
        change(&mut bytes);
        bytes
    }

    #[test]
    fn a_blocks_number_has_its_group_above_a_power_of_two() {
        let found = Superblock::parse(&bytes(|_| ()), 1 << 30).unwrap();
        assert_eq!(found.block(5), Some(5));
        assert_eq!(found.block(1 << 12 | 5), Some(4096 + 5));
        assert_eq!((found.block(4 << 12), found.log_block), (None, 2 * 4096 + 8));
        assert_eq!(found.inode(128), Some((16, 0)));
        assert_eq!(found.inode((1 << 15) + 131), Some((4096 + 16, 3 * 512)));
        assert_eq!(found.number(1, 131), (1 << 15) + 131);
        assert_eq!(found.first_inode(4096 + 16), (1 << 15) + 128);
    }

    #[test]
    fn what_cannot_be_right_is_refused() {
        let refused = |change: fn(&mut [u8; LEN])| Superblock::parse(&bytes(change), 1 << 30).is_err();
        assert!(!refused(|_| ()));
        let cases: [fn(&mut [u8; LEN]); 11] = [
            |b| b[0] = 0,
            |b| b[101] = 3,
            |b| b[219] = 0x80 | 3 | 1 << 4,
            |b| b[120] = 40,
            |b| b[9] = 1,
            |b| b[84] = 1,
            |b| b[91] = 0,
            |b| b[124] = 4,
            |b| b[123] = 4,
            |b| b[102] = 1,
            |b| b[192] = 5,
        ];
        for (number, case) in cases.into_iter().enumerate() {
            assert!(refused(case), "case {number}");
        }
        assert!(
            Superblock::parse(&bytes(|_| ()), 1 << 20).is_err(),
            "a disk of 1 MiB"
        );
    }

    #[test]
    fn max_groups_bounds_what_is_looked_at() {
        let of = |groups: u32| {
            let bytes = bytes(|bytes| {
                bytes[88..92].copy_from_slice(&groups.to_be_bytes());
                bytes[8..16].copy_from_slice(&(u64::from(groups) * 4096).to_be_bytes());
            });
            Superblock::parse(&bytes, u64::MAX).is_ok()
        };
        assert!(of(MAX_GROUPS) && !of(MAX_GROUPS + 1));
    }
}
