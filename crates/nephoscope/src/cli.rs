//! The command line.

use clap::{Parser, Subcommand};

use crate::cmd;

/// Names the code that virtual machines really execute, from the host, with nothing installed in the guest.
#[derive(Debug, Parser)]
#[command(
    name = "nephoscope",
    version,
    after_help = "Examples:\n  \
        nephoscope catalog add --catalog ./cat /srv/guest-root /boot/vmlinuz\n  \
        nephoscope run --catalog ./cat --name web1 --report web1.json -- qemu-system-x86_64 -m 1G …\n  \
        nephoscope ps web1\n  \
        nephoscope top web1\n  \
        nephoscope files web1\n  \
        nephoscope findings web1 --follow\n  \
        nephoscope why web1 p123\n  \
        nephoscope scan qmp:/run/vm/qmp.sock\n\n\
        Exit codes are listed in docs/exit-codes.md."
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands. What each is for stands with its arguments: words here would hide those.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Catalog(cmd::catalog::CatalogArgs),
    Run(cmd::run::RunArgs),
    Attach(cmd::attach::AttachArgs),
    Scan(cmd::scan::ScanArgs),
    Ps(cmd::ps::PsArgs),
    Top(cmd::top::TopArgs),
    Files(cmd::files::FilesArgs),
    Findings(cmd::findings::FindingsArgs),
    Why(cmd::why::WhyArgs),
    #[command(hide = true)]
    Gather(cmd::gather::GatherArgs),
    #[command(hide = true)]
    Keep(cmd::keep::KeepArgs),
    #[command(hide = true)]
    Watch(cmd::keep::KeepArgs),
    #[command(hide = true)]
    ServeDisk(cmd::serve_disk::ServeDiskArgs),
    Version(cmd::version::VersionArgs),
    #[cfg(debug_assertions)]
    #[command(hide = true)]
    Confined(crate::privilege::trial::TrialArgs),
}
