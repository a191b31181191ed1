//! A file that does not change any more, mapped. The one place of this crate with `unsafe`.
#![allow(
    unsafe_code,
    reason = "mapping a file is a promise that only its owner can keep; it is kept here"
)]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The bytes of a finished segment. Cloning shares the mapping.
///
/// A segment is never written once it has its name, only unlinked, and an unlinked file lives as long as its
/// mapping: that is what lets readers go on while another process adds. Somebody who truncates a segment in
/// place kills its readers with `SIGBUS`, as everywhere where files are mapped.
#[derive(Clone, Debug)]
pub(crate) struct Map(Arc<memmap2::Mmap>);

impl Map {
    /// Maps the whole of a file.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private and read-only. Bytes that another process changes underneath are the
        // remaining hazard; every reader in this crate copies the bytes out (`block::open`, `heap::open`) and
        // checks the copy, so no reference whose referent must not change is kept or branched upon twice.
        let map = unsafe { memmap2::MmapOptions::new().map(&file) }?;
        // Look-ups land anywhere: reading ahead would make resident what nobody asked for.
        #[cfg(unix)]
        map.advise(memmap2::Advice::Random)?;
        Ok(Self(Arc::new(map)))
    }

    /// Bytes `[at, at + len)`, if the file has them.
    pub(crate) fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        let at = usize::try_from(at).ok()?;
        self.0.get(at..at.checked_add(len)?)
    }

    /// Lets go of what is mapped of the file. The kernel's cache keeps it as long as there is room, and what is asked for again is
    /// mapped again.
    pub(crate) fn let_go(&self) -> io::Result<()> {
        #[cfg(unix)]
        // SAFETY: the mapping is of a file and read-only, so nothing is lost: the same bytes come back from the file, which
        // nobody writes to any more (see `open`; references into the mapping do not outlive a copy either way).
        unsafe {
            self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed)?;
        }
        Ok(())
    }

    /// The file's length.
    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }
}
