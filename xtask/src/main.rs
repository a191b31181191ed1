//! The tasks that people and CI run: `cargo xtask help`.

mod arguments;
mod attacks;
mod bench;
mod build;
mod demo;
mod disk_proof;
mod faults;
mod files_proof;
mod fuzz;
mod limits;
mod lint;
mod nested;
mod nested_proof;
mod qemu11;
mod setup;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nephoscope_e2e::Image;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The tasks that people and CI run.")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what this project needs from Debian's packages (as root, or through sudo).
    Setup,
    /// Unpack a newer QEMU beside the system's, to test its plugin interface.
    Qemu11,
    /// Build the program, and the plugin for each version of QEMU's plugin API.
    Build {
        /// As it is shipped.
        #[arg(long)]
        release: bool,
    },
    /// Formatting, clippy with warnings denied, the layers of the crates, and a test for every limit.
    Lint,
    /// Set everything up and run all tests, real guests included.
    Test {
        /// Passed to the test runner: names of tests, or its options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filter: Vec<String>,
    },
    /// Build the Debian guest, when the cache does not hold it.
    Guest,
    Demo(demo::DemoArgs),
    Nested(nested::NestedArgs),
    NestedProof(nested_proof::NestedProofArgs),
    FilesProof(files_proof::FilesProofArgs),
    DiskProof(disk_proof::DiskProofArgs),
    Attacks(attacks::AttacksArgs),
    Faults(faults::FaultsArgs),
    Soak(soak::SoakArgs),
    Fuzz(fuzz::FuzzArgs),
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Setup => setup::run(),
        Task::Lint => lint::run(),
        Task::Qemu11 => qemu11::run().map(|program| println!("{}", program.display())),
        Task::Build { release } => build::run(release).map(|built| println!("{}", built.program.display())),
        Task::Test { filter } => test::run(&filter),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Nested(arguments) => std::process::exit(nested::run(&arguments)?),
        Task::NestedProof(arguments) => nested_proof::run(&arguments),
        Task::FilesProof(arguments) => files_proof::run(&arguments),
        Task::DiskProof(arguments) => disk_proof::run(&arguments),
        Task::Attacks(arguments) => attacks::run(&arguments),
        Task::Faults(arguments) => faults::run(&arguments),
        Task::Soak(arguments) => soak::run(&arguments),
        Task::Fuzz(arguments) => {
            setup::run()?;
            fuzz::run(&arguments)
        }
        Task::Bench(bench) => bench::run(&bench),
        Task::Guest => {
            setup::run()?;
            println!("{}", Image::ensure()?.root().display());
            Ok(())
        }
    }
}
