//! Writing a table: records come sorted, blocks go out one by one.

use std::io::{self, Write};

use crate::block::{self, PAYLOAD};

use super::shape::{RADIX_PER_BLOCK, Shape};

/// Writes one table. Its memory is one block and the radix: four bytes for about five hundred bytes of table.
#[derive(Debug)]
pub(crate) struct TableWriter<W> {
    out: W,
    shape: Shape,
    pending: Vec<u8>,
    block: u64,
    radix: Vec<u32>,
}

impl<W: Write> TableWriter<W> {
    /// Starts a table of about `shape.records` records at the place where `out` stands.
    pub(crate) fn new(out: W, shape: Shape) -> Self {
        Self {
            out,
            shape,
            pending: Vec::with_capacity(PAYLOAD),
            block: 0,
            radix: Vec::new(),
        }
    }

    /// Adds the next record. Records must come sorted by key; that is asserted in debug builds by the caller.
    pub(crate) fn push(&mut self, record: &[u8]) -> io::Result<()> {
        if record.len() != usize::from(self.shape.record) {
            return Err(io::Error::other("record of another table"));
        }
        if self.pending.len() + record.len() > PAYLOAD {
            self.flush_block()?;
        }
        if self.shape.key > 0 {
            let prefix = usize::try_from(self.shape.prefix(record)).map_err(io::Error::other)?;
            let block = u32::try_from(self.block).map_err(io::Error::other)?;
            while self.radix.len() <= prefix {
                self.radix.push(block);
            }
        }
        self.pending.extend_from_slice(record);
        self.shape.records += 1;
        Ok(())
    }

    fn flush_block(&mut self) -> io::Result<()> {
        self.out
            .write_all(&block::seal(&self.pending, self.shape.place(self.block)))?;
        self.pending.clear();
        self.block += 1;
        Ok(())
    }

    /// Writes what is left and the radix.
    pub(crate) fn finish(mut self) -> io::Result<Shape> {
        if !self.pending.is_empty() {
            self.flush_block()?;
        }
        if self.shape.key > 0 {
            // Prefixes past the last key: the block after the last one, where nothing is found.
            let end = u32::try_from(self.block).map_err(io::Error::other)?;
            let entries = usize::try_from(1u64 << self.shape.bits).map_err(io::Error::other)?;
            self.radix.resize(entries, end);
            let per = usize::try_from(RADIX_PER_BLOCK).map_err(io::Error::other)?;
            let radix = std::mem::take(&mut self.radix);
            for entries in radix.chunks(per) {
                self.pending
                    .extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
                self.flush_block()?;
            }
        }
        Ok(self.shape)
    }
}
