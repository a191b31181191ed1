//! An opened segment.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::block::{BLOCK, holds};
use crate::error::ReadError;
use crate::map::Map;
use crate::model::{Package, PageRef, WindowRef};
use crate::table::Table;

use super::extent::{self, Broken, Record, StoredPart};
use super::layout::{Bad, Kind, Layout};
use super::record::{self, NameAt, ObjectAt};

/// Who places files: a package, or an input for files outside any.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub(crate) struct Source {
    pub(crate) package: Option<Package>,
    pub(crate) origin: String,
}

/// One of an object's placements as stored: a source of the segment, and a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Placed {
    pub(crate) source: u32,
    pub(crate) path: String,
}

/// An object's placements in one segment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) placed: Vec<Placed>,
    pub(crate) left_out: u64,
}

/// Why a file is no segment.
#[derive(Debug)]
pub(crate) enum SegmentError {
    Io(std::io::Error),
    Damaged(&'static str),
    OtherVersion(u32),
}

/// A mapped segment. Opening reads one block.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    map: Map,
    layout: Layout,
    name: Arc<str>,
    tables: [Table; 6],
}

impl Segment {
    pub(crate) fn open(path: &Path) -> Result<Self, SegmentError> {
        let name: Arc<str> = path
            .file_name()
            .map(|n| n.to_string_lossy())
            .unwrap_or_default()
            .into();
        let map = Map::open(path).map_err(SegmentError::Io)?;
        let trailer = map
            .len()
            .checked_sub(BLOCK as u64)
            .and_then(|at| map.get(at, BLOCK));
        let layout =
            Layout::open(trailer.ok_or(SegmentError::Damaged("too short"))?).map_err(|bad| match bad {
                Bad::Damaged => SegmentError::Damaged("trailer"),
                Bad::OtherVersion(version) => SegmentError::OtherVersion(version),
            })?;
        if layout.file_len() != Some(map.len()) {
            return Err(SegmentError::Damaged("length"));
        }
        let table = |kind: Kind, shape| {
            let at = layout.start(kind)?;
            Table::new(map.clone(), at, shape, &name, kind.name())
        };
        let [a, b, c, d, e, f] = layout.shapes;
        let tables = (|| {
            Some([
                table(Kind::Pages, a)?,
                table(Kind::Windows, b)?,
                table(Kind::Digests, c)?,
                table(Kind::Objects, d)?,
                table(Kind::Placements, e)?,
                table(Kind::Sources, f)?,
            ])
        })()
        .ok_or(SegmentError::Damaged("tables"))?;
        Ok(Self {
            map,
            layout,
            name,
            tables,
        })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The file's length.
    pub(crate) fn len(&self) -> u64 {
        self.map.len()
    }

    pub(crate) fn table(&self, kind: Kind) -> &Table {
        let [pages, windows, digests, objects, placements, sources] = &self.tables;
        match kind {
            Kind::Pages => pages,
            Kind::Windows => windows,
            Kind::Digests => digests,
            Kind::Objects => objects,
            Kind::Placements => placements,
            Kind::Sources => sources,
        }
    }

    /// First object.
    pub(crate) fn base(&self) -> u32 {
        self.layout.base
    }

    /// How many objects.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.table(Kind::Objects).len()).unwrap_or(u32::MAX)
    }

    /// Whether this segment describes an object.
    pub(crate) fn holds(&self, object: u32) -> bool {
        object
            .checked_sub(self.base())
            .is_some_and(|nth| nth < self.count())
    }

    /// Lets go of what is mapped of the file.
    pub(crate) fn let_go(&self) -> std::io::Result<()> {
        self.map.let_go()
    }

    /// Adds the places of a page to `found`; returns how many more there were.
    pub(crate) fn pages(
        &self,
        digest: &[u8; 32],
        found: &mut SmallVec<[PageRef; 2]>,
    ) -> Result<u64, ReadError> {
        let mut more = 0u64;
        self.table(Kind::Pages)
            .find(digest, |bytes| match record::read_page(bytes) {
                Ok(page) => found.push(page),
                Err(left_out) => more = more.saturating_add(left_out),
            })?;
        Ok(more)
    }

    /// The same for a window.
    pub(crate) fn windows(&self, hash: u64, found: &mut SmallVec<[WindowRef; 2]>) -> Result<u64, ReadError> {
        let mut more = 0u64;
        let key = record::mix(hash).to_be_bytes();
        self.table(Kind::Windows)
            .find(&key, |bytes| match record::read_window(bytes) {
                Ok(window) => found.push(window),
                Err(left_out) => more = more.saturating_add(left_out),
            })?;
        Ok(more)
    }

