//! Sorted rows from several places into one table, and several segments into one.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use crate::block::Payload;
use crate::error::ReadError;
use crate::limits::{MAX_PLACEMENTS_PER_OBJECT, MAX_REFS_PER_PAGE, MAX_REFS_PER_WINDOW};
use crate::table::Table;

use super::layout::Kind;
use super::read::{Group, Placed, Segment};
use super::record;
use super::write::{Finished, Rows, SegmentWriter};

/// Puts rows that come sorted into a table, and leaves out what is over the bound per key. Rows of one key are
/// kept in memory, so at most `max` of them.
pub(crate) struct Bounded<'w, 'r> {
    rows: &'w mut Rows<'r>,
    key: usize,
    max: usize,
    current: Vec<u8>,
    kept: usize,
    over: u64,
    left_out: u64,
    more: fn(&[u8], u64) -> Vec<u8>,
}

impl<'w, 'r> Bounded<'w, 'r> {
    pub(crate) fn pages(rows: &'w mut Rows<'r>) -> Self {
        Self::new(rows, 32, MAX_REFS_PER_PAGE, |key, over| {
            record::page_more(key, over).to_vec()
        })
    }

    pub(crate) fn windows(rows: &'w mut Rows<'r>) -> Self {
        Self::new(rows, 8, MAX_REFS_PER_WINDOW, |key, over| {
            record::window_more(key, over).to_vec()
        })
    }

    fn new(rows: &'w mut Rows<'r>, key: usize, max: usize, more: fn(&[u8], u64) -> Vec<u8>) -> Self {
        Self {
            rows,
            key,
            max,
            current: Vec::new(),
            kept: 0,
            over: 0,
            left_out: 0,
            more,
        }
    }

    /// The next row, and for how many it stands if it is a "more" row.
    pub(crate) fn push(&mut self, row: &[u8], more: Option<u64>) -> io::Result<()> {
        let key = row
            .get(..self.key)
            .ok_or_else(|| io::Error::other("row without a key"))?;
        if key != self.current.as_slice() {
            self.close_key()?;
            self.current = key.to_vec();
        }
        if let Some(more) = more {
            self.over = self.over.saturating_add(more);
        } else if self.kept == self.max {
            self.over = self.over.saturating_add(1);
        } else {
            self.kept += 1;
            self.rows.push(row)?;
        }
        Ok(())
    }

    fn close_key(&mut self) -> io::Result<()> {
        if self.over > 0 {
            self.rows.push(&(self.more)(&self.current, self.over))?;
            self.left_out = self.left_out.saturating_add(self.over);
        }
        (self.kept, self.over) = (0, 0);
        Ok(())
    }

    /// How many rows were left out.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.close_key()?;
        Ok(self.left_out)
    }
}

/// Reads a table from its start.
struct Cursor<'t> {
    table: &'t Table,
    next: u64,
    block: Option<Payload>,
    nth: usize,
}

impl<'t> Cursor<'t> {
    fn new(table: &'t Table) -> Result<Self, ReadError> {
        let mut cursor = Self {
            table,
            next: 0,
            block: None,
            nth: 0,
        };
        cursor.load()?;
        Ok(cursor)
    }

    fn load(&mut self) -> Result<(), ReadError> {
        self.nth = 0;
        self.block = if self.next < self.table.data_blocks() {
            Some(self.table.block(self.next)?)
        } else {
            None
        };
        self.next += 1;
        Ok(())
    }

    fn peek(&self) -> Option<&[u8]> {
        let block = self.block.as_ref()?;
        self.table.row(self.next.checked_sub(1)?, block, self.nth)
    }

    fn advance(&mut self) -> Result<(), ReadError> {
        self.nth += 1;
        if self.peek().is_none() && self.block.is_some() {
            self.load()?;
        }
        Ok(())
    }
}

/// Merges one sorted table of several segments into `out`.
fn merge_rows(
    segments: &[Segment],
    kind: Kind,
    mut out: Bounded<'_, '_>,
    more: fn(&[u8]) -> Option<u64>,
) -> io::Result<u64> {
    let mut cursors = segments
        .iter()
        .map(|s| Cursor::new(s.table(kind)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(io::Error::other)?;
    loop {
        let least = cursors
            .iter_mut()
            .filter(|c| c.peek().is_some())
            .min_by(|a, b| a.peek().cmp(&b.peek()));
        let Some(cursor) = least else { return out.finish() };
        if let Some(row) = cursor.peek() {
            out.push(row, more(row))?;
        }
        cursor.advance().map_err(io::Error::other)?;
    }
}

/// One segment out of several that follow one another.
pub(crate) fn merge(segments: &[Segment], path: &Path) -> io::Result<Finished> {
    let Some(first) = segments.first() else {
        return Err(io::Error::other("nothing to merge"));
    };
    let mut writer = SegmentWriter::create(path, first.base())?;
    for segment in segments {
        for object in segment.base()..segment.base().saturating_add(segment.count()) {
            let at = segment.object_at(object).map_err(io::Error::other)?;
            let digest = segment.record(at).map_err(io::Error::other)?.digest;
            writer.object(
                digest,
                at.kind,
                segment.extent(at).map_err(io::Error::other)?,
                at.record,
            )?;
        }
    }
    merge_placements(segments, &mut writer)?;
    let rows = |kind| segments.iter().map(|s| s.table(kind).len()).sum::<u64>();
    writer.finish(
        (rows(Kind::Pages), |rows| {
            merge_rows(segments, Kind::Pages, Bounded::pages(rows), |row| {
                record::read_page(row).err()
            })
        }),
        (rows(Kind::Windows), |rows| {
            merge_rows(segments, Kind::Windows, Bounded::windows(rows), |row| {
                record::read_window(row).err()
            })
        }),
    )
}

/// Placements of every object that any of the segments places.
fn merge_placements(segments: &[Segment], writer: &mut SegmentWriter) -> io::Result<()> {
    let mut done = HashSet::new();
    for segment in segments {
        let table = segment.table(Kind::Placements);
        for number in 0..table.len() {
            let (object, _) = table
                .record(number, record::read_placements)
                .map_err(io::Error::other)?;
            if !done.insert(object) {
                continue;
            }
            let mut merged = Group::default();
            for segment in segments {
                let group = segment.placed(object).map_err(io::Error::other)?;
                merged.left_out = merged.left_out.saturating_add(group.left_out);
                for placed in group.placed {
                    if merged.placed.len() == MAX_PLACEMENTS_PER_OBJECT {
                        merged.left_out = merged.left_out.saturating_add(1);
                        continue;
                    }
                    let source = segment.source(placed.source).map_err(io::Error::other)?;
                    merged.placed.push(Placed {
                        source: writer.source(&source)?,
                        path: placed.path,
                    });
                }
            }
            writer.place(object, &merged)?;
        }
    }
    Ok(())
}

/// Sorts and bounds rows that are in memory.
pub(crate) fn sorted_pages(mut rows: Vec<record::PageRecord>, out: &mut Rows<'_>) -> io::Result<u64> {
    rows.sort_unstable();
    let mut bounded = Bounded::pages(out);
    rows.iter().try_for_each(|row| bounded.push(row, None))?;
    bounded.finish()
}

/// The same for windows.
pub(crate) fn sorted_windows(mut rows: Vec<record::WindowRecord>, out: &mut Rows<'_>) -> io::Result<u64> {
    rows.sort_unstable();
    let mut bounded = Bounded::windows(out);
    rows.iter().try_for_each(|row| bounded.push(row, None))?;
    bounded.finish()
}
