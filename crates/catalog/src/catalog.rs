//! Reading: which file, package and version is this page of?

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nephoscope_guest::{PAGE_SIZE, PageBytes};
use nephoscope_recipe::{ObjectKind, Part, PartKind};
use smallvec::SmallVec;

use crate::cache::Cache;
use crate::error::{OpenError, ReadError};
use crate::limits::{OBJECT_CACHE, PART_CACHE_BYTES};
use crate::manifest::Manifest;
use crate::model::{Found, Info, ObjectId, ObjectInfo, PageRef, Placement, WindowRef};
use crate::segment::Segment;
use crate::segment::extent::{CHUNK, StoredPart};
use crate::segment::layout::Kind;
use crate::segment::record::{KINDS, kind_number, read_object};

/// An opened catalog: what it was when it was opened, for as long as it is open. Other processes may add
/// meanwhile; [`Catalog::newer`] moves to what they made. Share it between threads in an [`Arc`].
#[derive(Debug)]
pub struct Catalog {
    dir: PathBuf,
    manifest: Manifest,
    segments: Vec<Segment>,
    objects: Cache<u32, Loaded>,
    parts: Cache<(u32, u16), Part>,
}

impl Catalog {
    /// Opens the catalog in a directory: maps its segments and reads one block of each.
    ///
    /// # Errors
    /// There is none, it is something else, of another version, or damaged.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        // An adder may replace the segments between the manifest and them; then there is a new manifest.
        let mut manifest = Manifest::read(dir)?;
        for _ in 0..8 {
            match open_segments(dir, &manifest) {
                Ok(segments) => return Ok(Self::new(dir, manifest, segments)),
                Err(error) => {
                    let again = Manifest::read(dir)?;
                    if again == manifest {
                        return Err(error);
                    }
                    manifest = again;
                }
            }
        }
        Err(OpenError::Damaged {
            dir: dir.to_owned(),
            what: "it is replaced faster than it opens".to_owned(),
        })
    }

    fn new(dir: &Path, manifest: Manifest, segments: Vec<Segment>) -> Self {
        let (objects, parts) = (Cache::new(OBJECT_CACHE), Cache::new(PART_CACHE_BYTES));
        Self {
            dir: dir.to_owned(),
            manifest,
            segments,
            objects,
            parts,
        }
    }

    /// The catalog as it is now, if it was added to since this one was opened. Object ids stay valid.
    ///
    /// # Errors
    /// As [`Catalog::open`].
    pub fn newer(&self) -> Result<Option<Self>, OpenError> {
        if Manifest::read(&self.dir)? == self.manifest {
            return Ok(None);
        }
        Self::open(&self.dir).map(Some)
    }

    /// Lets go of the parts of its files that are in this process's memory: they stay in the kernel's cache as long as there is
    /// room, and come back when they are asked for.
    ///
    /// # Errors
    /// The system does not do it.
    pub fn let_go(&self) -> std::io::Result<()> {
        self.segments.iter().try_for_each(Segment::let_go)
    }

    /// The directory it was opened from.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a page's bytes stand, by the BLAKE3 of its 4096 bytes: sorted, at most
    /// [`crate::limits::MAX_REFS_PER_PAGE`] per segment.
    ///
    /// # Errors
    /// The records are damaged.
    pub fn pages(&self, digest: &[u8; 32]) -> Result<Vec<PageRef>, ReadError> {
        self.pages_counted(digest).map(|found| found.refs.into_vec())
    }

    /// The same, and how many places were left out because the page stands nearly everywhere.
    ///
    /// # Errors
    /// The records are damaged.
    pub fn pages_counted(&self, digest: &[u8; 32]) -> Result<Found<PageRef>, ReadError> {
        let mut found = Found {
            refs: SmallVec::new(),
            left_out: 0,
        };
        for segment in &self.segments {
            let more = segment.pages(digest, &mut found.refs)?;
            found.left_out = found.left_out.saturating_add(more);
        }
        Ok(found)
    }

    /// Where a content window stands, by the hash that `nephoscope_recipe` gives it: at most
    /// [`crate::limits::MAX_REFS_PER_WINDOW`] per segment.
    ///
    /// # Errors
    /// The records are damaged.
    pub fn windows(&self, hash: u64) -> Result<Vec<WindowRef>, ReadError> {
        self.windows_counted(hash).map(|found| found.refs.into_vec())
    }

    /// The same, and how many places were left out.
    ///
    /// # Errors
    /// The records are damaged.
    pub fn windows_counted(&self, hash: u64) -> Result<Found<WindowRef>, ReadError> {
        let mut found = Found {
            refs: SmallVec::new(),
            left_out: 0,
        };
        for segment in &self.segments {
            let more = segment.windows(hash, &mut found.refs)?;
            found.left_out = found.left_out.saturating_add(more);
        }
        Ok(found)
    }

    /// The object with these contents, by the BLAKE3 of the whole file.
    ///
    /// # Errors
    /// The records are damaged.
    pub fn by_digest(&self, digest: &[u8; 32]) -> Result<Option<ObjectId>, ReadError> {
        for segment in &self.segments {
            if let Some(object) = segment.by_digest(digest)? {
                return Ok(Some(ObjectId(object)));
            }
        }
        Ok(None)
    }

    fn segment(&self, object: ObjectId) -> Result<&Segment, ReadError> {
        self.segments
            .iter()
            .find(|s| s.holds(object.0))
            .ok_or(ReadError::NoSuch("object"))
    }

    fn loaded(&self, object: ObjectId) -> Result<Arc<Loaded>, ReadError> {
        self.objects.get(object.0, || {
            let loaded = Loaded::read(self.segment(object)?, object)?;
            // A kernel's description with its exported symbols counts as many.
            let weight = 1 + loaded.info.facts.exports.len() as u64 / 16;
            Ok((loaded, weight))
        })
    }

    /// What an object is.
    ///
    /// # Errors
    /// There is no such object, or its record is damaged.
    pub fn object(&self, object: ObjectId) -> Result<Arc<ObjectInfo>, ReadError> {
        self.loaded(object).map(|loaded| loaded.info.clone())
    }

    /// An object for somebody who looks at a great many once: nothing of it is kept for the next caller.
    ///
    /// # Errors
    /// There is no such object, or its record is damaged.
    pub fn once(&self, object: ObjectId) -> Result<Once<'_>, ReadError> {
        let segment = self.segment(object)?;
        let loaded = Loaded::read(segment, object)?;
        Ok(Once {
            segment,
            object,
            loaded,
        })
    }

    /// One of an object's parts, decoded; kept for the next caller.
    ///
    /// # Errors
    /// There is no such part, or it is damaged.
    pub fn part(&self, object: ObjectId, part: u16) -> Result<Arc<Part>, ReadError> {
        self.parts.get((object.0, part), || {
            let part = self.loaded(object)?.part(self.segment(object)?, object, part)?;
            // Sites are sixteen bytes each; the sets they share are few.
            let weight = (part.bytes.len() as u64).saturating_add(part.sites.len() as u64 * 16);
            Ok((part, weight))
        })
    }

    /// The bytes of an executable page of a user file, as the page cache holds it, by its number in the file;
    /// `None` if no executable segment maps it. Decodes 128 KiB, however large the file.
    ///
    /// # Errors
    /// There is no such object, or it is damaged.
    pub fn page_bytes(&self, object: ObjectId, number: u32) -> Result<Option<PageBytes>, ReadError> {
        let loaded = self.loaded(object)?;
        let Some((stored, at)) = find_page(&loaded, number) else {
            return Ok(None);
        };
        let segment = self.segment(object)?;
        let place = segment.object_at(object.0)?;
        // CHUNK is a multiple of the page, and a part of user text starts at a page.
        let Ok(at) = usize::try_from(at) else {
            return Ok(None);
        };
        let chunk = segment.chunk(place, stored, at / CHUNK)?;
        let mut page = PageBytes::zeroed();
        let bytes = chunk.get(at % CHUNK..).unwrap_or_default();
        for (to, from) in page.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(Some(page))
    }

    /// Where an object stands. Empty for an object that the catalog does not place.
    ///
    /// # Errors
    /// The records are damaged.
    pub fn placements(&self, object: ObjectId) -> Result<Vec<Placement>, ReadError> {
        let mut all = Vec::new();
        for segment in &self.segments {
            for placed in segment.placed(object.0)?.placed {
                let source = segment.source(placed.source)?;
                all.push(Placement {
                    package: source.package,
                    path: placed.path,
                    origin: source.origin,
                });
            }
        }
        all.sort();
        Ok(all)
    }

    /// Every object of a kind, in order. Reads the object table, 20 bytes each.
    ///
    /// # Errors
    /// The records are damaged.
    pub fn objects_of_kind(&self, kind: ObjectKind) -> Result<Vec<ObjectId>, ReadError> {
        let wanted = kind_number(kind);
        let mut found = Vec::new();
        self.each_object(|object, number| {
            if number == wanted {
                found.push(object);
            }
        })?;
        Ok(found)
    }

    fn each_object(&self, mut each: impl FnMut(ObjectId, u32)) -> Result<(), ReadError> {
        for segment in &self.segments {
            let table = segment.table(Kind::Objects);
            let mut object = segment.base();
            for number in 0..table.data_blocks() {
                let block = table.block(number)?;
                for record in table.records(number, &block) {
                    each(ObjectId(object), read_object(record).kind);
                    object = object.saturating_add(1);
                }
            }
        }
        Ok(())
    }

    /// How much is in it.
    ///
    /// # Errors
    /// The object table is damaged.
    pub fn info(&self) -> Result<Info, ReadError> {
        let mut info = Info {
            segments: self.segments.len() as u64,
            ..Info::default()
        };
        for segment in &self.segments {
            let counts = segment.layout().counts;
            info.objects += u64::from(segment.count());
            info.pages += segment.table(Kind::Pages).len();
            info.windows += segment.table(Kind::Windows).len();
            info.sources += segment.table(Kind::Sources).len();
            info.bytes += segment.len();
            info.pages_left_out += counts.pages_left_out;
            info.windows_left_out += counts.windows_left_out;
            info.placements += counts.placements;
            info.placements_left_out += counts.placements_left_out;
        }
        let mut kinds = KINDS.map(|kind| (kind, 0u64));
        self.each_object(|_, number| {
            if let Some((_, count)) = usize::try_from(number).ok().and_then(|n| kinds.get_mut(n)) {
                *count += 1;
            }
        })?;
        info.kinds = kinds.to_vec();
        Ok(info)
    }

    /// Reads everything and says what is not as it was written.
    #[must_use]
    pub fn verify(&self) -> crate::verify::Report {
        crate::verify::verify_manifest(&self.dir, &self.manifest)
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// What a record says of an object, and where its parts are.
#[derive(Debug)]
struct Loaded {
    info: Arc<ObjectInfo>,
    parts: Vec<StoredPart>,
}

impl Loaded {
    fn read(segment: &Segment, object: ObjectId) -> Result<Self, ReadError> {
        let record = segment.record(segment.object_at(object.0)?)?;
        let info = ObjectInfo {
            digest: record.digest,
            file_len: record.file_len,
            kind: record.kind,
            facts: record.facts,
            loads: record.loads,
            parts: record.parts.iter().map(|part| part.info.clone()).collect(),
        };
        Ok(Self {
            info: Arc::new(info),
            parts: record.parts,
        })
    }

    fn part(&self, segment: &Segment, object: ObjectId, part: u16) -> Result<Part, ReadError> {
        let stored = self.parts.get(usize::from(part));
        segment.part(
            segment.object_at(object.0)?,
            stored.ok_or(ReadError::NoSuch("part"))?,
        )
    }
}

/// An object of which nothing is kept.
#[derive(Debug)]
pub struct Once<'a> {
    segment: &'a Segment,
    object: ObjectId,
    loaded: Loaded,
}

