//! A guest's memory in a file.
//!
//! ```text
//!  ELF core (QEMU's dump-guest-memory) ─┐
//!  LiME image ──────────────────────────┼─► pieces: GPA range, place in the file ─► Dump: bytes
//!  anything else: raw, from address 0 ──┘
//! ```
//!
//! The file is mapped, not read: a dump of many gigabytes costs what is looked at.

mod elf;
mod lime;
mod pieces;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nephoscope_guest::{Gpa, MemoryFault, PAGE_SIZE, PhysicalMemory};
use thiserror::Error;

use crate::mapped_file::MappedFile;
use pieces::{Piece, Pieces};

pub use elf::{CpuRegisters, Machine};

/// Why a file is no dump that can be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DumpError {
    /// It has bytes that its format forbids.
    #[error("{what}, at byte {at} of the file")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where in the file.
        at: u64,
    },
    /// A range of memory lies beyond the end of the file.
    #[error(
        "the file ends at byte {file_bytes}, but {len} bytes of memory at {gpa} should begin at {at}: it is not whole"
    )]
    CutShort {
        /// The guest-physical address.
        gpa: Gpa,
        /// Where it should be in the file.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// The file's length.
        file_bytes: u64,
    },
    /// Two ranges have the same memory.
    #[error("the memory at {gpa} is in it twice")]
    Overlap {
        /// Where the second begins.
        gpa: Gpa,
    },
    /// There are more ranges than are taken.
    #[error("it has more than {} ranges of memory", pieces::MAX_PIECES)]
    TooMany,
    /// No memory at all.
    #[error("there is no memory in it")]
    Nothing,
    /// Neither of the formats with a header, and its length is no number of pages.
    #[error(
        "it is neither an ELF core nor a LiME image, and no raw image either: its {0} bytes are no number of pages"
    )]
    NoFormat(u64),
}

/// Why a file cannot be opened as a dump.
#[derive(Debug, Error)]
pub enum OpenDumpError {
    /// The file cannot be opened or mapped.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no dump.
    #[error("{path} is no dump of a guest's memory")]
    Dump {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: DumpError,
    },
}

/// How a dump is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DumpFormat {
    /// An ELF core of this machine.
    Elf(Machine),
    /// LiME's.
    Lime,
    /// Memory from address 0 on, and nothing else.
    Raw,
}

/// A dump.
#[derive(Debug)]
pub struct Dump {
    file: MappedFile,
    format: DumpFormat,
    pieces: Pieces,
    cpus: Vec<CpuRegisters>,
}

impl Dump {
    /// Opens a dump; its first bytes tell the format.
    ///
    /// # Errors
    /// [`OpenDumpError`] if the file cannot be opened, or is no dump.
    pub fn open(path: &Path) -> Result<Self, OpenDumpError> {
        let mapped = File::open(path).and_then(|file| MappedFile::new(&file));
        let file = mapped.map_err(|source| OpenDumpError::Open {
            path: path.into(),
            source,
        })?;
        Self::of(file).map_err(|source| OpenDumpError::Dump {
            path: path.into(),
            source,
        })
    }

    fn of(file: MappedFile) -> Result<Self, DumpError> {
        let mut magic = [0; 4];
        let _ = file.read(0, &mut magic);
        let (format, pieces, cpus) = match magic {
            elf::MAGIC => {
                let core = elf::core(&file)?;
                (DumpFormat::Elf(core.machine), core.pieces, core.cpus)
            }
            lime::MAGIC => (DumpFormat::Lime, lime::pieces(&file)?, Vec::new()),
            _ if !file.len().is_multiple_of(PAGE_SIZE as u64) => {
                return Err(DumpError::NoFormat(file.len()));
            }
            _ => {
                let all = Piece {
                    gpa: 0,
                    at: 0,
                    len: file.len(),
                    zeros: 0,
                };
                (DumpFormat::Raw, vec![all], Vec::new())
            }
        };
        Ok(Self {
            pieces: Pieces::new(pieces, file.len())?,
            file,
            format,
            cpus,
        })
    }

    /// How it is written.
    #[must_use]
    pub const fn format(&self) -> DumpFormat {
        self.format
    }

    /// The registers of each CPU, where the format has them.
    #[must_use]
    pub fn cpus(&self) -> &[CpuRegisters] {
        &self.cpus
    }

    /// The memory that is in it: first address and bytes of each range, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = (Gpa, u64)> {
        self.pieces.ranges()
    }
}

impl PhysicalMemory for Dump {
    fn reads_pieces(&self) -> bool {
        true
    }

    fn next_data(&self, from: Gpa, end: Gpa) -> Option<(Gpa, Gpa)> {
        let (first, last) = self.pieces.next_data(from.0, end.0)?;
        Some((Gpa(first), Gpa(last)))
    }

    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let mut gpa = at.0;
        let mut left = buf;
        while !left.is_empty() {
            let fault = MemoryFault { at: Gpa(gpa) };
            let piece = self.pieces.of(gpa).ok_or(fault)?;
            let offset = gpa - piece.gpa;
            let in_file = piece.len.saturating_sub(offset);
            let here = if in_file > 0 {
                in_file
            } else {
                piece.len + piece.zeros - offset
            };
            let here = usize::try_from(here).unwrap_or(usize::MAX).min(left.len());
            let (part, rest) = left.split_at_mut_checked(here).ok_or(fault)?;
            if in_file > 0 {
                self.file.read(piece.at + offset, part).ok_or(fault)?;
            } else {
                part.fill(0);
            }
            left = rest;
            if !left.is_empty() {
                gpa = gpa.checked_add(here as u64).ok_or(fault)?;
            }
        }
        Ok(())
    }
}
