//! What the superblock says of the whole.

use super::super::bytes::{index, joined, u16_le, u32_le};
use super::super::{LayoutError, Malformed};

/// Where it is, in bytes.
pub(crate) const AT: u64 = 1024;
/// Its length in bytes.
pub(crate) const LEN: usize = 1024;

const MAGIC: u16 = 0xef53;

/// Features without which nothing else can be understood (`s_feature_incompat`).
mod incompat {
    pub(super) const FILETYPE: u32 = 0x2;
    /// The journal holds what is not in place yet: so while it is mounted.
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const EXTENTS: u32 = 0x40;
    pub(super) const BITS_64: u32 = 0x80;
    pub(super) const MMP: u32 = 0x100;
    pub(super) const FLEX_BG: u32 = 0x200;
    pub(super) const EA_INODE: u32 = 0x400;
    pub(super) const CSUM_SEED: u32 = 0x2000;
    pub(super) const LARGEDIR: u32 = 0x4000;
    pub(super) const INLINE_DATA: u32 = 0x8000;
    pub(super) const ENCRYPT: u32 = 0x1_0000;
    pub(super) const CASEFOLD: u32 = 0x2_0000;
    pub(super) const KNOWN: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | BITS_64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;
}

const RO_GDT_CSUM: u32 = 0x10;
const RO_METADATA_CSUM: u32 = 0x400;

/// Groups at most: those of the largest file system with 32-bit groups of one block's bitmap. It stops a superblock that says
/// there are as many as fit into a number.
pub(crate) const MAX_GROUPS: u64 = 1 << 24;

/// What is needed of a superblock, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Blocks of the file system.
    pub blocks: u64,
    /// The block that the first group begins with.
    pub first_block: u64,
    /// Blocks of a group.
    pub blocks_per_group: u32,
    /// Inodes of a group.
    pub inodes_per_group: u32,
    /// Inodes altogether.
    pub inodes: u32,
    /// Bytes of an inode on disk.
    pub inode_bytes: u32,
    /// Bytes of a group descriptor.
    pub descriptor_bytes: u32,
    /// The first inode that is nobody's by rule.
    pub first_inode: u32,
    /// The inode of the journal; 0 if there is none.
    pub journal_inode: u32,
    /// The first block of descriptors that lies in the groups themselves, if some do.
    pub first_meta_group: Option<u32>,
    /// Whether descriptors say which part of an inode table was ever used.
    pub has_unused: bool,
    /// The journal may hold what is not in place yet.
    pub is_dirty: bool,
    /// Names it: another one was made here if this changes.
    pub uuid: [u8; 16],
}

impl Superblock {
    /// Reads one.
    ///
    /// # Errors
    /// If it is none, cannot be right, or says that there is something which nobody here understands.
    pub fn parse(bytes: &[u8; LEN], disk_bytes: u64) -> Result<Self, LayoutError> {
        let word = |at: usize| u32_le(bytes, at).unwrap_or(0);
        let half = |at: usize| u16_le(bytes, at).unwrap_or(0);
        let wrong = |what: &'static str, at: u64| Malformed { what, at: AT + at };
        if half(0x38) != MAGIC {
            return Err(wrong("no ext4 superblock", 0x38).into());
        }
        let (incompat, ro) = (word(0x60), word(0x64));
        if incompat & !incompat::KNOWN != 0 {
            return Err(LayoutError::Unsupported("a feature of this ext4 file system"));
        }
        let log = word(0x18);
        if log > 6 {
            return Err(wrong("blocks of an impossible size", 0x18).into());
        }
        let block_bytes = 1024 << log;
        let wide = incompat & incompat::BITS_64 != 0;
        let blocks = joined(word(0x4), if wide { word(0x150) } else { 0 });
        let first_block = u64::from(word(0x14));
        let (blocks_per_group, inodes_per_group) = (word(0x20), word(0x28));
        let old = word(0x4c) == 0;
        let inode_bytes = if old { 128 } else { u32::from(half(0x58)) };
        let descriptor_bytes = if wide { u32::from(half(0xfe)) } else { 32 };
        if blocks.saturating_mul(block_bytes.into()) > disk_bytes || first_block >= blocks || first_block > 1
        {
            return Err(wrong("more blocks than the disk has", 0x4).into());
        }
        // One block is the bitmap of all that a group has.
        if blocks_per_group == 0 || blocks_per_group > 8 * block_bytes {
            return Err(wrong("groups of an impossible size", 0x20).into());
        }
        if inodes_per_group == 0 || inodes_per_group > 8 * block_bytes {
            return Err(wrong("groups with an impossible number of inodes", 0x28).into());
        }
        if !inode_bytes.is_power_of_two() || !(128..=block_bytes).contains(&inode_bytes) {
            return Err(wrong("inodes of an impossible size", 0x58).into());
        }
        let least = if wide { 64 } else { 32 };
        if !descriptor_bytes.is_power_of_two() || !(least..=block_bytes).contains(&descriptor_bytes) {
            return Err(wrong("group descriptors of an impossible size", 0xfe).into());
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[0x68..0x78]);
        let found = Self {
            block_bytes,
            blocks,
            first_block,
            blocks_per_group,
            inodes_per_group,
            inodes: word(0),
            inode_bytes,
            descriptor_bytes,
            first_inode: if old { 11 } else { word(0x54) },
            journal_inode: word(0xe0),
            first_meta_group: (incompat & incompat::META_BG != 0).then(|| word(0x104)),
            has_unused: ro & (RO_GDT_CSUM | RO_METADATA_CSUM) != 0,
            is_dirty: incompat & incompat::RECOVER != 0,
            uuid,
        };
        if found.groups() > MAX_GROUPS {
            return Err(wrong("too many groups", 0x20).into());
        }
        Ok(found)
    }

