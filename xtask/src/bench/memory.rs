//! `cargo xtask bench memory`: the monitor's memory while the guest starts and ends processes without end.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nephoscope_e2e::{Catalog, Guest, Image, Options, Step, Watched};
use serde_json::{Value, json};

use super::sheet::Out;
use crate::build;

/// Measure the monitor's memory over fork-heavy work.
#[derive(Debug, Args)]
pub(crate) struct MemoryArgs {
    /// For how long.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = crate::arguments::some::<u64>)]
    minutes: u64,
    #[command(flatten)]
    out: Out,
}

/// One reading, in KiB.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Duration,
    processes: u64,
    anonymous: u64,
    files: u64,
}

/// Processes that one command starts and ends.
const BATCH: u64 = 200;

/// Runs it.
pub(crate) fn run(arguments: &MemoryArgs) -> Result<()> {
    crate::setup::run()?;
    let built = build::run(true)?;
    let image = Image::ensure()?;
    let catalog = Catalog::ensure(&image, &built.program)?;
    let options = Options {
        watched: Some(Watched {
            program: built.program,
            catalog: catalog.path(),
            name: format!("memory-{}", std::process::id()),
            report: None,
            extra: Vec::new(),
        }),
        ..Options::default()
    };
    let mut guest = Guest::boot_ready(&image, options)?;
    let monitor = guest.watcher()?;
    let mut step = Step::begin("Processes");
    let begun = Instant::now();
    let mut readings = vec![read(monitor, begun.elapsed(), 0)?];
    let mut processes = 0;
    while begun.elapsed() < Duration::from_secs(arguments.minutes * 60) {
        guest.run_ok(&format!("/opt/nephoscope/shortlived {BATCH}"))?;
        guest.http_get("/index.php")?;
        processes += BATCH;
        let reading = read(monitor, begun.elapsed(), processes)?;
        step.note(&format!("{processes}: {} MiB private", reading.anonymous >> 10));
        readings.push(reading);
    }
    let most = peak(monitor)?;
    guest.power_off()?;
    step.done(&format!(
        "{processes} processes, at most {} MiB resident",
        most >> 10
    ));
    let command = format!("cargo xtask bench memory --minutes {}", arguments.minutes);
    let numbers = json!({
        "processes": processes,
        "peak_kib": most,
        "readings": readings.iter().map(|r| json!({
            "s": r.at.as_secs_f64(), "processes": r.processes, "private_kib": r.anonymous, "files_kib": r.files,
        })).collect::<Vec<Value>>(),
    });
    let text = told(&readings, most)?;
    arguments
        .out
        .write(&command, "The monitor's memory", &text, numbers)
}

fn told(readings: &[Reading], most: u64) -> Result<String> {
    let mut text = format!(
        "A guest that starts and ends processes one after the other, with a PHP page now and then. Resident memory of the \
         monitor: what is its\nown, and what it has mapped of files (the catalog and the rings, which the kernel may take back). \
         At most {} MiB in all.\n\n\
         | minutes | processes so far | its own, MiB | of files, MiB |\n|---:|---:|---:|---:|\n",
        most >> 10
    );
    // A dozen rows are enough for people.
    let every = readings.len().div_ceil(12).max(1);
    for reading in readings.iter().step_by(every).chain(readings.last()) {
        writeln!(
            text,
            "| {:.1} | {} | {} | {} |",
            reading.at.as_secs_f64() / 60.0,
            reading.processes,
            reading.anonymous >> 10,
            reading.files >> 10
        )?;
    }
    Ok(text)
}

fn read(pid: u32, at: Duration, processes: u64) -> Result<Reading> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Reading {
        at,
        processes,
        anonymous: kib(&status, "RssAnon:")?,
        files: kib(&status, "RssFile:")? + kib(&status, "RssShmem:")?,
    })
}

fn peak(pid: u32) -> Result<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmHWM:")
}

/// A line of `/proc/PID/status`.
fn kib(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number
        .with_context(|| format!("no {name} in its status"))?
        .parse()?)
}
