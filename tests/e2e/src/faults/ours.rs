//! The processes that watch one VM, found by their command lines, so that one of them can be killed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What a process of ours does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `nephoscope run`.
    Run,
    /// Keeps the VM watched, or stands in.
    Keep,
    /// Watches.
    Watch,
    /// Serves a disk.
    ServeDisk,
}

/// The living processes whose command line is so, oldest first.
fn with(is: impl Fn(&[&str]) -> bool) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let words = words(pid);
        let command: Vec<&str> = words.iter().map(String::as_str).collect();
        if is(&command) {
            found.extend(Pid::from_raw(pid));
        }
    }
    found.sort_by_key(|pid| pid.as_raw_nonzero());
    found
}

/// The living processes of one VM in this role, oldest first.
pub fn of(vm: &str, role: Role) -> Vec<Pid> {
    with(|command| match (role, command) {
        (Role::Run, [_, "run", rest @ ..]) => names(rest, vm),
        (Role::Keep, [_, "keep", "--name", name]) => *name == vm,
        // Also the one that ends with `attach`.
        (Role::Watch, [_, "watch", "--name", name, ..]) => *name == vm,
        (Role::ServeDisk, [_, "serve-disk", "--name", name, ..]) => *name == vm,
        _ => false,
    })
}

/// Whether the options before `--` name the VM.
fn names(options: &[&str], vm: &str) -> bool {
    let ours = options.iter().take_while(|word| **word != "--");
    let ours: Vec<&&str> = ours.collect();
    ours.windows(2)
        .any(|pair| matches!(pair, [a, b] if **a == "--name" && **b == vm))
}

/// The QEMU that has its sockets in this folder.
///
/// # Errors
/// When there is none, or more than one.
pub fn qemu(folder: &Path) -> Result<Pid> {
    let folder = format!("{}/", folder.display());
    let mut found = with(|command| {
        let is_qemu = command.first().is_some_and(|word| word.contains("qemu-system"));
        is_qemu && command.iter().any(|word| word.contains(&folder))
    });
    ensure!(found.len() == 1, "{} QEMUs in {folder}", found.len());
    found.pop().context("no QEMU")
}

fn words(pid: i32) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = text.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// Kills every process in this role; says how many there were.
pub fn kill(vm: &str, role: Role) -> usize {
    let pids = of(vm, role);
    for pid in &pids {
        let _ = kill_process(*pid, Signal::KILL);
    }
    pids.len()
}

/// Whether a process is still there, and not only not waited for.
pub fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Waits until something holds.
///
/// # Errors
/// When it does not in time.
pub fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !holds() {
        ensure!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The report in this file, as soon as it is whole: an empty file is made when a watch begins.
///
/// # Errors
/// When it is not in time, or not of the published form.
pub fn whole_report(file: &Path) -> Result<Value> {
    let mut report = None;
    wait_for("the report", Duration::from_secs(60), || {
        let bytes = std::fs::read(file).unwrap_or_default();
        report = serde_json::from_slice(&bytes).ok();
        report.is_some()
    })?;
    let report = report.context("no report")?;
    crate::report::validate(&report)?;
    Ok(report)
}

/// Ends a QEMU when the test ends before it, also when `nephoscope run`, whose group it is in, was killed.
#[derive(Debug)]
pub struct Leash(pub Pid);

impl Drop for Leash {
    fn drop(&mut self) {
        let mine = words(self.0.as_raw_nonzero().get());
        if is_alive(self.0) && mine.first().is_some_and(|word| word.contains("qemu-system")) {
            let _ = kill_process(self.0, Signal::KILL);
        }
    }
}
