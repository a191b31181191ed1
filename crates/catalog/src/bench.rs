//! The page table alone, for `examples/store_bench`. Not part of the API.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::error::ReadError;
use crate::map::Map;
use crate::table::{self, Shape, TableWriter};

/// A table of 32-byte keys and 16-byte values in a file of its own.
#[derive(Debug)]
pub struct Table(table::Table);

impl Table {
    /// Writes sorted records.
    pub fn write(path: &Path, records: &[([u8; 32], [u8; 16])]) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
        let mut writer = TableWriter::new(&mut out, Shape::new(1, 48, 32, records.len() as u64));
        for (key, value) in records {
            let mut record = [0u8; 48];
            record[..32].copy_from_slice(key);
            record[32..].copy_from_slice(value);
            writer.push(&record)?;
        }
        let shape = writer.finish()?;
        out.write_all(&shape.records.to_le_bytes())?;
        out.write_all(&[shape.bits])?;
        out.into_inner()?.sync_all()
    }

    /// Opens what [`Table::write`] wrote.
    pub fn open(path: &Path) -> io::Result<Self> {
        let map = Map::open(path)?;
        let tail = map
            .len()
            .checked_sub(9)
            .and_then(|at| map.get(at, 9))
            .unwrap_or_default();
        let Some((records, &[bits])) = tail.split_first_chunk::<8>() else {
            return Err(io::Error::other("too short"));
        };
        let shape = Shape {
            tag: 1,
            record: 48,
            key: 32,
            bits,
            records: u64::from_le_bytes(*records),
        };
        if shape.blocks().checked_mul(256).and_then(|len| len.checked_add(9)) != Some(map.len()) {
            return Err(io::Error::other("other length"));
        }
        table::Table::new(map, 0, shape, "table", "bench")
            .map(Self)
            .ok_or_else(|| io::Error::other("damaged"))
    }

    /// The value under a key.
    pub fn get(&self, key: &[u8; 32]) -> Result<Option<[u8; 16]>, ReadError> {
        let mut found = None;
        self.0
            .find(key, |record| found = record.last_chunk::<16>().copied())?;
        Ok(found)
    }
}
