//! The memory of a running VM, whatever its VMM, with nothing loaded and the VM not paused.
//!
//! ```text
//!  QMP: where memory is, and how CPUs translate ─┐
//!  /proc/PID/maps: the largest memory it has ────┴─► RamMap ─► shared with others (memfd, file): mapped here too
//!                                                          └─► its own: read through /proc/PID/mem, and gone through
//!                                                               by a gatherer (`guest_ram/gather.rs`) where there is one
//! ```

mod layouts;
pub(crate) mod maps;
mod populated;
mod shared;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nephoscope_guest::{Gpa, MemoryFault, PhysicalMemory, Pieces, read_pieces};
use nephoscope_isa::Mode;
use thiserror::Error;

use crate::cpu_state::paging_mode;
use crate::guest_ram::{Gatherer, MemoryKind, ProcessRam, ProcessRamError, RamMap, RamMapError};
use crate::qmp::{Qmp, QmpError};
use populated::{Populated, of_process};
use shared::Shared;

/// How long QEMU may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the memory of a VM cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LiveMemoryError {
    /// QEMU's monitor cannot be reached.
    #[error("QEMU's monitor does not answer")]
    Qmp(#[from] QmpError),
    /// QEMU does not say where memory is.
    #[error("where the guest's memory is, is not known")]
    Map(#[from] RamMapError),
    /// Nobody says which process has the other end of the socket.
    #[error("the process behind the monitor's socket is not known: is it in another process namespace?")]
    NoPeer,
    /// Its process cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessRamError),
    /// What it has mapped cannot be read.
    #[error("cannot read what process {pid} has mapped")]
    Maps {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It has no memory that could be a guest's.
    #[error(
        "process {pid} has no memory of {} MiB or more in one piece: is it a VMM?",
        layouts::LEAST >> 20
    )]
    NoMemory {
        /// The process.
        pid: u32,
    },
}

/// Memory of a running VM.
#[derive(Debug)]
pub struct LiveMemory {
    ram: ProcessRam,
    shared: Shared,
    /// In the VMM's address space.
    populated: Populated,
    /// What the VMM has mapped, and which pages of it there are. Held, so that looks need no right to open them.
    maps: File,
    pagemap: Option<File>,
    qmp: Option<Qmp>,
    /// Gone, if it does not answer any more.
    gatherer: Mutex<Option<Gatherer>>,
    /// Other layouts that the same memory may have, where nobody tells.
    others: Vec<RamMap>,
    pid: u32,
}

/// All of a file of `/proc`, from its beginning.
fn text_of(mut file: &File) -> io::Result<String> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

impl LiveMemory {
    /// Of the QEMU whose monitor listens on this socket.
    ///
    /// # Errors
    /// [`LiveMemoryError`] if it does not answer, or its process may not be read.
    pub fn over_qmp(socket: &Path) -> Result<Self, LiveMemoryError> {
        let mut qmp = Qmp::connect_when_ready(socket, TIMEOUT)?;
        let pid = qmp.peer_pid().ok_or(LiveMemoryError::NoPeer)?;
        let map = RamMap::read(&mut qmp)?;
        Self::new(pid, map, Some(qmp), Vec::new())
    }

