//! Adding: inputs are unpacked and recognised by all cores, kept in memory up to a bound, written as segments beside
//! the catalog, and made the catalog by one rename.
//!
//! ```text
//! inputs ─► units (a package, 64 files of a tree, a file) ─► threads: unpack ─► recognise ─► encode ─┐
//!                                                                  ▲  └─ files in waiting ─┘          ▼
//!                                                                  └── known already: placement ── Store
//! Store ─► [segment] … ─► merged with small older ones ─► CURRENT
//! ```
//!
//! Killed at any moment, an adder leaves the old catalog or the new one, and perhaps files that the next adder
//! removes.

mod commit;
mod encode;
mod inputs;
mod pending;
mod store;
mod summary;
mod work;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub use summary::{Progress, Refusal, Summary};

use crate::catalog::Catalog;
use crate::error::{OpenError, ReadError};
use crate::manifest::Manifest;

use store::Store;
use summary::Tally;

/// The directory that an adder works in, inside the catalog's.
pub(crate) const WORK: &str = "adding";

/// Adding cannot go on. What is wrong with an input is no such error; the [`Summary`] names it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// The catalog that is added to does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The catalog that is added to is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Somebody else is adding.
    #[error("another process is adding to the catalog at {}: wait for it to end", .0.display())]
    Busy(PathBuf),
    /// An input is not there or may not be read.
    #[error("{}: no such file or directory, or no permission to read it", path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write to the catalog at {}: see that there is space and that this user may write there", dir.display())]
    Write {
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Adds to a catalog; one at a time, readers are not disturbed. Nothing is added before [`Adder::commit`].
pub struct Adder {
    dir: PathBuf,
    /// Held until the adder is gone.
    _lock: File,
    manifest: Manifest,
    is_new: bool,
    store: Store,
    tally: Tally,
    threads: usize,
    progress: Box<dyn Fn(&Progress) + Sync + Send>,
}

impl std::fmt::Debug for Adder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adder")
            .field("dir", &self.dir)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

impl Adder {
    /// Starts adding to the catalog in a directory, which is made if it does not exist.
    ///
    /// # Errors
    /// The catalog there does not open, somebody else is adding, or the directory cannot be written.
    pub fn new(dir: &Path) -> Result<Self, AddError> {
        let write = |source| AddError::Write {
            dir: dir.to_owned(),
            source,
        };
        let existing = match Catalog::open(dir) {
            Err(OpenError::Missing(_)) => None,
            other => Some(other?),
        };
        drop(existing);
        std::fs::create_dir_all(dir).map_err(write)?;
        let lock = File::options()
            .create(true)
            .append(true)
            .open(dir.join("lock"))
            .map_err(write)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(AddError::Busy(dir.to_owned())),
            Err(std::fs::TryLockError::Error(source)) => return Err(write(source)),
        }
        // Only now does nobody else change it.
        let existing = match Catalog::open(dir) {
            Err(OpenError::Missing(_)) => None,
            other => Some(other?),
        };
        let manifest = existing
            .as_ref()
            .map(|c| c.manifest().clone())
            .unwrap_or_default();
        commit::clean(dir, &manifest).map_err(write)?;
        let work = dir.join(WORK);
        std::fs::create_dir(&work).map_err(write)?;
        let segments = existing
            .as_ref()
            .map(|c| c.segments().to_vec())
            .unwrap_or_default();
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
            is_new: existing.is_none(),
            manifest,
            store: Store::new(&work, segments).map_err(write)?,
            tally: Tally::default(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            progress: Box::new(|_| ()),
        })
    }

    /// Works with so many threads instead of one per core.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Calls this from any thread whenever there is progress.
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(&Progress) + Sync + Send + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Holds at most so many bytes of tables in memory before a segment is written.
    #[must_use]
    pub fn memory(mut self, bytes: usize) -> Self {
        self.store.set_memory(bytes);
        self
    }

    /// Takes in packages, directories of packages, root trees, and single files. An input that is not what it should
    /// be is refused and named in the [`Summary`]; the others are taken.
    ///
    /// # Errors
    /// An input does not exist, the catalog is damaged, or writing failed. Nothing is added then.
    pub fn add(&mut self, paths: &[PathBuf]) -> Result<(), AddError> {
        let plan = inputs::plan(paths, &mut self.tally)?;
        work::run(
            plan,
            &mut self.store,
            &mut self.tally,
            self.threads,
            self.progress.as_ref(),
        )
        .map_err(|error| error.at(&self.dir))
    }

    /// Makes everything that was taken in part of the catalog, at once.
    ///
    /// # Errors
    /// Writing failed; the catalog is as it was.
    pub fn commit(mut self) -> Result<Summary, AddError> {
        let write = |source| AddError::Write {
            dir: self.dir.clone(),
            source,
        };
        let (new, counts) = self.store.finish().map_err(|error| error.at(&self.dir))?;
        let changed = commit::commit(&self.dir, &self.manifest, new, self.is_new).map_err(write)?;
        Ok(std::mem::take(&mut self.tally).summary(counts, changed))
    }
}

impl Drop for Adder {
    fn drop(&mut self) {
        // What cannot be removed now, the next adder removes.
        let _ = std::fs::remove_dir_all(self.dir.join(WORK));
    }
}

/// Why the work stopped, before it is known where.
#[derive(Debug)]
pub(crate) enum Stop {
    Read(ReadError),
    Io(io::Error),
}

impl Stop {
    fn at(self, dir: &Path) -> AddError {
        match self {
            Self::Read(error) => AddError::Read(error),
            Self::Io(source) => AddError::Write {
                dir: dir.to_owned(),
                source,
            },
        }
    }
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
