//! The kernel module's device (`kernel/nephoscope-kvm/nephoscope_kvm.h`).
#![allow(unsafe_code, reason = "ioctls of our own kernel module")]

use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::ioctl::{Getter, Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl, opcode};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Where it is.
pub(super) const DEVICE: &str = "/dev/nephoscope-kvm";

/// `NPH_KVM_VERSION`.
const VERSION: u32 = 5;

/// `struct nph_kvm_attach`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Attach {
    version: u32,
    vm: RawFd,
    /// One per vCPU.
    pub(super) rings: u32,
    /// Of frames, per ring: a power of two.
    pub(super) ring_bytes: u32,
    /// How long a vCPU waits for room.
    pub(super) full_ms: u32,
    reserved: u32,
}

/// `struct nph_kvm_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Info {
    pub(super) vcpus: u32,
    pub(super) pid: u32,
    pub(super) attached_ns: u64,
    pub(super) captures: u64,
    pub(super) writes: u64,
    pub(super) emulated: u64,
    pub(super) host_writes: u64,
    pub(super) resets: u64,
    pub(super) zaps: u64,
    pub(super) ring_waits: u64,
    pub(super) ring_lost: u64,
    pub(super) unreadable: u64,
    pub(super) nested: u64,
    pub(super) unguarded: u64,
    pub(super) pinned: u64,
    pub(super) exposed: u64,
    pub(super) rechecks: u64,
    pub(super) changed: u64,
    pub(super) recheck_ns: u64,
    pub(super) cr0: u64,
    pub(super) cr4: u64,
    pub(super) efer: u64,
    pub(super) physical_bits: u32,
    pub(super) gone: u32,
    pub(super) guarded: u32,
    pub(super) slots: u32,
}

/// `struct nph_kvm_audit`: mappings of the VM, and those that break the module's promise.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// All of them.
    pub leaves: u64,
    /// Writable and executable at once.
    pub writable_executable: u64,
    /// Larger than 4 KiB.
    pub huge: u64,
}

/// `struct nph_kvm_slot`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    pub(super) gpa: u64,
    pub(super) bytes: u64,
    pub(super) hva: u64,
    pub(super) read_only: u32,
    pub(super) reserved: u32,
}

#[cfg(test)]
impl Slot {
    pub(super) fn of(gpa: u64, bytes: u64, hva: u64) -> Self {
        Self {
            gpa,
            bytes,
            hva,
            ..Self::default()
        }
    }
}

/// `struct nph_kvm_slots`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct SlotsCall {
    at: u64,
    room: u32,
    count: u32,
}

/// `struct nph_kvm_frames`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct FramesCall {
    at: u64,
    count: u32,
    reserved: u32,
}

/// `NPH_KVM_FRAMES_MOST`.
pub(super) const MAX_FRAMES: usize = 65536;

/// `NPH_KVM_SLOTS_MOST`.
const MAX_SLOTS: u32 = 4096;

/// What a watch asks of the module while it runs, for whoever limits its system calls.
pub const IOCTLS: [u32; 4] = [INFO, AUDIT, SLOTS, FRAMES];
const FRAMES: Opcode = opcode::write::<FramesCall>(b'N', 6);
const SLOTS: Opcode = opcode::read_write::<SlotsCall>(b'N', 5);
const INFO: Opcode = opcode::read::<Info>(b'N', 2);
const GUARD: Opcode = opcode::write::<RawFd>(b'N', 4);
const AUDIT: Opcode = opcode::read::<Audit>(b'N', 3);

struct AttachCall(Attach);

// SAFETY: the module reads one `struct nph_kvm_attach` and writes nothing; its answer is a new descriptor.
unsafe impl Ioctl for AttachCall {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<Attach>(b'N', 1)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(&mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the call succeeded, so this is a descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// Opens the device.
pub(super) fn open() -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

/// The VM of another process, if it has one.
pub(super) fn vm_of(pid: u32) -> std::io::Result<Option<OwnedFd>> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let target = fs::read_link(entry.path());
        if let Some(number) = number
            && target.is_ok_and(|target| target.as_os_str() == "anon_inode:kvm-vm")
        {
            let process = i32::try_from(pid)
                .ok()
                .and_then(Pid::from_raw)
                .ok_or(Errno::SRCH)?;
            let process = pidfd_open(process, PidfdFlags::empty())?;
            return Ok(Some(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?));
        }
    }
    Ok(None)
}

