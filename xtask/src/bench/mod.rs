//! `cargo xtask bench`: what watching costs. Numbers that are to stand are kept in `bench/record`, with the machine, the
//! command and the date.

mod cpu;
mod jobs;
pub(crate) mod machine;
mod overhead;
mod pair;
mod ratio;
mod record;

use anyhow::Result;
use clap::Subcommand;

/// Measure what watching costs.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    Overhead(overhead::OverheadArgs),
}

/// Runs it.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Overhead(arguments) => overhead::run(arguments),
    }
}
