//! Memory shared between two processes, mapped for as long as the value lives.
#![allow(unsafe_code, reason = "maps memory and lends it as atomics")]

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Shared memory could not be made or is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum ShmError {
    /// The system refused.
    #[error("shared memory: {step} failed")]
    System {
        /// The call.
        step: &'static str,
        /// Its answer.
        #[source]
        source: rustix::io::Errno,
    },
    /// The file has another size, or could still be shrunk under the mapping.
    #[error("shared memory of {len} bytes is not a sealed ring of at most {max} bytes")]
    Unfit {
        /// The size found.
        len: u64,
        /// The largest that is mapped.
        max: u64,
    },
}

fn system(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> ShmError {
    move |source| ShmError::System { step, source }
}

/// A shared mapping.
#[derive(Debug)]
pub(crate) struct Shm {
    start: NonNull<u8>,
    len: usize,
    fd: OwnedFd,
}

// SAFETY: the mapping is owned, is not tied to a thread, and all access goes through atomics.
unsafe impl Send for Shm {}
// SAFETY: as above; shared references only lend atomics.
unsafe impl Sync for Shm {}

impl Shm {
    /// New memory of `len` bytes, zeroed, of a size that nobody can change any more.
    pub(crate) fn create(name: &str, len: usize) -> Result<Self, ShmError> {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(system("memfd_create"))?;
        ftruncate(&fd, len as u64).map_err(system("ftruncate"))?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(system("sealing"))?;
        Self::map(fd, 0, len)
    }

    /// Memory that another process made. It must be sealed against shrinking, or that process could turn every
    /// read of ours into a fatal signal.
    pub(crate) fn open(fd: OwnedFd, max: usize) -> Result<Self, ShmError> {
        let stat = fstat(&fd).map_err(system("fstat"))?;
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let unfit = ShmError::Unfit { len, max: max as u64 };
        let seals = fcntl_get_seals(&fd).map_err(system("reading the seals"))?;
        let Ok(size) = usize::try_from(len) else {
            return Err(unfit);
        };
        if size == 0 || size > max || !seals.contains(SealFlags::SHRINK) {
            return Err(unfit);
        }
        Self::map(fd, 0, size)
    }

    /// A part of a kernel driver's memory, which the kernel keeps as long as it is mapped.
    pub(crate) fn device(fd: OwnedFd, offset: u64, len: usize) -> Result<Self, ShmError> {
        Self::map(fd, offset, len)
    }

    fn map(fd: OwnedFd, offset: u64, len: usize) -> Result<Self, ShmError> {
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                offset,
            )
        }
        .map_err(system("mmap"))?;
        match NonNull::new(start.cast::<u8>()) {
            Some(start) => Ok(Self { start, len, fd }),
            None => Err(ShmError::System {
                step: "mmap",
                source: rustix::io::Errno::NOMEM,
            }),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The 64-bit word at byte `at`.
    pub(crate) fn word(&self, at: usize) -> Option<&AtomicU64> {
        if !at.is_multiple_of(8) || at.checked_add(8)? > self.len {
            return None;
        }
        // SAFETY: in bounds (checked), aligned (mappings are page-aligned and `at` is a multiple of 8), alive as
        // long as `self`; the other process only reaches it through its own mapping, which an atomic allows.
        Some(unsafe { self.start.add(at).cast::<AtomicU64>().as_ref() })
    }

    /// The bytes `[at, at + len)` as atomics: the other process may write them at any time.
    fn bytes(&self, at: usize, len: usize) -> Option<&[AtomicU8]> {
        if at.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: in bounds (checked), alive as long as `self`; `AtomicU8` has the layout of a byte and is sound
        // under writes of others.
        Some(unsafe { std::slice::from_raw_parts(self.start.add(at).as_ptr().cast::<AtomicU8>(), len) })
    }

    /// Copies out of the memory. `None` if the range is not inside.
    pub(crate) fn read(&self, at: usize, out: &mut [u8]) -> Option<()> {
        let source = self.bytes(at, out.len())?;
        // SAFETY: `source` is `out.len()` mapped bytes that do not overlap `out`. The other process may write
        // meanwhile: the copy goes byte-wise through a volatile-free memcpy of memory that Rust only knows as
        // atomics, and every value of a byte is valid; frames are published by a release store before.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr().cast::<u8>(), out.as_mut_ptr(), out.len()) };
        Some(())
    }

    /// Copies into the memory. `None` if the range is not inside.
    pub(crate) fn write(&self, at: usize, data: &[u8]) -> Option<()> {
        let target = self.bytes(at, data.len())?;
        // SAFETY: `target` is `data.len()` mapped bytes, which atomics allow to write through a shared reference,
        // and does not overlap `data`. The consumer reads them only after the release store of the head.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), target.as_ptr().cast::<u8>().cast_mut(), data.len());
        };
        Some(())
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        // SAFETY: the range is the one that was mapped, and nothing borrowed from `self` outlives it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Words of a kernel driver's memory, each of which the kernel writes and we take.
#[derive(Debug)]
pub struct DeviceWords(Shm);

impl DeviceWords {
    /// Maps as many, from this offset on.
    ///
    /// # Errors
    /// If the driver has no memory there.
    pub fn map(fd: OwnedFd, offset: u64, words: usize) -> Result<Self, ShmError> {
        Ok(Self(Shm::device(fd, offset, words.saturating_mul(8))?))
    }

    /// Takes every word that is not zero, and leaves zero.
    pub fn take(&self) -> impl Iterator<Item = u64> {
        (0..self.0.len() / 8)
            .filter_map(|number| self.0.word(number * 8))
            .filter(|word| word.load(Ordering::Relaxed) != 0)
            .map(|word| word.swap(0, Ordering::Acquire))
    }
}
