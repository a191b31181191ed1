//! See `compare`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::compare::run, 16);
