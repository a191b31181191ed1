//! Real guests, watched: every test that needs one is in this program, so that on a machine with several cores several of them run
//! beside each other. `cargo test -p nephoscope-e2e scan::` runs those of `scan.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests are tests"
)]

mod confined;
mod faults;
mod files;
mod firmware;
mod layouts;
mod nested;
mod nested_inner;
mod nested_refusals;
mod nested_trap;
mod overrun;
mod planted;
mod roots;
mod scan;
mod smoke;
mod truth;
mod versions;
mod watched;
