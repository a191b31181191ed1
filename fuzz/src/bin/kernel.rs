//! See `recipes`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::recipes::kernel, 64);
