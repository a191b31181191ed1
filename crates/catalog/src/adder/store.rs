//! What is known while adding: the catalog's segments, those written in this run, and what is pending.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::ReadError;
use crate::limits::{FLUSH_BYTES, MAX_PLACEMENTS_PER_OBJECT};
use crate::segment::Segment;
use crate::segment::read::{SegmentError, Source};
use crate::segment::write::Finished;
use crate::source::path::canonical;

use super::Stop;
use super::encode::Encoded;
use super::pending::Pending;
use super::summary::StoreCounts;

/// Where everything goes. Shared by the threads under one lock; what takes long is done before.
#[derive(Debug)]
pub(crate) struct Store {
    work: PathBuf,
    /// The catalog's and then this run's, in the order of their objects.
    segments: Vec<Segment>,
    written: Vec<Finished>,
    pending: Option<Pending>,
    counts: StoreCounts,
    memory: usize,
    first_new: u32,
}

fn end(segment: &Segment) -> u32 {
    segment.base().saturating_add(segment.count())
}

impl Store {
    pub(crate) fn new(work: &Path, segments: Vec<Segment>) -> io::Result<Self> {
        let base = segments.last().map_or(0, end);
        Ok(Self {
            work: work.to_owned(),
            segments,
            written: Vec::new(),
            pending: Some(Pending::new(work, base)?),
            counts: StoreCounts::default(),
            memory: FLUSH_BYTES,
            first_new: base,
        })
    }

    pub(crate) fn set_memory(&mut self, bytes: usize) {
        self.memory = bytes;
    }

    fn pending(&mut self) -> Result<&mut Pending, Stop> {
        self.pending
            .as_mut()
            .ok_or_else(|| Stop::Io(io::Error::other("the store is finished")))
    }

    /// The object with these contents. Its number holds until the next segment is written.
    fn find(&self, digest: &[u8; 32]) -> Result<Option<u32>, ReadError> {
        if let Some(id) = self.pending.as_ref().and_then(|pending| pending.find(digest)) {
            return Ok(Some(id));
        }
        for segment in &self.segments {
            if let Some(id) = segment.by_digest(digest)? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    pub(crate) fn knows(&self, digest: &[u8; 32]) -> Result<bool, Stop> {
        Ok(self.find(digest)?.is_some())
    }

    /// Takes an object, unless another thread was faster.
    pub(crate) fn insert(&mut self, encoded: &Encoded) -> Result<(), Stop> {
        if self.find(&encoded.digest)?.is_none() {
            self.pending()?.insert(encoded)?;
        }
        self.flush_if_full()
    }

    /// Says that the file with these contents stands there. Contents that were never inserted are passed over.
    pub(crate) fn place(&mut self, digest: &[u8; 32], source: Source, path: String) -> Result<(), Stop> {
        let Some(object) = self.find(digest)? else {
            return Ok(());
        };
        let mut there = 0;
        for segment in &self.segments {
            let group = segment.placed(object)?;
            there += group.placed.len();
            for placed in group.placed {
                let same_path = canonical(&placed.path) == canonical(&path);
                if same_path && segment.source(placed.source)?.package == source.package {
                    return Ok(());
                }
            }
        }
        if there >= MAX_PLACEMENTS_PER_OBJECT {
            // Not written again: adding the same thing twice must change nothing here either.
            self.counts.placements_left_out += 1;
            return Ok(());
        }
        match self.pending()?.place(object, source, path) {
            Some(true) => self.counts.placements += 1,
            Some(false) => self.counts.placements_left_out += 1,
            None => {}
        }
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<(), Stop> {
        if self
            .pending
            .as_ref()
            .is_some_and(|pending| pending.bytes() > self.memory)
        {
            self.flush(false)
        } else {
            Ok(())
        }
    }

    fn flush(&mut self, last: bool) -> Result<(), Stop> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        if !pending.is_empty() {
            let path = self.work.join(format!("{}.segment", self.written.len()));
            let finished = pending.write(&path, last)?;
            // Nothing but objects that were dropped: as if it had never been.
            if finished.is_empty() {
                std::fs::remove_file(&path)?;
            } else {
                self.segments.push(open(&path)?);
                self.written.push(finished);
            }
        }
        if !last {
            let base = self.segments.last().map_or(0, end);
            self.pending = Some(Pending::new(&self.work, base)?);
        }
        Ok(())
    }

    /// Writes what is pending. All segments, and how many at the end of them are new.
    pub(crate) fn finish(&mut self) -> Result<(New, StoreCounts), Stop> {
        self.flush(true)?;
        self.counts.objects = u64::from(self.segments.last().map_or(0, end).saturating_sub(self.first_new));
        let written = std::mem::take(&mut self.written);
        Ok((
            New {
                segments: std::mem::take(&mut self.segments),
                written,
                work: self.work.clone(),
            },
            self.counts,
        ))
    }
}

/// What a run has to commit.
#[derive(Debug)]
pub(crate) struct New {
    /// All segments, old and new.
    pub(crate) segments: Vec<Segment>,
    /// The new ones among them, at the end.
    pub(crate) written: Vec<Finished>,
    pub(crate) work: PathBuf,
}

/// Opens a segment that was just written.
pub(crate) fn open(path: &Path) -> io::Result<Segment> {
    Segment::open(path).map_err(|error| match error {
        SegmentError::Io(error) => error,
        other => io::Error::other(format!("{}: {other:?}", path.display())),
    })
}
