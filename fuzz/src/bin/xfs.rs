//! See `disk`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::disk::xfs, 64);
