//! Ways into a guest, one file each.

mod cpu_state;
mod guest_ram;
mod qemu_plugin;
mod qmp;

pub use cpu_state::{CpuStateError, paging_mode};
pub use guest_ram::{
    FlatRange, Hva, LeftOut, MemoryKind, ProcessRam, ProcessRamError, RamBlock, RamMap, RamMapError, Segment,
    WhyLeftOut,
};
pub use qemu_plugin::{QemuPlugin, QemuPluginError};
pub use qmp::{Qmp, QmpError, QmpEvent};
