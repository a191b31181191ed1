//! See `disk`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::disk::ext4_current, 64);
