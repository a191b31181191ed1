//! `cargo xtask nested-proof`: the same guest watched under stock KVM and by the QEMU plugin, and in what the reports differ.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nephoscope_e2e::nested::{Nested, Seen, job, watch};
use nephoscope_e2e::{Catalog, Image, Kernel, Options, Step, Watched, report};
use serde_json::{Value, json};

/// Watch a guest under stock KVM in the nested machine, and the same guest by the QEMU plugin, and compare the reports.
///
/// Takes some five minutes for each kernel.
#[derive(Debug, Args)]
pub(crate) struct NestedProofArgs {
    /// Only with this kernel: 6.1 or 6.12.
    #[arg(long, value_name = "VERSION", value_parser = crate::nested::kernel)]
    kernel: Option<Kernel>,
    /// The guest's vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::arguments::vcpus)]
    vcpus: u32,
    /// How long a guest under KVM may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = crate::arguments::some::<u64>)]
    limit: u64,
    /// Write both reports and all differences there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(arguments: &NestedProofArgs) -> Result<()> {
    crate::setup::run()?;
    let program = crate::build::with_examples()?.program;
    let image = Image::ensure()?;
    let mut all = Vec::new();
    let mut sound = true;
    for kernel in Kernel::ALL {
        if arguments.kernel.is_some_and(|only| only != kernel) {
            continue;
        }
        let version = kernel.version();
        let by_plugin = by_plugin(&image, &program, kernel, arguments.vcpus)?;
        let mut step = Step::begin(&format!("Linux {version} under KVM"));
        let limit = Duration::from_secs(arguments.limit);
        let seen = watch(&image, &program, kernel, arguments.vcpus, limit, |line| {
            step.note(line)
        })?;
        step.done("");
        sound &= tell(version, &seen, &by_plugin);
        all.push(json!({
            "kernel": version,
            "kvm": seen.report,
            "plugin": by_plugin,
            "differences": differences(&seen.report, &by_plugin),
            "warnings": seen.warnings,
        }));
    }
    if let Some(file) = &arguments.json {
        let text = serde_json::to_vec_pretty(&all)?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    ensure!(sound, "a mapping was not as it must be, or L1's kernel warned");
    Ok(())
}

fn by_plugin(image: &Image, program: &Path, kernel: Kernel, vcpus: u32) -> Result<Value> {
    let mut step = Step::begin(&format!("Linux {} by the QEMU plugin", kernel.version()));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let watched = Watched {
        program: program.to_owned(),
        catalog: Catalog::ensure_with(image, program, &Nested::ensure(image)?.firmware()?)?.path(),
        name: "proof".to_owned(),
        report: Some(file.clone()),
        extra: Vec::new(),
    };
    let options = Options {
        kernel,
        smp: vcpus,
        plants: false,
        watched: Some(watched),
        ..Options::default()
    };
    job(image, options, &folder.path().join("truth"), |said| {
        step.note(said)
    })?;
    step.done("");
    let report = serde_json::from_slice(&std::fs::read(&file)?)?;
    report::validate(&report)?;
    Ok(report)
}

fn differences(kvm: &Value, plugin: &Value) -> Vec<String> {
    report::named_otherwise(("KVM", kvm), ("the plugin", plugin))
}

/// Prints what was seen. False if a mapping was writable and executable or huge, or L1 warned.
fn tell(version: &str, seen: &Seen, plugin: &Value) -> bool {
    println!("Linux {version}                 pages  identified  modified  unknown");
    for (name, report) in [("KVM", &seen.report), ("plugin", plugin)] {
        for kind in ["user", "kernel", "firmware"] {
            let of = |verdict: &str| report["pages"][kind][verdict].as_u64().unwrap_or(0);
            println!(
                "  {name:<8}{kind:<10}{:>9}{:>12}{:>10}{:>9}",
                of("captured"),
                of("identified"),
                of("modified"),
                of("unknown")
            );
        }
    }
    let files = report::names(plugin).len();
    let differences = differences(&seen.report, plugin);
    println!("  {} differences in {files} files", differences.len());
    for line in &differences {
        println!("    {line}");
    }
    let counter = |name: &str| seen.report["counters"][name].as_u64().unwrap_or(u64::MAX);
    let both = counter("kvm_mappings_writable_and_executable");
    println!(
        "  audits {}, mappings {}, of them writable and executable {both}, huge {}; frames unguarded {}",
        counter("kvm_audits"),
        counter("kvm_audited_mappings"),
        counter("kvm_mappings_huge"),
        counter("kvm_frames_unguarded")
    );
    for warning in &seen.warnings {
        println!("  L1: {warning}");
    }
    both == 0 && counter("kvm_mappings_huge") == 0 && seen.warnings.is_empty()
}
