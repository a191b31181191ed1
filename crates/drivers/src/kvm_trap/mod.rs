//! Stock KVM with the kernel module `nephoscope-kvm`: an event at every first fetch from a frame since it was written.
//!
//! *What it sees*: every frame of code before its first instruction in each generation runs, with its bytes as they will
//! run, from the moment of attachment; the address space that did it. *What it cannot see*: which bytes of the frame run;
//! who else runs the frame, except by sampling; what devices write into memory meanwhile, unless the plugin in the VMM has
//! it guarded; guests inside the guest, which is said. *Config*: the VMM's process. *State*: the rings, and what is known of roots.

mod around;
mod attribution;
mod device;
mod guard;
mod missed;
mod slots;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nephoscope_guest::{Attribution, CodeCoverage, Coverage, Event, Gap, GapReason, Stamped, VcpuId};
use nephoscope_isa::{Mode, X86Controls};
use nephoscope_wire::{Consumer, DeviceWords, Frame, RING_HEAD_BYTES, RamRange, RingMemory, ShmError, Stamp};

use crate::live_memory::maps;
use crate::qemu_plugin;
use crate::rings::{Bell, Rings, RingsError, now_ns};
use around::Around;
use attribution::{First, Spaces};
pub use device::{Audit, IOCTLS};
use guard::Guard;
pub use guard::GuardError;
pub use slots::KvmSlots;

