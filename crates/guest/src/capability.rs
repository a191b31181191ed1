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

    /// Whether a read costs no more than what it copies: no call into a kernel, for example.
    fn is_mapped(&self) -> bool {
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

    fn is_mapped(&self) -> bool {
        (**self).is_mapped()
    }
}
