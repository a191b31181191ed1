//! See `walk`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::walk::run, 16);
