//! Pieces of files in guest memory: who accesses them.
//!
//! ```text
//!  disk's server ─ "landed" ─► disks ─► what was translated of that memory is thrown away (qtest)
//!                                │    ─► what it holds, to the monitor
//!                                └────► armed: it is taken out of QEMU's page table (minor faults of a userfaultfd)
//!  vCPU accesses it ─► waits ─► hits ─► who, to the monitor ─► goes on; open until another root is loaded
//! ```
//!
//! Memory that is not armed costs nothing; QEMU, TCG and KVM alike get to it by way of one page table.

mod armed;
mod disks;
mod hits;
mod qtest;
mod regions;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nephoscope_wire::{Frame, Producer, RingMemory, Stamp};

use crate::counters::Count;
use crate::plugin::{Plugin, now_ns};
use crate::uffd::Uffd;
use armed::Armed;
pub(crate) use disks::start;
use qtest::Qtest;
use regions::Regions;

/// What there is of it.
#[derive(Debug)]
pub(crate) struct Follow {
    /// What is said goes there: never through a vCPU's, whose lock somebody may hold who waits for memory.
    pub(crate) ring: RingMemory,
    /// Held while something is pushed there.
    pushing: Mutex<Vec<u8>>,
    regions: Regions,
    armed: Mutex<Armed>,
    /// How many armed pages are open.
    open: AtomicUsize,
    uffd: OnceLock<Uffd>,
    /// Nobody's accesses are told, and that was said.
    blind: AtomicBool,
    /// To QEMU's test protocol, when somebody has needed it: one for all disks.
    qtest: Mutex<Option<Qtest>>,
}

impl Follow {
    pub(crate) fn new(ring: RingMemory) -> Self {
        Self {
            ring,
            pushing: Mutex::default(),
            regions: Regions::default(),
            armed: Mutex::default(),
            open: AtomicUsize::new(0),
            uffd: OnceLock::new(),
            blind: AtomicBool::new(false),
            qtest: Mutex::default(),
        }
    }
}

impl Plugin {
    /// Sends a frame, and waits for room up to the bound. What does not fit is counted.
    fn tell_of_files(&self, follow: &Follow, vcpu: u16, frame: &Frame<'_>) {
        let at_ns = now_ns();
        let stamp = Stamp { at_ns, vcpu, page: 0 };
        let mut bytes = follow.pushing.lock().unwrap_or_else(PoisonError::into_inner);
        frame.encode(stamp, &mut bytes);
        let deadline = at_ns + self.config.full_ms * 1_000_000;
        while self.is_attached() {
            match Producer::new(&follow.ring).push(&bytes) {
                Ok(wake) => {
                    if wake {
                        self.signal();
                    }
                    return;
                }
                Err(_) if now_ns() < deadline => {
                    self.signal();
                    std::thread::sleep(std::time::Duration::from_micros(50));
                }
                Err(_) => break,
            }
        }
        self.counters.add(Count::FileFramesLost, 1);
    }

    /// Another root is loaded: what is open was open for the one before.
    pub(crate) fn close_files(&self) {
        if let Some(follow) = &self.follow
            && follow.open.load(Ordering::Relaxed) > 0
        {
            follow.close();
        }
    }
}
