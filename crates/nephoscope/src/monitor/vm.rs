//! Watching one VM by what its directory says, from wherever an earlier watch was ended to the report.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::Context;
use nephoscope_drivers::{QemuPlugin, QemuPluginError};
use nephoscope_guest::{Coverage, Gap, GapReason};
use nephoscope_inventory::{Report, VmReport};
use nephoscope_pipeline::Session;

use super::journal::Left;
use super::watch::{Ending, Setup, Watch};
use super::{open_catalog, report};
use crate::exit::{Failure, exit};
use crate::runtime::VmDir;
use crate::state::VmState;

/// How long a VMM that runs may take until the plugin listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// A VMM that goes to the background is another process for a moment.
const GONE_AFTER: Duration = Duration::from_millis(500);

/// A VMM that was killed gives its memory back, which takes a while.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// What became of the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Over {
    /// It was watched to its end.
    Watched,
    /// It had ended, and an earlier watch's journal told of it.
    FromJournal,
    /// It had ended, and nothing is known of it.
    Unseen,
}

/// Watches a VM until it ends, and writes its report. `_lock` says that nobody else does.
///
/// # Errors
/// If the VM cannot be watched, or the report is not where it should be.
pub(crate) fn watch_vm(dir: &VmDir, state: &VmState, _lock: &File) -> anyhow::Result<Over> {
    let catalog = open_catalog(&state.catalog)?;
    let vm = VmReport {
        name: dir.name.clone(),
        vmm: state.vmm.clone(),
        accelerator: "tcg".into(),
        isa: "x86-64".into(),
        vcpus: 0,
    };
    let (found, over) = match attach(state)? {
        Some(driver) => {
            let setup = Setup {
                vm,
                catalog,
                qmp: state.qmp.clone(),
                dir,
                print_findings: state.watch,
            };
            let mut watch = Watch::new(setup, driver)?;
            if watch.run()? == Ending::Lost {
                wait_for_end(state)?;
                eprintln!("nephoscope: QEMU ended without a word; the report says until when it was watched");
            }
            (watch.report(), Over::Watched)
        }
        None => match Left::read(dir) {
            Some(left) => (ended_unseen(Session::new(vm, catalog), left), Over::FromJournal),
            None => return Ok(Over::Unseen),
        },
    };
    if let Some(path) = &state.report {
        report::write(&found, path, dir)?;
    }
    Ok(over)
}

/// The plugin is gone, and QEMU goes after it. If it does not, the watch has to begin again.
fn wait_for_end(state: &VmState) -> anyhow::Result<()> {
    let begun = Instant::now();
    while state.is_running() {
        if begun.elapsed() > LAST_BREATH {
            let message = "the plugin closed the connection, and QEMU runs on: watching again";
            return Err(exit(Failure::Other, message));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Attaches to the plugin as soon as it listens. `None`: the VM has ended.
fn attach(state: &VmState) -> anyhow::Result<Option<QemuPlugin>> {
    let begun = Instant::now();
    let mut gone_since = None;
    loop {
        let error = match QemuPlugin::attach(&state.plugin) {
            Ok(driver) => return Ok(Some(driver)),
            Err(error @ QemuPluginError::Connect { .. }) => error,
            Err(error) => return Err(error).context("the VM runs unwatched"),
        };
        if state.is_running() {
            gone_since = None;
        } else if gone_since.get_or_insert_with(Instant::now).elapsed() > GONE_AFTER {
            return Ok(None);
        }
        if begun.elapsed() > START_TIMEOUT {
            return Err(exit(Failure::NoVm, format!("{error}: the VM runs unwatched")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The report of a VM that ended while nobody watched, from what was written down before.
fn ended_unseen(mut session: Session, left: Left) -> Report {
    session.restore(left.entries);
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now =
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0);
    let now_ns = now.saturating_sub(left.of.installed_ns).max(left.done_ns);
    session.at(now_ns);
    for reason in [GapReason::Detached, GapReason::DriverLost] {
        session.gap(Gap {
            from_ns: left.done_ns,
            to_ns: now_ns,
            left: Coverage::BLIND,
            reason,
            lost: 0,
        });
    }
    session.report()
}
