//! See `disk`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::disk::tables, 64);
