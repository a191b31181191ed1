//! Objects and placements that are not yet in a segment.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::limits::MAX_PLACEMENTS_PER_OBJECT;
use crate::model::{ObjectId, PageRef, WindowRef};
use crate::segment::SegmentWriter;
use crate::segment::merge::{sorted_pages, sorted_windows};
use crate::segment::read::{Group, Placed, Source};
use crate::segment::record::{self, MORE, PageRecord, WindowRecord, kind_number};
use crate::segment::write::Finished;
use crate::source::path::canonical;

use super::encode::Encoded;

/// A placement that waits: who, and the path. Ordered, so that a segment does not depend on who came first.
type Waiting = (Source, String);

/// What goes into the next segment.
#[derive(Debug)]
pub(crate) struct Pending {
    base: u32,
    heap_path: PathBuf,
    heap: BufWriter<File>,
    heap_len: u64,
    objects: Vec<Object>,
    known: HashMap<[u8; 32], u32>,
    pages: Vec<PageRecord>,
    windows: Vec<WindowRecord>,
    placements: BTreeMap<u32, Places>,
    bytes: usize,
}

#[derive(Debug)]
struct Object {
    digest: [u8; 32],
    kind: u32,
    at: u64,
    len: usize,
    record: u32,
}

/// An object's placements: by what they are compared by.
#[derive(Debug, Default)]
struct Places {
    all: BTreeMap<(Option<crate::model::Package>, String), Waiting>,
    left_out: u64,
}

