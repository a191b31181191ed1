//! Who sees to it that a VM is watched for as long as it runs, whichever of our processes is killed.
//!
//! ```text
//!  nephoscope run ──starts──► QEMU
//!   │  keeper: holds keep.lock; starts the other two again when they end
//!   ├──► watcher: waits for watch.lock, then watches
//!   ├──► servers of its disks, where files are watched
//!   └──► stand-in: waits for keep.lock; then it is the keeper, and starts a watcher and a stand-in of its own
//! ```
//!
//! Locks go with their process, however that ends, so no process number is ever believed. A watcher that a new keeper starts
//! waits for the one that still watches. All of them killed at once: `nephoscope attach --all` takes up what the VM's
//! directory describes. A supervisor without a stand-in was rejected, because it can be killed as well as what it supervises;
//! one that restarts itself from the watcher, because the watcher reads what a guest wrote and gives up its rights for that.
//!
//! QEMU is a child of `run`, and lives on without it: it has the terminal, and the kernel hands it to another parent.

use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::disks::Servers;
use crate::exit::Failure;
use crate::runtime::VmDir;
use crate::state::VmState;

/// How often children are looked at: a watcher that was killed is started again so soon.
const LOOK: Duration = Duration::from_millis(10);
/// A watcher that ended by itself sooner than this is started again later and later; a stand-in not sooner.
const SHORT: Duration = Duration::from_secs(1);
/// The first and the longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(30));
/// How long a watcher may take to write the report after the VM has ended.
const LAST_WORDS: Duration = Duration::from_secs(120);

/// Who keeps one VM watched.
#[derive(Debug)]
pub(crate) struct Keeper<'a> {
    dir: &'a VmDir,
    _lock: File,
    stand_in: Option<(Child, Instant)>,
    servers: Servers,
}

/// A process of ours for this VM, in the background.
pub(crate) fn command(dir: &VmDir, what: &str) -> Command {
    // Also when the program's file was replaced or removed since.
    let mut command = Command::new("/proc/self/exe");
    command.arg(what).arg("--name").arg(&dir.name);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Starts a keeper in the background. What it has to say goes to a file: whoever started it does not wait for it.
pub(crate) fn start(dir: &VmDir) -> anyhow::Result<()> {
    let log = File::options().create(true).append(true).open(dir.log());
    let log = log.with_context(|| format!("cannot write {}", dir.log().display()))?;
    let started = command(dir, "keep").stderr(log).spawn();
    started.context("cannot start this program again")?;
    Ok(())
}

/// The pause before the next start.
#[derive(Debug, Default)]
struct Pause(Duration);

impl Pause {
    fn after(&mut self, lived: Duration, killed: bool) -> Duration {
        let (first, most) = PAUSES;
        self.0 = if lived >= SHORT || killed {
            Duration::ZERO
        } else {
            (self.0 * 2).clamp(first, most)
        };
        self.0
    }
}

impl<'a> Keeper<'a> {
    /// The keeper of a VM, by its lock.
    /// `servers` are those of its disks that this process has started, if it has.
    pub(crate) fn new(dir: &'a VmDir, lock: File, servers: Servers) -> Self {
        Self {
            dir,
            _lock: lock,
            stand_in: None,
            servers,
        }
    }

    /// Keeps the VM watched until it has ended and its report is written; then its directory is removed. `vmm` is QEMU, if it
    /// is our child. The code is that of the last watcher: 0, or why there is no report where it was asked for.
    ///
    /// # Errors
    /// If this program cannot be started again.
    pub(crate) fn keep(mut self, mut vmm: Option<&mut Child>) -> anyhow::Result<u8> {
        // The VMM was started before. Nobody whom we start gets more rights than we have.
        rustix::thread::set_no_new_privs(true).context("setting no_new_privs")?;
        let mut pause = Pause::default();
        let code = loop {
            let begun = Instant::now();
            let watcher = command(self.dir, "watch")
                .spawn()
                .context("cannot start this program again")?;
            let Some(status) = self.attend(watcher, &mut vmm)? else {
                break Failure::ReportNotWritten as u8;
            };
            match status.code() {
                Some(0) => break 0,
                Some(code) if is_last(code) => break u8::try_from(code).unwrap_or(1),
                code => {
                    let state = VmState::read(self.dir).ok().flatten();
                    let over = !state.is_some_and(|state| state.is_running());
                    match code {
                        // It ended before anything was seen of it: its own message is on the terminal.
                        Some(code) if over && code == i32::from(Failure::NoVm as u8) => break 0,
                        // Not even its journal can be read: the message is on the terminal.
                        Some(_) if over => break Failure::ReportNotWritten as u8,
                        _ => std::thread::sleep(pause.after(begun.elapsed(), code.is_none())),
                    }
                }
            }
        };
        if code != Failure::ReportNotWritten as u8 {
            self.dir.remove();
        }
        self.end_stand_in();
        self.servers.end();
        Ok(code)
    }

    /// Waits for the watcher's end. `None`: the VM ended, and the watcher does not come to an end.
    fn attend(
        &mut self,
        mut watcher: Child,
        vmm: &mut Option<&mut Child>,
    ) -> anyhow::Result<Option<ExitStatus>> {
        let mut ended: Option<Instant> = None;
        loop {
            if let Some(status) = watcher.try_wait()? {
                return Ok(Some(status));
            }
            // Once it has ended it is told again and again.
            if let Some(vmm) = vmm
                && vmm.try_wait()?.is_some()
                && ended.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS
                && !VmState::read(self.dir)
                    .ok()
                    .flatten()
                    .is_some_and(|state| state.is_running())
            {
                eprintln!(
                    "nephoscope: {} has ended, and its watch has not: it is left alone",
                    self.dir.name
                );
                return Ok(None);
            }
            self.ensure_stand_in();
            self.servers.ensure(self.dir);
            std::thread::sleep(LOOK);
        }
    }

    fn ensure_stand_in(&mut self) {
        let lives = |(child, begun): &mut (Child, Instant)| {
            begun.elapsed() < SHORT || matches!(child.try_wait(), Ok(None))
        };
        if !self.stand_in.as_mut().is_some_and(lives) {
            // Tried again at the next look: without it the VM is watched all the same.
            let child = command(self.dir, "keep").spawn();
            self.stand_in = child.ok().map(|child| (child, Instant::now()));
        }
    }

    fn end_stand_in(&mut self) {
        if let Some((mut child, _)) = self.stand_in.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Codes with which a watcher has nothing left to do.
fn is_last(code: i32) -> bool {
    [Failure::ReportElsewhere, Failure::ReportNotWritten]
        .iter()
        .any(|failure| i32::from(*failure as u8) == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_that_was_killed_is_started_at_once_and_one_that_fails_later_and_later() {
        let mut pause = Pause::default();
        assert_eq!(pause.after(Duration::ZERO, true), Duration::ZERO);
        let pauses: Vec<u128> = (0..14)
            .map(|_| pause.after(Duration::ZERO, false).as_millis())
            .collect();
        assert_eq!(pauses[..3], [10, 20, 40]);
        assert_eq!(pauses[13], 30_000);
        assert_eq!(pause.after(Duration::from_secs(2), false), Duration::ZERO);
    }
}
