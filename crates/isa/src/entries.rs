//! The entries of a top-level table, raw, for comparing address spaces.

use std::ops::RangeInclusive;

use nephoscope_guest::{Gpa, Gva, PhysicalMemory, Root};

use crate::fault::Fault;
use crate::translate::Walker;

/// One entry of a top-level table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TopEntry {
    /// Its place in the table.
    pub index: u16,
    /// Its value, zero-extended in modes with 4-byte entries.
    pub raw: u64,
    /// Whether the mode calls it present.
    pub present: bool,
}

impl<M: PhysicalMemory> Walker<M> {
    /// The top-level entries that serve `range`, in one read. A range that reaches over a part without addresses
    /// is clipped to the addresses that exist.
    ///
    /// # Errors
    /// [`Fault::Unreadable`] if the table does not lie in readable memory.
    pub fn table_entries(&self, root: Root, range: &RangeInclusive<Gva>) -> Result<Vec<TopEntry>, Fault> {
        let facts = self.mode().facts();
        let mut found = Vec::new();
        let Some(level) = facts.levels.first() else {
            return Ok(found);
        };
        for (first, last) in clipped(facts.spaces, range) {
            let (low, high) = (level.index(first), level.index(last));
            let mut buffer = EntryBuffer::new(facts.entry_bytes);
            buffer
                .read(self.memory(), root.0 & facts.root_mask, low, high)
                .map_err(|at| Fault::Unreadable {
                    level: level.number,
                    at,
                })?;
            found.extend((low..=high).filter_map(|index| {
                let raw = buffer.get(index)?;
                Some(TopEntry {
                    index: u16::try_from(index).ok()?,
                    raw,
                    present: level.present.holds(raw),
                })
            }));
        }
        Ok(found)
    }
}

/// The parts of `range` that exist, ascending, as first and last addresses.
pub(crate) fn clipped(
    spaces: &'static [(u64, u64)],
    range: &RangeInclusive<Gva>,
) -> impl Iterator<Item = (u64, u64)> + use<> {
    let (start, end) = (range.start().0, range.end().0);
    spaces
        .iter()
        .map(move |&(first, last)| (first.max(start), last.min(end)))
        .filter(|(first, last)| first <= last)
}

/// A copy of some entries of one table.
#[derive(Debug)]
pub(crate) struct EntryBuffer {
    entry_bytes: u8,
    low: u64,
    bytes: Vec<u8>,
}

impl EntryBuffer {
    pub(crate) const fn new(entry_bytes: u8) -> Self {
        Self {
            entry_bytes,
            low: 0,
            bytes: Vec::new(),
        }
    }

    /// Copies the entries `low..=high` of the table at `table`, or says which byte could not be read.
    pub(crate) fn read(
        &mut self,
        memory: &impl PhysicalMemory,
        table: u64,
        low: u64,
        high: u64,
    ) -> Result<(), Gpa> {
        let size = u64::from(self.entry_bytes);
        let at = Gpa(table.saturating_add(low * size));
        let count = usize::try_from((high + 1).saturating_sub(low)).map_err(|_| at)?;
        self.low = low;
        self.bytes.resize(count * usize::from(self.entry_bytes), 0);
        memory.read(at, &mut self.bytes).map_err(|fault| fault.at)
    }

    /// The entry at `index` of the table, if it was copied.
    pub(crate) fn get(&self, index: u64) -> Option<u64> {
        let size = usize::from(self.entry_bytes);
        let start = usize::try_from(index.checked_sub(self.low)?)
            .ok()?
            .checked_mul(size)?;
        let bytes = self.bytes.get(start..)?;
        if size == 4 {
            bytes.first_chunk().map(|raw| u64::from(u32::from_le_bytes(*raw)))
        } else {
            bytes.first_chunk().map(|raw| u64::from_le_bytes(*raw))
        }
    }
}
