//! What a debug kernel has to say in the end: warnings, leaks, and whether it still looked.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::module::references;
use crate::command::output_of;

const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// An object younger than five seconds is no leak to kmemleak yet.
const BETWEEN_SCANS: Duration = Duration::from_secs(8);

/// Words of a kernel that complains.
const COMPLAINTS: [&str; 17] = [
    "WARNING:",
    "] BUG:",
    "] BUG ",
    "kernel BUG at",
    "Oops",
    "KASAN:",
    "general protection fault",
    "suspicious RCU usage",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "trying to register non-static key",
    "blocked for more than",
    "self-detected stall",
    "detected stalls",
    "ODEBUG:",
    "corruption",
];

/// Bits of the taint mask that say that something went wrong: machine check, bad page, died, warned, soft lockup.
const TAINTS: [(u32, char); 5] = [(4, 'M'), (5, 'B'), (7, 'D'), (9, 'W'), (14, 'L')];

/// Amounts of `/proc/meminfo` in KiB that a leak in the kernel shows in.
const AMOUNTS: [&str; 5] = [
    "SUnreclaim",
    "SReclaimable",
    "VmallocUsed",
    "Percpu",
    "KernelStack",
];

/// Makes what is read here readable.
pub(super) fn begin() -> Result<()> {
    // KVM makes a folder there.
    if !Path::new("/sys/kernel/debug/kvm").exists() {
        output_of(Command::new("mount").args(["-t", "debugfs", "debugfs", "/sys/kernel/debug"]))
            .context("debugfs cannot be mounted")?;
    }
    Ok(())
}

/// Whether the module is.
pub(super) fn is_loaded() -> bool {
    references("nephoscope_kvm").is_some()
}

/// The kernel's log.
pub(super) fn log() -> Result<String> {
    output_of(Command::new("dmesg").env("LC_ALL", "C"))
}

/// Each line of a log that complains.
pub(super) fn complaints(log: &str) -> Vec<String> {
    log.lines()
        .filter(|line| COMPLAINTS.iter().any(|word| line.contains(word)))
        .map(str::to_owned)
        .collect()
}

/// Whether lockdep still looks: it stops at the first thing that it finds.
pub(super) fn lockdep() -> Option<bool> {
    lockdep_of(&fs::read_to_string("/proc/lockdep_stats").ok()?)
}

fn lockdep_of(stats: &str) -> Option<bool> {
    let line = stats
        .lines()
        .find_map(|line| line.trim().strip_prefix("debug_locks:"))?;
    Some(line.trim() == "1")
}

/// The letters of what went wrong since the kernel was started.
pub(super) fn taints() -> Result<String> {
    let mask: u64 = fs::read_to_string("/proc/sys/kernel/tainted")?.trim().parse()?;
    Ok(taints_of(mask))
}

fn taints_of(mask: u64) -> String {
    let is_set = |(bit, _): &(u32, char)| (mask >> bit) & 1 == 1;
    TAINTS
        .iter()
        .filter(|taint| is_set(taint))
        .map(|(_, letter)| *letter)
        .collect()
}

/// How much memory the kernel itself has, with what it could give back given back.
pub(super) fn amounts() -> Result<Value> {
    // The nodes and inodes of files that nobody has open any more.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let text = fs::read_to_string("/proc/meminfo")?;
    let mut out = Map::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(number)) = (words.next(), words.next())
            && let Some(name) = AMOUNTS.iter().find(|one| name.trim_end_matches(':') == **one)
        {
            out.insert(format!("{name}_kib"), json!(number.parse::<u64>()?));
        }
    }
    Ok(Value::Object(out))
}

/// What of the module's is not given back although nobody watches: areas of `vmalloc` (as long as it is loaded), VMs.
pub(super) fn held() -> Result<Vec<String>> {
    let areas = fs::read_to_string("/proc/vmallocinfo")?;
    let mut out: Vec<String> = areas
        .lines()
        .filter(|line| line.contains("[nephoscope_kvm]"))
        .map(|line| format!("vmalloc: {line}"))
        .collect();
    match references("kvm_amd") {
        Some(0) => {}
        left => out.push(format!("KVM's module is held by {left:?}: VMs are left")),
    }
    Ok(out)
}

