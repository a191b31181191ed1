//! How much of the machine the monitor may use.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::InForce;

/// Private memory, in bytes. A watch needs less than a quarter of a gigabyte; this stops what grows without end before the
/// host has to.
const MAX_DATA_BYTES: u64 = 2 << 30;
/// Descriptors: the rings of 250 vCPUs, 32 clients, and some.
const MAX_FILES: u64 = 1024;
/// Threads: one per client, and two.
const MAX_TASKS: u64 = 64;

/// Sets them. `alone`: nobody else is this user, so that its tasks can be counted.
pub(super) fn set(alone: bool, in_force: &mut InForce) {
    let mut limits = vec![
        ("memory", Resource::Data, MAX_DATA_BYTES),
        ("files", Resource::Nofile, MAX_FILES),
        ("core", Resource::Core, 0),
    ];
    if alone {
        limits.push(("tasks", Resource::Nproc, MAX_TASKS));
    }
    let mut told = Vec::new();
    for (name, resource, most) in limits {
        // Somebody may have set a lower one.
        let most = getrlimit(resource).maximum.map_or(most, |now| now.min(most));
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        match setrlimit(resource, limit) {
            Ok(()) => told.push(format!("{name} {most}")),
            Err(error) => in_force.lacks(&format!("limit of {name}"), error),
        }
    }
    if !alone {
        told.push("tasks by the filter of system calls and 32 clients".to_owned());
    }
    in_force.holds("limits", told.join(", "));
}
