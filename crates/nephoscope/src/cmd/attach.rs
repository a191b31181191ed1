//! `nephoscope attach`: watches a VM that is already running, with the plugin or under KVM.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use nephoscope_drivers::KvmTrap;

use crate::exit::{Failure, exit};
use crate::keep;
use crate::monitor;
use crate::privilege::{self, Account, ReportFile};
use crate::runtime::{self, VmDir};
use crate::state::{FileLists, Process, VmState};
use crate::text::print;

/// Watch a VM that is already running: with the plugin, or under KVM by way of the kernel module.
///
/// Under KVM, --pid names the VMM's process, whichever VMM it is. What the guest runs from then on is named when it is next
/// fetched from; what it only has mapped is listed as mapped.
///
/// What an earlier watch of the VM had concluded is taken over, as long as the VM's directory has it; the time since then is
/// blind. Without it, all the time until now is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope attach --all                                      # every VM that nobody keeps watched any more\n  \
    nephoscope attach --name web1                                # this one, in the foreground\n  \
    nephoscope attach --catalog ./cat --name db --plugin /run/db/plugin.sock --qmp /run/db/qmp.sock\n  \
    nephoscope attach --catalog ./cat --pid \"$(cat /run/libvirt/qemu/web1.pid)\"   # under KVM, with the module loaded")]
pub(crate) struct AttachArgs {
    /// Take up every VM of this user that nobody keeps watched, in the background. Each is watched as it was before.
    #[arg(long, conflicts_with_all = ["name", "pid", "catalog", "plugin", "qmp", "report", "watch", "audit"])]
    all: bool,
    /// The VMM's process, of a VM under KVM.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// The catalog to identify with; the one that was used before when absent.
    #[arg(long, value_name = "DIR", env = "NEPHOSCOPE_CATALOG")]
    catalog: Option<PathBuf>,
    /// The VM's name; `pid-` and the number with --pid when absent.
    #[arg(long, value_name = "VM", required_unless_present_any = ["all", "pid"])]
    name: Option<String>,
    /// The plugin's socket, if `nephoscope run` did not start the VM. Under KVM, the plugin guards executable frames against
    /// writes by devices; without it, the report says that such writes were not seen.
    #[arg(long, value_name = "SOCKET")]
    plugin: Option<PathBuf>,
    /// A socket of QEMU's monitor protocol. Without it, address spaces are not told apart under TCG, and resets of the machine
    /// are not seen under KVM.
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,
    /// Write the report there when the VM ends.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print findings to standard error as they are made.
    #[arg(long)]
    watch: bool,
    /// Under KVM, look at all of the VM's mappings every second, as with `run`.
    #[arg(long, requires = "pid")]
    audit: bool,
    /// Whom the monitor becomes if root starts it, as with `run`.
    #[arg(long, value_name = "USER")]
    user: Option<Account>,
}

/// Where a catalog is when nobody says.
const CATALOG: &str = "/var/lib/nephoscope/catalog";

/// Runs it.
pub(crate) fn run(args: &AttachArgs) -> anyhow::Result<ExitCode> {
    match (&args.name, args.pid) {
        (Some(name), _) => one(args, &VmDir::named(name)?),
        (None, Some(pid)) => one(args, &VmDir::named(&format!("pid-{pid}"))?),
        (None, None) => all(),
    }
}

/// A process with a VM that the kernel module can watch.
fn vmm(pid: u32) -> anyhow::Result<Process> {
    if !KvmTrap::is_there() {
        let message = "a VM under KVM is watched by way of the kernel module nephoscope-kvm, which is not loaded: see \
                       docs/providers.md";
        return Err(exit(Failure::Kvm, message));
    }
    let none = |why: String| exit(Failure::NoVm, why);
    let process = Process::of(pid).ok_or_else(|| none(format!("there is no process {pid}")))?;
    if KvmTrap::vcpus_of(pid) == 0 {
        return Err(none(format!(
            "process {pid} has no VM under KVM, or may not be looked into: give the process of the VMM itself, as root"
        )));
    }
    Ok(process)
}

