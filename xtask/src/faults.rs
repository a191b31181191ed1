//! `cargo xtask faults`: what can befall a watch, and the proof that nothing is lost silently.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nephoscope_e2e::faults::{GROUPS, Row, Setting};
use nephoscope_e2e::progress::line;
use nephoscope_e2e::{Catalog, Image};
use serde_json::Value;

use crate::build;

/// Kill, stop, fill up, cheat, reset, pause, roll back and migrate what watches a guest and the guest itself.
#[derive(Debug, Args)]
pub(crate) struct FaultsArgs {
    /// How often the monitor is killed.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = crate::arguments::some::<usize>)]
    kills: usize,
    /// Only this group: watch, machine or migration.
    #[arg(long, value_name = "NAME", value_parser = group)]
    only: Option<String>,
    /// Write the rows there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn group(text: &str) -> Result<String, String> {
    let names = GROUPS.map(|(name, _)| name);
    if names.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("the groups are {}", names.join(", ")))
    }
}

/// Runs them; an error when one does not end as it has to.
pub(crate) fn run(arguments: &FaultsArgs) -> Result<()> {
    super::setup::run()?;
    let built = build::run(false)?;
    let image = Image::ensure()?;
    let setting = Setting {
        catalog: Catalog::ensure(&image, &built.program)?.path(),
        program: built.program,
        image,
        kills: arguments.kills,
    };
    let mut rows = Vec::new();
    for (name, run) in GROUPS {
        if arguments.only.as_ref().is_none_or(|only| only == name) {
            line(&format!("Faults of the group {name}"));
            let more = run(&setting).with_context(|| format!("the group {name}"))?;
            more.iter().for_each(print);
            rows.extend(more);
        }
    }
    if let Some(path) = &arguments.json {
        let all: Value = rows.iter().map(Row::json).collect();
        std::fs::write(path, format!("{all:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let wrong = rows.iter().filter(|row| !row.ok).count();
    println!("{} faults, {wrong} wrong", rows.len());
    ensure!(wrong == 0, "{wrong} faults did not end as they have to");
    Ok(())
}

fn print(row: &Row) {
    println!(
        "{:<28} {:>5} times  {}",
        row.fault,
        row.times,
        if row.ok { "right" } else { "WRONG" }
    );
    println!("  expected  {}", row.expected);
    println!("  seen      {}", row.seen);
}
