//! See `virtqueue`.
#![no_main]

nephoscope_fuzz::target!(nephoscope_fuzz::virtqueue::run, 64);
