//! Who may run a guest now.
//!
//! Emulation takes a core for each vCPU. More vCPUs than cores only make all guests late, so one guest runs at a time. Where many
//! have to be run and none is measured, as in `cargo xtask test`, those with one vCPU run beside each other: the test runner has
//! as many tests at once as there are cores.

use std::fs::File;

use anyhow::Result;

use crate::cache;

/// Set: this process may run guests beside others.
pub const TOGETHER: &str = "NEPHOSCOPE_GUESTS_TOGETHER";

/// The lock: held by one who needs the machine, or shared by those who need a core of it.
const LOCK: &str = "one-guest";

/// The right to run a guest, until it is dropped.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Turn(#[allow(dead_code, reason = "held, not read")] File);

/// Waits until no other guest of this harness runs on the machine; no other one starts until what is returned is
/// dropped. For those who start several guests in one turn, each with [`Options::alone`](crate::Options::alone) off.
///
/// # Errors
/// When the cache, where the lock is, cannot be written.
pub fn turn() -> Result<Turn> {
    Ok(Turn(cache::lock(LOCK)?))
}

/// The same for a guest with so many vCPUs, beside others where that may be.
pub(super) fn for_vcpus(vcpus: u32) -> Result<Turn> {
    if vcpus > 1 || std::env::var_os(TOGETHER).is_none() {
        return turn();
    }
    Ok(Turn(cache::lock_shared(LOCK)?))
}
