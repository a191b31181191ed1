//! A guest memory for tests, and page tables in it.
#![allow(dead_code, reason = "every test file uses a part")]
#![allow(
    clippy::unwrap_used,
    reason = "a test helper, outside of what clippy takes for a test"
)]

use std::cell::Cell;
use std::collections::BTreeMap;

use nephoscope_guest::{Gpa, MemoryFault, PhysicalMemory};
use nephoscope_isa::{Mode, X86Controls};

/// Sparse memory of 4 KiB frames; what was never written cannot be read.
#[derive(Debug, Default, Clone)]
pub(crate) struct Memory {
    frames: BTreeMap<u64, Box<[u8; 4096]>>,
    pub(crate) reads: Cell<u64>,
}

impl Memory {
    pub(crate) fn add_frame(&mut self, at: u64) {
        self.frames.entry(at >> 12).or_insert_with(|| Box::new([0; 4096]));
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            self.add_frame(at);
            self.frames.get_mut(&(at >> 12)).unwrap()[(at & 4095) as usize] = *byte;
        }
    }

    pub(crate) fn write_u64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    pub(crate) fn write_u32(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }
}

impl PhysicalMemory for Memory {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        self.reads.set(self.reads.get() + 1);
        for (at, byte) in (at.0..).zip(buf) {
            let frame = self.frames.get(&(at >> 12)).ok_or(MemoryFault { at: Gpa(at) })?;
            *byte = frame[(at & 4095) as usize];
        }
        Ok(())
    }
}

pub(crate) const PG: u64 = 1 << 31;
pub(crate) const PSE: u64 = 1 << 4;
pub(crate) const PAE: u64 = 1 << 5;
pub(crate) const PGE: u64 = 1 << 7;
pub(crate) const LA57: u64 = 1 << 12;
pub(crate) const SMEP: u64 = 1 << 20;
pub(crate) const LMA: u64 = 1 << 10;
pub(crate) const NXE: u64 = 1 << 11;

/// A modern CPU in 64-bit mode.
pub(crate) const LONG: X86Controls = X86Controls {
    cr0: PG,
    cr4: PAE | PGE,
    efer: LMA | NXE,
    physical_bits: 46,
    gib_pages: true,
};

pub(crate) fn x86(controls: X86Controls) -> Mode {
    Mode::x86(&controls).unwrap()
}
