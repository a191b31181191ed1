//! See `qemu`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::qemu::qmp, 32);