    /// The object with this file digest.
    pub(crate) fn by_digest(&self, digest: &[u8; 32]) -> Result<Option<u32>, ReadError> {
        let mut found = None;
        self.table(Kind::Digests)
            .find(digest, |bytes| found = Some(record::read_digest(bytes).1))?;
        Ok(found)
    }

    /// Where an object's extent is.
    pub(crate) fn object_at(&self, object: u32) -> Result<ObjectAt, ReadError> {
        let nth = object
            .checked_sub(self.base())
            .ok_or(ReadError::NoSuch("object"))?;
        self.table(Kind::Objects)
            .record(u64::from(nth), record::read_object)
    }

    /// An object's whole extent, unchecked: its blobs have their own checks.
    pub(crate) fn extent(&self, at: ObjectAt) -> Result<&[u8], ReadError> {
        let len = usize::try_from(at.len).unwrap_or(usize::MAX);
        let inside = at
            .at
            .checked_add(u64::from(at.len))
            .is_some_and(|end| end <= self.layout.heap);
        inside
            .then(|| self.map.get(at.at, len))
            .flatten()
            .ok_or_else(|| self.damaged("object", at.at))
    }

    /// An object's record.
    pub(crate) fn record(&self, at: ObjectAt) -> Result<Record, ReadError> {
        let tail = usize::try_from(at.record)
            .ok()
            .and_then(|start| self.extent(at).ok()?.get(start..));
        tail.ok_or(Broken)
            .and_then(extent::record)
            .map_err(|_| self.damaged("object", at.at))
    }

    /// One part, whole.
    pub(crate) fn part(&self, at: ObjectAt, part: &StoredPart) -> Result<nephoscope_recipe::Part, ReadError> {
        extent::part(self.extent(at)?, part).map_err(|Broken| self.damaged("part", at.at))
    }

    /// The bytes of a part's `nth` chunk.
    pub(crate) fn chunk(&self, at: ObjectAt, part: &StoredPart, nth: usize) -> Result<Vec<u8>, ReadError> {
        let chunk = part.chunks.get(nth).ok_or_else(|| self.damaged("part", at.at))?;
        extent::blob(self.extent(at)?, *chunk).map_err(|Broken| self.damaged("part", at.at))
    }

    /// What this segment says of where an object stands.
    pub(crate) fn placed(&self, object: u32) -> Result<Group, ReadError> {
        let mut at = None;
        let key = record::mix(u64::from(object)).to_be_bytes();
        self.table(Kind::Placements)
            .find(&key, |bytes| at = Some(record::read_placements(bytes).1))?;
        at.map_or(Ok(Group::default()), |at| self.group(at))
    }

    pub(crate) fn group(&self, at: NameAt) -> Result<Group, ReadError> {
        self.name_blob(at, "placement")
    }

    /// A source by its number in this segment.
    pub(crate) fn source(&self, number: u32) -> Result<Source, ReadError> {
        let at = self
            .table(Kind::Sources)
            .record(u64::from(number), record::read_source)?;
        self.name_blob(at, "source")
    }

    fn name_blob<T: serde::de::DeserializeOwned>(
        &self,
        at: NameAt,
        what: &'static str,
    ) -> Result<T, ReadError> {
        let damaged = || self.damaged(what, self.layout.heap.saturating_add(at.at));
        let end = at
            .at
            .checked_add(u64::from(at.len))
            .and_then(|end| end.checked_add(4))
            .ok_or_else(damaged)?;
        let len = usize::try_from(at.len).unwrap_or(usize::MAX);
        let start = self
            .layout
            .heap
            .checked_add(at.at)
            .filter(|_| end <= self.layout.names);
        let blob = start
            .and_then(|start| self.map.get(start, len.checked_add(4)?))
            .ok_or_else(damaged)?
            .to_vec();
        let (body, sum) = blob.split_last_chunk::<4>().ok_or_else(damaged)?;
        if !holds(body, at.at, *sum) {
            return Err(damaged());
        }
        postcard::from_bytes(body).map_err(|_| damaged())
    }

    pub(crate) fn damaged(&self, what: &'static str, at: u64) -> ReadError {
        ReadError::Damaged {
            segment: self.name.to_string(),
            what,
            at,
        }
    }
}