impl Pending {
    pub(crate) fn new(work: &Path, base: u32) -> io::Result<Self> {
        let heap_path = work.join(format!("heap-{base}"));
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&heap_path)?;
        Ok(Self {
            base,
            heap_path,
            heap: BufWriter::with_capacity(1 << 20, file),
            heap_len: 0,
            objects: Vec::new(),
            known: HashMap::new(),
            pages: Vec::new(),
            windows: Vec::new(),
            placements: BTreeMap::new(),
            bytes: 0,
        })
    }

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.placements.is_empty()
    }

    pub(crate) fn find(&self, digest: &[u8; 32]) -> Option<u32> {
        self.known.get(digest).copied()
    }

    /// Takes an object that nobody knows yet. Its number holds until the segment is written.
    pub(crate) fn insert(&mut self, encoded: &Encoded) -> io::Result<()> {
        let nth = u32::try_from(self.objects.len()).map_err(io::Error::other)?;
        let id = self.base.checked_add(nth).filter(|id| *id < MORE);
        let id = id.ok_or_else(|| io::Error::other("too many objects"))?;
        let object = ObjectId(id);
        let bytes = &encoded.extent.bytes;
        self.heap.write_all(bytes)?;
        self.objects.push(Object {
            digest: encoded.digest,
            kind: kind_number(encoded.kind),
            at: self.heap_len,
            len: bytes.len(),
            record: encoded.extent.record,
        });
        self.heap_len += bytes.len() as u64;
        self.known.insert(encoded.digest, id);
        self.pages.extend(encoded.pages.iter().map(|page| {
            let at = PageRef {
                object,
                number: page.number,
                va: page.va,
                execute: page.execute,
            };
            record::page(&page.digest, at)
        }));
        self.windows.extend(encoded.windows.iter().map(|w| {
            record::window(
                w.hash,
                WindowRef {
                    object,
                    part: w.part,
                    offset: w.offset,
                },
            )
        }));
        self.bytes += encoded.pages.len() * 48 + encoded.windows.len() * 18 + 160;
        Ok(())
    }

    /// Takes a placement; `None` if it is there already, `Some(false)` if it is one too many.
    pub(crate) fn place(&mut self, object: u32, source: Source, path: String) -> Option<bool> {
        let places = self.placements.entry(object).or_default();
        let key = (source.package.clone(), canonical(&path).into_owned());
        let new = (source, path);
        if let Some(old) = places.all.get_mut(&key) {
            // The same file of the same package from two inputs: the smaller name stays, whoever came first.
            if new < *old {
                *old = new;
            }
            return None;
        }
        if places.all.len() >= MAX_PLACEMENTS_PER_OBJECT {
            places.left_out += 1;
            return Some(false);
        }
        self.bytes += 300 + new.1.len() * 2;
        places.all.insert(key, new);
        Some(true)
    }

    /// Writes everything as a segment. Objects are sorted by digest, so that the same inputs make the same segment,
    /// whichever thread was first. With `last`, objects without a placement are dropped: they came from packages
    /// that turned out to be damaged. Returns how many objects there are, too.
    pub(crate) fn write(mut self, path: &Path, last: bool) -> io::Result<Finished> {
        let mut order: Vec<u32> = (self.base..).take(self.objects.len()).collect();
        order.retain(|id| !last || self.placements.contains_key(id));
        order.sort_by_key(|id| self.object(*id).map(|o| o.digest));
        let mut new_id: HashMap<u32, u32> = HashMap::with_capacity(order.len());
        let mut writer = SegmentWriter::create(path, self.base)?;
        let mut heap = self.heap.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut extent = Vec::new();
        for (new, old) in (self.base..).zip(&order) {
            let nth = usize::try_from(old - self.base).map_err(io::Error::other)?;
            let Some(object) = self.objects.get(nth) else {
                continue;
            };
            heap.seek(io::SeekFrom::Start(object.at))?;
            extent.resize(object.len, 0);
            heap.read_exact(&mut extent)?;
            writer.object(object.digest, object.kind, &extent, object.record)?;
            new_id.insert(*old, new);
        }
        let base = self.base;
        let renumber = |object: u32| {
            if object < base {
                Some(object)
            } else {
                new_id.get(&object).copied()
            }
        };

        let placements = std::mem::take(&mut self.placements);
        let mut placements: Vec<_> = placements
            .into_iter()
            .filter_map(|(object, places)| Some((renumber(object)?, places)))
            .collect();
        placements.sort_by_key(|(object, _)| *object);
        for (object, places) in placements {
            let mut group = Group {
                placed: Vec::with_capacity(places.all.len()),
                left_out: places.left_out,
            };
            for (source, path) in places.all.into_values() {
                group.placed.push(Placed {
                    source: writer.source(&source)?,
                    path,
                });
            }
            writer.place(object, &group)?;
        }
        // In place: the tables are the bulk of the memory.
        let (mut pages, mut windows) = (std::mem::take(&mut self.pages), std::mem::take(&mut self.windows));
        pages.retain_mut(|row| renumber_page(row, &renumber).map(|new| *row = new).is_some());
        windows.retain_mut(|row| renumber_window(row, &renumber).map(|new| *row = new).is_some());
        let finished = writer.finish(
            (pages.len() as u64, |rows| sorted_pages(pages, rows)),
            (windows.len() as u64, |rows| sorted_windows(windows, rows)),
        )?;
        std::fs::remove_file(&self.heap_path)?;
        Ok(finished)
    }

    fn object(&self, id: u32) -> Option<&Object> {
        self.objects
            .get(usize::try_from(id.checked_sub(self.base)?).ok()?)
    }
}

fn renumber_page(row: &PageRecord, renumber: &impl Fn(u32) -> Option<u32>) -> Option<PageRecord> {
    let mut page = record::read_page(row).ok()?;
    page.object = ObjectId(renumber(page.object.0)?);
    let digest = row.first_chunk::<32>()?;
    Some(record::page(digest, page))
}

fn renumber_window(row: &WindowRecord, renumber: &impl Fn(u32) -> Option<u32>) -> Option<WindowRecord> {
    let window = record::read_window(row).ok()?;
    let mut renumbered = *row;
    let object = renumber(window.object.0)?.to_be_bytes();
    for (to, from) in renumbered.iter_mut().skip(8).zip(object) {
        *to = from;
    }
    Some(renumbered)
}
