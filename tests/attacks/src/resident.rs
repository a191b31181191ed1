//! What a process has in memory, as `/proc/PID/status` says it (proc_pid_status(5)).

use anyhow::{Context, Result};

/// One of its lines, in KiB: `RssAnon` is the process's own, `RssFile` what it maps of files, which comes and goes, and `VmRSS` all
/// of it.
pub(crate) fn kib(pid: u32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.with_context(|| format!("process {pid} has no {name}"))?;
    number.parse().with_context(|| format!("{name} is no number"))
}
