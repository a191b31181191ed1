//! Capabilities, and what else a process may be given later.

use anyhow::Context;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
};

use super::InForce;

/// Needs a capability itself, so it comes first; without that there is nothing to shrink for: no program is started any
/// more, and none could gain by it.
pub(super) fn shrink_bounding_set() {
    for capability in CapabilitySet::all().iter() {
        // Older kernels have fewer.
        let _ = remove_capability_from_bounding_set(capability);
    }
}

/// What reading another user's process asks for (ptrace(2), `PTRACE_MODE_ATTACH_REALCREDS`).
pub(super) const READ_PROCESS: CapabilitySet = CapabilitySet::SYS_PTRACE;

/// Becoming another user takes none away yet.
pub(super) fn keep_over_users() -> anyhow::Result<()> {
    set_keep_capabilities(true).context("keeping capabilities while becoming another user")
}

/// None is left but what is to be kept, and none can be had.
pub(super) fn drop_all(kept: Option<CapabilitySet>, in_force: &mut InForce) {
    // Who never had it reads the processes of its own user.
    let had = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted);
    let left = kept.unwrap_or(CapabilitySet::empty()) & had;
    let sets = CapabilitySets {
        effective: left,
        permitted: left,
        inheritable: CapabilitySet::empty(),
    };
    let _ = clear_ambient_capability_set();
    match set_capabilities(None, sets) {
        Ok(()) if left.is_empty() => in_force.holds("capabilities", "none"),
        Ok(()) => in_force.holds("capabilities", "CAP_SYS_PTRACE"),
        Err(error) => in_force.lacks("capabilities", error),
    }
    match set_no_new_privs(true) {
        Ok(()) => in_force.holds("no_new_privs", "set"),
        Err(error) => in_force.lacks("no_new_privs", error),
    }
    // Guest memory is in this process: it goes into no core file, and other processes of this user may not read it.
    match set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        Ok(()) => in_force.holds("dumpable", "no"),
        Err(error) => in_force.lacks("dumpable", error),
    }
}
