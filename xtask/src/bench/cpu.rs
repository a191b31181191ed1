//! CPU time of processes, and of the whole machine beside them.
//!
//! Wall time says more of the neighbours than of us; the time that a process spent on a CPU says less of them. Cycles
//! and instructions would say still less, but virtual machines rarely have the counters.

use std::fs;
use std::ops::{Add, Sub};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What a process used of the CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// By itself; for QEMU, that is the guest.
    pub(crate) user: Duration,
    /// By the kernel on its behalf.
    pub(crate) system: Duration,
}

impl Used {
    /// Both.
    pub(crate) fn total(&self) -> Duration {
        self.user.saturating_add(self.system)
    }
}

impl Add for Used {
    type Output = Used;

    fn add(self, other: Used) -> Used {
        Used {
            user: self.user.saturating_add(other.user),
            system: self.system.saturating_add(other.system),
        }
    }
}

impl Sub for Used {
    type Output = Used;

    fn sub(self, before: Used) -> Used {
        Used {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
        }
    }
}

/// Readings at one moment, or what lies between two of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// All threads of QEMU, the plugin's among them.
    pub(crate) qemu: Used,
    /// All threads of the process that watches, and of `nephoscope run`, which started it.
    pub(crate) monitor: Used,
    /// As a clock on the wall has it.
    pub(crate) wall: Duration,
    /// Everything that ran on the machine, ourselves included.
    pub(crate) machine: Duration,
    /// What a hypervisor below took away.
    pub(crate) stolen: Duration,
}

impl Cost {
    /// QEMU and the monitor, with what the kernel did for them.
    pub(crate) fn total(&self) -> Duration {
        self.qemu.total().saturating_add(self.monitor.total())
    }

    /// What others used, in CPUs.
    pub(crate) fn others(&self) -> f64 {
        self.share(self.machine.saturating_sub(self.total()))
    }

    /// What a hypervisor took away, in CPUs.
    pub(crate) fn stolen_share(&self) -> f64 {
        self.share(self.stolen)
    }

    fn share(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.wall.as_secs_f64()
    }
}

impl Sub for Cost {
    type Output = Cost;

    fn sub(self, before: Cost) -> Cost {
        Cost {
            qemu: self.qemu - before.qemu,
            monitor: self.monitor - before.monitor,
            wall: self.wall.saturating_sub(before.wall),
            machine: self.machine.saturating_sub(before.machine),
            stolen: self.stolen.saturating_sub(before.stolen),
        }
    }
}

/// The processes that one guest is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter {
    begun: Instant,
    qemu: u32,
    monitor: Option<[u32; 2]>,
}

impl Meter {
    /// For a guest whose first process is `pid`: QEMU itself, or the monitor that started it.
    pub(crate) fn of(pid: u32, watched: bool) -> Result<Self> {
        let (qemu, monitor) = if watched {
            // In this order: a QEMU that is only asked for its version comes and goes before.
            let watcher = nephoscope_e2e::guest::watcher_of(pid)?;
            (child_of(pid)?, Some([pid, watcher]))
        } else {
            (pid, None)
        };
        Ok(Meter {
            begun: Instant::now(),
            qemu,
            monitor,
        })
    }

    /// QEMU's process.
    pub(crate) fn qemu(&self) -> u32 {
        self.qemu
    }

    /// Reads all the clocks.
    pub(crate) fn read(&self) -> Result<Cost> {
        let (machine, stolen) = machine()?;
        Ok(Cost {
            qemu: process(self.qemu)?,
            monitor: match self.monitor {
                Some([run, watcher]) => process(run)? + process(watcher)?,
                None => Used::default(),
            },
            wall: self.begun.elapsed(),
            machine,
            stolen,
        })
    }
}

/// The machine's clocks alone, for the time before there is a process to look at.
pub(crate) fn machine() -> Result<(Duration, Duration)> {
    // user, nice, system, idle, iowait, irq, softirq, steal: proc(5)
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let numbers: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map_while(|n| n.parse().ok())
        .collect();
    let [user, nice, system, _, _, irq, softirq, steal, ..] = numbers.as_slice() else {
        anyhow::bail!("/proc/stat begins with {line:?}")
    };
    Ok((ticks(user + nice + system + irq + softirq), ticks(*steal)))
}

/// What a process used since it was started.
fn process(pid: u32) -> Result<Used> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} has ended"))?;
    let used = field(&text, UTIME).zip(field(&text, STIME));
    let (user, system) = used.with_context(|| format!("/proc/{pid}/stat is {text:?}"))?;
    Ok(Used {
        user: ticks(user),
        system: ticks(system),
    })
}

/// What this process's children used that have ended and were waited for.
pub(crate) fn children() -> Result<Duration> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let used = field(&text, CUTIME).zip(field(&text, CSTIME));
    let (user, system) = used.with_context(|| format!("/proc/self/stat is {text:?}"))?;
    Ok(ticks(user + system))
}

/// The QEMU that a monitor starts.
fn child_of(parent: u32) -> Result<u32> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(pid) = started_by(parent)? {
            return Ok(pid);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    anyhow::bail!("process {parent} has started no QEMU")
}

fn started_by(parent: u32) -> Result<Option<u32>> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may end while we look.
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if text.contains("(qemu-system") && field(&text, PPID) == Some(u64::from(parent)) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Fields of `/proc/PID/stat` as proc(5) counts them.
const PPID: usize = 4;
const UTIME: usize = 14;
const STIME: usize = 15;
const CUTIME: usize = 16;
const CSTIME: usize = 17;

/// The name, which is the second field, may hold anything; the third comes after its last parenthesis.
fn field(stat: &str, number: usize) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(number.checked_sub(3)?)?.parse().ok()
}

fn ticks(count: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_nanos(count.saturating_mul(1_000_000_000 / per_second))
}

#[cfg(test)]
mod tests {
    use super::{PPID, STIME, UTIME, field};

    #[test]
    fn a_name_with_parentheses_shifts_no_field() {
        let stat = "12 (a) 9 (b) S 7 12 12 0 -1 4194560 100 200 0 0 31 9 0 0 20 0 1 0";
        assert_eq!(field(stat, PPID), Some(7));
        assert_eq!((field(stat, UTIME), field(stat, STIME)), (Some(31), Some(9)));
    }
}
