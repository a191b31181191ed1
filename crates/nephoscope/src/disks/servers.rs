//! The processes that serve a VM's disks: one for each, so that what one disk holds is nothing to the others.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::Disk;
use crate::exit::{Failure, exit};
use crate::keep;
use crate::runtime::VmDir;

/// How long a server may take until somebody can connect to it.
const READY: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// A server that ended sooner than this is started again not sooner.
const SHORT: Duration = Duration::from_millis(200);

/// The servers of one VM, whoever of ours started them.
#[derive(Debug)]
pub(crate) struct Servers {
    disks: Vec<Disk>,
    running: Vec<Option<(Child, Instant)>>,
}

impl Servers {
    /// None of them runs yet, as far as this process knows.
    pub(crate) fn of(disks: &[Disk]) -> Self {
        Self {
            disks: disks.to_vec(),
            running: disks.iter().map(|_| None).collect(),
        }
    }

    /// Starts all, and waits until the VMM can connect to each.
    ///
    /// # Errors
    /// If one ends instead; its own message is on the terminal.
    pub(crate) fn start(&mut self, dir: &VmDir) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir.disks())
            .with_context(|| format!("cannot make {}", dir.disks().display()))?;
        self.ensure(dir);
        let deadline = Instant::now() + READY;
        for (disk, running) in self.disks.iter().zip(&mut self.running) {
            while !dir.disk(disk.number).exists() {
                let ended = match running {
                    Some((child, _)) => child.try_wait()?.is_some(),
                    None => true,
                };
                if ended || Instant::now() >= deadline {
                    let message = format!("{} is not served, so the VM is not started", disk.image.display());
                    return Err(exit(Failure::NoDisk, message));
                }
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Starts again what has ended. One that another keeper started goes on meanwhile, and this one waits for its lock.
    pub(crate) fn ensure(&mut self, dir: &VmDir) {
        for (disk, running) in self.disks.iter().zip(&mut self.running) {
            let lives = |(child, begun): &mut (Child, Instant)| {
                matches!(child.try_wait(), Ok(None)) || begun.elapsed() < SHORT
            };
            if running.as_mut().is_some_and(lives) {
                continue;
            }
            let told = serde_json::to_string(disk).unwrap_or_default();
            // Tried again at the next look.
            let child = keep::command(dir, "serve-disk").arg("--disk").arg(told).spawn();
            *running = child.ok().map(|child| (child, Instant::now()));
        }
    }

    /// The VM has ended.
    pub(crate) fn end(&mut self) {
        for running in &mut self.running {
            if let Some((mut child, _)) = running.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
