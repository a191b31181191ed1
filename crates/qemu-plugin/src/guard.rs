//! Under KVM: frames that are executable are guarded against writes by QEMU itself, as its device models make them.
//!
//! ```text
//!  monitor ── where guest RAM lies ──► a userfaultfd over it ──► monitor ──► kernel module: protects what is executable
//!  device model writes there ─► waits ─► the thread here lifts the protection ─► goes on
//! ```
//!
//! Lifting is all that is done here: before the protection of a page changes, the kernel tells its MMU notifiers, the module's
//! among them, and the frame is not executable any more. No monitor is needed for that, so none that stands still or is
//! killed holds the guest up.
#![cfg_attr(test, allow(unsafe_code, reason = "memory to guard"))]

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::Duration;

use nephoscope_wire::{Guarded, RamRange, Request, WIRE_VERSION, receive, send};

use crate::config::Config;
use crate::uffd::Uffd;

/// What is protected and lifted at once.
const PAGE: u64 = 4096;
/// Ranges that are taken: a machine has some dozens. It stops a monitor that sends millions.
const MAX_RANGES: usize = 4096;

static GUARD: OnceLock<&'static Uffd> = OnceLock::new();

/// Waits for monitors. QEMU has gone to the background already, if it does (`qemu_init_board` comes after `os_daemonize`).
pub(crate) fn install(config: &Config) -> Result<(), String> {
    let socket = config.socket.display();
    let listener = crate::control::listen(&config.socket)
        .map_err(|error| format!("cannot listen on {socket}: {error}"))?;
    std::thread::Builder::new()
        .name("nephoscope-ctl".into())
        .spawn(move || serve(&listener))
        .map_err(|error| format!("no thread for {socket}: {error}"))?;
    Ok(())
}

fn serve(listener: &UnixListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        while let Ok((request, _)) = receive::<Request>(&mut stream) {
            let Request::Ram { ranges } = request else {
                continue;
            };
            let (answer, guard) = match catch_unwind(|| guard(&ranges)) {
                Ok(answer) => answer,
                Err(_) => break,
            };
            let fds: Vec<BorrowedFd<'_>> = guard.into_iter().map(Uffd::as_fd).collect();
            if send(&mut stream, &answer, &fds).is_err() {
                break;
            }
        }
    }
}

/// Guards all of these that can be.
fn guard(ranges: &[RamRange]) -> (Guarded, Option<&'static Uffd>) {
    let mut answer = Guarded {
        wire: WIRE_VERSION,
        bytes: 0,
        why_not: None,
    };
    let uffd = match made() {
        Ok(uffd) => uffd,
        Err(reason) => {
            answer.why_not = Some(reason);
            return (answer, None);
        }
    };
    if ranges.len() > MAX_RANGES {
        answer.why_not = Some(format!("more than {MAX_RANGES} pieces of memory"));
    }
    for range in ranges.iter().take(MAX_RANGES) {
        match uffd.register(range.hva, range.len) {
            Ok(()) => answer.bytes += range.len,
            Err(error) => {
                answer.why_not = Some(format!("memory at {:#x} cannot be guarded: {error}", range.hva))
            }
        }
    }
    (answer, Some(uffd))
}

/// One for the life of the process: nobody may wait whom nobody lets go.
fn made() -> Result<&'static Uffd, String> {
    if let Some(uffd) = GUARD.get() {
        return Ok(uffd);
    }
    let uffd = Uffd::new().map_err(|error| {
        format!(
            "no userfaultfd with write protection ({error}): QEMU needs CAP_SYS_PTRACE, access to /dev/userfaultfd, or the sysctl \
             vm.unprivileged_userfaultfd=1"
        )
    })?;
    // Not before somebody lifts what it protects.
    let uffd: &'static Uffd = Box::leak(Box::new(uffd));
    std::thread::Builder::new()
        .name("nephoscope-lift".into())
        .spawn(move || lift(uffd))
        .map_err(|error| format!("no thread that lifts protection: {error}"))?;
    Ok(GUARD.get_or_init(|| uffd))
}

/// Lets everyone go on who writes, for ever: whatever goes wrong with one is tried again when it comes back.
fn lift(uffd: &'static Uffd) {
    loop {
        let lifted = catch_unwind(AssertUnwindSafe(|| lift_next(uffd)));
        if !matches!(lifted, Ok(true)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn lift_next(uffd: &Uffd) -> bool {
    let Ok(Some(fault)) = uffd.next_fault() else {
        return false;
    };
    let page = fault.at & !(PAGE - 1);
    // The memory may have gone away meanwhile, or be about to: the writer has to look again.
    uffd.lift(page, PAGE).is_ok() || uffd.wake(page, PAGE).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::ptr::null_mut;
    use std::sync::mpsc::channel;

    use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

    use super::*;

    const PAGE_BYTES: usize = 4096;

    /// Memory of so many pages, and where it lies.
    fn memory(pages: usize) -> u64 {
        // SAFETY: new memory at a free place.
        let at = unsafe {
            mmap_anonymous(
                null_mut(),
                pages * PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        at.unwrap() as u64
    }

    fn ranges(at: u64, pages: usize) -> Vec<RamRange> {
        (0..pages as u64)
            .map(|page| RamRange {
                gpa: page * PAGE,
                len: PAGE,
                hva: at + page * PAGE,
            })
            .collect()
    }

    #[test]
    fn max_ranges_bounds_what_one_monitor_can_have_registered() {
        let at = memory(MAX_RANGES + 1);
        let (answer, uffd) = guard(&ranges(at, MAX_RANGES));
        assert_eq!((answer.bytes, answer.why_not), (MAX_RANGES as u64 * PAGE, None));
        assert!(uffd.is_some());
        let (answer, _) = guard(&ranges(at, MAX_RANGES + 1));
        assert_eq!(answer.bytes, MAX_RANGES as u64 * PAGE);
        assert!(answer.why_not.is_some_and(|why| why.contains("more than 4096")));
    }

    #[test]
    fn memory_that_cannot_be_guarded_is_named() {
        // Files of most file systems cannot be.
        let program = File::open("/proc/self/exe").unwrap();
        // SAFETY: new memory at a free place, which nobody writes to.
        let at = unsafe {
            mmap(
                null_mut(),
                PAGE_BYTES,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                &program,
                0,
            )
        };
        let at = at.unwrap() as u64;
        let (answer, _) = guard(&ranges(at, 1));
        assert_eq!(answer.bytes, 0);
        assert!(answer.why_not.unwrap().contains(&format!("{at:#x}")));
    }

    #[test]
    fn who_writes_to_a_protected_page_goes_on() {
        let at = memory(2);
        let store = move |page: u64| {
            // SAFETY: two pages that this test alone uses.
            unsafe { ((at + page * PAGE) as *mut u8).write_volatile(7) };
        };
        store(0);
        store(1);
        let (answer, uffd) = guard(&ranges(at, 2));
        assert_eq!(answer.why_not, None);
        let uffd = uffd.unwrap();
        for _ in 0..100 {
            uffd.protect(at, 2 * PAGE).unwrap();
            let (sender, done) = channel();
            std::thread::spawn(move || {
                store(0);
                store(1);
                sender.send(()).unwrap();
            });
            done.recv_timeout(Duration::from_secs(20)).unwrap();
        }
    }
}
