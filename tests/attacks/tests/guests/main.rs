//! Attacks in real guests, each answered rightly; in one program, so that on a machine with several cores several run beside each
//! other.

mod bombs;
mod common;
mod control;
mod kernel;
