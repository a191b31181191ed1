//! See `ring`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::ring::run, 16);
