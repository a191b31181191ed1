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
}

impl<M: PhysicalMemory + ?Sized> PhysicalMemory for &M {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        (**self).read(at, buf)
    }
}
