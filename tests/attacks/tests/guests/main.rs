//! Attacks in real guests, each answered rightly; in one program, so that on a machine with several cores several run beside each
//! other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests are tests"
)]

mod bombs;
mod common;
mod control;
mod kernel;
