//! `nephoscope catalog`: building and asking the identity database.

mod add;
mod info;
mod verify;
mod which;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use nephoscope_catalog::{AddError, Catalog, OpenError, ReadError};

use super::catalog_dir::CatalogDir;
use crate::exit::{Failure, exit};

/// Build and ask the identity database: page → file → package → version.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope catalog add --catalog ./cat ./debs /srv/guest-root\n  \
    nephoscope catalog info --catalog ./cat\n  \
    nephoscope catalog which --catalog ./cat /usr/sbin/nginx\n  \
    nephoscope catalog verify --catalog ./cat")]
pub(crate) struct CatalogArgs {
    #[command(subcommand)]
    command: CatalogCommand,
}

#[derive(Debug, Subcommand)]
enum CatalogCommand {
    /// Take in packages, root trees, kernels, firmware and programs.
    Add(add::AddArgs),
    /// Say how much is in a catalog.
    Info(info::InfoArgs),
    /// Say which package and version has a file or a page.
    Which(which::WhichArgs),
    /// Read everything and find what is not as it was written.
    Verify(verify::VerifyArgs),
}

/// Where the catalog is.
#[derive(Debug, Args)]
struct Place {
    #[command(flatten)]
    catalog: CatalogDir,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Place {
    fn open(&self) -> anyhow::Result<Catalog> {
        Catalog::open(&self.catalog.path).map_err(|error| open_failed(&error))
    }
}

/// Does what was asked.
pub(crate) fn run(args: CatalogArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        CatalogCommand::Add(args) => add::run(&args),
        CatalogCommand::Info(args) => info::run(&args),
        CatalogCommand::Which(args) => which::run(&args),
        CatalogCommand::Verify(args) => verify::run(&args),
    }
}

/// A message with its causes on one line.
fn line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(&format!(" ({error})"));
        cause = error.source();
    }
    line
}

fn open_failed(error: &OpenError) -> anyhow::Error {
    let failure = match error {
        OpenError::Missing(_) | OpenError::NotACatalog(_) => Failure::NoCatalog,
        OpenError::OtherVersion { .. } => Failure::CatalogVersion,
        OpenError::Damaged { .. } => Failure::CatalogDamaged,
        _ => Failure::CatalogAccess,
    };
    exit(failure, line(error))
}

fn read_failed(error: &ReadError) -> anyhow::Error {
    exit(Failure::CatalogDamaged, line(error))
}

fn add_failed(error: &AddError) -> anyhow::Error {
    match error {
        AddError::Open(error) => open_failed(error),
        AddError::Read(error) => read_failed(error),
        AddError::Input { .. } => exit(Failure::Refused, line(error)),
        other => exit(Failure::CatalogAccess, line(other)),
    }
}
