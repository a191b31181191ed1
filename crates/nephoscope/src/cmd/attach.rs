//! `nephoscope attach`: watches a VM that is already running with the plugin.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use nephoscope_inventory::VmReport;

use crate::exit::{Failure, exit};
use crate::monitor::{self, Watch};
use crate::privilege::{Account, Keep, ReportFile};
use crate::runtime::VmDir;

/// Watch a VM that is already running with the plugin.
///
/// What ran before is not known: the report says so. Pages that still are as they were captured then are taken over.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope attach --catalog ./cat --name web1                # a VM whose `nephoscope run` was killed\n  \
    nephoscope attach --catalog ./cat --name db --plugin /run/db/plugin.sock --qmp /run/db/qmp.sock")]
pub(crate) struct AttachArgs {
    /// The catalog to identify with.
    #[arg(
        long,
        value_name = "DIR",
        env = "NEPHOSCOPE_CATALOG",
        default_value = "/var/lib/nephoscope/catalog"
    )]
    catalog: PathBuf,
    /// The VM's name.
    #[arg(long, value_name = "VM")]
    name: String,
    /// The plugin's socket, if `nephoscope run` did not start the VM.
    #[arg(long, value_name = "SOCKET")]
    plugin: Option<PathBuf>,
    /// A socket of QEMU's monitor protocol, without which address spaces are not told apart.
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,
    /// Write the report there when the VM ends.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print findings to standard error as they are made.
    #[arg(long)]
    watch: bool,
    /// Whom the monitor becomes if root starts it, as with `run`.
    #[arg(long, value_name = "USER")]
    user: Option<Account>,
}

/// Runs it.
pub(crate) fn run(args: AttachArgs) -> anyhow::Result<ExitCode> {
    let catalog = monitor::open_catalog(&args.catalog)?;
    let dir = VmDir::named(&args.name)?;
    let plugin = args.plugin.clone().unwrap_or_else(|| dir.plugin());
    let driver = monitor::attach(&plugin).map_err(|error| {
        exit(
            Failure::NoVm,
            format!("{error:#}: see `nephoscope ps` for the VMs there are"),
        )
    })?;
    dir.ensure()?;
    let held = dir.hold()?;
    let vm = VmReport {
        name: dir.name.clone(),
        vmm: "QEMU".into(),
        accelerator: "tcg".into(),
        isa: "x86-64".into(),
        vcpus: 0,
    };
    let qmp = args
        .qmp
        .clone()
        .or_else(|| Some(dir.qmp()).filter(|path| path.exists()));
    let mut report = args.report.as_deref().map(ReportFile::prepare).transpose()?;
    let keep = Keep {
        account: args.user,
        read: vec![args.catalog.clone()],
        write: report.iter().map(ReportFile::folder).collect(),
        vm: Some(dir.path().to_path_buf()),
        signals: None,
    };
    let mut watch = Watch::new(vm, catalog, driver, qmp, dir.control(), args.watch, &keep)?;
    watch.run(|| false)?;
    // The VM has ended: nothing is left to attach to.
    held.remove();
    if let Some(file) = &mut report {
        monitor::write_report(&watch.report(), file)?;
    }
    Ok(ExitCode::SUCCESS)
}
