//! `cargo xtask bench catalog`: taking in packages, beside only unpacking them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nephoscope_e2e::{Step, cache, packages};
use serde_json::{Value, json};

use super::cpu;
use super::ratio::Spread;
use super::sheet::Out;
use crate::build;

/// Compare taking in a few hundred packages with the time `dpkg-deb --fsys-tarfile` needs to unpack them.
#[derive(Debug, Args)]
pub(crate) struct CatalogArgs {
    /// Rounds.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = crate::arguments::some::<usize>)]
    runs: usize,
    #[command(flatten)]
    out: Out,
}

/// What one round took.
#[derive(Debug, Clone, Copy)]
struct Took {
    cpu: Duration,
    wall: Duration,
}

/// Runs it.
pub(crate) fn run(arguments: &CatalogArgs) -> Result<()> {
    crate::setup::run()?;
    let built = build::run(true)?;
    let packages = packages::ensure()?;
    let bytes: u64 = packages
        .iter()
        .map(|path| Ok(fs::metadata(path)?.len()))
        .sum::<Result<u64>>()?;
    let mut rounds = Vec::new();
    let mut said = Value::Null;
    for round in 0..arguments.runs {
        let mut step = Step::begin(&format!("Round {} of {}", round + 1, arguments.runs));
        // The order alternates; the files are in the page cache from the first round on.
        let (unpacked, added) = if round % 2 == 0 {
            let unpacked = unpack(&mut step, &packages)?;
            (unpacked, add(&mut step, &built.program, &packages, &mut said)?)
        } else {
            let added = add(&mut step, &built.program, &packages, &mut said)?;
            (unpack(&mut step, &packages)?, added)
        };
        step.done(&format!(
            "unpacking {:.1} s of CPU, adding {:.1} s ({:.1} s on the wall)",
            unpacked.cpu.as_secs_f64(),
            added.cpu.as_secs_f64(),
            added.wall.as_secs_f64()
        ));
        rounds.push((unpacked, added));
    }
    let text = told(&packages, bytes, &said, &rounds)?;
    let numbers = json!({
        "packages": packages.len(),
        "bytes": bytes,
        "added": said,
        "rounds": rounds.iter().map(|(unpacked, added)| json!({
            "unpack_cpu_s": unpacked.cpu.as_secs_f64(),
            "unpack_wall_s": unpacked.wall.as_secs_f64(),
            "add_cpu_s": added.cpu.as_secs_f64(),
            "add_wall_s": added.wall.as_secs_f64(),
        })).collect::<Vec<_>>(),
    });
    let command = format!("cargo xtask bench catalog --runs {}", arguments.runs);
    arguments
        .out
        .write(&command, "Taking in packages", &text, numbers)
}

/// Some files were refused (`docs/exit-codes.md`); the rest was taken in.
const REFUSED: i32 = 14;

/// One after the other, to nowhere.
fn unpack(step: &mut Step, packages: &[PathBuf]) -> Result<Took> {
    step.note("dpkg-deb --fsys-tarfile");
    timed(|| {
        for package in packages {
            let arguments: [&OsStr; 2] = ["--fsys-tarfile".as_ref(), package.as_ref()];
            let status = Command::new("dpkg-deb")
                .args(arguments)
                .stdout(Stdio::null())
                .status()?;
            ensure!(status.success(), "dpkg-deb cannot unpack {}", package.display());
        }
        Ok(())
    })
}

/// Into a catalog of its own.
fn add(step: &mut Step, program: &Path, packages: &[PathBuf], said: &mut Value) -> Result<Took> {
    step.note("nephoscope catalog add");
    let folder = tempfile::Builder::new()
        .prefix("bench-catalog-")
        .tempdir_in(cache::folder()?)?;
    timed(|| {
        let output = Command::new(program)
            .args(["catalog", "add", "--json", "--catalog"])
            .arg(folder.path().join("catalog"))
            .args(packages)
            .stderr(Stdio::null())
            .output()?;
        ensure!(
            output.status.success() || output.status.code() == Some(REFUSED),
            "`catalog add` ended with {}",
            output.status
        );
        *said = serde_json::from_slice(&output.stdout)?;
        Ok(())
    })
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Took> {
    let (cpu, wall) = (cpu::children()?, Instant::now());
    work()?;
    Ok(Took {
        cpu: cpu::children()?.saturating_sub(cpu),
        wall: wall.elapsed(),
    })
}

fn told(packages: &[PathBuf], bytes: u64, said: &Value, rounds: &[(Took, Took)]) -> Result<String> {
    let spread = |of: fn(&(Took, Took)) -> f64| -> Result<String> {
        let s = Spread::of(rounds.iter().map(of)).context("no rounds")?;
        Ok(format!("{:.2} [{:.2}–{:.2}]", s.median, s.min, s.max))
    };
    Ok(format!(
        "{} packages of Debian 12, {} MB packed; {} files with code, {} refused. Medians of {} rounds with the least and the \
         greatest,\nthe order alternating. `dpkg-deb` unpacks one package after the other; `catalog add` uses all cores.\n\n\
         | | CPU, s | wall, s |\n|---|---|---|\n\
         | `dpkg-deb --fsys-tarfile`, to nowhere | {} | {} |\n\
         | `nephoscope catalog add`, to a new catalog | {} | {} |\n\
         | ratio | {} | {} |\n",
        packages.len(),
        bytes / 1_000_000,
        said["recognised"],
        said["refused_total"],
        rounds.len(),
        spread(|(unpacked, _)| unpacked.cpu.as_secs_f64())?,
        spread(|(unpacked, _)| unpacked.wall.as_secs_f64())?,
        spread(|(_, added)| added.cpu.as_secs_f64())?,
        spread(|(_, added)| added.wall.as_secs_f64())?,
        spread(|(unpacked, added)| added.cpu.as_secs_f64() / unpacked.cpu.as_secs_f64())?,
        spread(|(unpacked, added)| added.wall.as_secs_f64() / unpacked.wall.as_secs_f64())?,
    ))
}
