//! Looking up.

use crate::block::{self, BLOCK, PAYLOAD, Payload};
use crate::error::ReadError;
use crate::map::Map;

use super::shape::{RADIX_PER_BLOCK, Shape};

/// What damage in a table is called, and in which file.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) segment: String,
    pub(crate) what: &'static str,
}

/// A table in a mapped segment.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    map: Map,
    at: u64,
    shape: Shape,
    name: Name,
}

impl Table {
    /// The table that starts at byte `at`; `None` if the file is too short for it or the shape is unsound.
    pub(crate) fn new(map: Map, at: u64, shape: Shape, segment: &str, what: &'static str) -> Option<Self> {
        let end = at.checked_add(shape.blocks().checked_mul(BLOCK as u64)?)?;
        let name = Name {
            segment: segment.to_owned(),
            what,
        };
        (shape.is_sound() && end <= map.len()).then_some(Self { map, at, shape, name })
    }

    /// How many records.
    pub(crate) fn len(&self) -> u64 {
        self.shape.records
    }

    /// Hands every record under `key` to `each`, in order.
    pub(crate) fn find(&self, key: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), ReadError> {
        if self.shape.records == 0 {
            return Ok(());
        }
        let Some((first, last)) = self.range(self.shape.prefix(key))? else {
            return Ok(());
        };
        let mut number = self.towards(key, self.shape.guess(key, first, last), first, last);
        let mut block = self.block(number)?;
        // Back to where the key, or the first of its copies, can start.
        while number > first
            && self
                .row(number, &block, 0)
                .is_some_and(|row| row.get(..key.len()) >= Some(key))
        {
            number -= 1;
            block = self.block(number)?;
        }
        loop {
            for record in self.records(number, &block) {
                match record.get(..key.len()).map(|found| found.cmp(key)) {
                    Some(std::cmp::Ordering::Less) => {}
                    Some(std::cmp::Ordering::Equal) => each(record),
                    Some(std::cmp::Ordering::Greater) | None => return Ok(()),
                }
            }
            number += 1;
            if number >= self.shape.data_blocks() {
                return Ok(());
            }
            block = self.block(number)?;
        }
    }

    /// From a guess to the block in which a key, or the first of its copies, starts: by each block's first key, of which
    /// nothing is checked. Damage makes it a worse guess and no more: the answer comes from blocks that were checked, and
    /// from as many as it takes.
    fn towards(&self, key: &[u8], guess: u64, first: u64, last: u64) -> u64 {
        let mut number = guess;
        while number > first && self.begins(number).get(..key.len()) >= Some(key) {
            number -= 1;
        }
        if number == guess {
            while number < last && self.begins(number + 1).get(..key.len()) < Some(key) {
                number += 1;
            }
        }
        number
    }

    /// A block's first bytes, as they are.
    fn begins(&self, number: u64) -> &[u8] {
        let at = number
            .checked_mul(BLOCK as u64)
            .and_then(|off| self.at.checked_add(off));
        at.and_then(|at| self.map.get(at, PAYLOAD)).unwrap_or_default()
    }

    /// The blocks in which a key with this prefix can start: first and last. `None` if all keys are smaller.
    fn range(&self, prefix: u64) -> Result<Option<(u64, u64)>, ReadError> {
        let Some(end) = self.shape.data_blocks().checked_sub(1) else {
            return Ok(None);
        };
        let number = self.shape.data_blocks() + prefix / RADIX_PER_BLOCK;
        let block = self.block(number)?;
        let first = self.radix(number, &block, prefix)?;
        let next = prefix + 1;
        let last = if next >> self.shape.bits != 0 {
            end
        } else if next.is_multiple_of(RADIX_PER_BLOCK) {
            self.radix(number + 1, &self.block(number + 1)?, next)?
        } else {
            self.radix(number, &block, next)?
        };
        Ok(blocks(first, last, end))
    }

    fn radix(&self, number: u64, block: &Payload, prefix: u64) -> Result<u64, ReadError> {
        let nth = usize::try_from(prefix % RADIX_PER_BLOCK).unwrap_or(usize::MAX);
        let entry = block
            .as_chunks::<4>()
            .0
            .get(nth)
            .ok_or_else(|| self.damaged(number))?;
        Ok(u64::from(u32::from_le_bytes(*entry)))
    }

    /// The record at a position, handed to `each`; `NoSuch` past the end.
    pub(crate) fn record<T>(&self, index: u64, each: impl FnOnce(&[u8]) -> T) -> Result<T, ReadError> {
        let per = self.shape.per_block().max(1);
        if index >= self.shape.records {
            return Err(ReadError::NoSuch("record"));
        }
        let number = index / per;
        let block = self.block(number)?;
        let nth = usize::try_from(index % per).unwrap_or(usize::MAX);
        self.records(number, &block)
            .nth(nth)
            .map(each)
            .ok_or_else(|| self.damaged(number))
    }

    /// The block's records, without the filling of the last block.
    pub(crate) fn records<'b>(
        &self,
        number: u64,
        block: &'b Payload,
    ) -> impl Iterator<Item = &'b [u8]> + use<'b> {
        let per = self.shape.per_block();
        let left = self
            .shape
            .records
            .saturating_sub(number.saturating_mul(per))
            .min(per);
        block
            .chunks_exact(usize::from(self.shape.record).max(1))
            .take(usize::try_from(left).unwrap_or(0))
    }

    /// The `nth` record of a block, if it has so many.
    pub(crate) fn row<'b>(&self, number: u64, block: &'b Payload, nth: usize) -> Option<&'b [u8]> {
        let per = self.shape.per_block();
        let left = self
            .shape
            .records
            .saturating_sub(number.saturating_mul(per))
            .min(per);
        let len = usize::from(self.shape.record);
        let start = nth.checked_mul(len).filter(|_| (nth as u64) < left)?;
        block.get(start..start.checked_add(len)?)
    }

    /// Data blocks of the table.
    pub(crate) fn data_blocks(&self) -> u64 {
        self.shape.data_blocks()
    }

    /// All blocks of the table, the radix last.
    pub(crate) fn blocks(&self) -> u64 {
        self.shape.blocks()
    }

    /// A block of the section, checked.
    pub(crate) fn block(&self, number: u64) -> Result<Payload, ReadError> {
        let at = number
            .checked_mul(BLOCK as u64)
            .and_then(|off| self.at.checked_add(off));
        at.and_then(|at| self.map.get(at, BLOCK))
            .and_then(|bytes| block::open(bytes, self.shape.place(number)))
            .ok_or_else(|| self.damaged(number))
    }

    fn damaged(&self, number: u64) -> ReadError {
        let at = self.at.saturating_add(number.saturating_mul(BLOCK as u64));
        ReadError::Damaged {
            segment: self.name.segment.clone(),
            what: self.name.what,
            at,
        }
    }
}

/// The blocks from `first` to `last`, of which there are those up to `end`; `None` if the first is none of them. The
/// numbers are as the file has them.
fn blocks(first: u64, last: u64, end: u64) -> Option<(u64, u64)> {
    (first <= end).then(|| (first, last.clamp(first, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_numbers_that_are_not_in_order_are_no_panic() {
        assert_eq!(blocks(3, 5, 8), Some((3, 5)));
        assert_eq!(blocks(3, 1, 8), Some((3, 3)));
        assert_eq!(blocks(3, 99, 8), Some((3, 8)));
        assert_eq!(blocks(247, 0, 8), None);
    }
}
