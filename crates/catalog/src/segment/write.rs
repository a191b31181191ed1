//! Writing a segment: the heap while objects come in, then names, then each table in order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::block::check;
use crate::table::{Shape, TableWriter};

use super::layout::{Counts, Kind, Layout};
use super::read::{Group, Source};
use super::record::{self, NameAt, ObjectAt};

/// A segment being written. What it keeps in memory is about fifty bytes per object.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    path: PathBuf,
    out: Hashed,
    layout: Layout,
    objects: Vec<(ObjectAt, [u8; 32])>,
    placements: Vec<[u8; 24]>,
    sources: Vec<NameAt>,
    known: HashMap<Source, u32>,
}

/// A finished file that waits for its name.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) path: PathBuf,
    pub(crate) digest: [u8; 32],
    pub(crate) len: u64,
    pub(crate) base: u32,
    pub(crate) objects: u32,
    pub(crate) placements: u64,
}

impl Finished {
    /// Whether it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.objects == 0 && self.placements == 0
    }
}

/// A file and the digest of what went into it.
#[derive(Debug)]
struct Hashed {
    file: BufWriter<File>,
    hash: Box<blake3::Hasher>,
    len: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl SegmentWriter {
    pub(crate) fn create(path: &Path, base: u32) -> io::Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
        Ok(Self {
            path: path.to_owned(),
            out: Hashed {
                file,
                hash: Box::default(),
                len: 0,
            },
            layout: Layout {
                base,
                heap: 0,
                names: 0,
                shapes: Kind::ALL.map(|kind| kind.shape(0)),
                counts: Counts::default(),
            },
            objects: Vec::new(),
            placements: Vec::new(),
            sources: Vec::new(),
            known: HashMap::new(),
        })
    }

    /// Appends the next object's extent. All objects come before the first placement.
    pub(crate) fn object(
        &mut self,
        digest: [u8; 32],
        kind: u32,
        extent: &[u8],
        record: u32,
    ) -> io::Result<()> {
        let len = u32::try_from(extent.len()).map_err(io::Error::other)?;
        self.objects.push((
            ObjectAt {
                at: self.layout.heap,
                len,
                record,
                kind,
            },
            digest,
        ));
        self.out.write_all(extent)?;
        self.layout.heap += u64::from(len);
        Ok(())
    }

    /// The number of a source in this segment.
    pub(crate) fn source(&mut self, source: &Source) -> io::Result<u32> {
        if let Some(number) = self.known.get(source) {
            return Ok(*number);
        }
        let number = u32::try_from(self.sources.len()).map_err(io::Error::other)?;
        let at = self.name(&postcard::to_stdvec(source).map_err(io::Error::other)?)?;
        self.sources.push(at);
        self.known.insert(source.clone(), number);
        Ok(number)
    }

    /// Says where an object stands; once per object.
    pub(crate) fn place(&mut self, object: u32, group: &Group) -> io::Result<()> {
        let at = self.name(&postcard::to_stdvec(group).map_err(io::Error::other)?)?;
        self.layout.counts.placements += group.placed.len() as u64;
        self.layout.counts.placements_left_out += group.left_out;
        self.placements.push(record::placements(object, at));
        Ok(())
    }

    fn name(&mut self, body: &[u8]) -> io::Result<NameAt> {
        let at = NameAt {
            at: self.layout.names,
            len: u32::try_from(body.len()).map_err(io::Error::other)?,
        };
        self.out.write_all(body)?;
        self.out.write_all(&check(body, at.at).to_le_bytes())?;
        self.layout.names += u64::from(at.len) + 4;
        Ok(at)
    }

    /// Writes the tables. `pages` and `windows` push their sorted records; the numbers are how many at most.
    pub(crate) fn finish(
        mut self,
        pages: (u64, impl FnOnce(&mut Rows<'_>) -> io::Result<u64>),
        windows: (u64, impl FnOnce(&mut Rows<'_>) -> io::Result<u64>),
    ) -> io::Result<Finished> {
        let base = self.layout.base;
        let (shape, left_out) = self.rows(Kind::Pages, pages.0, pages.1)?;
        let (pages_shape, pages_left_out) = (shape, left_out);
        let (windows_shape, windows_left_out) = self.rows(Kind::Windows, windows.0, windows.1)?;
        self.layout.counts.pages_left_out = pages_left_out;
        self.layout.counts.windows_left_out = windows_left_out;

        let objects = std::mem::take(&mut self.objects);
        let count = u32::try_from(objects.len()).map_err(io::Error::other)?;
        base.checked_add(count)
            .filter(|end| *end < record::MORE)
            .ok_or_else(|| io::Error::other("too many objects"))?;
        let mut digests: Vec<_> = (base..)
            .zip(&objects)
            .map(|(id, (_, d))| record::digest(d, id))
            .collect();
        digests.sort_unstable();
        let digests_shape = self.all(Kind::Digests, digests.iter().map(<[u8; 36]>::as_slice))?;
        let records: Vec<_> = objects.iter().map(|(at, _)| record::object(*at)).collect();
        let objects_shape = self.all(Kind::Objects, records.iter().map(<[u8; 20]>::as_slice))?;
        let mut placements = std::mem::take(&mut self.placements);
        placements.sort_unstable();
        let placements_shape = self.all(Kind::Placements, placements.iter().map(<[u8; 24]>::as_slice))?;
        let sources: Vec<_> = std::mem::take(&mut self.sources)
            .into_iter()
            .map(record::source)
            .collect();
        let sources_shape = self.all(Kind::Sources, sources.iter().map(<[u8; 12]>::as_slice))?;

        self.layout.shapes = [
            pages_shape,
            windows_shape,
            digests_shape,
            objects_shape,
            placements_shape,
            sources_shape,
        ];
        let trailer = self.layout.seal();
        self.out.write_all(&trailer)?;
        self.out.flush()?;
        self.out.file.get_ref().sync_all()?;
        let digest = *self.out.hash.finalize().as_bytes();
        Ok(Finished {
            path: self.path,
            digest,
            len: self.out.len,
            base,
            objects: count,
            placements: self.layout.counts.placements,
        })
    }

    fn rows<T>(
        &mut self,
        kind: Kind,
        expected: u64,
        fill: impl FnOnce(&mut Rows<'_>) -> io::Result<T>,
    ) -> io::Result<(Shape, T)> {
        let mut rows = Rows(TableWriter::new(&mut self.out, kind.shape(expected)));
        let value = fill(&mut rows)?;
        Ok((rows.0.finish()?, value))
    }

    fn all<'r>(&mut self, kind: Kind, records: impl ExactSizeIterator<Item = &'r [u8]>) -> io::Result<Shape> {
        let expected = records.len() as u64;
        let (shape, ()) = self.rows(kind, expected, |rows| {
            records.into_iter().try_for_each(|r| rows.push(r))
        })?;
        Ok(shape)
    }
}

/// Takes the rows of one table.
#[derive(Debug)]
pub(crate) struct Rows<'w>(TableWriter<&'w mut Hashed>);

impl Rows<'_> {
    pub(crate) fn push(&mut self, record: &[u8]) -> io::Result<()> {
        self.0.push(record)
    }
}
