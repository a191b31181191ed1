//! See `dump`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::dump::run, 32);
