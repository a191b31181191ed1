//! A watched guest that executes pages all along, and questions to its watch.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use serde_json::Value;

use super::ours::{self, Leash};
use super::proof::{Account, Away, Killed, Origin, account, intervals};
use super::ticks::{self, Tick, Ticks, now_ns};
use super::{SLACK, Setting};
use crate::control::Control;
use crate::guest::{Guest, Options, Watched, vm_name};

/// A guest, its pages, and its QEMU.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) vm: String,
    pub(super) guest: Guest,
    pub(super) ticks: Ticks,
    pub(super) origin: Origin,
    pub(super) qemu: Pid,
    /// Ticks of an earlier boot of the same machine.
    pub(super) before: Vec<Tick>,
    pub(super) leash: Leash,
    pub(super) folder: tempfile::TempDir,
}

impl Scene {
    /// Boots it. `report` is where the watch has to write to; `change` has the last word on the options.
    pub(super) fn begin(
        setting: &Setting,
        what: &str,
        report: Option<PathBuf>,
        change: impl FnOnce(&mut Options),
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let vm = vm_name(&format!("faults-{what}"));
        let mut options = Options {
            extra: ticks::options(folder.path()),
            watched: Some(Watched {
                program: setting.program.clone(),
                catalog: setting.catalog.clone(),
                name: vm.clone(),
                report: Some(report.unwrap_or_else(|| folder.path().join("report.json"))),
                extra: Vec::new(),
            }),
            ..Options::default()
        };
        change(&mut options);
        let mut guest = Guest::boot(&setting.image, options)?;
        guest.wait_ready()?;
        let qemu = ours::qemu(guest.folder())?;
        let leash = Leash(qemu);
        let ticks = Ticks::begin(&mut guest, folder.path(), 0)?;
        let origin = Origin::of(&vm)?;
        Ok(Scene {
            vm,
            guest,
            ticks,
            origin,
            qemu,
            before: Vec::new(),
            leash,
            folder,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The report, from a watch that may just be beginning again.
    pub(super) fn report(&self) -> Result<Value> {
        let mut report = None;
        ours::wait_for("an answer of the watch", Duration::from_secs(60), || {
            report = Control::connect(&self.vm)
                .and_then(|mut control| control.report())
                .ok();
            report.is_some()
        })?;
        let report = report.context("no answer")?;
        crate::report::validate(&report)?;
        Ok(report)
    }

    /// Waits until the watch is no further behind than a part of the slack: one that has little of the machine to itself loses with
    /// its end also what it had not come to.
    pub(super) fn catch_up(&self) -> Result<()> {
        let near = u64::try_from(SLACK.as_nanos() / 4)?;
        ours::wait_for("the watch to have caught up", Duration::from_secs(60), || {
            let asked = now_ns();
            self.report().is_ok_and(|report| {
                let to_ns = intervals(&report).last().and_then(|last| last["to_ns"].as_u64());
                self.origin.0 + to_ns.unwrap_or(0) + near >= asked
            })
        })
    }

    /// Lets some pages run that surely come after what was done, waits until the watch has come to them, and holds its report to
    /// all pages that ran.
    pub(super) fn settle(&self) -> Result<(Value, Account)> {
        self.ticks.wait(5)?;
        let ticks = self.ticks.so_far();
        let last = ticks.last().copied().context("nothing ran")?;
        let until = |report: &Value| {
            let to_ns = intervals(report).last().and_then(|last| last["to_ns"].as_u64());
            self.origin.0 + to_ns.unwrap_or(0)
        };
        let mut report = self.report()?;
        // A moment more: that a page was executed is said after it was captured.
        ours::wait_for("the watch to come to what ran", Duration::from_secs(60), || {
            if until(&report) < last.to_ns + 100_000_000
                && let Ok(newer) = self.report()
            {
                report = newer;
            }
            until(&report) >= last.to_ns + 100_000_000
        })?;
        let all: Vec<Tick> = self.before.iter().chain(&ticks).copied().collect();
        let account = account(&all, &[(&report, self.origin)])?;
        ensure!(
            report.to_string().contains(&last.digest()),
            "it does not see again: the last page is not in the report"
        );
        Ok((report, account))
    }
}

/// When the watch was asked and did answer: asked without a pause, from a thread of its own.
#[derive(Debug)]
pub(super) struct Presence {
    stop: Arc<AtomicBool>,
    answered: Arc<Mutex<Vec<u64>>>,
}

impl Presence {
    pub(super) fn begin(vm: &str) -> Result<Self> {
        let presence = Presence {
            stop: Arc::default(),
            answered: Arc::default(),
        };
        let (vm, stop, answered) = (vm.to_owned(), presence.stop.clone(), presence.answered.clone());
        std::thread::Builder::new()
            .name("presence".into())
            .spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Who was asked after a moment answers for the time after it.
                    let asked = now_ns();
                    if Control::connect(&vm)
                        .and_then(|mut control| control.findings(u64::MAX))
                        .is_ok()
                    {
                        answered
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(asked);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            })?;
        Ok(presence)
    }

    /// The first answer after this moment, if there was one.
    pub(super) fn after(&self, moment_ns: u64) -> Option<u64> {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered
            .get(answered.partition_point(|at| *at <= moment_ns))
            .copied()
    }

    /// Around each of these, until it answered again.
    pub(super) fn away(&self, killed: &[Killed]) -> Vec<Away> {
        let away = |killed: &Killed| Away {
            killed: *killed,
            back_ns: self.after(killed.gone_ns).unwrap_or_else(now_ns),
        };
        killed.iter().map(away).collect()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
