//! The plugin's state: one per process, made when QEMU loads the library.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nephoscope_guest::{Coverage, GapReason};
use nephoscope_wire::{Frame, Producer, Stamp};

use crate::api::Api;
use crate::config::Config;
use crate::counters::{Count, Counters};
use crate::follow::Follow;
use crate::frames::Frames;
use crate::marks::Marks;
use crate::memory::Memory;
use crate::registers::{Buffer, Registers};
use crate::vcpu::{Local, Vcpu};
use nephoscope_isa::Roots;

/// Everything.
#[derive(Debug)]
pub(crate) struct Plugin {
    pub(crate) id: u64,
    pub(crate) api: Api,
    pub(crate) api_version: i32,
    pub(crate) target: String,
    pub(crate) config: Config,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) start_vcpus: u32,
    pub(crate) frames: Frames,
    pub(crate) marks: Marks,
    pub(crate) roots: Roots,
    pub(crate) memory: Memory,
    pub(crate) counters: Counters,
    pub(crate) registers: OnceLock<Registers>,
    /// A monitor is attached and reads the rings.
    pub(crate) attached: AtomicBool,
    /// Since when there is no monitor (`CLOCK_MONOTONIC` ns), 0 if the guest has not run without one.
    pub(crate) blind_since: AtomicU64,
    pub(crate) installed_ns: u64,
    /// Signalled when a sleeping monitor has something to read.
    pub(crate) wake: OwnedFd,
    /// Several vCPUs share one thread, so that a thread does not tell the vCPU.
    pub(crate) round_robin: AtomicBool,
    /// QEMU is exiting.
    pub(crate) exiting: AtomicBool,
    /// Files are followed.
    pub(crate) follow: Option<Follow>,
}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

thread_local! {
    /// The vCPU of this thread.
    static VCPU: Cell<Option<u16>> = const { Cell::new(None) };
    /// Registers and memory are read into this thread's own buffer.
    static BUFFER: RefCell<Option<Buffer>> = const { RefCell::new(None) };
}

/// The plugin, once installed.
pub(crate) fn get() -> Option<&'static Plugin> {
    PLUGIN.get()
}

/// Sets it; `false` if there is one already.
pub(crate) fn set(plugin: Plugin) -> bool {
    PLUGIN.set(plugin).is_ok()
}

/// Runs a callback's body: a panic stays inside and becomes a counter and a gap.
pub(crate) fn guarded(body: impl FnOnce(&'static Plugin)) {
    let Some(plugin) = get() else { return };
    if catch_unwind(AssertUnwindSafe(|| body(plugin))).is_err() {
        plugin.counters.add(Count::CallbackFaults, 1);
        let now = now_ns();
        let gap = |reason| Frame::Gap {
            from_ns: now,
            to_ns: now,
            lost: 1,
            left: Coverage::BLIND,
            reason,
        };
        let _ = catch_unwind(AssertUnwindSafe(|| {
            if let Some(vcpu) = plugin.thread_vcpu().or_else(|| plugin.vcpus.first()) {
                plugin.push(vcpu, &mut vcpu.lock(), &gap(GapReason::DriverFault), 0, true);
            }
        }));
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

impl Plugin {
    /// Whether a monitor reads.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }

    /// The vCPU whose thread this is. Several vCPUs on one thread: one of them, whose ring is as good as another's.
    pub(crate) fn thread_vcpu(&self) -> Option<&Vcpu> {
        self.vcpus.get(usize::from(VCPU.get()?))
    }

    /// This thread belongs to this vCPU.
    pub(crate) fn adopt_thread(&self, index: u16) {
        if VCPU.get().is_some_and(|other| other != index) {
            self.round_robin.store(true, Ordering::Relaxed);
        }
        VCPU.set(Some(index));
        if let Some(vcpu) = self.vcpus.get(usize::from(index)) {
            vcpu.adopt_thread();
        }
    }

    /// Runs `body` with this thread's buffer.
    pub(crate) fn with_buffer<T>(&self, body: impl FnOnce(&Buffer) -> T) -> T {
        BUFFER.with_borrow_mut(|slot| body(slot.get_or_insert_with(|| Buffer::new(&self.api))))
    }

    /// Sends a frame through a vCPU's ring. If it is full, waits up to the bound if `wait`; what then still does not
    /// fit is counted, and the interval is reported with the next frame that fits. `false`: not sent.
    pub(crate) fn push(
        &self,
        vcpu: &Vcpu,
        local: &mut Local,
        frame: &Frame<'_>,
        page: u64,
        wait: bool,
    ) -> bool {
        if !self.is_attached() {
            return false;
        }
        let now = now_ns();
        let mut bytes = std::mem::take(&mut local.frame);
        if let Some((from_ns, lost)) = local.losing {
            let reason = GapReason::RingFull;
            let gap = Frame::Gap {
                from_ns,
                to_ns: now,
                lost,
                left: Coverage::BLIND,
                reason,
            };
            gap.encode(self.stamp(vcpu, now, 0), &mut bytes);
            if self.offer(vcpu, &bytes) {
                local.losing = None;
            }
        }
        frame.encode(self.stamp(vcpu, now, page), &mut bytes);
        // While frames are being lost nothing waits: the guest was held up for the whole bound once already.
        let mut sent = local.losing.is_none() && self.offer(vcpu, &bytes);
        if !sent && wait && local.losing.is_none() {
            self.counters.add(Count::RingWaits, 1);
            sent = self.offer_until(vcpu, &bytes, now + self.config.full_ms * 1_000_000);
        }
        if !sent && wait {
            self.counters.add(Count::RingLost, 1);
            let (from, lost) = local.losing.unwrap_or((now, 0));
            local.losing = Some((from, lost + 1));
        }
        local.frame = bytes;
        sent
    }

    fn stamp(&self, vcpu: &Vcpu, at_ns: u64, page: u64) -> Stamp {
        let vcpu = if self.round_robin.load(Ordering::Relaxed) {
            u16::MAX
        } else {
            vcpu.index
        };
        Stamp { at_ns, vcpu, page }
    }

    fn offer(&self, vcpu: &Vcpu, bytes: &[u8]) -> bool {
        match Producer::new(&vcpu.ring).push(bytes) {
            Ok(wake) => {
                if wake {
                    self.signal();
                }
                true
            }
            Err(_) => false,
        }
    }

    fn offer_until(&self, vcpu: &Vcpu, bytes: &[u8], deadline: u64) -> bool {
        while self.is_attached() && now_ns() < deadline {
            self.signal();
            std::thread::sleep(std::time::Duration::from_micros(50));
            if self.offer(vcpu, bytes) {
                return true;
            }
        }
        false
    }

    /// Wakes a sleeping monitor.
    pub(crate) fn signal(&self) {
        // An eventfd refuses only when its count is at the end, and then the monitor is awake anyway.
        let _ = rustix::io::write(self.wake.as_fd(), &1_u64.to_ne_bytes());
    }
}
