//! A disk image: raw or qcow2, never guessed.
//!
//! A guest writes what it likes to a raw image, the header of a qcow2 one included. So the format is told by whoever starts the VM,
//! and a backing file without a format is refused.

mod header;
mod lock;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use imago::file::File as Storage;
use imago::format::gate::DenyImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, FormatDriverBuilder, StorageOpenOptions};

pub use header::HeaderError;

use crate::layout::Blocks;

/// Bytes of a sector, whatever the disk's block size (virtio 1.2, 5.2.4).
pub(crate) const SECTOR: u64 = 512;

/// How an image is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's, version 2 or 3, without a backing file.
    Qcow2,
}

/// An image cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenImageError {
    /// The file.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody has it.
    #[error("{0} is in use by another process, which may write to it: end that VM or tool first")]
    Locked(PathBuf),
    /// Its header.
    #[error("{path} is not an image that can be served")]
    Header {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: HeaderError,
    },
    /// What it says.
    #[error("{path} cannot be read as an image")]
    Format {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An open image. Its lock is held as long as it lives.
#[derive(Debug)]
pub struct Image {
    access: FormatAccess<Storage>,
    /// Of an image that caches where its clusters are, in this process.
    caches: bool,
    read_only: bool,
    sectors: u64,
    _lock: File,
}

impl Image {
    /// Opens an image, and locks it against everybody who would write to it, as QEMU does.
    ///
    /// # Errors
    /// If it cannot be opened, somebody else has it, or it is none of this format or one that has parts elsewhere.
    pub fn open(path: &Path, format: Format, read_only: bool) -> Result<Self, OpenImageError> {
        let at = || path.to_path_buf();
        let opening = |source| OpenImageError::Open { path: at(), source };
        let file = File::options()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(opening)?;
        let lock = file.try_clone().map_err(opening)?;
        if !lock::take(&lock, !read_only).map_err(opening)? {
            return Err(OpenImageError::Locked(at()));
        }
        let formatting = |source| OpenImageError::Format { path: at(), source };
        if format == Format::Qcow2 {
            header::check(&file).map_err(|source| OpenImageError::Header { path: at(), source })?;
        }
        let options = StorageOpenOptions::new().filename(path).write(!read_only);
        let storage = Storage::from_open_file(file, options).map_err(opening)?;
        let access = match format {
            Format::Raw => FormatAccess::new(Raw::open_image(storage, !read_only).map_err(formatting)?),
            Format::Qcow2 => {
                let qcow2 = Qcow2::<Storage>::builder(storage)
                    .write(!read_only)
                    .backing(None)
                    .data_file(None)
                    .open(DenyImplicitOpenGate::default())
                    .map_err(formatting)?;
                FormatAccess::new(qcow2)
            }
        };
        Ok(Self {
            sectors: access.size() / SECTOR,
            access,
            caches: format == Format::Qcow2,
            read_only,
            _lock: lock,
        })
    }

    /// How many sectors it has. A rest of a raw file that is less than one is not served.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether nobody may write.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn read(&self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        self.access.read(into, sector.saturating_mul(SECTOR))
    }

    pub(crate) fn write(&self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        self.access.write(bytes, sector.saturating_mul(SECTOR))
    }

    /// Afterwards these sectors read as zeros.
    pub(crate) fn zero(&self, sector: u64, sectors: u64) -> io::Result<()> {
        let (at, len) = (sector.saturating_mul(SECTOR), sectors.saturating_mul(SECTOR));
        self.access.write_zeroes(at, len)
    }

    /// Nothing that was written is in this process any more. To be called before a write is answered.
    pub(crate) fn settle(&self) -> io::Result<()> {
        if self.caches { self.access.flush() } else { Ok(()) }
    }

    /// What was written is on the medium.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.access.flush()?;
        self.access.sync()
    }
}

impl Blocks for Image {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.access.read(into, at)
    }

    fn len(&self) -> u64 {
        self.sectors.saturating_mul(SECTOR)
    }
}
