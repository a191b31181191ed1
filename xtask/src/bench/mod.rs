//! `cargo xtask bench`: what watching costs. Numbers that are to stand are kept in `bench/record`, with the machine, the
//! command and the date.

mod cpu;
mod disk;
mod identify;
mod ingest;
mod jobs;
mod kvm;
mod latency;
pub(crate) mod machine;
mod memory;
mod overhead;
mod plot;
mod ratio;
mod record;
mod scan;
mod sheet;
mod slices;
mod tool;
mod turns;

use anyhow::Result;
use clap::Subcommand;

/// Measure what watching costs.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    Overhead(overhead::OverheadArgs),
    Identify(identify::IdentifyArgs),
    Catalog(ingest::CatalogArgs),
    Latency(latency::LatencyArgs),
    Memory(memory::MemoryArgs),
    Scan(scan::ScanArgs),
    Kvm(kvm::KvmArgs),
    Disk(disk::DiskArgs),
    Plot(plot::PlotArgs),
}

/// Runs it.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    machine::commit()?;
    match bench {
        Bench::Overhead(arguments) => overhead::run(arguments),
        Bench::Identify(arguments) => identify::run(arguments),
        Bench::Catalog(arguments) => ingest::run(arguments),
        Bench::Latency(arguments) => latency::run(arguments),
        Bench::Memory(arguments) => memory::run(arguments),
        Bench::Scan(arguments) => scan::run(arguments),
        Bench::Disk(arguments) => disk::run(arguments),
        Bench::Kvm(arguments) => kvm::run(arguments),
        Bench::Plot(arguments) => plot::run(arguments),
    }
}