    /// Of any VMM's process. Where its guest sees the memory is not told there; [`LiveMemory::try_next_layout`] goes through
    /// what VMMs do.
    ///
    /// # Errors
    /// [`LiveMemoryError`] if there is no such process, it may not be read, or it has no memory like a guest's.
    pub fn of_process(pid: u32) -> Result<Self, LiveMemoryError> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/maps"));
        let text = text.map_err(|source| LiveMemoryError::Maps { pid, source })?;
        let mut layouts = layouts::guess(&maps::parse(&text)).into_iter();
        let first = layouts.next().ok_or(LiveMemoryError::NoMemory { pid })?;
        Self::new(pid, first, None, layouts.rev().collect())
    }

    fn new(pid: u32, map: RamMap, qmp: Option<Qmp>, others: Vec<RamMap>) -> Result<Self, LiveMemoryError> {
        let ram = ProcessRam::open(pid, map)?;
        let open = File::open(format!("/proc/{pid}/maps"));
        let maps = open.map_err(|source| LiveMemoryError::Maps { pid, source })?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).ok();
        let text = text_of(&maps).map_err(|source| LiveMemoryError::Maps { pid, source })?;
        let layouts = std::iter::once(ram.map()).chain(&others);
        let shared = Shared::of(pid, &maps::parse(&text), layouts);
        let mut live = Self {
            ram,
            shared,
            populated: Populated::default(),
            maps,
            pagemap,
            qmp,
            gatherer: Mutex::new(None),
            others,
            pid,
        };
        live.refresh();
        Ok(live)
    }

    /// Looks again which parts of the memory there are: before each look through all of it.
    pub fn refresh(&mut self) {
        let mappings = maps::parse(&text_of(&self.maps).unwrap_or_default());
        // Of a file's pages a process's table says nothing.
        let is_own = |start: u64, end: u64| {
            let mut covering = mappings
                .iter()
                .filter(|mapping| mapping.start.0 < end && start < mapping.end.0);
            covering.all(|mapping| !mapping.has_file())
        };
        let segments = self.ram.map().segments().iter();
        let parts = segments.flat_map(|segment| {
            let (start, end) = (segment.hva.0, segment.hva.0.saturating_add(segment.size_bytes));
            let own = || {
                let pagemap = self.pagemap.as_ref().filter(|_| is_own(start, end))?;
                of_process(pagemap, start, end)
            };
            let parts = self.shared.populated(start, end).or_else(own);
            parts.unwrap_or_else(|| vec![(start, end)])
        });
        self.populated = Populated::new(parts.collect());
    }

    /// The VMM's process.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// What QEMU calls itself, if it was asked.
    #[must_use]
    pub fn vmm(&self) -> Option<&str> {
        self.qmp.as_ref().map(Qmp::version)
    }

    /// How the guest's CPUs translate, if somebody tells: paging is on, and there is a monitor.
    pub fn paging_mode(&mut self) -> Option<Mode> {
        paging_mode(self.qmp.as_mut()?).ok().flatten()
    }

    /// Goes on with another layout that the memory may have. False: there is none left.
    pub fn try_next_layout(&mut self) -> bool {
        let Some(next) = self.others.pop() else {
            return false;
        };
        self.ram.set_map(next);
        self.refresh();
        true
    }

    /// The guest's RAM: first address and bytes of each range.
    #[must_use]
    pub fn ranges(&self) -> Vec<(Gpa, u64)> {
        let segments = self.ram.map().segments().iter();
        segments
            .filter(|segment| segment.kind == MemoryKind::Ram)
            .map(|segment| (segment.gpa, segment.size_bytes))
            .collect()
    }

    /// How many bytes of it are mapped here, and need not be copied to be looked at.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        let segments = self.ram.map().segments().iter();
        segments
            .filter(|segment| segment.kind == MemoryKind::Ram)
            .map(|segment| {
                let start = segment.hva.0;
                self.shared
                    .bytes_of(start, start.saturating_add(segment.size_bytes))
            })
            .sum()
    }

    /// Whether the process has ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.ram.is_gone()
    }

    /// Goes through memory that is not mapped here by way of this one from now on.
    pub fn gather_by(&mut self, gatherer: Gatherer) {
        self.gatherer = Mutex::new(Some(gatherer));
    }

    /// Whether all of the guest's memory is mapped here.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        let all: u64 = self.ranges().iter().map(|(_, len)| len).sum();
        self.mapped_bytes() >= all
    }

    /// Pieces of stretches that lie in one segment, are all there and are mapped here.
    fn mapped(&self, at: Gpa, pieces: &Pieces<'_>, buf: &mut [u8]) -> Option<()> {
        let stretches = (buf.len() / pieces.bytes().max(1)) as u64;
        let bytes = stretches.checked_mul(pieces.stride)?;
        let segment = self.ram.map().segment_of(at)?;
        let offset = at.0 - segment.gpa.0;
        if segment.size_bytes - offset < bytes {
            return None;
        }
        let hva = segment.hva.0 + offset;
        self.populated.has(hva, hva.saturating_add(bytes)).then_some(())?;
        self.shared.read_each(hva, pieces, buf)
    }

    /// Pieces of stretches that lie in one segment, where there is a gatherer and it can read them.
    fn gathered(&self, at: Gpa, pieces: &Pieces<'_>, buf: &mut [u8]) -> Option<()> {
        let mut gatherer = self.gatherer.lock().unwrap_or_else(PoisonError::into_inner);
        let there = gatherer.as_mut()?;
        let stretches = (buf.len() / pieces.bytes().max(1)) as u64;
        let segment = self.ram.map().segment_of(at)?;
        let offset = at.0 - segment.gpa.0;
        let end = segment.hva.0.saturating_add(segment.size_bytes);
        if self.shared.bytes_of(segment.hva.0, end) >= segment.size_bytes {
            return None;
        }
        if segment.size_bytes - offset < stretches.checked_mul(pieces.stride)? {
            return None;
        }
        match there.gather(segment.hva.0 + offset, pieces, buf) {
            // By number, the gatherer would read whoever has it: not if it was this process until now.
            Ok(read) => read.filter(|()| !self.ram.is_gone()),
            Err(_) => {
                *gatherer = None;
                None
            }
        }
    }
}

impl PhysicalMemory for LiveMemory {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let whole = self.ram.map().segment_of(at).filter(|segment| {
            let offset = at.0 - segment.gpa.0;
            segment.size_bytes - offset >= buf.len() as u64
        });
        if let Some(segment) = whole {
            let hva = segment.hva.0 + (at.0 - segment.gpa.0);
            let read = if self.populated.has(hva, hva.saturating_add(buf.len() as u64)) {
                self.shared.read(hva, buf)
            } else {
                self.shared.read_with_holes(hva, buf)
            };
            if read.is_some() {
                return Ok(());
            }
        }
        self.ram.read(at, buf)
    }

    fn next_data(&self, from: Gpa, end: Gpa) -> Option<(Gpa, Gpa)> {
        let mut at = from;
        while at < end {
            let Some(segment) = self.ram.map().segment_of(at) else {
                return Some((at, end));
            };
            let last = segment.gpa.0.saturating_add(segment.size_bytes);
            let to_gpa = |hva: u64| segment.gpa.0 + (hva - segment.hva.0);
            let limit = segment.hva.0.saturating_add(segment.size_bytes);
            let next = self.populated.next(segment.hva.0 + (at.0 - segment.gpa.0));
            if let Some((first, stop)) = next.filter(|(first, _)| *first < limit) {
                let (first, stop) = (to_gpa(first), to_gpa(stop.min(limit)));
                return (first < end.0).then_some((Gpa(first), Gpa(stop.min(end.0))));
            }
            at = Gpa(last);
        }
        None
    }

    fn read_each(&self, at: Gpa, pieces: &Pieces<'_>, buf: &mut [u8]) -> Result<(), MemoryFault> {
        if self
            .mapped(at, pieces, buf)
            .or_else(|| self.gathered(at, pieces, buf))
            .is_some()
        {
            return Ok(());
        }
        read_pieces(self, at, pieces, buf)
    }

    fn reads_pieces(&self) -> bool {
        let gatherer = self.gatherer.lock().unwrap_or_else(PoisonError::into_inner);
        gatherer.is_some() || self.is_mapped()
    }
}
