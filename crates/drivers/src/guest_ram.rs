//! The RAM and ROM of a guest under QEMU, in the address space of the QEMU process.
//!
//! ```text
//!  info ramblock ─► RamBlock: name, host address, size ─┐
//!  info mtree -f ─► FlatRange: GPA range, region name ──┴─► RamMap: GPA ⇄ HVA ─► ProcessRam: bytes
//!                       gpa2hva, per range: must agree ─┘
//! ```
//!
//! A map is what holds when it is read. A guest moves memory around at any time (on x86 the PAM registers switch
//! 0xc0000–0xfffff between ROM and RAM, a BAR moves video RAM); after such a change read the map again. Several
//! guest-physical ranges can name one host range.

mod flat_view;
mod gather;
mod map;
mod process;
mod ram_block;
mod read;

use std::fmt;

use thiserror::Error;

use crate::qmp::QmpError;

pub use flat_view::{FlatRange, MemoryKind};
pub use gather::{Gatherer, serve};
pub use map::{LeftOut, RamMap, Segment, WhyLeftOut};
pub use process::{ProcessRam, ProcessRamError};
pub use ram_block::RamBlock;

/// An address in the QEMU process (QEMU's own word: host virtual address), in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hva(pub u64);

impl fmt::Debug for Hva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hva({:#x})", self.0)
    }
}

impl fmt::Display for Hva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Why there is no map.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RamMapError {
    /// QEMU did not answer.
    #[error("QEMU did not say where its guest's memory is")]
    Qmp(#[source] QmpError),
    /// `info ramblock` has no HVA column: QEMU before 8.0.
    #[error("this QEMU does not print host addresses of memory; 8.0 or later does")]
    NoHostAddresses,
    /// A line has not the form that is expected.
    #[error("{command}, line {line}: expected {expected}")]
    Malformed {
        /// The monitor command that printed it.
        command: &'static str,
        /// Counted from 1.
        line: usize,
        /// What should have been there.
        expected: &'static str,
    },
    /// `info mtree -f` shows no address space "memory".
    #[error("info mtree -f shows no flat view of the system memory")]
    NoFlatView,
    /// More blocks or ranges than are taken; no machine has as many.
    #[error("{command} prints more than {limit} entries")]
    TooMany {
        /// The monitor command.
        command: &'static str,
        /// How many are taken.
        limit: usize,
    },
    /// Two ranges of the flat view overlap, which a flat view cannot.
    #[error("info mtree -f shows overlapping ranges")]
    Overlap,
}
