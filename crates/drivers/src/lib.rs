//! Ways into a guest, one file each.

mod cpu_state;
mod dump;
mod guest_ram;
mod kvm_trap;
mod live_memory;
mod mapped_file;
mod qemu_plugin;
mod qmp;
mod rings;
mod sampler;

pub use cpu_state::{CpuStateError, paging_mode};
pub use dump::{CpuRegisters, Dump, DumpError, DumpFormat, Machine, OpenDumpError};
pub use guest_ram::{
    FlatRange, Gatherer, Hva, LeftOut, MemoryKind, ProcessRam, ProcessRamError, RamBlock, RamMap,
    RamMapError, Segment, WhyLeftOut, serve as serve_gatherer,
};
pub use kvm_trap::{Audit, GuardError, IOCTLS as KVM_TRAP_IOCTLS, KvmSlots, KvmTrap, KvmTrapError};
pub use live_memory::{LiveMemory, LiveMemoryError};
pub use qemu_plugin::{QemuPlugin, QemuPluginError};
pub use qmp::{Qmp, QmpError, QmpEvent};
pub use rings::RingsError;
pub use sampler::{Pass, Sampler};
