//! `nephoscope run`: starts a VM and watches it from its first instruction.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};

use anyhow::Context;
use clap::Args;

use nephoscope_drivers::KvmTrap;
use nephoscope_judge::FileRules;

use super::catalog_dir::CatalogDir;
use crate::disks::{Disk, Rewritten, Servers, rewrite};
use crate::exit::{Failure, exit};
use crate::keep::Keeper;
use crate::monitor;
use crate::privilege::{self, Account, ReportFile};
use crate::qemu::{Qemu, asks_for_kvm};
use crate::runtime::VmDir;
use crate::signals;
use crate::state::{FileLists, Process, VmState};

/// Start a VM and watch it from its first instruction.
///
/// The command after `--` is run as it is, with what QEMU needs added at its end: the plugin, and a socket of QEMU's
/// monitor protocol. Its input, output, signals and exit code are passed through. It outlives whatever becomes of this
/// program, and is watched again by itself when what watches it is killed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope run --catalog ./cat -- qemu-system-x86_64 -m 1G -drive file=disk.img,if=virtio -nographic\n  \
    nephoscope run --catalog ./cat --name web1 --report web1.json -- qemu-system-x86_64 …\n  \
    nephoscope run --catalog ./cat --watch-files --allow-files '/srv/app/cache/**' -- qemu-system-x86_64 …")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    catalog: CatalogDir,
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
    /// Under KVM, look at all of the VM's mappings every second, and count those that are writable and executable at once or
    /// larger than 4 KiB: there should be none. Holds the VM up for some milliseconds each time.
    #[arg(long)]
    audit: bool,
    /// Under KVM, leave QEMU's memory as it is. Writes by devices to executed code are not seen then, and the report says so.
    /// QEMU's background snapshots and the receiving end of postcopy migration need this.
    #[arg(long)]
    no_guard: bool,
    /// Watch which files interpreters read. The VM's virtio disks are served by this program then, over vhost-user, and its memory is
    /// shared with that.
    #[arg(long)]
    watch_files: bool,
    /// A list of the programs that are interpreters instead of the one that is known: patterns for paths as packages have them, one a
    /// line, with comments after #. `*` is a name or part of one, `**` any folders.
    #[arg(long, value_name = "FILE", requires = "watch_files")]
    interpreters: Option<PathBuf>,
    /// Files that interpreters may read without a finding, whatever they are: a pattern for paths in the guest, as in
    /// --interpreters. May be given several times.
    #[arg(long, value_name = "PATTERN", requires = "watch_files")]
    allow_files: Vec<String>,
    /// The VM: QEMU and its arguments.
    #[arg(last = true, required = true, value_name = "QEMU")]
    command: Vec<OsString>,
}

/// Runs it.
pub(crate) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let (program, arguments) = args.command.split_first().context("no command")?;
    let kvm = asks_for_kvm(arguments);
    if kvm && !KvmTrap::is_there() {
        let message = "KVM runs code that the QEMU plugin does not see: load the kernel module nephoscope-kvm, or use `-accel tcg`";
        return Err(exit(Failure::Kvm, message));
    }
    // What is wrong with it is said before the VM starts; those who watch open it themselves.
    drop(monitor::open_catalog(&args.catalog.path)?);
    let qemu = Qemu::ask(program)?;
    let plugin = match (kvm, args.no_guard) {
        (false, _) => Some(qemu.plugin()?),
        (true, true) => None,
        // It is watched without, and the report says what is missing.
        (true, false) => qemu
            .plugin()
            .inspect_err(|error| {
                eprintln!("nephoscope: writes by devices to code will not be seen, and the report says so: {error:#}");
            })
            .ok(),
    };
    let dir = VmDir::named(
        &args
            .name
            .clone()
            .unwrap_or_else(|| format!("vm-{}", std::process::id())),
    )?;
    privilege::check(args.user)?;
    let lists = file_lists(&args)?;
    let files = rewritten(&args, arguments, kvm, &dir)?;
    let disks_left = files.as_ref().map_or(0, |files| files.left.len() as u64);
    let arguments = files.as_ref().map_or(arguments, |files| &files.arguments);
    let disks: &[Disk] = files.as_ref().map_or(&[], |files| &files.disks);
    let lock = dir.create()?;
    if let Some(path) = &args.report {
        ReportFile::prepare(path).inspect_err(|_| dir.remove())?;
    }
    let mut servers = Servers::of(disks);
    let started = servers
        .start(&dir)
        .and_then(|()| start(program, arguments, plugin.as_deref(), &dir, kvm, disks));
    let mut child = started.inspect_err(|_| {
        dir.remove();
        servers.end();
    })?;
    signals::forward(rustix::process::Pid::from_child(&child))?;
    let guard = kvm && plugin.is_some();
    let kept = state(&args, &qemu, &dir, &child, kvm, guard, disks)
        .and_then(|state| {
            let state = VmState {
                files: lists,
                disks_left,
                ..state
            };
            Ok(state.write(&dir)?)
        })
        .and_then(|()| Keeper::new(&dir, lock, servers).keep(Some(&mut child)));
    match kept {
        Ok(code) => finish(&mut child, code),
        Err(error) => {
            // The guest goes on: the watch's trouble is not the VM's. Its exit code still counts.
            eprintln!("nephoscope: {error:#}: the VM runs unwatched");
            let status = child.wait().context("waiting for QEMU")?;
            dir.remove();
            eprintln!("nephoscope: the VM ended unwatched with {status}");
            Err(error)
        }
    }
}

