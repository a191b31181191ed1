//! Write protection of memory in this process, and accesses to what is not in its page table, by `userfaultfd` (Linux, Documentation/admin-guide/mm/userfaultfd.rst; the
//! structures are those of its `uapi/linux/userfaultfd.h`).
#![allow(
    unsafe_code,
    reason = "a system call, its ioctls, and the message that it gives"
)]

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    UFFD_FEATURE_THREAD_ID, UFFD_PAGEFAULT_FLAG_WRITE, UFFDIO_REGISTER_MODE_MINOR, UFFDIO_REGISTER_MODE_WP,
    uffd_msg, uffdio_api, uffdio_continue, uffdio_range, uffdio_register, uffdio_writeprotect,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_CONTINUE, UFFDIO_REGISTER, UFFDIO_WAKE, UFFDIO_WRITEPROTECT};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

/// `UFFDIO_WRITEPROTECT_MODE_WP`: protect, and do not lift.
#[cfg(test)]
const PROTECT: u64 = 1;
/// `USERFAULTFD_IOC_NEW`, on [`DEVICE`].
const NEW: Opcode = opcode::none(0xaa, 0);
const DEVICE: &str = "/dev/userfaultfd";

/// A userfaultfd.
#[derive(Debug)]
pub(crate) struct Uffd(OwnedFd);

/// Somebody waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    /// Where the access is.
    pub(crate) at: u64,
    /// It is about to write.
    pub(crate) is_write: bool,
    /// The thread, by its number.
    pub(crate) thread: u32,
}

/// Makes one through the device.
struct Through(u32);

// SAFETY: the argument is a number, and the answer a new descriptor.
unsafe impl Ioctl for Through {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        NEW
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0 as usize)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the call succeeded, so this is a descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

impl Uffd {
    /// Makes one for write protection.
    pub(crate) fn new() -> std::io::Result<Self> {
        Self::with(UFFD_FEATURE_PAGEFAULT_FLAG_WP)
    }

    /// Makes one for accesses to pages of a file that are there and not in the page table.
    pub(crate) fn for_minor_faults() -> std::io::Result<Self> {
        Self::with(UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_THREAD_ID)
    }

    /// Accesses by the kernel on behalf of devices count as well, which is why it is not for user mode alone.
    fn with(features: u32) -> std::io::Result<Self> {
        let flags = UserfaultfdFlags::CLOEXEC;
        // SAFETY: memory is protected later, where it is said.
        let made = unsafe { userfaultfd(flags) };
        let fd = match made {
            // Who has not the right may have access to the device.
            Err(rustix::io::Errno::PERM) => {
                let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
                // SAFETY: as said at `Through`.
                unsafe { ioctl(device, Through(flags.bits())) }?
            }
            made => made?,
        };
        let mut api = uffdio_api {
            api: u64::from(UFFD_API),
            features: features.into(),
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes one `struct uffdio_api`.
        unsafe { ioctl(&fd, Updater::<{ UFFDIO_API }, _>::new(&mut api)) }?;
        Ok(Self(fd))
    }

    /// Has writes to protected pages of this memory told here.
    pub(crate) fn register(&self, start: u64, len: u64) -> std::io::Result<()> {
        self.register_for(start, len, UFFDIO_REGISTER_MODE_WP)
    }

    /// Has accesses to pages that are not in the page table told here.
    pub(crate) fn register_minor(&self, start: u64, len: u64) -> std::io::Result<()> {
        self.register_for(start, len, UFFDIO_REGISTER_MODE_MINOR)
    }

    fn register_for(&self, start: u64, len: u64, mode: u32) -> std::io::Result<()> {
        let mut register = uffdio_register {
            range: uffdio_range { start, len },
            mode: mode.into(),
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes one `struct uffdio_register`. What is not memory of this process is refused.
        Ok(unsafe { ioctl(&self.0, Updater::<{ UFFDIO_REGISTER }, _>::new(&mut register)) }?)
    }

    /// Protects it. The kernel module does so as code is captured.
    #[cfg(test)]
    pub(crate) fn protect(&self, start: u64, len: u64) -> std::io::Result<()> {
        self.change(start, len, PROTECT)
    }

    /// Lets whoever writes there go on.
    pub(crate) fn lift(&self, start: u64, len: u64) -> std::io::Result<()> {
        self.change(start, len, 0)
    }

    fn change(&self, start: u64, len: u64, mode: u64) -> std::io::Result<()> {
        let mut change = uffdio_writeprotect {
            range: uffdio_range { start, len },
            mode,
        };
        // SAFETY: the kernel reads one `struct uffdio_writeprotect`.
        Ok(unsafe { ioctl(&self.0, Updater::<{ UFFDIO_WRITEPROTECT }, _>::new(&mut change)) }?)
    }

    /// Puts pages of a file into the page table, and lets whoever waits for them go on.
    pub(crate) fn go_on(&self, start: u64, len: u64) -> std::io::Result<()> {
        let mut go_on = uffdio_continue {
            range: uffdio_range { start, len },
            mode: 0,
            mapped: 0,
        };
        // SAFETY: the kernel reads and writes one `struct uffdio_continue`.
        Ok(unsafe { ioctl(&self.0, Updater::<{ UFFDIO_CONTINUE }, _>::new(&mut go_on)) }?)
    }

    /// Has whoever waits there try again.
    pub(crate) fn wake(&self, start: u64, len: u64) -> std::io::Result<()> {
        let mut range = uffdio_range { start, len };
        // SAFETY: the kernel reads one `struct uffdio_range`.
        Ok(unsafe { ioctl(&self.0, Updater::<{ UFFDIO_WAKE }, _>::new(&mut range)) }?)
    }

    /// Waits for somebody who has to wait. `None`: it was something else.
    pub(crate) fn next_fault(&self) -> std::io::Result<Option<Fault>> {
        let mut bytes = [0; size_of::<uffd_msg>()];
        let got = rustix::io::read(&self.0, &mut bytes)?;
        if got != bytes.len() {
            return Ok(None);
        }
        // SAFETY: a whole message of plain numbers; a page fault has the first variant of the union.
        let (event, fault) = unsafe {
            let message: uffd_msg = std::mem::transmute(bytes);
            let fault = message.arg.pagefault;
            let thread = fault.feat.ptid;
            let is_write = fault.flags & u64::from(UFFD_PAGEFAULT_FLAG_WRITE) != 0;
            (
                message.event,
                Fault {
                    at: fault.address,
                    is_write,
                    thread,
                },
            )
        };
        Ok((u32::from(event) == UFFD_EVENT_PAGEFAULT).then_some(fault))
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
