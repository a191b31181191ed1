//! One file per command.

pub(crate) mod attach;
pub(crate) mod catalog;
pub(crate) mod run;
pub(crate) mod version;

use std::process::ExitCode;

use crate::cli::{Cli, Command};

/// Runs a command.
pub(crate) fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Catalog(args) => catalog::run(args),
        Command::Run(args) => run::run(args),
        Command::Attach(args) => attach::run(args),
        Command::Version(args) => version::run(args).map(|()| ExitCode::SUCCESS),
    }
}
