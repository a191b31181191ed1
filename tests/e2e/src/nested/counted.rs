//! What watching costs under stock KVM, in instructions.
//!
//! L1 runs with its clock bound to the number of instructions that it executed (`-icount shift=0`: one nanosecond each), on
//! one CPU. So the CPU time that L1's kernel accounts to a process *is* a number of instructions: for the VMM those of the
//! guest, of the VMM and of the host's kernel on behalf of both, the module's part among them; for `nephoscope` those of
//! digesting, which on a real host is done by another CPU. Here there is one: each time that the monitor wants it, or a timer of its own
//! runs out, the guest is left and entered again. So it is stopped while a job is counted, and digests after that; and once more
//! the jobs are counted with a monitor that goes on meanwhile.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Shape, Stage};
use crate::{Control, Guest, Image, Kernel, Options, Watched};

/// What is done in the guest, after its boot, which is measured as well.
const JOBS: [(&str, &str); 3] = [
    ("processes", "/opt/nephoscope/shortlived 100"),
    (
        "cpu",
        // The same hashes and the same addresses each time: with others, the interpreter does up to a tenth more or less.
        "PYTHONHASHSEED=0 setarch -R python3 -c \
         'x = 0\nfor i in range(1000000): x = (x * 31 + i) & 0xffffffff\nprint(x)'",
    ),
    (
        "forks",
        "i=0; while [ $i -lt 200 ]; do x=$(echo $i | cat); i=$((i + 1)); done; echo $x",
    ),
];

/// What happened is in the report and digested after so long, by the machine's own clock.
const ARRIVES: Duration = Duration::from_secs(3);

/// A monitor that has nothing to digest executes less than this meanwhile; and how often it is asked at most.
const IDLE: u64 = 100_000_000;
const CATCHES_UP: u32 = 100;

/// Counted by the module.
const COUNTED: [&str; 4] = ["kvm_captures", "kvm_writes", "kvm_emulated_writes", "kvm_zaps"];

/// How long the module's thread in the host's kernel took to compare what runs with what was captured: no process's time.
const COMPARING: &str = "kvm_recheck_us";

/// Where everything lies in L1: in memory. Whatever comes from outside, as from a disk, comes at a moment that no instruction decides,
/// and ends the slice that the CPU is in (see `examples/inside.rs` for what that does to a guest).
const WITHIN: &str = "/tmp/within";
/// For that: the guest's disk, a catalog and the guest's own memory.
const MEMORY_MIB: u32 = 8192;

/// How a guest is watched, or not.
const WAYS: [&str; 3] = ["plain", "unguarded", "guard"];

/// A guest that the emulator has delivered an interrupt to twice waits for ever for a lock that it holds itself (see
/// `examples/inside.rs`; it happens now and then). Nothing else goes on for so long without a word, and then another one is booted. It is time of its CPU, which others make longer by half at most.
const STANDS_STILL: Duration = Duration::from_secs(240);
const TRIES: usize = 8;

/// Jobs in so many guests of each way, so many times in a row in each. `program` is `nephoscope`, with `examples/inside` beside it.
///
/// # Errors
/// When a part cannot be built, the machine does not come up, or what runs in it fails.
pub fn counted(
    image: &Image,
    program: &Path,
    kernel: Kernel,
    (boots, rounds): (u32, u32),
    mut line: impl FnMut(&str),
) -> Result<Value> {
    let shape = Shape {
        counted: true,
        memory_mib: MEMORY_MIB,
        ..Shape::of(kernel)
    };
    let stage = Stage::with(image, program, shape, "inside")?;
    let mut begun_anew = 0;
    let mut counted = json!({});
    for how in (0..boots).flat_map(|_| WAYS) {
        let command = format!(
            "mkdir {WITHIN} && cp -r /host/nephoscope /host/plugins /host/catalog /host/image {WITHIN}/ \
             && rm -f {WITHIN}/image/disk.img && cp --sparse=always /dev/vdb {WITHIN}/image/disk.img || exit 94\n\
             /host/inside {WITHIN} {} 1 {how} {rounds} && cp {WITHIN}/counted-{how}.json /host/",
            kernel.version()
        );
        for left in (0..TRIES).rev() {
            match stage.run(&command, STANDS_STILL, &mut line) {
                Ok(_) => break,
                Err(error) if left > 0 => line(&format!("{how}, begun anew: {error:#}")),
                Err(error) => return Err(error.context(format!("{how}: {TRIES} times"))),
            }
            begun_anew += 1;
        }
        let bytes = fs::read(stage.at(&format!("counted-{how}.json")))?;
        let rows: Vec<Value> = serde_json::from_slice(&bytes)?;
        match counted[how].as_array_mut() {
            Some(all) => all.extend(rows),
            None => counted[how] = rows.into(),
        }
    }
    counted["kernel"] = kernel.version().into();
    counted["begun_anew"] = begun_anew.into();
    Ok(counted)
}

