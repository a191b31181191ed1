//! The journal: what is to be where, before it is there (`include/linux/jbd2.h`; Documentation/filesystems/ext4/journal.rst).
//!
//! ```text
//!  superblock │ descriptor │ block … │ revoked │ commit │ descriptor │ block … │ commit │ …      and from the end back to the first
//! ```
//!
//! A transaction counts once its commit block is there. A block in it is what another block of the file system holds as soon as somebody
//! puts it there; until then whoever reads that reads the journal's. All numbers here are big-endian.

use super::super::{LayoutError, Malformed};

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_1: u32 = 3;
const SUPERBLOCK_2: u32 = 4;
const REVOKED: u32 = 5;

/// Features without which nothing else can be understood (`s_feature_incompat`).
mod incompat {
    pub(super) const REVOKE: u32 = 0x1;
    pub(super) const BITS_64: u32 = 0x2;
    pub(super) const ASYNC_COMMIT: u32 = 0x4;
    pub(super) const CSUM_V2: u32 = 0x8;
    pub(super) const CSUM_V3: u32 = 0x10;
    pub(super) const KNOWN: u32 = REVOKE | BITS_64 | ASYNC_COMMIT | CSUM_V2 | CSUM_V3;
}

/// Flags of a tag.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST_TAG: u32 = 8;

/// Bytes of a block's header.
const HEADER: usize = 12;
const UUID: usize = 16;

/// Blocks of the longest journal that `mke2fs` makes (`mke2fs(8)`, "-J size"). It stops one that is as long as a disk: where each of its
/// blocks is, is kept.
pub(super) const MAX_JOURNAL_BLOCKS: u32 = 10_240_000;

/// What the journal's own superblock says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalSuperblock {
    /// Bytes of a block: those of the file system.
    pub block_bytes: u32,
    /// Blocks of the journal.
    pub blocks: u32,
    /// The first block of the log.
    pub first: u32,
    /// The number of the first transaction that may not be in place yet.
    pub sequence: u32,
    /// Where that begins; 0 if all is in place.
    pub start: u32,
    features: u32,
}

/// A block of the journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JournalBlock {
    /// Blocks follow it, for these places.
    Descriptor(u32, Vec<Tag>),
    /// What was written of these blocks before this transaction is not to be put in place.
    Revoked(u32, Vec<u64>),
    /// That transaction is complete.
    Commit(u32),
}

/// Where a block of the journal belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// The block of the file system.
    pub block: u64,
    /// It begins with the magic number of the journal, which zeros stand for there.
    pub is_escaped: bool,
}

fn be(bytes: &[u8], at: usize) -> Option<u32> {
    let found = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_be_bytes(found))
}

impl JournalSuperblock {
    /// Reads one.
    ///
    /// # Errors
    /// If it is none, cannot be right, or says that there is something which nobody here understands.
    pub fn parse(bytes: &[u8], block_bytes: u32) -> Result<Self, LayoutError> {
        let word = |at: usize| be(bytes, at).unwrap_or(0);
        let wrong = |what: &'static str, at: u64| LayoutError::from(Malformed { what, at });
        if word(0) != MAGIC || !matches!(word(4), SUPERBLOCK_1 | SUPERBLOCK_2) {
            return Err(wrong("no journal", 0));
        }
        let features = if word(4) == SUPERBLOCK_2 { word(0x28) } else { 0 };
        if features & !incompat::KNOWN != 0 {
            return Err(LayoutError::Unsupported("a feature of this ext4 journal"));
        }
        let found = Self {
            block_bytes: word(0xc),
            blocks: word(0x10),
            first: word(0x14),
            sequence: word(0x18),
            start: word(0x1c),
            features,
        };
        if found.block_bytes != block_bytes {
            return Err(wrong("a journal with blocks of another size", 0xc));
        }
        let is_long = found.blocks > MAX_JOURNAL_BLOCKS;
        if is_long || found.first == 0 || found.first >= found.blocks || found.start >= found.blocks {
            return Err(wrong("a journal of an impossible length", 0x10));
        }
        Ok(found)
    }

    /// The block after this one: the first follows the last.
    #[must_use]
    pub fn after(&self, block: u32) -> u32 {
        let next = block.saturating_add(1);
        if next >= self.blocks { self.first } else { next }
    }

