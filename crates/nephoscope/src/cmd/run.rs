//! `nephoscope run`: starts a VM and watches it from its first instruction.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nephoscope_inventory::VmReport;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::exit::{Failure, exit};
use crate::monitor::{self, Ending, Watch};
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
    let mut child = start(program, arguments, &plugin, &dir).inspect_err(|_| dir.remove())?;
    let watched = watch(&args, &qemu, catalog, &dir, &mut child);
    dir.remove();
    if watched.is_err() {
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
) -> anyhow::Result<ExitCode> {
    let pid = rustix::process::Pid::from_child(child);
    forward_signals(pid)?;
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
    let mut watch = Watch::new(vm, catalog, driver, Some(dir.qmp()), dir.control(), args.watch)?;
    let ending = watch.run(|| child.try_wait().ok().flatten().is_some())?;
    if let Some(path) = &args.report {
        monitor::write_report(&watch.report(), path)?;
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
fn forward_signals(pid: rustix::process::Pid) -> anyhow::Result<()> {
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("taking signals")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if let Some(signal) = rustix::process::Signal::from_named_raw(signal) {
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
        })?;
    Ok(())
}
