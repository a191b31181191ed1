//! `cargo xtask lint`: formatting, clippy with warnings denied, the layers of the crates, and lock files that are current.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::build::{cargo, workspace};

/// The layers of `docs/design.md` §4: a crate depends on crates of lower layers only.
const LAYERS: [&[&str]; 7] = [
    &["guest"],
    &["isa", "recipe", "wire", "finding"],
    &["catalog", "qemu-plugin", "drivers", "disk"],
    &["inventory"],
    &["judge"],
    &["pipeline"],
    &["nephoscope"],
];

/// Runs all of it.
pub(crate) fn run() -> Result<()> {
    check_layers()?;
    crate::limits::check()?;
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&[
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ])?;
    // The fuzz targets are a workspace of their own: a dependency that a crate gets is easily forgotten in their lock file,
    // and is only missed when they are built.
    let fuzz = workspace().join("fuzz/Cargo.toml");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--locked", "--format-version", "1", "--manifest-path"])
        .arg(&fuzz)
        .stdout(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    ensure!(
        status.success(),
        "fuzz/Cargo.lock is not current: `cargo metadata --manifest-path fuzz/Cargo.toml` writes it anew, commit it"
    );
    Ok(())
}

fn check_layers() -> Result<()> {
    let mut crates = BTreeMap::new();
    for entry in fs::read_dir(workspace().join("crates"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let manifest = entry.path().join("Cargo.toml");
        let text =
            fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        crates.insert(name, dependencies(&text));
    }
    let wrong = wrong_ways(&crates)?;
    ensure!(
        wrong.is_empty(),
        "against the layers of docs/design.md: {}",
        wrong.join(", ")
    );
    Ok(())
}

/// Our own crates in the section `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]"
            && let Some(rest) = line.strip_prefix("nephoscope-")
        {
            let end = rest.find(['.', ' ', '=']).unwrap_or(rest.len());
            found.extend(rest.get(..end).map(str::to_owned));
        }
    }
    found
}

fn wrong_ways(crates: &BTreeMap<String, Vec<String>>) -> Result<Vec<String>> {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let mut wrong = Vec::new();
    for (name, needs) in crates {
        let Some(own) = layer(name) else {
            bail!("crates/{name} has no layer: give it one in docs/design.md and in xtask/src/lint.rs")
        };
        for need in needs {
            if layer(need).is_none_or(|of| of >= own) {
                wrong.push(format!("{name} → {need}"));
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_sideways_or_upwards_is_found_and_one_of_tests_only_is_none() {
        let manifest = "[dependencies]\nnephoscope-guest.workspace = true\nnephoscope-wire = { path = \"x\" }\n\
                        [dev-dependencies]\nnephoscope-judge.workspace = true\n";
        let needs = dependencies(manifest);
        assert_eq!(needs, ["guest", "wire"]);
        let crates = BTreeMap::from([("isa".to_owned(), needs)]);
        assert_eq!(wrong_ways(&crates).unwrap(), ["isa → wire"]);
        let nowhere = BTreeMap::from([("elsewhere".to_owned(), Vec::new())]);
        assert!(wrong_ways(&nowhere).is_err());
    }

    #[test]
    fn the_crates_keep_to_their_layers() {
        check_layers().unwrap();
    }
}
