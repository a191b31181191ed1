//! A file that may change at any time, mapped: a dump, or the memory of a VM that its VMM shares.
#![allow(
    unsafe_code,
    reason = "mapping a file that others write to, and copying out of it"
)]

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// The bytes of a file. Nothing in it is ever referred to, only copied: whoever else has the file may write to it meanwhile.
///
/// Who truncates the file kills its readers with `SIGBUS`, as everywhere where files are mapped. A guest cannot: the file is
/// its VMM's or its host's.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Option<MmapRaw>,
}

impl MappedFile {
    /// Maps all of a file, read-only.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        // An empty file cannot be mapped, and has nothing to read.
        let empty = file.metadata()?.len() == 0;
        let map = (!empty)
            .then(|| MmapOptions::new().map_raw_read_only(file))
            .transpose()?;
        Ok(Self { map })
    }

    /// Its length in bytes, when it was mapped.
    pub(crate) fn len(&self) -> u64 {
        self.map.as_ref().map_or(0, |map| map.len() as u64)
    }

    /// Copies bytes out. `None`: the file does not have all of them.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> Option<()> {
        if buf.is_empty() {
            return Some(());
        }
        copy(self.place(at, buf.len())?, buf);
        Some(())
    }

    /// Whether there is anything but zeros; looks from the end. `None`: the file does not have all of it.
    pub(crate) fn is_anything(&self, at: u64, len: usize) -> Option<bool> {
        const AT_ONCE: usize = 256;
        let from = self.place(at, len)?;
        let mut end = len;
        while end > 0 {
            let here = end.min(AT_ONCE);
            end -= here;
            if all_bits(from.wrapping_add(end), here) != 0 {
                return Some(true);
            }
        }
        Some(false)
    }

    /// Where so many bytes are.
    fn place(&self, at: u64, len: usize) -> Option<*const u8> {
        let map = self.map.as_ref()?;
        let at = usize::try_from(at).ok()?;
        if at.checked_add(len)? > map.len() {
            return None;
        }
        // SAFETY: `[at, at + len)` lies within the mapping, which lives as long as `self`.
        Some(unsafe { map.as_ptr().add(at) })
    }
}

/// All bits that are set in one of the bytes.
fn all_bits(from: *const u8, len: usize) -> u64 {
    if from.addr().is_multiple_of(8) && len.is_multiple_of(8) {
        // SAFETY: as in `copy`, for each word of the caller's range.
        let word = |at: usize| unsafe { AtomicU64::from_ptr(from.wrapping_add(at).cast_mut().cast()) };
        let words = (0..len).step_by(8);
        return words.fold(0, |all, at| all | word(at).load(Ordering::Relaxed));
    }
    // SAFETY: the same, for each byte.
    let byte = |at: usize| unsafe { AtomicU8::from_ptr(from.wrapping_add(at).cast_mut()) };
    (0..len).fold(0, |all, at| all | u64::from(byte(at).load(Ordering::Relaxed)))
}

/// Word by word where both allow, for memory that somebody may be writing to.
fn copy(from: *const u8, buf: &mut [u8]) {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = from.wrapping_add(done);
        if at.addr().is_multiple_of(8)
            && let Some(word) = rest.first_chunk_mut::<8>()
        {
            // SAFETY: the caller's range has eight bytes here, aligned for a word; the mapping is read-only, and an atomic
            // load is defined whatever others do to the memory.
            let value = unsafe { AtomicU64::from_ptr(at.cast_mut().cast()) }.load(Ordering::Relaxed);
            *word = value.to_ne_bytes();
            done += 8;
        } else if let Some(byte) = rest.first_mut() {
            // SAFETY: as above, for one byte.
            *byte = unsafe { AtomicU8::from_ptr(at.cast_mut()) }.load(Ordering::Relaxed);
            done += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn anything_but_zeros_is_noticed_wherever_it_is() {
        let mut file = tempfile::tempfile().unwrap();
        let mut bytes = vec![0_u8; 5000];
        bytes[1000] = 1;
        file.write_all(&bytes).unwrap();
        let mapped = MappedFile::new(&file).unwrap();
        let is_anything = |at, len| mapped.is_anything(at, len);
        assert_eq!(is_anything(0, 5000), Some(true));
        assert_eq!(is_anything(1000, 1), Some(true));
        assert_eq!([is_anything(0, 1000), is_anything(1001, 3999)], [Some(false); 2]);
        assert_eq!([is_anything(5000, 0), is_anything(1, 5000)], [Some(false), None]);
    }

    #[test]
    fn any_part_of_a_file_is_copied_and_nothing_beyond_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(5000).collect();
        file.write_all(&bytes).unwrap();
        let mapped = MappedFile::new(&file).unwrap();
        assert_eq!(mapped.len(), 5000);
        for (at, len) in [(0, 5000), (1, 64), (3, 4), (4993, 7), (5000, 0), (8, 8)] {
            let mut buf = vec![0; len];
            assert_eq!(mapped.read(at as u64, &mut buf), Some(()));
            assert_eq!(buf, bytes[at..at + len]);
        }
        for (at, len) in [(4993, 8), (5000, 1), (u64::MAX, 1), (6000, 1)] {
            assert_eq!(mapped.read(at, &mut vec![0; len]), None);
        }
    }

    #[test]
    fn an_empty_file_has_nothing() {
        let mapped = MappedFile::new(&tempfile::tempfile().unwrap()).unwrap();
        assert_eq!((mapped.len(), mapped.read(0, &mut [0])), (0, None));
    }
}
