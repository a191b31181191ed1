//! See `leaves`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::leaves::run, 16);
