//! See `qemu`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::qemu::ram_map, 16);
