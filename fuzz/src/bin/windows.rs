//! See `windows`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::windows::run, 16);