    /// Blocks of the log.
    #[must_use]
    pub fn log_blocks(&self) -> u32 {
        self.blocks.saturating_sub(self.first)
    }

    fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    /// Bytes of a tag (`journal_tag_bytes` in `fs/jbd2/journal.c`).
    fn tag_bytes(&self) -> usize {
        if self.has(incompat::CSUM_V3) {
            return 16;
        }
        let wide = if self.has(incompat::CSUM_V2) { 14 } else { 12 };
        if self.has(incompat::BITS_64) {
            wide
        } else {
            wide - 4
        }
    }

    /// Bytes at the end of a block that are a checksum.
    fn tail_bytes(&self) -> usize {
        if self.has(incompat::CSUM_V2 | incompat::CSUM_V3) {
            4
        } else {
            0
        }
    }

    /// Reads a block of the log; `None` if it is none of its own, but what one of those leads to.
    #[must_use]
    pub fn block(&self, bytes: &[u8]) -> Option<JournalBlock> {
        if be(bytes, 0)? != MAGIC {
            return None;
        }
        let sequence = be(bytes, 8)?;
        match be(bytes, 4)? {
            DESCRIPTOR => Some(JournalBlock::Descriptor(sequence, self.tags(bytes))),
            COMMIT => Some(JournalBlock::Commit(sequence)),
            REVOKED => Some(JournalBlock::Revoked(sequence, self.revoked(bytes))),
            _ => None,
        }
    }

    fn tags(&self, bytes: &[u8]) -> Vec<Tag> {
        let end = bytes.len().saturating_sub(self.tail_bytes());
        let each = self.tag_bytes();
        let (mut at, mut tags) = (HEADER, Vec::new());
        while at + each <= end {
            let low = be(bytes, at).unwrap_or(0);
            // Version 3 has the flags where the others have a checksum and half as many flags.
            let (flags, high_at) = if self.has(incompat::CSUM_V3) {
                (be(bytes, at + 4).unwrap_or(0), at + 8)
            } else {
                (be(bytes, at + 4).unwrap_or(0) & 0xffff, at + 8)
            };
            let high = if self.has(incompat::BITS_64) {
                be(bytes, high_at).unwrap_or(0)
            } else {
                0
            };
            tags.push(Tag {
                block: u64::from(high) << 32 | u64::from(low),
                is_escaped: flags & ESCAPED != 0,
            });
            at += each;
            if flags & SAME_UUID == 0 {
                at += UUID;
            }
            if flags & LAST_TAG != 0 {
                break;
            }
        }
        tags
    }

    fn revoked(&self, bytes: &[u8]) -> Vec<u64> {
        let used = usize::try_from(be(bytes, HEADER).unwrap_or(0)).unwrap_or(0);
        let end = used.min(bytes.len().saturating_sub(self.tail_bytes()));
        let records = bytes.get(HEADER + 4..end).unwrap_or_default();
        if self.has(incompat::BITS_64) {
            let wide = records
                .chunks_exact(8)
                .filter_map(|record| record.try_into().ok());
            wide.map(u64::from_be_bytes).collect()
        } else {
            let narrow = records
                .chunks_exact(4)
                .filter_map(|record| record.try_into().ok());
            narrow
                .map(|record| u64::from(u32::from_be_bytes(record)))
                .collect()
        }
    }
}

