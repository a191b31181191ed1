//! The library inside QEMU.