/// Objects that nothing points to.
#[derive(Debug, Default)]
pub(super) struct Leaks {
    /// The module made them, or a module that is not there any more.
    pub(super) ours: Vec<String>,
    pub(super) others: Vec<String>,
}

/// Whether this kernel looks for such.
pub(super) fn finds_leaks() -> bool {
    Path::new(KMEMLEAK).exists()
}

/// Has the kernel look twice, if it can.
pub(super) fn leaks() -> Result<Leaks> {
    if !finds_leaks() {
        return Ok(Leaks::default());
    }
    for _ in 0..2 {
        std::thread::sleep(BETWEEN_SCANS);
        fs::write(KMEMLEAK, "scan").context("kmemleak does not look")?;
    }
    Ok(leaks_of(&fs::read_to_string(KMEMLEAK)?))
}

/// What was found so far does not count.
pub(super) fn forget_leaks() -> Result<()> {
    if !finds_leaks() {
        return Ok(());
    }
    fs::write(KMEMLEAK, "clear").context("kmemleak cannot be cleared")
}

fn leaks_of(text: &str) -> Leaks {
    let mut leaks = Leaks::default();
    let mut objects: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.starts_with("unreferenced object") {
            objects.push(String::new());
        }
        if let Some(object) = objects.last_mut() {
            object.push_str(line);
            object.push('\n');
        }
    }
    for object in objects {
        // The names of a module that was unloaded are not known any more, and no other is unloaded here.
        let unnamed = |line: &str| {
            line.trim()
                .rsplit(' ')
                .next()
                .is_some_and(|place| place.starts_with("0xffffffffc"))
        };
        if object.contains("nephoscope") || object.lines().any(unnamed) {
            leaks.ours.push(object);
        } else {
            leaks.others.push(object);
        }
    }
    leaks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_complains_is_heard() {
        let log = "[1] kvm: ignored rdmsr\n\
                   [2] WARNING: possible circular locking dependency detected\n\
                   [3] BUG: KASAN: use-after-free in make_spte\n\
                   [4] nephoscope_kvm: loading out-of-tree module taints kernel.\n\
                   [5] rcu: INFO: rcu_preempt self-detected stall on CPU\n";
        let found = complaints(log);
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn lockdep_that_has_stopped_looking_is_noticed() {
        assert_eq!(
            lockdep_of(" lock-classes: 7\n debug_locks:             1\n"),
            Some(true)
        );
        assert_eq!(lockdep_of(" debug_locks:             0\n"), Some(false));
        assert_eq!(lockdep_of(""), None);
    }

    #[test]
    fn only_taints_that_say_that_something_went_wrong_count() {
        // Out of tree, unsigned.
        assert_eq!(taints_of(1 << 12 | 1 << 13), "");
        assert_eq!(taints_of(1 << 12 | 1 << 9 | 1 << 7), "DW");
    }

    #[test]
    fn a_leak_of_the_module_is_told_from_others_also_when_it_is_gone() {
        let text = "unreferenced object 0xffff888001 (size 64):\n  backtrace:\n    [<00000000a>] make+0x1/0x2 [nephoscope_kvm]\n\
                    unreferenced object 0xffff888002 (size 64):\n  backtrace:\n    [<00000000b>] 0xffffffffc0123456\n\
                    unreferenced object 0xffff888003 (size 64):\n  backtrace:\n    [<00000000c>] kvm_create_vm+0x1/0x2 [kvm]\n";
        let leaks = leaks_of(text);
        assert_eq!((leaks.ours.len(), leaks.others.len()), (2, 1));
        assert!(leaks.others[0].contains("kvm_create_vm"));
    }
}
