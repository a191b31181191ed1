//! `nephoscope run`: starts a VM and watches it from its first instruction.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nephoscope_inventory::VmReport;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::exit::{Failure, exit};
use crate::monitor::{self, Ending, Watch};
use crate::privilege::{Account, Keep, ReportFile};
use crate::qemu::{Qemu, asks_for_kvm};
use crate::runtime::VmDir;

/// Start a VM and watch it from its first instruction.
///
/// The command after `--` is run as it is, with what QEMU needs added at its end: the plugin, and a socket of QEMU's
/// monitor protocol. Its input, output, signals and exit code are passed through.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope run --catalog ./cat -- qemu-system-x86_64 -m 1G -drive file=disk.img,if=virtio -nographic\n  \
    nephoscope run --catalog ./cat --name web1 --report web1.json -- qemu-system-x86_64 …")]
pub(crate) struct RunArgs {
    /// The catalog to identify with.
    #[arg(
        long,
        value_name = "DIR",
        env = "NEPHOSCOPE_CATALOG",
        default_value = "/var/lib/nephoscope/catalog"
    )]
    catalog: PathBuf,
    /// The VM's name, by which `ps`, `findings` and `why` find it.
    #[arg(long, value_name = "VM")]
    name: Option<String>,
    /// Write the report there when the VM ends.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print findings to standard error as they are made.
    #[arg(long)]
    watch: bool,
    /// Whom the monitor becomes if root starts it: a name, UID or UID:GID. Left out, it is `nephoscope` if there is such a
    /// user, else a number that nobody has. QEMU stays who it is.
    #[arg(long, value_name = "USER")]
    user: Option<Account>,
    /// The VM: QEMU and its arguments.
    #[arg(last = true, required = true, value_name = "QEMU")]
    command: Vec<OsString>,
}

/// How long QEMU may take until the plugin listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs it.
pub(crate) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let (program, arguments) = args.command.split_first().context("no command")?;
    if asks_for_kvm(arguments) {
        let message = "KVM runs code that the QEMU plugin does not see: use `-accel tcg`";
        return Err(exit(Failure::Kvm, message));
    }
    let catalog = monitor::open_catalog(&args.catalog)?;
    let qemu = Qemu::ask(program)?;
    let plugin = qemu.plugin()?;
    let dir = VmDir::named(
        &args
            .name
            .clone()
            .unwrap_or_else(|| format!("vm-{}", std::process::id())),
    )?;
    dir.create()?;
    let held = dir.hold()?;
    let mut report = args.report.as_deref().map(ReportFile::prepare).transpose()?;
    let mut child = start(program, arguments, &plugin, &dir).inspect_err(|_| held.remove())?;
    let mut signals = Forward::take(rustix::process::Pid::from_child(&child))?;
    let watched = watch(&args, &qemu, catalog, &dir, &mut child, &mut report, &mut signals);
    held.remove();
    if watched.is_err() {
        signals.start(None)?;
        // The guest goes on: the watch's trouble is not the VM's. Its exit code still counts.
        let status = child.wait().context("waiting for QEMU")?;
        eprintln!("nephoscope: the VM ended unwatched with {status}");
    }
    watched
}

fn start(
    program: &OsString,
    arguments: &[OsString],
    plugin: &std::path::Path,
    dir: &VmDir,
) -> anyhow::Result<Child> {
    let mut option = plugin.as_os_str().to_owned();
    option.push(",socket=");
    option.push(dir.plugin());
    option.push(",wait_ms=10000");
    let mut qmp = OsString::from("unix:");
    qmp.push(dir.qmp());
    qmp.push(",server=on,wait=off");
    Command::new(program)
        .args(arguments)
        .arg("-plugin")
        .arg(option)
        .arg("-qmp")
        .arg(qmp)
        .spawn()
        .map_err(|error| {
            exit(
                Failure::NoQemu,
                format!("cannot start {}: {error}", program.to_string_lossy()),
            )
        })
}

fn watch(
    args: &RunArgs,
    qemu: &Qemu,
    catalog: Arc<nephoscope_catalog::Catalog>,
    dir: &VmDir,
    child: &mut Child,
    report: &mut Option<ReportFile>,
    signals: &mut Forward,
) -> anyhow::Result<ExitCode> {
    let vm = VmReport {
        name: dir.name.clone(),
        vmm: format!("QEMU {}", qemu.version),
        accelerator: "tcg".into(),
        isa: "x86-64".into(),
        vcpus: 0,
    };
    let Some(driver) = monitor::attach_to_child(&dir.plugin(), child, START_TIMEOUT)? else {
        // QEMU ended before the plugin listened: its own message is on the terminal.
        return finish(child);
    };
    let keep = Keep {
        account: args.user,
        read: vec![args.catalog.clone()],
        write: report.iter().map(ReportFile::folder).collect(),
        vm: Some(dir.path().to_path_buf()),
        signals: Some(rustix::process::Pid::from_child(child)),
    };
    let (qmp, control) = (Some(dir.qmp()), dir.control());
    let mut watch = Watch::new(vm, catalog, driver, qmp, control, args.watch, &keep)?;
    signals.start(Some(watch.quit()))?;
    let ending = watch.run(|| child.try_wait().ok().flatten().is_some())?;
    if let Some(file) = report {
        monitor::write_report(&watch.report(), file)?;
    }
    if ending == Ending::Lost {
        eprintln!("nephoscope: QEMU ended without a word; the report says until when it was watched");
    }
    finish(child)
}

fn finish(child: &mut Child) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::ExitStatusExt;
    let status = child.wait().context("waiting for QEMU")?;
    // As a shell would say it: 128 + the signal.
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Signals meant for the VM go to it.
struct Forward {
    to: rustix::process::Pid,
    taken: Option<signal_hook::iterator::Signals>,
}

impl Forward {
    /// From now on they are kept. Passing them on takes a thread, which is started when privileges were dropped.
    fn take(to: rustix::process::Pid) -> anyhow::Result<Self> {
        let taken =
            signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("taking signals")?;
        Ok(Self {
            to,
            taken: Some(taken),
        })
    }

    /// Passes on those that came and those that will. A monitor that root started is not root any more and may not: then
    /// `quit` is set.
    fn start(&mut self, quit: Option<Arc<AtomicBool>>) -> anyhow::Result<()> {
        let Some(mut taken) = self.taken.take() else {
            return Ok(());
        };
        let to = self.to;
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in taken.forever() {
                    let Some(signal) = rustix::process::Signal::from_named_raw(signal) else {
                        continue;
                    };
                    let sent = rustix::process::kill_process(to, signal);
                    if let (Err(rustix::io::Errno::PERM), Some(quit)) = (sent, &quit) {
                        quit.store(true, Ordering::Relaxed);
                    }
                }
            })?;
        Ok(())
    }
}
