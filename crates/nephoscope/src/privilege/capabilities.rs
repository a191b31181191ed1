//! Capabilities, and what else a process may be given later.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
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

/// None is left, and none can be had.
pub(super) fn drop_all(in_force: &mut InForce) {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    let _ = clear_ambient_capability_set();
    match set_capabilities(None, none) {
        Ok(()) => in_force.holds("capabilities", "none"),
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