/// Does them, within the machine, and writes what they cost.
///
/// # Errors
/// When the guest does not come up, or a job fails in it.
pub fn count(
    folder: &Path,
    how: &str,
    watched: Option<Watched>,
    options: Options,
    rounds: u32,
    mut say: impl FnMut(&str),
) -> Result<()> {
    let name = watched.as_ref().map(|watched| watched.name.clone());
    // One that panics is gone then, and need not be waited for.
    let cmdline = format!("{} panic=-1", options.cmdline);
    let options = Options {
        watched,
        cmdline,
        ..options
    };
    let mut guest = Guest::boot(&Image::at(folder.join("image")), options)?;
    guest.wait_ready()?;
    let mut meter = Meter::of(&guest, name.as_deref())?;
    let mut measured = vec![meter.row("boot", 0, Reading::default())?];
    say(&measured[0].to_string());
    meter.wait_for_monitor()?;
    // Then as often with a monitor that works meanwhile, on the same CPU.
    let alone = rounds;
    for round in 1..=alone + rounds {
        for (job, script) in JOBS {
            let mut before = meter.read()?;
            meter.stop_monitor(round <= alone)?;
            (before.vmm, before.at) = (instructions(meter.vmm)?, Some(Instant::now()));
            guest.run_ok(script)?;
            let mut row = meter.row(job, round, before)?;
            row["shared"] = (round > alone).into();
            say(&row.to_string());
            measured.push(row);
        }
    }
    fs::write(
        folder.join(format!("counted-{how}.json")),
        serde_json::to_vec(&measured)?,
    )?;
    // Everything was counted: the guest need not switch itself off.
    drop(guest);
    Ok(())
}

/// Counts of one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    vmm: u64,
    /// When that was read.
    at: Option<Instant>,
    monitor: u64,
    counters: [u64; COUNTED.len()],
    comparing_ns: u64,
    /// When they were read.
    counted: Option<Instant>,
}

impl Reading {
    /// What comparing took from `before` on until the VMM's instructions were read. It goes on all the time, and so much later when
    /// the counters are read.
    fn comparing(&self, before: &Self) -> u64 {
        let all = self.comparing_ns.saturating_sub(before.comparing_ns);
        let between =
            |from: Option<Instant>, to: Option<Instant>| Some(to?.duration_since(from?).as_secs_f64());
        let (job, counted) = (between(before.at, self.at), between(before.counted, self.counted));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "instructions of minutes"
        )]
        job.zip(counted)
            .map_or(all, |(job, counted)| (all as f64 * job / counted.max(job)) as u64)
    }
}

struct Meter {
    vmm: u32,
    /// `nephoscope run` does nothing but wait; its child watches.
    watcher: Option<u32>,
    control: Option<Control>,
}

impl Meter {
    fn of(guest: &Guest, watched: Option<&str>) -> Result<Self> {
        let Some(name) = watched else {
            return Ok(Self {
                vmm: guest.pid(),
                watcher: None,
                control: None,
            });
        };
        let mut control = Control::connect(name)?.slower(15)?;
        control.report()?;
        Ok(Self {
            vmm: vmm_of(guest.pid())?,
            watcher: Some(guest.watcher()?),
            control: Some(control),
        })
    }

    /// Until the monitor has digested the boot.
    fn wait_for_monitor(&mut self) -> Result<()> {
        let Some(watcher) = self.watcher else {
            return Ok(());
        };
        let mut before = instructions(watcher)?;
        for _ in 0..CATCHES_UP {
            std::thread::sleep(ARRIVES);
            let now = instructions(watcher)?;
            if now - before < IDLE {
                break;
            }
            before = now;
        }
        Ok(())
    }

    /// Stops the monitor, so that the guest has the only CPU for itself, or lets it go on. What happens meanwhile is in the rings.
    fn stop_monitor(&self, stop: bool) -> Result<()> {
        let signal = if stop { Signal::SIGSTOP } else { Signal::SIGCONT };
        if let Some(watcher) = self.watcher {
            kill(Pid::from_raw(i32::try_from(watcher)?), signal)?;
        }
        Ok(())
    }

    /// The VMM's at once; what is on its way to the monitor may arrive before the rest is read.
    fn read(&mut self) -> Result<Reading> {
        let (vmm, at) = (instructions(self.vmm)?, Some(Instant::now()));
        self.stop_monitor(false)?;
        std::thread::sleep(ARRIVES);
        let monitor = self.watcher.map_or(Ok(0), instructions)?;
        let report = match &mut self.control {
            Some(control) => control.report()?,
            None => Value::Null,
        };
        let counter = |name: &str| report["counters"][name].as_u64().unwrap_or(0);
        Ok(Reading {
            vmm,
            at,
            monitor,
            counters: COUNTED.map(counter),
            comparing_ns: counter(COMPARING) * 1000,
            counted: Some(Instant::now()),
        })
    }

    fn row(&mut self, job: &str, round: u32, before: Reading) -> Result<Value> {
        let after = self.read()?;
        let mut row = json!({
            "job": job,
            "round": round,
            "vmm_instructions": after.vmm - before.vmm,
            "comparing_instructions": after.comparing(&before),
            "monitor_instructions": after.monitor - before.monitor,
        });
        for ((name, now), then) in COUNTED.iter().zip(after.counters).zip(before.counters) {
            row[*name] = (now - then).into();
        }
        Ok(row)
    }
}

/// CPU time of all threads that a process had, in nanoseconds, which are instructions here.
fn instructions(pid: u32) -> Result<u64> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    let time: TimeSpec = clock_gettime(clock_getcpuclockid(pid)?)?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}

/// The VMM that a `nephoscope run` started.
fn vmm_of(run: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{run}/task/{run}/children"))?;
    let is_vmm = |pid: &&str| {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        exe.to_string_lossy().contains("qemu")
    };
    let found = children.split_whitespace().find(is_vmm);
    Ok(found.context("no VMM")?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparing_counts_for_as_long_as_the_job_took() {
        let begun = Instant::now();
        let at = |at_ms: u64, counted_ms: u64, comparing_ns: u64| Reading {
            at: Some(begun + Duration::from_millis(at_ms)),
            counted: Some(begun + Duration::from_millis(counted_ms)),
            comparing_ns,
            ..Reading::default()
        };
        // A second of work, and three until the counters are read.
        assert_eq!(at(1000, 4000, 900).comparing(&at(0, 0, 100)), 200);
        assert_eq!(at(1000, 4000, 900).comparing(&Reading::default()), 900);
    }
}
