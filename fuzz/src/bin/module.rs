//! See `recipes`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::recipes::module, 64);
