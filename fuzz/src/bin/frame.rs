//! See `frame`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::frame::run, 16);
