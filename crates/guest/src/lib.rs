//! The guest as data.
//!
//! Addresses of every level of trust, pages and their digest-sized pieces, the events that a driver gives,
//! the coverage it vouches for, and the small traits for what it can lend. Nothing here reads a guest; layers
//! above do.

mod address;
mod capability;
mod coverage;
mod event;
mod interpreted;
mod page;

pub use address::{Gfn, Gpa, Gva, Root, VcpuId};
pub use capability::{MemoryFault, PhysicalMemory, Pieces, read_pieces};
pub use coverage::{Attribution, CodeCoverage, Coverage, GapReason};
pub use event::{
    CodeCaptured, CodeMapped, Event, Executed, FileHeld, FileSeen, Gap, Lifecycle, MappedPage, PackageSaid,
    PageAccessed, Privilege, Stamped,
};
pub use interpreted::{INTERPRETED_ENDS, is_script};
pub use page::{PAGE_SHIFT, PAGE_SIZE, PageBytes, PageId};
