//! Events, as the drivers give them (`docs/design.md` §3).

use serde::{Deserialize, Serialize};

use crate::address::{Gpa, Gva, Root, VcpuId};
use crate::coverage::{Coverage, GapReason};
use crate::page::{PageBytes, PageId};

/// An event with the time at which the driver saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamped {
    /// Nanoseconds since the watch began (the host's monotonic clock).
    pub at_ns: u64,
    /// What happened.
    pub event: Event,
}

/// What a driver can say.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A page is about to execute for the first time in this generation.
    CodeCaptured(Box<CodeCaptured>),
    /// An address space executed in a captured page for the first time.
    Executed(Executed),
    /// A root sees a page at this virtual address (that of the page's first byte).
    Located {
        /// The page.
        page: PageId,
        /// The root.
        root: Root,
        /// The address.
        va: Gva,
    },
    /// All that an address space, or the kernel, has mapped executable at this moment.
    CodeMapped(CodeMapped),
    /// More bytes of a captured page are about to execute: `[start, end)` in bytes from the start of the page.
    Extended {
        /// The page.
        page: PageId,
        /// First byte.
        start: u16,
        /// One past the last byte.
        end: u16,
    },
    /// A file of a disk that is followed has this number, before anything else is said of it.
    FileSeen(u32, Box<FileSeen>),
    /// What of a disk is not seen since its server was started: why, and how many.
    FilesUnseen(u16, Vec<(&'static str, u64)>),
    /// A disk's own package manager says something of a package.
    PackageSaid(Box<PackageSaid>),
    /// A piece of a file is in guest memory.
    FileHeld(Box<FileHeld>),
    /// Memory that held a piece of a file was accessed.
    PageAccessed(Box<PageAccessed>),
    /// From here to here the driver could not see.
    Gap(Gap),
    /// The VM as a whole.
    Lifecycle(Lifecycle),
    /// The driver's own counters, absolute since the watch began.
    Counters(Vec<(&'static str, u64)>),
}

/// Where code runs, by the privilege the CPU checks at each fetch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Privilege {
    /// x86 CPL 3, AArch64 EL0.
    User,
    /// Everything above it.
    Supervisor,
}

/// The 4 KiB of a code page at the moment its first instruction of this generation was about to run; from a driver that only
/// reads memory, at the moment it was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CodeCaptured {
    /// This page in this generation.
    pub page: PageId,
    /// Where the page lies in guest-physical memory, if the driver can tell.
    pub gpa: Option<Gpa>,
    /// The host-side name of the frame (0: none); two pages with the same name are the same frame.
    pub frame: u64,
    /// How often this frame was captured before, 0 for the first.
    pub generation: u32,
    /// The virtual CPU that was about to execute.
    pub vcpu: VcpuId,
    /// The root that was loaded.
    pub root: Root,
    /// The virtual address of the first byte of the page.
    pub va: Gva,
    /// Privilege of the code about to run.
    pub privilege: Privilege,
    /// Whether paging was on; without it `root` means nothing and `va` is physical.
    pub paging: bool,
    /// Width of the code segment in bits: 16, 32 or 64.
    pub bits: u8,
    /// First byte of the block about to execute, from the start of the page.
    pub start: u16,
    /// One past its last byte in this page, at most 4096. [`Self::start`] itself if the page was only seen to be mapped.
    pub end: u16,
    /// Captured before this monitor was attached: address, root and virtual CPU are not known.
    pub replay: bool,
    /// The page's contents.
    pub bytes: PageBytes,
}

/// An address space executed in a captured page, for the first time since the driver last said so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Executed {
    /// The page.
    pub page: PageId,
    /// The root that was loaded.
    pub root: Root,
    /// On which virtual CPU.
    pub vcpu: VcpuId,
    /// Which of the address spaces that had this root, as the driver told them apart: another number is another
    /// address space. Numbers are not reused.
    pub incarnation: u32,
}

/// What an address space has mapped executable: all of it, in the place of what was said before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CodeMapped {
    /// Whose; `None` for the kernel, which all roots share.
    pub space: Option<(Root, u32)>,
    /// The pages, captured before, by address.
    pub pages: Vec<MappedPage>,
}

/// A page that is mapped executable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MappedPage {
    /// The page.
    pub page: PageId,
    /// The address of its first byte.
    pub va: Gva,
    /// Whether the leaf has the accessed bit: somebody read or executed something there since the guest last cleared it.
    pub accessed: bool,
}

/// An interval in which a driver could not see everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// Start, in nanoseconds since the watch began.
    pub from_ns: u64,
    /// End.
    pub to_ns: u64,
    /// What could still be vouched for in it.
    pub left: Coverage,
    /// Why.
    pub reason: GapReason,
    /// How many events or pages are missing, if that is known.
    pub lost: u64,
}

/// A file of a disk, as the file system has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileSeen {
    /// The disk, counted from 0 as the VM is started with them.
    pub disk: u16,
    /// The partition, 0 if the disk has none.
    pub partition: u16,
    /// Its inode.
    pub inode: u64,
    /// Tells it from the one that had its inode before.
    pub generation: u32,
    /// Bytes of it.
    pub bytes: u64,
    /// A path, from the root of its file system; empty if none is known.
    pub path: Vec<u8>,
}

/// What a disk's own package manager says of a package: the guest's word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackageSaid {
    /// The disk, counted from 0 as the VM is started with them.
    pub disk: u16,
    /// The partition, 0 if the disk has none.
    pub partition: u16,
    /// The package.
    pub name: String,
    /// The version that is installed; `None` if none is any more.
    pub version: Option<String>,
}

/// A piece of a file in guest memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileHeld {
    /// The file's number.
    pub file: u32,
    /// Where in it, in bytes.
    pub at: u64,
    /// Where in memory.
    pub gpa: Gpa,
    /// Bytes of it, 4096 at most.
    pub len: u16,
    /// The guest wrote it to the disk from there; else it was read.
    pub written: bool,
    /// BLAKE3 of the bytes.
    pub digest: [u8; 32],
}

/// An access to a page of memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageAccessed {
    /// The page.
    pub gpa: Gpa,
    /// The root that was loaded and the driver's number for its address space; `None` if no vCPU accessed it, or that is not known.
    pub by: Option<(Root, u32)>,
    /// What it held; `None` if it was about to be written.
    pub held: Option<PageBytes>,
}

/// What happens to the VM as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifecycle {
    /// The driver sees from here on.
    Started,
    /// The machine was reset: every address space is gone.
    Reset,
    /// The VMM ended.
    Stopped,
}
