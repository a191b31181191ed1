//! See `catalog`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::catalog::flipped, 128);
