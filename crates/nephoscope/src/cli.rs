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
        nephoscope findings web1 --follow\n  \
        nephoscope why web1 p123\n\n\
        Exit codes are listed in docs/exit-codes.md."
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build and ask the identity database.
    Catalog(cmd::catalog::CatalogArgs),
    /// Start a VM and watch it from its first instruction.
    Run(cmd::run::RunArgs),
    /// Watch a VM that is already running with the plugin.
    Attach(cmd::attach::AttachArgs),
    /// Say what runs in a VM: which VMs are watched, or the programs of one.
    Ps(cmd::ps::PsArgs),
    /// See what runs in a VM, live.
    Top(cmd::top::TopArgs),
    /// List what was concluded.
    Findings(cmd::findings::FindingsArgs),
    /// Show the evidence for a page or a finding.
    Why(cmd::why::WhyArgs),
    /// Versions of the program and of what it works with.
    Version(cmd::version::VersionArgs),
}