    /// How many groups it has.
    #[must_use]
    pub fn groups(&self) -> u64 {
        let blocks = self.blocks.saturating_sub(self.first_block);
        blocks.div_ceil(self.blocks_per_group.max(1).into())
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

    /// The block in which a group's descriptor is, and where in it (`descriptor_loc` in `fs/ext4/super.c`).
    #[must_use]
    pub fn descriptor(&self, group: u64) -> (u64, usize) {
        let each = u64::from(self.block_bytes / self.descriptor_bytes.max(1)).max(1);
        let (number, within) = (group / each, group % each);
        let offset = index(within.saturating_mul(self.descriptor_bytes.into()));
        let superblock = if self.block_bytes == 1024 { 1 } else { 0 };
        let after_all = superblock + 1 + number;
        if self
            .first_meta_group
            .is_none_or(|first| number < u64::from(first))
        {
            return (after_all, offset);
        }
        // In the first group of those whose descriptors it holds, behind a superblock if that has one.
        let holder = number.saturating_mul(each);
        let start = self
            .first_block
            .saturating_add(holder.saturating_mul(self.blocks_per_group.into()));
        (start.saturating_add(u64::from(has_superblock(holder))), offset)
    }
}

/// Whether a group has a copy of the superblock: 0, 1 and the powers of 3, 5 and 7 (`sparse_super`).
fn has_superblock(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut power = base;
        while power < group {
            power = power.saturating_mul(base);
        }
        power == group
    };
    group <= 1 || is_power(3) || is_power(5) || is_power(7)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A superblock as `mkfs.ext4` writes it for a GiB.
    pub(crate) fn bytes(change: impl Fn(&mut [u8; LEN])) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |at: usize, number: &[u8]| bytes[at..at + number.len()].copy_from_slice(number);
        put(0x0, &65_536_u32.to_le_bytes());
        put(0x4, &262_144_u32.to_le_bytes());
        put(0x18, &2_u32.to_le_bytes());
        put(0x20, &32_768_u32.to_le_bytes());
        put(0x28, &8192_u32.to_le_bytes());
        put(0x38, &MAGIC.to_le_bytes());
        put(0x4c, &1_u32.to_le_bytes());
        put(0x54, &11_u32.to_le_bytes());
        put(0x58, &256_u16.to_le_bytes());
        put(0x60, &0x2c2_u32.to_le_bytes());
        put(0x64, &0x46b_u32.to_le_bytes());
        put(0xfe, &64_u16.to_le_bytes());
        change(&mut bytes);
        bytes
    }

    const GIB: u64 = 1 << 30;

    type Change<'a> = &'a dyn Fn(&mut [u8; LEN]);

    #[test]
    fn what_cannot_be_is_refused() {
        let parse = |change: Change<'_>| Superblock::parse(&bytes(change), GIB);
        assert_eq!(parse(&|_| ()).unwrap().groups(), 8);
        let malformed: [(&str, Change<'_>); 9] = [
            ("magic", &|b| b[0x38] = 0),
            ("block size", &|b| b[0x18] = 7),
            ("blocks beyond the disk", &|b| b[0x4] = 1),
            ("blocks beyond any disk", &|b| b[0x153] = 0xff),
            ("no blocks in a group", &|b| b[0x20..0x24].fill(0)),
            ("too many blocks in a group", &|b| b[0x22] = 1),
            ("no inodes in a group", &|b| b[0x28..0x2c].fill(0)),
            ("inode size", &|b| b[0x58] = 1),
            ("descriptor size", &|b| b[0xfe] = 32),
        ];
        for (what, change) in malformed {
            assert!(matches!(parse(change), Err(LayoutError::Malformed(_))), "{what}");
        }
        let unknown = parse(&|b| b[0x63] = 1);
        assert!(matches!(unknown, Err(LayoutError::Unsupported(_))));
    }

    #[test]
    fn max_groups_stops_a_superblock_with_a_group_for_each_block() {
        let with = |per_group: u32| {
            let change = |b: &mut [u8; LEN]| {
                b[0x20..0x24].copy_from_slice(&per_group.to_le_bytes());
                b[0x4..0x8].copy_from_slice(&(1_u32 << 25).to_le_bytes());
            };
            Superblock::parse(&bytes(change), u64::MAX)
        };
        assert_eq!(with(2).unwrap().groups(), MAX_GROUPS);
        assert!(with(1).is_err());
    }

    proptest! {
        #[test]
        fn whatever_it_holds_nothing_overflows(bytes in prop::collection::vec(any::<u8>(), LEN), group in any::<u64>()) {
            let mut superblock = [0; LEN];
            superblock.copy_from_slice(&bytes);
            superblock[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
            superblock[0x18..0x1c].copy_from_slice(&[2, 0, 0, 0]);
            superblock[0x60..0x64].copy_from_slice(&[0xd2, 0, 0, 0]);
            if let Ok(found) = Superblock::parse(&superblock, u64::MAX) {
                let _ = (found.groups(), found.at(found.blocks), found.descriptor(group));
            }
        }
    }
}
