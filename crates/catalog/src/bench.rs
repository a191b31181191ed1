//! What only benchmarks need: the page table alone (`examples/store_bench`), and catalogs of made pages (`bench`). Not part
//! of the API.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::catalog::Catalog;
use crate::error::ReadError;
use crate::manifest::{Entry, Manifest};
use crate::map::Map;
use crate::model::PageRef;
use crate::segment::layout::Kind;
use crate::segment::merge::Bounded;
use crate::segment::{SegmentWriter, record};
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

/// Takes one page of a catalog that is being made. Pages come sorted by digest.
pub type Push<'p> = dyn FnMut(&[u8; 32], PageRef) -> io::Result<()> + 'p;

/// Makes a catalog that knows pages and nothing else: `objects` objects without content, at most `rows` pages, which `fill`
/// gives. Otherwise it is as [`crate::Adder`] makes one.
///
/// # Errors
/// What the file system says.
pub fn write_pages(
    dir: &Path,
    objects: u32,
    rows: u64,
    fill: impl FnOnce(&mut Push<'_>) -> io::Result<()>,
) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut writer = SegmentWriter::create(&dir.join("made.partial"), 0)?;
    for object in 0..objects {
        writer.object(*blake3::hash(&object.to_le_bytes()).as_bytes(), 0, &[], 0)?;
    }
    let pages = |rows: &mut crate::segment::write::Rows<'_>| {
        let mut bounded = Bounded::pages(rows);
        fill(&mut |digest, page| bounded.push(&record::page(digest, page), None))?;
        bounded.finish()
    };
    let finished = writer.finish((rows, pages), (0, |_: &mut _| Ok(0)))?;
    let entry = Entry {
        digest: finished.digest,
        len: finished.len,
        base: finished.base,
        objects: finished.objects,
    };
    std::fs::rename(&finished.path, dir.join(entry.file()))?;
    Manifest { entries: vec![entry] }.commit(dir)
}

/// In how many places pages stand: for each number of places, how many different pages have so many.
///
/// # Errors
/// The page table is damaged.
pub fn places_per_page(catalog: &Catalog) -> Result<BTreeMap<u64, u64>, ReadError> {
    let mut counts = BTreeMap::new();
    for segment in catalog.segments() {
        let table = segment.table(Kind::Pages);
        let mut current = Vec::new();
        let mut places = 0_u64;
        for number in 0..table.data_blocks() {
            let block = table.block(number)?;
            for row in table.records(number, &block) {
                let key = row.get(..32).unwrap_or_default();
                if key != current.as_slice() {
                    if places > 0 {
                        *counts.entry(places).or_default() += 1;
                    }
                    current = key.to_vec();
                    places = 0;
                }
                places = places.saturating_add(record::read_page(row).map_or_else(|more| more, |_| 1));
            }
        }
        if places > 0 {
            *counts.entry(places).or_default() += 1;
        }
    }
    Ok(counts)
}