/// The VM cannot be watched this way.
#[derive(Debug, thiserror::Error)]
pub enum KvmTrapError {
    /// No device.
    #[error(
        "cannot open {}: is the kernel module nephoscope-kvm loaded, and is this root?",
        device::DEVICE
    )]
    Device(#[source] std::io::Error),
    /// The process.
    #[error("cannot look into process {pid}")]
    Process {
        /// Its number.
        pid: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It has no VM.
    #[error("process {0} has no KVM VM: does it run with `-accel kvm`?")]
    NoVm(u32),
    /// The module refused.
    #[error("the kernel module does not watch this VM: {}", why(*.0))]
    Refused(#[source] rustix::io::Errno),
    /// Its memory.
    #[error("the kernel module's memory cannot be mapped")]
    Memory(#[from] ShmError),
    /// The rings.
    #[error(transparent)]
    Rings(#[from] RingsError),
}

impl KvmTrapError {
    /// Whether somebody watches the VM: only not we.
    #[must_use]
    pub fn is_watched_already(&self) -> bool {
        matches!(self, Self::Refused(rustix::io::Errno::EXIST))
    }
}

/// What the module means by an error (`kernel/nephoscope-kvm`).
fn why(errno: rustix::io::Errno) -> &'static str {
    use rustix::io::Errno;
    match errno {
        Errno::EXIST => "another monitor watches it already",
        Errno::BUSY => {
            "a function of KVM is redirected by somebody else, a live patch for instance; `dmesg` names it"
        }
        Errno::OPNOTSUPP | Errno::NOENT => {
            "this host's KVM, or this VM, is not one that it supports; `dmesg` says what is missing"
        }
        Errno::PROTO => "it is of another build than this program: build and load both from the same source",
        Errno::PERM => "only root may ask it (CAP_SYS_ADMIN)",
        Errno::SRCH => "the VM has just ended",
        _ => "`dmesg` may say why",
    }
}

/// Bytes of frames in all rings of a VM together: kernel memory, which is not swapped.
const MAX_RINGS_BYTES: u32 = 64 << 20;
/// A vCPU's share of them at most, and at least.
const RING_BYTES: (u32, u32) = (16 << 20, 1 << 20);
/// How long a vCPU waits when its ring is full, as with the plugin.
const FULL_MS: u32 = 2000;
/// vCPUs beyond so many share a ring.
const MAX_RINGS: u32 = 64;
/// `NPH_KVM_ROOTS`.
const ROOTS: usize = 512;
/// How often the roots are taken that vCPUs were seen with.
const SAMPLE: Duration = Duration::from_millis(4);
/// While the monitor is behind, that is left for so many times as long as it took: what ran comes first.
const SAMPLE_REST: u32 = 16;
/// How often the counters are told.
const COUNT: Duration = Duration::from_millis(250);
/// How often all mappings are looked at, where that is asked for.
const AUDIT: Duration = Duration::from_secs(1);

/// A VM that the module watches for us.
#[derive(Debug)]
pub struct KvmTrap {
    watch: OwnedFd,
    rings: Rings,
    roots: Vec<DeviceWords>,
    spaces: Spaces,
    mode: Option<Mode>,
    pid: u32,
    vcpus: u32,
    begun_ns: u64,
    attached_ns: u64,
    sample_due: Instant,
    behind: bool,
    counted: Instant,
    audits: Option<Audits>,
    devices: Devices,
    guard: Option<Guard>,
    /// As the module numbers them.
    slots: u32,
    inner: Inner,
    around: Looking,
}

/// The look at what was mapped when the watch began.
#[derive(Debug)]
enum Looking {
    /// Nobody asked, or it is over.
    Not,
    /// As soon as it is known how to.
    ToBegin,
    UnderWay(Around),
}

/// Whether devices may have written to executable frames unseen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Devices {
    unguarded: u64,
    told_ns: u64,
}

impl Devices {
    /// So many frames became executable unguarded until now, and so many are executable now and still unguarded.
    fn look(&mut self, unguarded: u64, exposed: u64, now_ns: u64) -> Option<Gap> {
        let from_ns = std::mem::replace(&mut self.told_ns, now_ns);
        let lost = unguarded.saturating_sub(std::mem::replace(&mut self.unguarded, unguarded));
        (lost > 0 || exposed > 0).then_some(Gap {
            from_ns,
            to_ns: now_ns,
            left: Coverage {
                code: CodeCoverage::Sampled,
                attribution: Attribution::Sampled,
            },
            reason: GapReason::DeviceWritesUnseen,
            lost,
        })
    }
}

/// Whether guests ran inside the guest, whose code is not seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Inner {
    exits: u64,
    told_ns: u64,
}

impl Inner {
    /// They exited so often until now. One that runs exits every few milliseconds.
    fn look(&mut self, exits: u64, now_ns: u64) -> Option<Gap> {
        let from_ns = std::mem::replace(&mut self.told_ns, now_ns);
        let before = std::mem::replace(&mut self.exits, exits);
        (exits > before).then_some(Gap {
            from_ns,
            to_ns: now_ns,
            left: Coverage {
                code: CodeCoverage::Sampled,
                attribution: Attribution::Sampled,
            },
            reason: GapReason::NestedGuestUnseen,
            lost: 0,
        })
    }
}

/// What was found by looking at all mappings, all times together.
#[derive(Debug)]
struct Audits {
    last: Instant,
    times: u64,
    sum: Audit,
}

impl KvmTrap {
    /// Whether the module is loaded.
    #[must_use]
    pub fn is_there() -> bool {
        std::path::Path::new(device::DEVICE).exists()
    }

    /// How many vCPUs the VM of a process has.
    #[must_use]
    pub fn vcpus_of(pid: u32) -> u32 {
        device::vcpus_of(pid)
    }

    /// Begins to watch the VM of a process. What is mapped in it is torn down once, so that everything that runs from now on
    /// is told. Times count from `begun_ns` (`CLOCK_MONOTONIC`), when the VM was started.
    ///
    /// # Errors
    /// If there is no module, no VM, or the module refuses.
    pub fn attach(pid: u32, vcpus: u32, begun_ns: u64) -> Result<Self, KvmTrapError> {
        let device = device::open().map_err(KvmTrapError::Device)?;
        let process = |source| KvmTrapError::Process { pid, source };
        let vm = device::vm_of(pid)
            .map_err(process)?
            .ok_or(KvmTrapError::NoVm(pid))?;
        let memory = File::open(format!("/proc/{pid}/mem")).map_err(process)?;
        let count = rings(vcpus);
        let bytes = ring_bytes(count);
        let watch = device::attach(&device, &vm, count, bytes, FULL_MS).map_err(KvmTrapError::Refused)?;
        let info = device::info(&watch).map_err(KvmTrapError::Refused)?;
        let copy = || watch.try_clone().map_err(process);
        let each = RING_HEAD_BYTES as u64 + u64::from(bytes);
        let (mut rings, mut roots) = (Vec::new(), Vec::new());
        for ring in 0..u64::from(count) {
            let opened = RingMemory::in_device(copy()?, ring * each, bytes as usize).and_then(Consumer::new);
            let number = rings.len();
            rings.push(opened.map_err(|source| RingsError::Ring { ring: number, source })?);
            let at = u64::from(count) * each + ring * (ROOTS * 8) as u64;
            roots.push(DeviceWords::map(copy()?, at, ROOTS)?);
        }
        Ok(Self {
            watch,
            rings: Rings::new(rings, begun_ns),
            roots,
            // Numbers that no earlier watch of this VM gave: nobody starts a thousand processes a second for long.
            spaces: Spaces::new(memory, milliseconds(info.attached_ns)),
            mode: None,
            pid,
            vcpus: info.vcpus,
            begun_ns,
            attached_ns: info.attached_ns,
            sample_due: Instant::now(),
            behind: false,
            counted: Instant::now(),
            audits: None,
            devices: Devices {
                unguarded: 0,
                told_ns: info.attached_ns.saturating_sub(begun_ns),
            },
            guard: None,
            slots: info.slots,
            inner: Inner {
                exits: 0,
                told_ns: info.attached_ns.saturating_sub(begun_ns),
            },
            around: Looking::Not,
        })
    }

    /// The VMM's process.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// How many vCPUs the VM had.
    #[must_use]
    pub const fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// What times count from (`CLOCK_MONOTONIC`, ns).
    #[must_use]
    pub const fn begun_ns(&self) -> u64 {
        self.begun_ns
    }

    /// When this watch was attached (`CLOCK_MONOTONIC`, ns).
    #[must_use]
    pub const fn attached_ns(&self) -> u64 {
        self.attached_ns
    }

    /// Guards executable frames against writes by the VMM itself, by way of the plugin that listens there. What is executable
    /// already is captured anew when it is fetched from the next time.
    ///
    /// # Errors
    /// If there is no such plugin, or the host's kernel cannot. Then such writes are not seen, and coverage says so.
    pub fn guard(&mut self, plugin: &Path) -> Result<(), GuardError> {
        let map = slots::map(&device::slots(&self.watch).map_err(GuardError::Module)?);
        let mappings = std::fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        let (guard, uffd) = Guard::begin(plugin, guard::whole(&map, &maps::parse(&mappings)))?;
        device::guard(&self.watch, &uffd).map_err(GuardError::Module)?;
        self.guard = Some(guard);
        // Not that of what was just read: whatever comes into sight from now on is looked at.
        self.slots = self.slots.wrapping_sub(1);
        Ok(())
    }

    /// Where the guest sees its memory, for as long as it is watched.
    ///
    /// # Errors
    /// If there are no more descriptors.
    pub fn slots(&self) -> Result<KvmSlots, KvmTrapError> {
        let copy = self.watch.try_clone();
        let process = |source| KvmTrapError::Process {
            pid: self.pid,
            source,
        };
        Ok(KvmSlots::of(copy.map_err(process)?))
    }

    /// Tells where guest RAM lies, so that page tables can be read.
    pub fn set_ram(&mut self, ranges: Vec<RamRange>) {
        self.spaces.set_ram(ranges);
    }

    /// Whether captured pages that were given out before are still being worked on.
    pub fn behind(&mut self, behind: bool) {
        self.behind = behind;
    }

    /// The machine was reset: whoever has a root from now on is another address space.
    pub fn reset(&mut self) {
        self.spaces.reset();
    }

    /// Up to when every frame was given out, in nanoseconds since the watch began.
    #[must_use]
    pub fn seen_until_ns(&self) -> u64 {
        self.rings.seen_until_ns()
    }

    /// Whether the VM is gone, and every frame was read.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.rings.are_over()
    }

    /// Looks every second whether the module keeps its promise, and counts. Holds the VM up meanwhile.
    pub fn audit(&mut self) {
        self.audits = Some(Audits {
            last: Instant::now(),
            times: 0,
            sum: Audit::default(),
        });
    }

    /// Looks once at what is mapped executable: the guest ran before.
    pub fn look_around(&mut self) {
        self.around = Looking::ToBegin;
    }

    /// How the guest's CPUs translate, as of the last time the module was asked; `None` while paging is off.
    #[must_use]
    pub const fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Waits up to `timeout` for events and appends them to `out` in the order of their time.
    ///
    /// # Errors
    /// If a ring holds what the module does not write.
    pub fn next(&mut self, timeout: Duration, out: &mut Vec<Stamped>) -> Result<(), KvmTrapError> {
        let bell = Bell {
            wake: self.watch.as_fd(),
            end: None,
        };
        let (origin, spaces) = (self.begun_ns, &mut self.spaces);
        let mode = self.mode.unwrap_or(Mode::long());
        let take = |stamp: Stamp, frame: &Frame<'_>, events: &mut Vec<Event>| {
            let mut event = qemu_plugin::event(stamp, frame, origin);
            let captured = match &mut event {
                Event::CodeCaptured(captured) => {
                    // The module gives CR3 as it is.
                    captured.root = mode.root(captured.root.0);
                    Some(First::of(captured))
                }
                _ => None,
            };
            events.push(event);
            if let Some(first) = captured {
                spaces.captured(&first, events);
            }
        };
        self.rings.next(&bell, timeout, take, out)?;
        // What the module counted since the last time is told once more at the end: a guest may do in less than that time what
        // coverage has to say, and end.
        let last = self.rings.are_over();
        let now = Instant::now();
        if last || now >= self.sample_due {
            self.sample(last, out);
            let took = now.elapsed();
            let rest = if self.behind {
                took.saturating_mul(SAMPLE_REST)
            } else {
                Duration::ZERO
            };
            self.sample_due = now + SAMPLE.max(took + rest);
        }
        Ok(())
    }

    /// What was executed by others than those who were first.
    fn sample(&mut self, last: bool, out: &mut Vec<Stamped>) {
        let at_ns = now_ns().saturating_sub(self.begun_ns);
        let mut events = Vec::new();
        if last || self.counted.elapsed() >= COUNT {
            self.counted = Instant::now();
            self.count(at_ns, &mut events);
        }
        self.around(&mut events);
        if let Some(mode) = self.mode {
            // First: who is seen now may have the root of one that ended just before.
            self.spaces.look();
            for (vcpu, roots) in (0_u16..).zip(&self.roots) {
                for cr3 in roots.take() {
                    self.spaces.seen(
                        mode.root(cr3),
                        VcpuId::from(vcpu),
                        mode,
                        &Module(&self.watch),
                        &mut events,
                    );
                }
            }
        }
        if let Some(mode) = self.mode {
            self.spaces.seen_again(mode, &Module(&self.watch), &mut events);
        }
        events.extend(self.spaces.missed(at_ns, last).map(Event::Gap));
        out.extend(events.into_iter().map(|event| Stamped { at_ns, event }));
    }

    fn around(&mut self, events: &mut Vec<Event>) {
        match (&self.around, self.mode) {
            (Looking::ToBegin, Some(mode)) => {
                let begun = self
                    .spaces
                    .for_another()
                    .and_then(|(ram, roots)| Around::begin(ram, roots, mode, self.attached_ns / 1000).ok());
                // Nothing that is only mapped is told of then: it is not said to be executed either.
                self.around = begun.map_or(Looking::Not, Looking::UnderWay);
            }
            (Looking::UnderWay(around), _) if !around.take(events) => self.around = Looking::Not,
            _ => {}
        }
    }

    /// Memory was plugged in, or the guest sees it elsewhere.
    fn follow(&mut self) {
        let Some(guard) = &mut self.guard else { return };
        let Ok(found) = device::slots(&self.watch) else {
            return;
        };
        // What cannot be guarded is counted by the module when it is executed. With a VMM that does not answer any more nobody
        // waits for an answer a second time.
        if let Err(GuardError::Connect(_) | GuardError::Socket(_)) = guard.follow(&slots::map(&found)) {
            self.guard = None;
        }
    }

    fn count(&mut self, at_ns: u64, events: &mut Vec<Event>) {
        let Ok(info) = device::info(&self.watch) else {
            return;
        };
        self.mode = Mode::x86(&X86Controls {
            cr0: info.cr0,
            cr4: info.cr4,
            efer: info.efer,
            physical_bits: u8::try_from(info.physical_bits).unwrap_or(52),
            gib_pages: true,
        });
        if let Some(mode) = self.mode {
            self.spaces.set_mode(mode);
        }
        events.push(Event::Counters(vec![
            ("kvm_captures", info.captures),
            ("kvm_writes", info.writes),
            ("kvm_emulated_writes", info.emulated),
            ("kvm_host_writes", info.host_writes),
            ("kvm_frames_reset", info.resets),
            ("kvm_zaps", info.zaps),
            ("kvm_ring_waits", info.ring_waits),
            ("kvm_ring_lost", info.ring_lost),
            ("kvm_pages_unreadable", info.unreadable),
            ("kvm_nested_exits", info.nested),
            ("kvm_frames_unguarded", info.unguarded),
            ("kvm_frames_pinned", info.pinned),
            ("kvm_frames_exposed", info.exposed),
            ("kvm_frames_rechecked", info.rechecks),
            ("kvm_frames_changed_unseen", info.changed),
            ("kvm_recheck_us", info.recheck_ns / 1000),
        ]));
        events.push(Event::Counters(self.spaces.counters().to_vec()));
        if info.slots != self.slots {
            self.slots = info.slots;
            self.follow();
        }
        let devices = self.devices.look(info.unguarded, info.exposed, at_ns);
        events.extend(devices.map(Event::Gap));
        events.extend(self.inner.look(info.nested, at_ns).map(Event::Gap));
        let Some(audits) = &mut self.audits else { return };
        if audits.last.elapsed() >= AUDIT
            && let Ok(audit) = device::audit(&self.watch)
        {
            audits.last = Instant::now();
            audits.times += 1;
            audits.sum.leaves += audit.leaves;
            audits.sum.writable_executable += audit.writable_executable;
            audits.sum.huge += audit.huge;
        }
        events.push(Event::Counters(vec![
            ("kvm_audits", audits.times),
            ("kvm_audited_mappings", audits.sum.leaves),
            (
                "kvm_mappings_writable_and_executable",
                audits.sum.writable_executable,
            ),
            ("kvm_mappings_huge", audits.sum.huge),
        ]));
    }
}

