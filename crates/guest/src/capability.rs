//! What a driver can lend. One trait per capability; a driver implements those that it has.

use crate::address::Gpa;

/// Guest-physical memory could not be read there: nothing is mapped, or it is a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryFault {
    /// The first byte that could not be read.
    pub at: Gpa,
}

/// Guest-physical memory, by copy.
///
/// The guest goes on running and may write while it is read: a value is what it was at some moment of the call,
/// and two calls may disagree.
pub trait PhysicalMemory {
    /// Fills `buf` from `at`, or says where it could not.
    ///
    /// # Errors
    /// [`MemoryFault`] if any byte of the range is not RAM or ROM; `buf` is then unspecified.
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault>;

    /// The next part of `[from, end)` that is not known to be zeros: its first address, and one past its last. To look through
    /// all memory is to look through these.
    fn next_data(&self, from: Gpa, end: Gpa) -> Option<(Gpa, Gpa)> {
        (from < end).then_some((from, end))
    }

    /// Fills `buf` with pieces of `len` bytes: the first from `at`, each further one from `stride` bytes after the one before.
    ///
    /// # Errors
    /// [`MemoryFault`] if one of them cannot be read; `buf` is then unspecified.
    fn read_each(&self, at: Gpa, stride: u64, len: usize, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let mut next = at;
        for piece in buf.chunks_mut(len.max(1)) {
            self.read(next, piece)?;
            next = Gpa(next.0.wrapping_add(stride));
        }
        Ok(())
    }

    /// Whether [`PhysicalMemory::read_each`] of little costs less than [`PhysicalMemory::read`] of all that lies between.
    fn reads_pieces(&self) -> bool {
        false
    }
}

impl<M: PhysicalMemory + ?Sized> PhysicalMemory for &M {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        (**self).read(at, buf)
    }

    fn next_data(&self, from: Gpa, end: Gpa) -> Option<(Gpa, Gpa)> {
        (**self).next_data(from, end)
    }

    fn read_each(&self, at: Gpa, stride: u64, len: usize, buf: &mut [u8]) -> Result<(), MemoryFault> {
        (**self).read_each(at, stride, len, buf)
    }

    fn reads_pieces(&self) -> bool {
        (**self).reads_pieces()
    }
}
