//! The names in a directory: in its inode (`struct xfs_dir2_sf_hdr`), or in its data blocks (`struct xfs_dir2_data_entry`). Blocks with hashes
//! lie behind 32 GiB of the directory's file.

use super::super::bytes::{u16_be, u32_be, u64_be};
use super::Superblock;

/// Where blocks with hashes begin, in bytes of the file (`XFS_DIR2_LEAF_OFFSET`).
pub(super) const HASHES_AT: u64 = 1 << 35;
/// A piece that is no name.
const FREE: u16 = 0xffff;

/// A name of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name<'a> {
    /// The inode.
    pub inode: u64,
    /// As it is stored: bytes, of which nobody says what letters they are.
    pub name: &'a [u8],
}

/// A directory whose names are in its inode.
#[derive(Clone, Copy, Debug)]
pub struct ShortForm<'a> {
    bytes: &'a [u8],
    left: u8,
    wide: bool,
    has_kinds: bool,
}

impl<'a> ShortForm<'a> {
    /// Of the contents of a directory's inode; `None` if they are too short.
    #[must_use]
    pub fn new(bytes: &'a [u8], of: &Superblock) -> Option<Self> {
        let wide = *bytes.get(1)? > 0;
        Some(Self {
            left: *bytes.first()?,
            wide,
            has_kinds: of.has_kinds,
            bytes: bytes.get(if wide { 10 } else { 6 }..)?,
        })
    }
}

impl<'a> Iterator for ShortForm<'a> {
    type Item = Name<'a>;

    fn next(&mut self) -> Option<Name<'a>> {
        self.left = self.left.checked_sub(1)?;
        let len = usize::from(*self.bytes.first()?);
        let name = self.bytes.get(3..3 + len)?;
        let at = 3 + len + usize::from(self.has_kinds);
        let (inode, end) = if self.wide {
            (u64_be(self.bytes, at)?, at + 8)
        } else {
            (u32_be(self.bytes, at)?.into(), at + 4)
        };
        self.bytes = self.bytes.get(end..)?;
        Some(Name { inode, name })
    }
}

/// A block of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectoryBlock<'a> {
    /// What names are in.
    entries: &'a [u8],
    has_kinds: bool,
}

impl<'a> DirectoryBlock<'a> {
    /// Reads one, of the directory with this number; `None` if it is none of its data.
    #[must_use]
    pub fn new(bytes: &'a [u8], directory: u64, of: &Superblock) -> Option<Self> {
        let (has_hashes, header) = match (bytes.first_chunk()?, of.has_checksums) {
            (b"XDB3", true) => (true, 64),
            (b"XDD3", true) => (false, 64),
            (b"XD2B", false) => (true, 16),
            (b"XD2D", false) => (false, 16),
            _ => return None,
        };
        if of.has_checksums && u64_be(bytes, 40)? != directory {
            return None;
        }
        // One that is all there is has its hashes at its end.
        let end = if has_hashes {
            let tail = bytes.len().checked_sub(8)?;
            let hashes = usize::try_from(u32_be(bytes, tail)?).ok()?.checked_mul(8)?;
            tail.checked_sub(hashes)?
        } else {
            bytes.len()
        };
        Some(Self {
            entries: bytes.get(header..end)?,
            has_kinds: of.has_kinds,
        })
    }

    /// Its names; they end where it does, or where an entry cannot be.
    #[must_use]
    pub const fn names(self) -> Names<'a> {
        Names { of: self }
    }
}

/// The names in a block.
#[derive(Clone, Debug)]
pub struct Names<'a> {
    of: DirectoryBlock<'a>,
}

impl<'a> Iterator for Names<'a> {
    type Item = Name<'a>;

