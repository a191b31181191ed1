//! `cargo xtask soak`: the kernel module on a kernel that looks for mistakes, while VMs come and go.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nephoscope_e2e::nested::Soak;
use nephoscope_e2e::{Image, Step, cache, kbuild};
use serde_json::Value;

/// Start, watch and end VMs in random order on a debug kernel, with the kernel module loaded and unloaded between.
///
/// The kernel is Debian's 6.1 with KASAN, lockdep and kmemleak, compiled once from its source package, which takes long. It runs in
/// the nested machine; allow some minutes for each VM there. Fails if the kernel warns, or if something is not given back.
#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// How many VMs.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = crate::arguments::some::<usize>)]
    vms: usize,
    /// What the random order is made of; another one each time when absent, and printed.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// On the guests' own kernel, which looks for few mistakes and need not be compiled.
    #[arg(long)]
    stock: bool,
    /// How long all of it may take; some minutes for each VM when absent.
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
    /// Write what was counted there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(arguments: &SoakArgs) -> Result<()> {
    crate::setup::with(if arguments.stock { &[] } else { &kbuild::PACKAGES })?;
    let program = crate::build::with_examples()?.program;
    let image = Image::ensure()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = arguments.seed.unwrap_or(now.as_secs());
    println!("seed {seed}");
    let console = cache::folder()?.join("soak-console.log");
    let what = Soak {
        seed,
        vms: arguments.vms,
        debug: !arguments.stock,
        limit: Duration::from_secs(arguments.limit.unwrap_or(1800 + 240 * arguments.vms as u64)),
        log: cache::folder()?.join("soak-dmesg.log"),
    };
    let mut file = File::create(&console)?;
    let kernel = if arguments.stock { "stock" } else { "debug" };
    let mut step = Step::begin(&format!("{} VMs on a {kernel} kernel", arguments.vms));
    let ran = what.run(&image, &program, |line| {
        // It is for people, when something went wrong.
        let _ = writeln!(file, "{line}");
        step.note(line);
    });
    let report = ran.with_context(|| format!("with seed {seed}; the console is in {}", console.display()))?;
    step.done("");
    if let Some(file) = &arguments.json {
        std::fs::write(file, format!("{report:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    tell(&report);
    let wrong = report["wrong"].as_array().map_or(1, Vec::len);
    ensure!(
        wrong == 0,
        "{wrong} things are wrong with seed {seed}: the kernel's log is in {}",
        what.log.display()
    );
    Ok(())
}

fn tell(report: &Value) {
    println!("{}", report["kernel"].as_str().unwrap_or_default());
    println!("{:<32}{:>6}", "VMs", report["vms"]);
    println!("{:<32}{:>6}", "  of them watched", report["watched"]);
    for (how, count) in report["ended"].as_object().into_iter().flatten() {
        println!("  {how:<30}{count:>6}");
    }
    for (what, count) in report["module"].as_object().into_iter().flatten() {
        println!("{:<32}{count:>6}", what.replace('_', " "));
    }
    for what in ["warnings", "leaks", "leaks_of_others", "late"] {
        let count = report[what].as_array().map(|all| all.len() as u64);
        let count = count.or(report[what].as_u64()).unwrap_or(0);
        println!("{:<32}{count:>6}", what.replace('_', " "));
    }
    println!("lockdep still looks: {}", report["lockdep_active"]);
    for (what, before) in report["memory_before"].as_object().into_iter().flatten() {
        println!(
            "{:<32}{before:>10} → {:>10}",
            what.replace('_', " "),
            report["memory_after"][what]
        );
    }
    for line in report["wrong"].as_array().into_iter().flatten() {
        println!("wrong: {}", line.as_str().unwrap_or_default());
    }
}
