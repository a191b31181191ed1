//! Watching one VM by what its directory says, from wherever an earlier watch was ended to the report.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nephoscope_drivers::{KvmTrap, QemuPlugin, QemuPluginError, Qmp};
use nephoscope_guest::{Coverage, Gap, GapReason};
use nephoscope_inventory::{Report, VmReport};
use nephoscope_pipeline::Session;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::driver::Driver;
use super::journal::Left;
use super::watch::{Ending, Setup, Watch};
use super::{open_catalog, report};
use crate::exit::{Failure, exit};
use crate::privilege::{self, Keep, ReportFile};
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

/// Watches a VM until it ends, and writes its report. `_lock` says that nobody else does. With `parent`, it ends with that
/// process. Privileges are dropped as soon as everything is open.
///
/// # Errors
/// If the VM cannot be watched, or the report is not where it should be.
pub(crate) fn watch_vm(
    dir: &VmDir,
    state: &VmState,
    _lock: &File,
    parent: Option<Pid>,
) -> anyhow::Result<Over> {
    let catalog = open_catalog(&state.catalog)?;
    let vm = VmReport {
        name: dir.name.clone(),
        vmm: state.vmm.clone(),
        accelerator: if state.kvm { "kvm" } else { "tcg" }.into(),
        isa: "x86-64".into(),
        vcpus: 0,
    };
    let kept = dir.hold()?;
    let mut report = state.report.as_deref().map(ReportFile::of);
    let keep = Keep {
        account: state.user,
        read: vec![state.catalog.clone()],
        write: report.iter().map(ReportFile::folder).collect(),
        kept: Some(kept.clone()),
        parent,
        ..Keep::default()
    };
    let (found, over) = match attach(state)? {
        Some(driver) => {
            let vmm = vmm(&driver);
            let setup = Setup {
                vm,
                catalog,
                qmp: state.qmp.clone(),
                dir,
                kept: &kept,
                keep: &keep,
                print_findings: state.watch,
                file_rules: state.files.rules()?,
                files_but: (!state.disks.is_empty()).then_some(state.disks_left),
            };
            let mut watch = Watch::new(setup, driver)?;
            if watch.run()? == Ending::Lost {
                wait_for_end(vmm)?;
                eprintln!("nephoscope: QEMU ended without a word; the report says until when it was watched");
            }
            (watch.report(), Over::Watched)
        }
        None => {
            let in_force = privilege::drop(&keep)?;
            let Some(left) = Left::read(&kept) else {
                return Ok(Over::Unseen);
            };
            let mut session = Session::new(vm, catalog);
            session.confined(in_force.parts().clone());
            (ended_unseen(session, left), Over::FromJournal)
        }
    };
    if let Some(file) = &mut report {
        report::write(&found, file, &kept)?;
    }
    Ok(over)
}

/// The VMM's process. It is held, since a confined watch cannot look for it; `None`: it has ended, or the kernel has no such
/// descriptors.
fn vmm(driver: &Driver) -> Option<OwnedFd> {
    let pid = Pid::from_raw(driver.origin().pid.try_into().ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// The plugin is gone, and QEMU goes after it. If it does not, the watch has to begin again.
fn wait_for_end(vmm: Option<OwnedFd>) -> anyhow::Result<()> {
    let Some(vmm) = vmm else { return Ok(()) };
    let timeout = Timespec {
        tv_sec: LAST_BREATH.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    if poll(&mut [PollFd::new(&vmm, PollFlags::IN)], Some(&timeout)) == Ok(0) {
        let message = "the plugin closed the connection, and QEMU runs on: watching again";
        return Err(exit(Failure::Other, message));
    }
    Ok(())
}

/// Attaches to the plugin as soon as it listens. `None`: the VM has ended.
fn attach(state: &VmState) -> anyhow::Result<Option<Driver>> {
    if state.kvm {
        return attach_kvm(state);
    }
    let begun = Instant::now();
    let mut gone_since = None;
    loop {
        let error = match QemuPlugin::attach(&state.plugin) {
            Ok(driver) => return Ok(Some(Driver::Plugin(Box::new(driver)))),
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

/// Attaches the kernel module to the VM, which was started without running, and lets it run. `None`: the VM has ended.
fn attach_kvm(state: &VmState) -> anyhow::Result<Option<Driver>> {
    let Some(process) = state.vmm_process.filter(|process| process.is_alive()) else {
        return Ok(None);
    };
    let mut qmp = match &state.qmp {
        Some(socket) => Some(Qmp::connect_when_ready(socket, START_TIMEOUT)?),
        None => None,
    };
    let was_running = match &mut qmp {
        Some(qmp) => {
            qmp.execute("query-status", None)?.get("running") != Some(&serde_json::Value::Bool(false))
        }
        None => true,
    };
    let vcpus = KvmTrap::vcpus_of(process.pid()).max(1);
    let mut trap = KvmTrap::attach(process.pid(), vcpus, state.begun_ns);
    if let (true, Ok(trap)) = (state.guard, &mut trap)
        && let Err(reason) = trap.guard(&state.plugin)
    {
        eprintln!(
            "nephoscope: writes by devices to code will not be seen, and the report says so: {:#}",
            anyhow::Error::from(reason)
        );
    }
    if let Some(qmp) = qmp.as_mut().filter(|_| state.started_paused && !was_running) {
        qmp.execute("cont", None)?;
    }
    let mut trap = match trap {
        Err(error) if error.is_watched_already() => return Err(error.into()),
        trap => Box::new(trap.context("the VM runs unwatched")?),
    };
    if state.audit {
        trap.audit();
    }
    if was_running {
        trap.look_around();
    }
    Ok(Some(Driver::KvmTrap { trap, was_running }))
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
