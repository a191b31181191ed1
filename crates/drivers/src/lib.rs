//! Ways into a guest, one file each.

mod qemu_plugin;

pub use qemu_plugin::{QemuPlugin, QemuPluginError};
