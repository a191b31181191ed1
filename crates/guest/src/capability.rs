//! What a driver can lend. One trait per capability; a driver implements those that it has.

use crate::address::Gpa;

/// Guest-physical memory could not be read there: nothing is mapped, or it is a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryFault {
    /// The first byte that could not be read.
    pub at: Gpa,
}

/// The same pieces of each of several stretches of memory: of each of some pages a few cache lines, say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pieces<'a> {
    /// Bytes from the beginning of one stretch to the beginning of the next.
    pub stride: u64,
    /// Where pieces begin in a stretch.
    pub offsets: &'a [u64],
    /// Bytes of a piece.
    pub len: usize,
    /// After a stretch's pieces comes one byte more, if this is asked: whether anything but zeros is in the stretch from there on.
    pub rest_from: Option<u64>,
}

impl Pieces<'_> {
    /// Bytes of all that is given of a stretch.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let pieces = self.len.saturating_mul(self.offsets.len());
        pieces.saturating_add(usize::from(self.rest_from.is_some()))
    }
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

    /// Fills `buf` with pieces: those of the stretch at `at`, then those of the next, and so on.
    ///
    /// # Errors
    /// [`MemoryFault`] if one of them cannot be read; `buf` is then unspecified.
    fn read_each(&self, at: Gpa, pieces: &Pieces<'_>, buf: &mut [u8]) -> Result<(), MemoryFault> {
        read_pieces(self, at, pieces, buf)
    }

    /// Whether [`PhysicalMemory::read_each`] of little costs less than [`PhysicalMemory::read`] of all that lies between.
    fn reads_pieces(&self) -> bool {
        false
    }
}

/// [`PhysicalMemory::read_each`], piece by piece.
///
/// # Errors
/// As there.
pub fn read_pieces<M: PhysicalMemory + ?Sized>(
    memory: &M,
    at: Gpa,
    pieces: &Pieces<'_>,
    buf: &mut [u8],
) -> Result<(), MemoryFault> {
    let mut next = at;
    for stretch in buf.chunks_mut(pieces.bytes().max(1)) {
        for (piece, offset) in stretch.chunks_mut(pieces.len.max(1)).zip(pieces.offsets) {
            memory.read(Gpa(next.0.wrapping_add(*offset)), piece)?;
        }
        if let (Some(from), Some(rest)) = (pieces.rest_from, stretch.last_mut()) {
            *rest = u8::from(is_anything(memory, next, from, pieces.stride)?);
        }
        next = Gpa(next.0.wrapping_add(pieces.stride));
    }
    Ok(())
}

/// Whether there is anything but zeros from one offset of a stretch to another. Looks from the end: what is in use is so there.
fn is_anything<M: PhysicalMemory + ?Sized>(
    memory: &M,
    stretch: Gpa,
    from: u64,
    to: u64,
) -> Result<bool, MemoryFault> {
    const AT_ONCE: usize = 256;
    let mut bytes = [0; AT_ONCE];
    let mut end = to;
    while end > from {
        let len = usize::try_from(end - from).unwrap_or(AT_ONCE).min(AT_ONCE);
        end -= len as u64;
        let Some(bytes) = bytes.get_mut(..len) else { break };
        memory.read(Gpa(stretch.0.wrapping_add(end)), bytes)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl<M: PhysicalMemory + ?Sized> PhysicalMemory for &M {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        (**self).read(at, buf)
    }

    fn next_data(&self, from: Gpa, end: Gpa) -> Option<(Gpa, Gpa)> {
        (**self).next_data(from, end)
    }

    fn read_each(&self, at: Gpa, pieces: &Pieces<'_>, buf: &mut [u8]) -> Result<(), MemoryFault> {
        (**self).read_each(at, pieces, buf)
    }

    fn reads_pieces(&self) -> bool {
        (**self).reads_pieces()
    }
}
