//! `cargo xtask disk-proof`: whether disks that are served keep what is written to them, whatever becomes of their servers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use nephoscope_e2e::disk_proof::{Account, Proof, prove};
use nephoscope_e2e::{Kernel, Step};
use serde_json::json;

/// Have a guest work on served disks at random, kill their servers meanwhile, and compare what is on them with what must be.
///
/// Two disks with ext4, raw and qcow2, are worked on as `fsx` does, each step held to what the files must hold; on the root disk a
/// package is upgraded over and over. At the end `e2fsck -fn` finds each disk clean, and each file has every byte that it must have.
#[derive(Debug, Args)]
pub(crate) struct DiskProofArgs {
    /// The guest's kernel: 6.1 or 6.12.
    #[arg(long, value_name = "VERSION", value_parser = crate::nested::kernel, default_value = "6.1")]
    kernel: Kernel,
    /// How long the guest works.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = crate::arguments::some::<u64>)]
    minutes: u64,
    /// How often a server is killed in that time.
    #[arg(long, value_name = "N", default_value_t = 100)]
    kills: u32,
    /// For the work and the kills; the same seed is not the same run, because the machine is not the same.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write what was done there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(arguments: &DiskProofArgs) -> Result<()> {
    crate::setup::run()?;
    let program = crate::build::run(true)?.program;
    let proof = Proof {
        kernel: arguments.kernel,
        time: Duration::from_secs(arguments.minutes * 60),
        kills: arguments.kills,
        seed: arguments.seed,
    };
    let mut step = Step::begin("A guest works on served disks");
    let account = prove(&program, proof, |line| step.note(line))?;
    step.done("");
    tell(&account);
    if let Some(file) = &arguments.json {
        let steps: Vec<_> = account
            .steps
            .iter()
            .map(|(folder, kind, times)| json!({"folder": folder, "kind": kind, "times": times}))
            .collect();
        let told = json!({
            "minutes": arguments.minutes,
            "seed": arguments.seed,
            "kernel": arguments.kernel.version(),
            "kills": account.kills,
            "upgrades": account.upgrades,
            "steps": steps,
            "files": account.files,
            "bytes": account.bytes,
        });
        std::fs::write(file, serde_json::to_vec_pretty(&told)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn tell(account: &Account) {
    let mut kinds: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for (folder, kind, times) in &account.steps {
        kinds.entry(kind).or_default().insert(folder, *times);
    }
    let all = |folder: &str| -> u64 {
        let steps = account.steps.iter().filter(|(of, ..)| of == folder);
        steps.map(|(.., times)| times).sum()
    };
    let folders = nephoscope_e2e::disk_proof::FOLDERS;
    println!("{:<16}{:>12}{:>12}", "step", folders[0], folders[1]);
    for (kind, times) in &kinds {
        let [one, other] = folders.map(|folder| times.get(folder).copied().unwrap_or(0));
        println!("{kind:<16}{one:>12}{other:>12}");
    }
    println!("{:<16}{:>12}{:>12}", "all", all(folders[0]), all(folders[1]));
    println!(
        "{} kills, {} upgrades; {} files of {} bytes are what they must be, and all disks are clean",
        account.kills, account.upgrades, account.files, account.bytes
    );
}
