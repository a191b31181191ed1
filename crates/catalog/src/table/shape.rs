//! How a table lies in its section.

use crate::block::PAYLOAD;

/// Radix entries in a block.
pub(super) const RADIX_PER_BLOCK: u64 = (PAYLOAD / 4) as u64;

/// Data blocks that one radix entry leaves to be guessed in. The guess is then wrong by half a block on average, and a look-up
/// checks one block less than with sixteen; the radix of a hundred million pages is 16 MiB, one sixtieth of the table.
const BLOCKS_PER_PREFIX: u64 = 4;

/// At most 2^26 entries: 256 MiB of radix, for a table of five thousand million pages.
const MAX_BITS: u32 = 26;

/// The numbers that say where everything in a table is; the segment's header keeps them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// Sets this table's blocks apart from those of other tables.
    pub(crate) tag: u8,
    /// Bytes of a record, its key first.
    pub(crate) record: u16,
    /// Bytes of its key; 0 for a table that is only read by position.
    pub(crate) key: u16,
    /// First bits of the key that the radix distinguishes.
    pub(crate) bits: u8,
    /// How many records.
    pub(crate) records: u64,
}

impl Shape {
    /// A table for about `expected` records; `records` counts up as they are written.
    pub(crate) fn new(tag: u8, record: u16, key: u16, expected: u64) -> Self {
        let mut shape = Self {
            tag,
            record,
            key,
            bits: 0,
            records: expected,
        };
        let bits = (shape.data_blocks() / BLOCKS_PER_PREFIX)
            .max(1)
            .ilog2()
            .min(MAX_BITS);
        shape.bits = if key < 4 {
            0
        } else {
            u8::try_from(bits).unwrap_or(0)
        };
        shape.records = 0;
        shape
    }

    /// Whether the numbers make sense together; they may come from a damaged file.
    pub(crate) fn is_sound(&self) -> bool {
        self.record > 0
            && usize::from(self.record) <= PAYLOAD
            && self.key <= self.record
            && u32::from(self.bits) <= MAX_BITS
            && u32::try_from(self.data_blocks()).is_ok()
    }

    pub(crate) fn per_block(&self) -> u64 {
        PAYLOAD as u64 / u64::from(self.record.max(1))
    }

    pub(crate) fn data_blocks(&self) -> u64 {
        self.records.div_ceil(self.per_block().max(1))
    }

    fn radix_blocks(&self) -> u64 {
        if self.key == 0 {
            0
        } else {
            (1u64 << self.bits).div_ceil(RADIX_PER_BLOCK)
        }
    }

    /// Blocks of the section.
    pub(crate) fn blocks(&self) -> u64 {
        self.data_blocks() + self.radix_blocks()
    }

    /// The place of a block, for its check.
    pub(crate) fn place(&self, block: u64) -> u64 {
        (u64::from(self.tag) << 56) | block
    }

    /// The first `bits` bits of a key.
    pub(super) fn prefix(&self, key: &[u8]) -> u64 {
        head(key) >> (32 - u32::from(self.bits.min(32)))
    }

    /// The block between two, both included, where a key most likely is: keys are evenly spread, so the bits after the
    /// prefix say how far along.
    pub(super) fn guess(&self, key: &[u8], first: u64, last: u64) -> u64 {
        let rest = (head(key) << self.bits.min(32)) & u64::from(u32::MAX);
        let blocks = last.saturating_sub(first).saturating_add(1);
        let along = blocks.saturating_mul(rest) >> 32;
        first.saturating_add(along).min(last)
    }
}

/// The first four bytes of a key as a number.
fn head(key: &[u8]) -> u64 {
    key.first_chunk::<4>()
        .map_or(0, |first| u64::from(u32::from_be_bytes(*first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_bits_bounds_the_radix_of_a_table_and_refuses_a_larger_one() {
        let mut shape = Shape::new(1, 36, 32, 1 << 50);
        assert_eq!(u32::from(shape.bits), MAX_BITS);
        assert!(shape.is_sound());
        shape.bits += 1;
        assert!(!shape.is_sound());
    }
}