impl Once<'_> {
    /// What it is.
    #[must_use]
    pub fn info(&self) -> &ObjectInfo {
        &self.loaded.info
    }

    /// One of its parts, decoded.
    ///
    /// # Errors
    /// There is no such part, or it is damaged.
    pub fn part(&self, part: u16) -> Result<Part, ReadError> {
        self.loaded.part(self.segment, self.object, part)
    }
}

/// The part that holds a page of the file, and where in the part the page starts.
fn find_page(loaded: &Loaded, number: u32) -> Option<(&StoredPart, u64)> {
    const MASK: u64 = !(PAGE_SIZE as u64 - 1);
    let offset = u64::from(number).checked_mul(PAGE_SIZE as u64)?;
    for load in loaded.info.loads.iter().filter(|load| load.execute) {
        let start = load.offset & MASK;
        let end = load.offset.saturating_add(load.file_len);
        if offset < start || offset >= end {
            continue;
        }
        let va = (load.va & MASK).checked_add(offset - start)?;
        for part in loaded
            .parts
            .iter()
            .filter(|part| part.info.kind == PartKind::UserText)
        {
            let at = va.checked_sub(part.info.link);
            if let Some(at) = at.filter(|at| *at < part.info.len) {
                return Some((part, at));
            }
        }
    }
    None
}

fn open_segments(dir: &Path, manifest: &Manifest) -> Result<Vec<Segment>, OpenError> {
    let mut segments = Vec::with_capacity(manifest.entries.len());
    for entry in &manifest.entries {
        let segment = crate::verify::open_entry(dir, entry)?;
        segments.push(segment);
    }
    Ok(segments)
}
