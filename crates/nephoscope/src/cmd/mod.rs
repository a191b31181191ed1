//! One file per command.

pub(crate) mod attach;
pub(crate) mod catalog;
mod catalog_dir;
pub(crate) mod files;
pub(crate) mod findings;
pub(crate) mod gather;
pub(crate) mod keep;
pub(crate) mod ps;
pub(crate) mod run;
pub(crate) mod scan;
pub(crate) mod serve_disk;
pub(crate) mod top;
pub(crate) mod version;
pub(crate) mod why;

use std::process::ExitCode;

use crate::cli::{Cli, Command};

/// Runs a command.
pub(crate) fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Catalog(args) => catalog::run(args),
        Command::Run(args) => run::run(args),
        Command::Attach(args) => attach::run(&args),
        Command::Keep(args) => keep::keep(&args),
        Command::Watch(args) => keep::watch(&args),
        Command::ServeDisk(args) => serve_disk::run(&args),
        Command::Scan(args) => scan::run(&args),
        Command::Gather(args) => gather::run(&args),
        Command::Ps(args) => ps::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Top(args) => top::run(&args),
        Command::Files(args) => files::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Findings(args) => findings::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Why(args) => why::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Version(args) => version::run(args).map(|()| ExitCode::SUCCESS),
        #[cfg(debug_assertions)]
        Command::Confined(args) => crate::privilege::trial::run(args),
    }
}
