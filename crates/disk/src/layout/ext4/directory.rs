//! The names in a block of a directory (`struct ext4_dir_entry_2`).
//!
//! ```text
//!  inode u32 │ length of the entry u16 │ length of the name u8 │ kind u8 │ name …
//! ```
//!
//! An index (`dx_root`, `dx_node`) hides in the lengths of its entries, and the checksum at the end in one without an inode; so a
//! block is read like a list, whatever it is.

use super::super::bytes::{u16_le, u32_le};

/// A name of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name<'a> {
    /// The inode.
    pub inode: u32,
    /// As it is stored: bytes, of which nobody says what letters they are.
    pub name: &'a [u8],
}

/// The names in a block; they end where it does, or where an entry cannot be.
#[derive(Clone, Debug)]
pub struct Names<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Names<'a> {
    /// Of this block.
    #[must_use]
    pub const fn new(block: &'a [u8]) -> Self {
        Self { block, at: 0 }
    }

    /// The entry here, and where the next one is.
    fn entry(&self) -> Option<(Name<'a>, usize)> {
        let rest = self.block.get(self.at..)?;
        let inode = u32_le(rest, 0)?;
        let len = match u16_le(rest, 4)? {
            // Of a block of 64 KiB (`ext4_rec_len_from_disk`).
            0 | u16::MAX if self.block.len() >= 1 << 16 => self.block.len().checked_sub(self.at)?,
            len if self.block.len() >= 1 << 16 => usize::from(len & !3) | usize::from(len & 3) << 16,
            len => usize::from(len),
        };
        let name_len = usize::from(*rest.get(6)?);
        let end = 8_usize.checked_add(name_len)?;
        if len % 4 != 0 || len < end || len > rest.len() {
            return None;
        }
        let name = rest.get(8..end)?;
        Some((Name { inode, name }, self.at.checked_add(len)?))
    }
}

impl<'a> Iterator for Names<'a> {
    type Item = Name<'a>;

    fn next(&mut self) -> Option<Name<'a>> {
        loop {
            let (name, next) = self.entry()?;
            self.at = next;
            if name.inode != 0 && !name.name.is_empty() {
                return Some(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(inode: u32, len: u16, name: &[u8]) -> Vec<u8> {
        let name_len = u8::try_from(name.len()).unwrap();
        let mut bytes = [&inode.to_le_bytes()[..], &len.to_le_bytes(), &[name_len, 1], name].concat();
        bytes.resize(usize::from(len), 0);
        bytes
    }

    fn names(block: &[u8]) -> Vec<(u32, Vec<u8>)> {
        Names::new(block)
            .map(|name| (name.inode, name.name.to_vec()))
            .collect()
    }

    #[test]
    fn entries_without_an_inode_have_no_name() {
        let block = [
            entry(2, 12, b"."),
            entry(2, 12, b".."),
            entry(0, 16, b"gone"),
            entry(17, 12, b"a"),
            entry(0, 12, b""),
        ]
        .concat();
        let expected = [(2, b".".to_vec()), (2, b"..".to_vec()), (17, b"a".to_vec())];
        assert_eq!(names(&block), expected);
    }

    #[test]
    fn a_list_ends_where_an_entry_cannot_be() {
        for (what, wrong) in [
            ("no length", entry(5, 0, b"")),
            ("odd length", entry(5, 14, b"b")),
            (
                "name longer than the entry",
                [&5_u32.to_le_bytes()[..], &[12, 0, 200, 1], &[0; 200]].concat(),
            ),
            (
                "beyond the block",
                [&5_u32.to_le_bytes()[..], &[0xfc, 0xff, 1, 1], b"b\0\0\0"].concat(),
            ),
        ] {
            let block = [entry(4, 12, b"a"), wrong, entry(6, 12, b"c")].concat();
            assert_eq!(names(&block)[..1], [(4, b"a".to_vec())], "{what}");
            assert!(names(&block).iter().all(|(inode, _)| *inode != 5), "{what}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_block_holds_its_names_lie_within_and_end(block in prop::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert!(Names::new(&block).count() <= block.len() / 8);
        }
    }
}
