//! A guest's memory with page tables in it, and a watch of nothing yet, for tests.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use nephoscope_catalog::{Adder, Catalog};
use nephoscope_guest::{Gpa, Gva, MemoryFault, PhysicalMemory, Root};
use nephoscope_inventory::VmReport;
use nephoscope_isa::{Mode, X86Controls};
use nephoscope_pipeline::Session;

/// Entry bits of long mode (Intel SDM 3A, table 4-20).
pub(super) const PRESENT: u64 = 1;
pub(super) const USER: u64 = 1 << 2;

/// Four levels, no-execute.
pub(super) fn long_mode() -> Mode {
    let controls = X86Controls {
        cr0: 1 << 31,
        cr4: 1 << 5,
        efer: 1 << 10 | 1 << 11,
        physical_bits: 46,
        gib_pages: true,
    };
    Mode::x86(&controls).unwrap()
}

/// A watch with an empty catalog.
pub(super) fn session() -> Session {
    let folder = tempfile::tempdir().unwrap();
    Adder::new(folder.path()).unwrap().commit().unwrap();
    let catalog = Catalog::open(folder.path()).unwrap();
    Session::new(VmReport::default(), Arc::new(catalog))
}

/// How many mapped pages a session was given.
pub(super) fn given(session: &mut Session) -> usize {
    let counters = session.report().counters;
    let read = counters.get("mapped_pages_read").copied().unwrap_or(0);
    usize::try_from(read).unwrap()
}

/// Memory as frames.
#[derive(Debug, Default)]
pub(super) struct Memory {
    frames: BTreeMap<u64, [u64; 512]>,
}

impl Memory {
    /// A frame of zeros.
    pub(super) fn frame(&mut self) -> u64 {
        let at = (self.frames.len() as u64 + 1) << 12;
        self.frames.insert(at, [0; 512]);
        at
    }

    /// The entry of a top-level table that serves `va`.
    pub(super) fn get(&self, root: Root, va: Gva) -> u64 {
        self.frames[&root.0][usize::try_from(va.0 >> 39 & 511).unwrap()]
    }

    /// Changes it.
    pub(super) fn set(&mut self, root: Root, va: Gva, entry: u64) {
        let table = self.frames.get_mut(&root.0).unwrap();
        table[usize::try_from(va.0 >> 39 & 511).unwrap()] = entry;
    }

    /// Maps the page at `va` in the tables of `root`, with these bits at every level.
    pub(super) fn map(&mut self, root: Root, va: Gva, gpa: Gpa, bits: u64) {
        let mut table = root.0;
        for level in [3, 2, 1] {
            let index = (va.0 >> (12 + 9 * level) & 511) as usize;
            if self.frames[&table][index] == 0 {
                let next = self.frame();
                self.frames.get_mut(&table).unwrap()[index] = next | bits;
            }
            table = self.frames[&table][index] & !0xfff;
        }
        self.frames.get_mut(&table).unwrap()[(va.0 >> 12 & 511) as usize] = gpa.0 | bits;
    }
}

impl PhysicalMemory for Memory {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        // Tables and pages are read from a word's beginning on.
        for (at, bytes) in (at.0..).step_by(8).zip(buf.chunks_mut(8)) {
            let frame = self.frames.get(&(at & !0xfff));
            let word = frame.ok_or(MemoryFault { at: Gpa(at) })?[(at >> 3 & 511) as usize];
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }
}
