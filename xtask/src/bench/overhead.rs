//! `cargo xtask bench overhead`: the same guest under the same QEMU, with and without the watch.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nephoscope_e2e::progress::line;
use nephoscope_e2e::{Catalog, Image, Options, Watched};

use super::jobs::{JOBS, Job};
use super::pair::{Pair, Setting};
use super::record::Record;
use crate::build;

/// Compare a watched guest with the same guest under the same QEMU without the plugin.
///
/// One pair is one boot of each, one after the other, with all jobs in each; the order alternates. A pair takes about
/// two minutes.
#[derive(Debug, Args)]
pub(crate) struct OverheadArgs {
    /// Pairs.
    #[arg(long, value_name = "N", default_value_t = 7)]
    runs: usize,
    /// Only this job: boot, processes, cpu, kernel or nginx.
    #[arg(long, value_name = "NAME", value_parser = job)]
    only: Option<Job>,
    /// Write all numbers there, after each pair.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table there, as it stands in `bench/record`.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// The guest's virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    smp: u32,
}

fn job(text: &str) -> Result<Job, String> {
    let known = || JOBS.map(|job| job.name).join(", ");
    JOBS.into_iter()
        .find(|job| job.name == text)
        .ok_or_else(|| format!("the jobs are {}", known()))
}

/// Runs it.
pub(crate) fn run(arguments: &OverheadArgs) -> Result<()> {
    ensure!(arguments.runs > 0, "no pair, no ratio");
    crate::setup::run()?;
    let built = build::run(true)?;
    let image = Image::ensure()?;
    let catalog = Catalog::ensure(&image, &built.program)?;
    let options = Options {
        smp: arguments.smp,
        plants: false,
        ..Options::default()
    };
    let guest = format!(
        "Linux {}, {} vCPU, {} MiB, `-accel {}`",
        options.kernel.version(),
        options.smp,
        options.memory_mib,
        options.accel
    );
    let setting = Setting {
        image,
        options,
        watch: Watched {
            program: built.program,
            catalog: catalog.path(),
            name: format!("bench-{}", std::process::id()),
            report: None,
            extra: Vec::new(),
        },
        jobs: arguments.only.map_or(JOBS.to_vec(), |job| vec![job]),
    };
    let command = arguments.command();
    let mut pairs: Vec<Pair> = Vec::new();
    for number in 0..arguments.runs {
        line(&format!("Pair {} of {}", number + 1, arguments.runs));
        // A, B, B, A, A, B: what drifts over time falls on both.
        pairs.push(setting.pair(number % 2 == 0)?);
        let record = Record {
            command: &command,
            guest: &guest,
            jobs: &setting.jobs,
            pairs: &pairs,
        };
        if let Some(path) = &arguments.json {
            write(path, &format!("{:#}\n", record.json()?))?;
        }
        if number + 1 == arguments.runs {
            let table = record.markdown()?;
            println!("{table}");
            if let Some(path) = &arguments.record {
                write(path, &table)?;
            }
        }
    }
    Ok(())
}

impl OverheadArgs {
    /// What to type for the same again.
    fn command(&self) -> String {
        let mut command = format!("cargo xtask bench overhead --runs {}", self.runs);
        if let Some(job) = self.only {
            command.push_str(&format!(" --only {}", job.name));
        }
        if self.smp != 1 {
            command.push_str(&format!(" --smp {}", self.smp));
        }
        command
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
