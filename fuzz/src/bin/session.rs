//! See `session`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::session::run, 128);