/// What the module says of frames.
struct Module<'a>(&'a OwnedFd);

impl attribution::Now for Module<'_> {
    fn generations(&self, frames: &[u64]) -> Vec<Option<u32>> {
        device::frames(self.0, frames).unwrap_or_else(|_| vec![None; frames.len()])
    }
}

fn milliseconds(ns: u64) -> u32 {
    u32::try_from(ns / 1_000_000 % u64::from(u32::MAX)).unwrap_or(0)
}

/// How long each of so many rings is: a power of two.
fn ring_bytes(count: u32) -> u32 {
    let (most, least) = RING_BYTES;
    let share = MAX_RINGS_BYTES / count.max(1);
    (1 << share.max(1).ilog2()).clamp(least, most)
}

/// How many rings there are for so many vCPUs.
fn rings(vcpus: u32) -> u32 {
    vcpus.clamp(1, MAX_RINGS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_rings_bounds_the_kernel_memory_of_a_vm_with_many_vcpus() {
        assert_eq!([0, 1, 4, 500].map(rings), [1, 1, 4, MAX_RINGS]);
    }

    #[test]
    fn max_rings_bytes_bounds_what_all_rings_take_together() {
        for count in 1..=MAX_RINGS {
            let each = ring_bytes(count);
            assert!(
                each.is_power_of_two() && each * count <= MAX_RINGS_BYTES,
                "{count} of {each}"
            );
        }
        assert_eq!(
            [1, 4, 5, 64].map(ring_bytes),
            [16 << 20, 16 << 20, 8 << 20, 1 << 20]
        );
    }

    #[test]
    fn while_a_frame_is_executable_unguarded_devices_may_write_unseen() {
        let mut devices = Devices::default();
        // The last one was given back before anybody looked again.
        let looks = [(0, 0, 10), (3, 2, 20), (3, 2, 30), (3, 0, 40), (4, 0, 50)];
        let told = looks.map(|(unguarded, exposed, now)| devices.look(unguarded, exposed, now));
        let told = told.map(|gap| gap.map(|gap| (gap.from_ns, gap.to_ns, gap.lost)));
        assert_eq!(
            told,
            [
                None,
                Some((10, 20, 3)),
                Some((20, 30, 0)),
                None,
                Some((40, 50, 1))
            ]
        );
    }

    #[test]
    fn only_while_guests_inside_the_guest_run_their_code_is_unseen() {
        let mut inner = Inner::default();
        let told = [(0, 10), (5, 20), (5, 30), (9, 40)].map(|(exits, now)| inner.look(exits, now));
        let times = told.map(|gap| gap.map(|gap| (gap.from_ns, gap.to_ns)));
        assert_eq!(times, [None, Some((10, 20)), None, Some((30, 40))]);
    }

    #[test]
    fn without_the_module_there_is_one_sentence_that_says_what_to_do() {
        if KvmTrap::is_there() {
            return;
        }
        let error = KvmTrap::attach(std::process::id(), 1, 0).unwrap_err();
        assert!(error.to_string().contains("nephoscope-kvm loaded"), "{error}");
    }
}