/// Which files are spoken of: what is wrong with that is said before the VM starts.
fn file_lists(args: &RunArgs) -> anyhow::Result<FileLists> {
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path);
        text.map_err(|error| exit(Failure::Usage, format!("cannot read {}: {error}", path.display())))
    };
    let interpreters = args.interpreters.as_ref().map(read).transpose()?;
    if let (Some(path), Some(text)) = (&args.interpreters, &interpreters) {
        FileRules::new(Some(text), "")
            .map_err(|error| exit(Failure::Usage, format!("{}: {error}", path.display())))?;
    }
    let allowed = args.allow_files.join("\n");
    FileRules::new(None, &allowed).map_err(|error| {
        let message = format!("--allow-files {:?} is no pattern: {}", error.pattern, error.why);
        exit(Failure::Usage, message)
    })?;
    Ok(FileLists {
        interpreters,
        allowed,
    })
}

/// QEMU's arguments with its disks served, if files are to be watched.
fn rewritten(
    args: &RunArgs,
    arguments: &[OsString],
    kvm: bool,
    dir: &VmDir,
) -> anyhow::Result<Option<Rewritten>> {
    if !args.watch_files {
        return Ok(None);
    }
    if kvm {
        return Err(exit(
            Failure::Kvm,
            "--watch-files is for TCG so far: leave it out under KVM",
        ));
    }
    let rewritten =
        rewrite(arguments, |number| dir.disk(number)).map_err(|message| exit(Failure::NoDisk, message))?;
    for left in &rewritten.left {
        eprintln!("nephoscope: {left}: what is read from it is not seen");
    }
    Ok(Some(rewritten))
}

fn state(
    args: &RunArgs,
    qemu: &Qemu,
    dir: &VmDir,
    child: &Child,
    kvm: bool,
    guard: bool,
    disks: &[Disk],
) -> anyhow::Result<VmState> {
    Ok(VmState {
        vmm: format!("QEMU {}", qemu.version),
        catalog: std::path::absolute(&args.catalog.path)?,
        plugin: dir.plugin(),
        qmp: Some(dir.qmp()),
        report: args.report.as_ref().map(std::path::absolute).transpose()?,
        watch: args.watch,
        user: args.user,
        kvm,
        begun_ns: begun_ns(),
        audit: args.audit,
        guard,
        disks: disks.to_vec(),
        files: FileLists::default(),
        disks_left: 0,
        // Unless whoever started it wants to let it run.
        started_paused: kvm && !args.command.iter().any(|argument| argument == "-S"),
        vmm_process: Process::of(child.id()),
    })
}

fn start(
    program: &OsString,
    arguments: &[OsString],
    plugin: Option<&std::path::Path>,
    dir: &VmDir,
    kvm: bool,
    disks: &[Disk],
) -> anyhow::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(plugin) = plugin {
        let mut option = plugin.as_os_str().to_owned();
        option.push(",socket=");
        option.push(dir.plugin());
        option.push(if kvm { ",kvm=on" } else { ",wait_ms=10000" });
        for disk in disks {
            option.push(",disk=");
            option.push(dir.disk_files(disk.number));
        }
        if !disks.is_empty() {
            option.push(",qtest=");
            option.push(dir.qtest());
            let mut qtest = OsString::from("unix:");
            qtest.push(dir.qtest());
            qtest.push(",server=on,wait=off");
            command.arg("-qtest").arg(qtest).args(["-qtest-log", "none"]);
        }
        command.arg("-plugin").arg(option);
    }
    // The kernel module is attached before anything runs.
    if kvm && !arguments.iter().any(|argument| argument == "-S") {
        command.arg("-S");
    }
    let mut qmp = OsString::from("unix:");
    qmp.push(dir.qmp());
    qmp.push(",server=on,wait=off");
    command.arg("-qmp").arg(qmp).spawn().map_err(|error| {
        exit(
            Failure::NoQemu,
            format!("cannot start {}: {error}", program.to_string_lossy()),
        )
    })
}

/// Now, by the clock that watches count with.
fn begun_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// QEMU's exit code; if that is 0, what became of the report.
fn finish(child: &mut Child, report: u8) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::ExitStatusExt;
    let status = child.wait().context("waiting for QEMU")?;
    // As a shell would say it: 128 + the signal.
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    let elsewhere = [Failure::ReportElsewhere, Failure::ReportNotWritten].map(|failure| failure as u8);
    Ok(match u8::try_from(code).unwrap_or(1) {
        0 if elsewhere.contains(&report) => ExitCode::from(report),
        code => ExitCode::from(code),
    })
}
