//! `cargo xtask bench overhead`: the same guest under the same QEMU, with and without the watch.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use nephoscope_e2e::progress::line;
use nephoscope_e2e::{Catalog, Image, Options, Tools, Watched};

use super::jobs::{JOBS, Job};
use super::record::Record;
use super::sheet::write;
use super::turns::{Mode, Setting, Turn};
use crate::build;

/// Compare a watched guest with the same guest under the same QEMU without the plugin.
///
/// One run is one boot of each, with all jobs in both at once, in slices of a tenth of a second. A run takes about three
/// minutes.
#[derive(Debug, Args)]
pub(crate) struct OverheadArgs {
    /// Boots of each.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = crate::arguments::some::<usize>)]
    runs: usize,
    /// How often each job is done in one boot; `--runs 1 --repeat 10` is quick and says less of booting.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::arguments::some::<usize>)]
    repeat: usize,
    /// Only these jobs: boot, processes, cpu, kernel, nginx, compile or smp4, with commas.
    #[arg(long, value_name = "NAME", value_parser = job, value_delimiter = ',')]
    only: Vec<Job>,
    /// Measure QEMU with a plugin that learns nothing too: empty is QEMU's own part of the price, the others are ways to
    /// learn which user code runs. With commas.
    #[arg(long, value_name = "MODE", value_delimiter = ',')]
    with: Vec<Mode>,
    /// Write all numbers there, after each run.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table there, as it stands in `bench/record`.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

fn job(text: &str) -> Result<Job, String> {
    let known = || JOBS.map(|job| job.name).join(", ");
    JOBS.into_iter()
        .find(|job| job.name == text)
        .ok_or_else(|| format!("the jobs are {}", known()))
}

/// Runs it.
pub(crate) fn run(arguments: &OverheadArgs) -> Result<()> {
    crate::setup::run()?;
    let built = build::run(true)?;
    let image = Image::ensure()?;
    let jobs: Vec<Job> = JOBS
        .into_iter()
        .filter(|job| arguments.only.is_empty() || arguments.only.contains(job))
        .collect();
    let mut options = Options {
        plants: false,
        // QEMU finds a block by a hash of its address: how many share a place is chance otherwise, and ten per cent.
        // And a kernel that is stopped while it tests its timer takes it for broken.
        cmdline: "nokaslr norandmaps no_timer_check".to_owned(),
        ..Options::default()
    };
    let mut packages = Vec::new();
    if jobs.iter().any(Job::needs_tools) {
        let tools = Tools::ensure()?;
        options.extra.extend(tools.drive());
        packages = tools.packages()?;
    }
    let catalog = Catalog::ensure_with(&image, &built.program, &packages)?;
    let guest = format!(
        "Linux {} with `{}`, {} MiB, `-accel {}`",
        options.kernel.version(),
        options.cmdline,
        options.memory_mib,
        options.accel
    );
    let setting = Setting {
        image,
        own_plugin: built
            .program
            .with_file_name("plugins")
            .join("libnephoscope-qemu-api4.so")
            .display()
            .to_string(),
        scratch: tempfile::tempdir()?,
        options,
        watch: Watched {
            program: built.program,
            catalog: catalog.path(),
            name: format!("bench-{}", std::process::id()),
            report: None,
            extra: Vec::new(),
        },
        plugin: built.bench.display().to_string(),
        with: arguments.with.clone(),
        jobs,
        repeat: arguments.repeat,
    };
    let command = arguments.command();
    let mut turns: Vec<Turn> = Vec::new();
    for number in 0..arguments.runs {
        line(&format!("Run {} of {}", number + 1, arguments.runs));
        setting.round(number, &mut turns)?;
        let record = Record {
            command: &command,
            guest: &guest,
            jobs: &setting.jobs,
            turns: &turns,
            with: &setting.with,
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
        if self.repeat != 1 {
            command.push_str(&format!(" --repeat {}", self.repeat));
        }
        if !self.only.is_empty() {
            let names: Vec<&str> = self.only.iter().map(|job| job.name).collect();
            command.push_str(&format!(" --only {}", names.join(",")));
        }
        if !self.with.is_empty() {
            let modes: Vec<&str> = self.with.iter().map(|mode| mode.word()).collect();
            command.push_str(&format!(" --with {}", modes.join(",")));
        }
        command
    }
}