/// What a block of the journal is in its place.
pub(super) fn in_place(tag: Tag, mut bytes: Vec<u8>) -> Vec<u8> {
    if tag.is_escaped
        && let Some(beginning) = bytes.first_chunk_mut()
    {
        *beginning = MAGIC.to_be_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A superblock with these features, of 100 blocks.
    fn superblock(features: u32) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        for (at, word) in [
            (0, MAGIC),
            (4, SUPERBLOCK_2),
            (0xc, 1024),
            (0x10, 100),
            (0x14, 1),
            (0x18, 7),
            (0x1c, 3),
            (0x28, features),
        ] {
            bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    fn block(kind: u32, sequence: u32, words: &[u32]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [MAGIC, kind, sequence]
            .iter()
            .chain(words)
            .flat_map(|word| word.to_be_bytes())
            .collect();
        bytes.resize(1024, 0);
        bytes
    }

    #[test]
    fn a_journal_says_where_it_begins_and_goes_around() {
        let found = JournalSuperblock::parse(&superblock(0), 1024).unwrap();
        assert_eq!((found.sequence, found.start, found.log_blocks()), (7, 3, 99));
        assert_eq!((found.after(98), found.after(99)), (99, 1));
        assert!(JournalSuperblock::parse(&superblock(0), 4096).is_err());
        assert!(
            JournalSuperblock::parse(&superblock(0x20), 1024).is_err(),
            "fast commits"
        );
        assert!(JournalSuperblock::parse(&[0; 1024], 1024).is_err());
    }

    #[test]
    fn max_journal_blocks_bounds_how_long_a_journal_is() {
        let of = |blocks: u32| {
            let mut bytes = superblock(0);
            bytes[0x10..0x14].copy_from_slice(&blocks.to_be_bytes());
            JournalSuperblock::parse(&bytes, 1024).is_ok()
        };
        assert!(of(MAX_JOURNAL_BLOCKS) && !of(MAX_JOURNAL_BLOCKS + 1));
    }

    #[test]
    fn tags_are_as_long_as_the_features_say() {
        let place = |block, is_escaped| Tag { block, is_escaped };
        let uuid = [0; 4];
        // Without features: 8 bytes, then the UUID unless it is the same.
        let words = [
            &[17, 0][..],
            &uuid,
            &[18, SAME_UUID | ESCAPED],
            &[19, SAME_UUID | LAST_TAG],
            &[20, 0],
        ]
        .concat();
        let plain = JournalSuperblock::parse(&superblock(0), 1024).unwrap();
        let expected = vec![place(17, false), place(18, true), place(19, false)];
        assert_eq!(
            plain.block(&block(DESCRIPTOR, 7, &words)),
            Some(JournalBlock::Descriptor(7, expected))
        );
        // Version 3 of checksums, 64 bits: 16 bytes.
        let words = [&[17, 0, 1, 0][..], &uuid, &[18, SAME_UUID | LAST_TAG, 0, 0]].concat();
        let wide = JournalSuperblock::parse(&superblock(0x12), 1024).unwrap();
        let expected = vec![place(1 << 32 | 17, false), place(18, false)];
        assert_eq!(
            wide.block(&block(DESCRIPTOR, 8, &words)),
            Some(JournalBlock::Descriptor(8, expected))
        );
        // A checksum stands above the flags of 16 bits.
        let words = [17, 0xabcd_0000 | SAME_UUID | LAST_TAG, 0];
        let old = JournalSuperblock::parse(&superblock(0x2), 1024).unwrap();
        assert_eq!(
            old.block(&block(DESCRIPTOR, 9, &words)),
            Some(JournalBlock::Descriptor(9, vec![place(17, false)]))
        );
    }

    #[test]
    fn what_is_revoked_and_what_is_committed() {
        let narrow = JournalSuperblock::parse(&superblock(0x1), 1024).unwrap();
        let revoked = block(REVOKED, 7, &[16 + 8, 55, 66, 77]);
        assert_eq!(
            narrow.block(&revoked),
            Some(JournalBlock::Revoked(7, vec![55, 66]))
        );
        let wide = JournalSuperblock::parse(&superblock(0x3), 1024).unwrap();
        assert_eq!(
            wide.block(&revoked),
            Some(JournalBlock::Revoked(7, vec![55 << 32 | 66]))
        );
        assert_eq!(wide.block(&block(COMMIT, 7, &[])), Some(JournalBlock::Commit(7)));
        assert_eq!(wide.block(&[0; 1024]), None);
        assert_eq!(wide.block(&[]), None);
        let long = block(REVOKED, 7, &[u32::MAX]);
        assert!(matches!(wide.block(&long), Some(JournalBlock::Revoked(_, blocks)) if blocks.len() <= 128));
    }

    #[test]
    fn an_escaped_block_begins_with_the_magic_number() {
        let tag = |is_escaped| Tag { block: 0, is_escaped };
        assert_eq!(in_place(tag(true), vec![0; 8])[..5], [0xc0, 0x3b, 0x39, 0x98, 0]);
        assert_eq!(in_place(tag(false), vec![0; 8]), [0; 8]);
    }
}
