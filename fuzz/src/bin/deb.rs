//! See `packages`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::packages::deb, 64);