/// The name of a process's program, for reports.
fn program_of(pid: u32) -> String {
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "unknown VMM".to_owned())
}

fn one(args: &AttachArgs, dir: &VmDir) -> anyhow::Result<ExitCode> {
    let known = VmState::read(dir).ok().flatten();
    let state = state(args, dir, known)?;
    monitor::open_catalog(&state.catalog)?;
    // Only a VM that is there, or was there, gets a directory.
    let gone = || {
        let message = match state.vmm_process.filter(|_| state.kvm) {
            Some(process) => format!("process {} has ended", process.pid()),
            None => format!(
                "nobody listens on the plugin's socket {}: see `nephoscope ps` for the VMs there are",
                state.plugin.display()
            ),
        };
        exit(Failure::NoVm, message)
    };
    if !state.is_running() && !dir.horizon().exists() {
        return Err(gone());
    }
    dir.ensure()?;
    privilege::check(state.user)?;
    if let Some(path) = &state.report {
        ReportFile::prepare(path)?;
    }
    // Whoever watches takes it as soon as it is free again.
    drop(runtime::try_lock(&dir.watch_lock())?.ok_or_else(|| {
        let message = format!("{:?} is being watched already: see `nephoscope ps`", dir.name);
        exit(Failure::Usage, message)
    })?);
    state.write(dir)?;
    // A process that gives its rights up, and this one, which then removes what it may not.
    let mut watch = keep::command(dir, "watch");
    let status = watch
        .arg("--attached")
        .status()
        .context("cannot start this program again")?;
    let code = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1);
    if code == 0 || code == Failure::NoVm as u8 {
        dir.remove();
    }
    if code == Failure::NoVm as u8 {
        return Err(gone());
    }
    // Otherwise its own message is on the terminal.
    Ok(ExitCode::from(code))
}

/// What was said, before what is known, before what is usual.
fn state(args: &AttachArgs, dir: &VmDir, known: Option<VmState>) -> anyhow::Result<VmState> {
    let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
    let usual = VmState {
        vmm: "QEMU".into(),
        catalog: CATALOG.into(),
        plugin: dir.plugin(),
        qmp: Some(dir.qmp()).filter(|path| path.exists()),
        report: None,
        watch: false,
        user: None,
        kvm: false,
        started_paused: false,
        begun_ns: 0,
        audit: false,
        guard: false,
        disks: Vec::new(),
        files: FileLists::default(),
        disks_left: 0,
        vmm_process: None,
    };
    let other_vm = args.plugin.is_some() || args.pid.is_some();
    let mut base = known.filter(|_| !other_vm).unwrap_or(usual);
    if let Some(pid) = args.pid {
        let process = vmm(pid)?;
        base.kvm = true;
        base.vmm = program_of(pid);
        base.begun_ns = process.started_ns();
        base.guard = args.plugin.is_some();
        base.audit = args.audit;
        base.vmm_process = Some(process);
    }
    Ok(VmState {
        catalog: absolute(&args.catalog)?.unwrap_or(base.catalog),
        plugin: absolute(&args.plugin)?.unwrap_or(base.plugin),
        qmp: absolute(&args.qmp)?.or(base.qmp),
        report: absolute(&args.report)?.or(base.report),
        watch: args.watch || base.watch,
        user: args.user.or(base.user),
        ..base
    })
}

fn all() -> anyhow::Result<ExitCode> {
    let mut taken_up = String::new();
    for dir in runtime::all()? {
        if VmState::read(&dir)?.is_none() || runtime::try_lock(&dir.keep_lock())?.is_none() {
            continue;
        }
        keep::start(&dir)?;
        taken_up.push_str(&format!("{}: taken up\n", dir.name));
    }
    print(&taken_up)?;
    Ok(ExitCode::SUCCESS)
}