    fn next(&mut self) -> Option<Name<'a>> {
        loop {
            let entries = self.of.entries;
            if u16_be(entries, 0)? == FREE {
                let len = usize::from(u16_be(entries, 2)?);
                if len < 8 || !len.is_multiple_of(8) {
                    return None;
                }
                self.of.entries = entries.get(len..)?;
                continue;
            }
            let len = usize::from(*entries.get(8)?);
            let name = entries.get(9..9 + len)?;
            let whole = 9 + len + usize::from(self.of.has_kinds) + 2;
            self.of.entries = entries.get(whole.next_multiple_of(8)..)?;
            if !name.is_empty() {
                return Some(Name {
                    inode: u64_be(entries, 0)?,
                    name,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::superblock::tests::bytes;
    use super::*;

    fn superblock() -> Superblock {
        Superblock::parse(&bytes(|_| ()), 1 << 30).unwrap()
    }

    fn entry(inode: u64, name: &[u8]) -> Vec<u8> {
        let len = u8::try_from(name.len()).unwrap();
        let mut bytes = [&inode.to_be_bytes()[..], &[len], name, &[1], &[0, 0]].concat();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn a_block_has_names_and_room_between_them_and_hashes_at_its_end() {
        let mut block = vec![0; 4096];
        block[..4].copy_from_slice(b"XDB3");
        block[40..48].copy_from_slice(&7_u64.to_be_bytes());
        let room = [&[0xff, 0xff, 0, 16][..], &[0; 12]].concat();
        let last = 4096 - 64 - 8 - 16 - (16 + 16 + 24);
        let free = [&[0xff, 0xff][..], &u16::try_from(last).unwrap().to_be_bytes()].concat();
        let entries = [entry(7, b"."), room, entry(99, b"a.longer.name"), free].concat();
        block[64..64 + entries.len()].copy_from_slice(&entries);
        block[4088..4092].copy_from_slice(&2_u32.to_be_bytes());
        let of = superblock();
        let names: Vec<_> = DirectoryBlock::new(&block, 7, &of).unwrap().names().collect();
        let expected = [(7, &b"."[..]), (99, b"a.longer.name")].map(|(inode, name)| Name { inode, name });
        assert_eq!(names, expected);
        assert_eq!(DirectoryBlock::new(&block, 8, &of), None, "another directory's");
    }

    #[test]
    fn names_in_an_inode_have_numbers_of_one_width() {
        let of = superblock();
        let narrow = [
            &[2, 0, 0, 0, 0, 128][..],
            &[1, 0, 0x60, b'a', 1, 0, 0, 0, 131],
            &[2, 0, 0x70, b'b', b'c', 2, 0, 0, 1, 0],
        ]
        .concat();
        let names: Vec<_> = ShortForm::new(&narrow, &of)
            .unwrap()
            .map(|name| (name.inode, name.name.to_vec()))
            .collect();
        assert_eq!(names, [(131, b"a".to_vec()), (256, b"bc".to_vec())]);
        let wide = [
            &[1, 1][..],
            &[0; 8],
            &[1, 0, 0x60, b'a', 1, 0, 0, 0, 1, 0, 0, 0, 131],
        ]
        .concat();
        let names: Vec<_> = ShortForm::new(&wide, &of)
            .unwrap()
            .map(|name| name.inode)
            .collect();
        assert_eq!(names, [1 << 32 | 131]);
    }

    proptest! {
        #[test]
        fn whatever_a_block_holds_its_names_lie_within_and_end(mut block in prop::collection::vec(any::<u8>(), 64..5000), kind in 0_usize..2) {
            let of = superblock();
            block[..4].copy_from_slice([b"XDB3", b"XDD3"][kind]);
            block[40..48].copy_from_slice(&7_u64.to_be_bytes());
            if let Some(found) = DirectoryBlock::new(&block, 7, &of) {
                prop_assert!(found.names().count() <= block.len() / 16);
            }
            if let Some(names) = ShortForm::new(&block, &of) {
                prop_assert!(names.count() <= 255);
            }
        }
    }
}