/// Begins to watch.
pub(super) fn attach(
    device: impl AsFd,
    vm: &OwnedFd,
    rings: u32,
    ring_bytes: u32,
    full_ms: u32,
) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let call = AttachCall(Attach {
        version: VERSION,
        vm: vm.as_raw_fd(),
        rings,
        ring_bytes,
        full_ms,
        reserved: 0,
    });
    // SAFETY: as said at `AttachCall`.
    unsafe { ioctl(device, call) }
}

/// What the module counted.
pub(super) fn info(watch: impl AsFd) -> rustix::io::Result<Info> {
    // SAFETY: the module writes one `struct nph_kvm_info`, of integers only.
    unsafe { ioctl(watch, Getter::<INFO, Info>::new()) }
}

/// Guards executable frames by a userfaultfd of the VMM.
pub(super) fn guard(watch: impl AsFd, uffd: &OwnedFd) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the module reads one integer, a descriptor of this process.
    unsafe { ioctl(watch, Setter::<GUARD, RawFd>::new(uffd.as_raw_fd())) }
}

/// Whether the module keeps its promise.
pub(super) fn audit(watch: impl AsFd) -> rustix::io::Result<Audit> {
    // SAFETY: the module writes one `struct nph_kvm_audit`, of integers only.
    unsafe { ioctl(watch, Getter::<AUDIT, Audit>::new()) }
}

/// Where the guest sees its memory.
pub(super) fn slots(watch: impl AsFd) -> rustix::io::Result<Vec<Slot>> {
    let mut slots = vec![Slot::default(); 64];
    loop {
        let room = u32::try_from(slots.len()).unwrap_or(MAX_SLOTS);
        let mut call = SlotsCall {
            at: slots.as_mut_ptr().expose_provenance() as u64,
            room,
            count: 0,
        };
        // SAFETY: the module reads and writes one `struct nph_kvm_slots`, and writes at most `room` of `struct nph_kvm_slot`,
        // of integers only, to where `at` says, which lives until after the call.
        unsafe { ioctl(&watch, Updater::<SLOTS, SlotsCall>::new(&mut call)) }?;
        if let Some(more) = more_room(room, call.count) {
            slots.resize(more as usize, Slot::default());
            continue;
        }
        slots.truncate(call.count as usize);
        return Ok(slots);
    }
}

/// How much room there has to be, if there are more than there was room for: no more than the module takes.
fn more_room(room: u32, count: u32) -> Option<u32> {
    (count > room && room < MAX_SLOTS).then(|| count.min(MAX_SLOTS))
}

/// What frames, by their addresses in the VMM, are now: the generation of each if it is executable.
pub(super) fn frames(watch: impl AsFd, frames: &[u64]) -> rustix::io::Result<Vec<Option<u32>>> {
    let mut numbers = frames.to_vec();
    for some in numbers.chunks_mut(MAX_FRAMES) {
        let call = FramesCall {
            at: some.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(some.len()).unwrap_or(0),
            reserved: 0,
        };
        // SAFETY: the module reads one `struct nph_kvm_frames`, and reads and writes `count` integers where `at` says, which live
        // until after the call.
        unsafe { ioctl(&watch, Setter::<FRAMES, FramesCall>::new(call)) }?;
    }
    let generation = |number: &u64| (number & 1 == 1).then(|| u32::try_from(number >> 1).unwrap_or(u32::MAX));
    Ok(numbers.iter().map(generation).collect())
}

/// How many vCPUs a process has, by the descriptors of them that it holds; none if it is not told.
pub(super) fn vcpus_of(pid: u32) -> u32 {
    let Ok(all) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return 0;
    };
    let targets = all.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let is_vcpu = |target: &std::path::PathBuf| target.to_string_lossy().starts_with("anon_inode:kvm-vcpu:");
    u32::try_from(targets.filter(is_vcpu).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_slots_bounds_the_room_however_many_there_are_said_to_be() {
        let rooms = [(64, 64), (64, 65), (64, u32::MAX), (MAX_SLOTS, u32::MAX)]
            .map(|(room, count)| more_room(room, count));
        assert_eq!(rooms, [None, Some(65), Some(MAX_SLOTS), None]);
    }
}
