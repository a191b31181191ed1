//! Ways into a guest, one file each.

mod cpu_state;
mod guest_ram;
mod kvm_trap;
mod qemu_plugin;
mod qmp;
mod rings;

pub use cpu_state::{CpuStateError, paging_mode};
pub use guest_ram::{
    FlatRange, Hva, LeftOut, MemoryKind, ProcessRam, ProcessRamError, RamBlock, RamMap, RamMapError, Segment,
    WhyLeftOut,
};
pub use kvm_trap::{Audit, IOCTLS as KVM_TRAP_IOCTLS, KvmTrap, KvmTrapError};
pub use qemu_plugin::{QemuPlugin, QemuPluginError};
pub use qmp::{Qmp, QmpError, QmpEvent};
pub use rings::RingsError;
