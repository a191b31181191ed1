//! `cargo xtask files-proof`: which files interpreters read, as the guest itself says it and as it was seen from outside.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nephoscope_e2e::reads::{Proof, Read, Side, prove};
use nephoscope_e2e::{Kernel, Step};
use serde_json::{Value, json};

/// Have PHP, Java, Python and shells work in a guest whose disk is served, and compare the files that `strace` says they read with the
/// report.
///
/// DokuWiki behind nginx, Ant, a job of Python modules and shell scripts; `tar`, `find | md5sum` and a package's installation run beside.
/// Fails if a reader is named that did not read, or one is missed. Takes some five minutes.
#[derive(Debug, Args)]
pub(crate) struct FilesProofArgs {
    /// The guest's kernel: 6.1 or 6.12.
    #[arg(long, value_name = "VERSION", value_parser = crate::nested::kernel, default_value = "6.1")]
    kernel: Kernel,
    /// The guest's vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::arguments::vcpus)]
    vcpus: u32,
    /// With all that will be read in the guest's memory before.
    #[arg(long)]
    warm: bool,
    /// Write what was found there, with the report.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(arguments: &FilesProofArgs) -> Result<()> {
    crate::setup::run()?;
    let program = crate::build::with_examples()?.program;
    let proof = Proof {
        kernel: arguments.kernel,
        vcpus: arguments.vcpus,
        warm: arguments.warm,
    };
    let mut step = Step::begin("Interpreters at work");
    let side = prove(&program, proof, |line| step.note(line))?;
    step.done("");
    tell(&side);
    if let Some(file) = &arguments.json {
        let text = serde_json::to_vec_pretty(&told(&side))?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let (missed, wrong) = (side.missed.len(), side.wrong.len());
    ensure!(
        missed == 0 && wrong == 0 && side.misnamed.is_empty(),
        "{missed} readings were missed, {wrong} are of nobody, {} files have another name",
        side.misnamed.len()
    );
    Ok(())
}

fn told(side: &Side) -> Value {
    let pairs = |reads: &std::collections::BTreeSet<Read>| -> Vec<Value> {
        reads
            .iter()
            .map(|read| json!({"program": read.program, "path": read.path}))
            .collect()
    };
    json!({
        "both": pairs(&side.both),
        "missed": pairs(&side.missed),
        "wrong": pairs(&side.wrong),
        "misnamed": side.misnamed,
        "said": side.said,
        "report": side.report,
    })
}

/// Files of each program: read and seen, missed, wrong.
fn tell(side: &Side) {
    let mut programs: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for (column, reads) in [&side.both, &side.missed, &side.wrong].into_iter().enumerate() {
        for read in reads {
            programs.entry(&read.program).or_default()[column] += 1;
        }
    }
    println!("{:<24}{:>8}{:>8}{:>8}", "program", "seen", "missed", "wrong");
    for (program, [both, missed, wrong]) in &programs {
        println!("{program:<24}{both:>8}{missed:>8}{wrong:>8}");
    }
    let part = |of: usize, rest: usize| 100.0 * of as f64 / (of + rest).max(1) as f64;
    let both = side.both.len();
    println!(
        "precision {:.2} %, recall {:.2} %; {} files of packages by name and version, {} not",
        part(both, side.wrong.len()),
        part(both, side.missed.len()),
        side.named,
        side.misnamed.len()
    );
    for (what, reads) in [("missed", &side.missed), ("wrong", &side.wrong)] {
        for read in reads {
            println!("{what}: {} {}", read.program, read.path);
        }
    }
    for (path, seen) in &side.misnamed {
        println!("another name: {path}: {seen}");
    }
}
