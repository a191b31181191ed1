//! See `terminal`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::terminal::evidence, 32);
