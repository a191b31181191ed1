//! What a file holds, from the blocks that it has.

use super::bytes::index;
use super::{Blocks, LayoutError};

/// Reads a file of so many bytes, each of its blocks with which one of its contents it is, in this order; `None` is a block that is not
/// its own after all. What no block has is zeros, and no more blocks are looked at than it can have.
pub(super) fn contents(
    bytes: u64,
    block_bytes: u32,
    blocks: impl Iterator<Item = Option<(u64, u32)>>,
    disk: &impl Blocks,
) -> Result<Vec<u8>, LayoutError> {
    let (mut all, each) = (vec![0; index(bytes)], u64::from(block_bytes.max(1)));
    for (block, file_block) in blocks.take(index(bytes.div_ceil(each))).flatten() {
        let from = index(u64::from(file_block).saturating_mul(each));
        let Some(rest) = all.get_mut(from..) else {
            continue;
        };
        let len = rest.len().min(index(each));
        let (piece, _) = rest.split_at_mut(len);
        let at = block.saturating_mul(each);
        disk.read(at, piece)
            .map_err(|source| LayoutError::Read { at, source })?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Every byte is the number of its block.
    struct Numbered;

    impl Blocks for Numbered {
        fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
            into.fill(u8::try_from(at / 4).unwrap());
            Ok(())
        }

        fn len(&self) -> u64 {
            1 << 20
        }
    }

    #[test]
    fn blocks_lie_where_they_belong_and_the_rest_is_zeros() {
        let of = |bytes, blocks: &[(u64, u32)]| {
            let blocks = blocks.iter().copied().map(Some);
            contents(bytes, 4, blocks, &Numbered).unwrap()
        };
        assert_eq!(of(10, &[(7, 0), (9, 2)]), [7, 7, 7, 7, 0, 0, 0, 0, 9, 9]);
        assert_eq!(of(5, &[(7, 0), (5, u32::MAX)]), [7, 7, 7, 7, 0], "beyond its end");
        assert!(of(0, &[(7, 0)]).is_empty());
    }

    #[test]
    fn a_small_file_with_blocks_without_end_is_read_as_what_it_is() {
        let blocks = (0..u64::MAX).map(|block| (block % 3 == 0).then_some((block % 9, 0)));
        assert_eq!(contents(8, 4, blocks, &Numbered).unwrap(), [0; 8]);
    }
}
