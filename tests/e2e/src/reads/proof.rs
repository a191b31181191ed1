//! A guest in which interpreters work, and others read beside them: what the guest says was read, and what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::traced::{Read, Traced};
use crate::command::output_of;
use crate::{Catalog, Control, Guest, Image, Kernel, Options, Watched, vm_name};

/// How it is done.
#[derive(Debug, Clone, Copy)]
pub struct Proof {
    /// The guest's kernel.
    pub kernel: Kernel,
    /// Its vCPUs.
    pub vcpus: u32,
    /// What is read is in the guest's memory already, put there while it was watched.
    pub warm: bool,
}

/// What one side says and the other does not, and how many both do.
#[derive(Debug, Default)]
pub struct Side {
    /// Pairs of a program and a file that both say.
    pub both: BTreeSet<Read>,
    /// That the guest says and were not seen.
    pub missed: BTreeSet<Read>,
    /// That were seen and the guest does not say.
    pub wrong: BTreeSet<Read>,
    /// Files of packages, each with what was seen instead of its package and version.
    pub misnamed: BTreeMap<String, String>,
    /// Files of packages that were seen as what they are.
    pub named: usize,
    /// What the work printed.
    pub said: Vec<String>,
    /// The report when the work was done.
    pub report: Value,
}

/// The work takes so long at most: everything in it is traced.
const LIMIT: Duration = Duration::from_secs(900);
/// What was read is in the report after so long.
const ARRIVES: Duration = Duration::from_secs(3);

/// How the names of files end that are followed, whatever they hold (`docs/usage.md`).
const FOLLOWED: [&str; 17] = [
    ".php", ".phtml", ".inc", ".phar", ".py", ".pyc", ".js", ".mjs", ".cjs", ".rb", ".pl", ".pm", ".sh",
    ".jar", ".class", ".war", ".lua",
];

/// Which folders are on no disk.
const ELSEWHERE: [&str; 4] = ["/dev/", "/proc/", "/run/", "/sys/"];

/// Boots a guest, has it work, and compares. `program` is `nephoscope`.
///
/// # Errors
/// When a part cannot be built, or the guest does not do what it is told.
pub fn prove(program: &Path, proof: Proof, mut say: impl FnMut(&str)) -> Result<Side> {
    let image = Image::with_scripts()?;
    let folder = tempfile::tempdir()?;
    let name = vm_name("reads");
    let watched = Watched {
        program: program.to_owned(),
        catalog: Catalog::ensure(&image, program)?.path(),
        name: name.clone(),
        report: None,
        extra: vec!["--watch-files".into()],
    };
    let options = Options {
        kernel: proof.kernel,
        smp: proof.vcpus,
        memory_mib: 2048,
        plants: false,
        disk: Some(image.writable_disk(folder.path())?),
        watched: Some(watched),
        ..Options::default()
    };
    say("the guest boots");
    let mut guest = Guest::boot_ready(&image, options)?;
    guest.put("/root/upgrade.deb", &std::fs::read(package(folder.path())?)?)?;
    guest.run_ok("sync; echo 3 >/proc/sys/vm/drop_caches")?;
    if proof.warm {
        guest.run_ok("find /usr/share /usr/lib/python3* /opt -type f | xargs cat >/dev/null")?;
    }
    std::thread::sleep(ARRIVES);
    let mut control = Control::connect(&name)?;
    let before = accesses(&control.report()?);
    say("interpreters work");
    let work = include_str!("../../guest-files/scripts/trace");
    let output = guest.run_within(work, LIMIT)?;
    ensure!(output.success(), "the work failed: {}", output.stderr_text());
    std::thread::sleep(ARRIVES);
    // Who looks what was written down reads as well.
    let report = control.report()?;
    let output = guest.run_within(include_str!("../../guest-files/scripts/traced"), LIMIT)?;
    ensure!(
        output.success(),
        "what was traced is not told: {}",
        output.stderr_text()
    );
    let traced = Traced::parse(&output.stdout_text())?;
    drop(control);
    guest.power_off()?;
    compare(&traced, &before, report)
}

/// A package that the guest does not have, with modules and scripts.
fn package(folder: &Path) -> Result<std::path::PathBuf> {
    let tree = folder.join("upgrade");
    let put = |path: &str, text: &str| crate::command::write_file(&tree.join(path), text);
    put(
        "DEBIAN/control",
        "Package: nephoscope-scripts\nVersion: 1.1\nArchitecture: all\nMaintainer: nobody\nDescription: scripts\n",
    )?;
    put("DEBIAN/postinst", "#!/bin/sh\nset -e\nexit 0\n")?;
    for number in 0..40 {
        let text = format!("\"\"\"Module {number}.\"\"\"\n\n\ndef value():\n    return {number}\n");
        put(&format!("usr/share/nephoscope-scripts/m{number}.py"), &text)?;
    }
    let mode = Command::new("chmod")
        .arg("755")
        .arg(tree.join("DEBIAN/postinst"))
        .status()?;
    ensure!(mode.success(), "cannot make a package");
    let deb = folder.join("upgrade.deb");
    output_of(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "--build"])
            .arg(&tree)
            .arg(&deb),
    )?;
    Ok(deb)
}

/// Which address space read which file.
fn accesses(report: &Value) -> BTreeSet<(String, u64)> {
    each(report)
        .filter_map(|(file, reader)| Some((key(file), reader["address_space"].as_u64()?)))
        .collect()
}

fn each(report: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let files = report["files"].as_array().map_or(&[][..], Vec::as_slice);
    files.iter().flat_map(|file| {
        let readers = file["readers"].as_array().map_or(&[][..], Vec::as_slice);
        readers.iter().map(move |reader| (file, reader))
    })
}

/// A file, whatever it is called.
fn key(file: &Value) -> String {
    ["disk", "partition", "inode", "generation"]
        .map(|name| file[name].to_string())
        .join(" ")
}

/// Whether such a file is followed.
fn is_followed(path: &str, traced: &Traced) -> bool {
    let is_kind = FOLLOWED.iter().any(|end| path.ends_with(end));
    (is_kind || traced.scripts.contains(path)) && !ELSEWHERE.iter().any(|folder| path.starts_with(folder))
}

fn compare(traced: &Traced, before: &BTreeSet<(String, u64)>, report: Value) -> Result<Side> {
    let truth: BTreeSet<Read> = traced
        .reads
        .iter()
        .filter(|read| is_followed(&read.path, traced))
        .cloned()
        .collect();
    ensure!(!truth.is_empty(), "the guest says that nothing was read");
    let (mut seen, mut packages) = (BTreeSet::new(), BTreeMap::new());
    for (file, reader) in each(&report) {
        let space = reader["address_space"].as_u64().context("a reader is none")?;
        let path = file["path"].as_str().unwrap_or_default();
        packages.insert(path.to_owned(), file.clone());
        if before.contains(&(key(file), space)) {
            continue;
        }
        let program = reader["program"].as_str().unwrap_or("?");
        let program = program.rsplit('/').next().unwrap_or(program);
        let of = |path: &str| Read {
            program: program.to_owned(),
            path: path.to_owned(),
        };
        // One that was renamed was read under one of its names.
        let former = file["former_paths"].as_array().into_iter().flatten();
        let names = former.filter_map(Value::as_str).chain([path]).map(of);
        let read: Vec<Read> = names.filter(|read| truth.contains(read)).collect();
        if read.is_empty() {
            seen.insert(of(path));
        }
        seen.extend(read);
    }
    let (mut named, mut misnamed) = (0, BTreeMap::new());
    let paths: BTreeSet<&String> = truth.iter().map(|read| &read.path).collect();
    for path in paths {
        let (Some(package), Some(file)) = (traced.owners.get(path), packages.get(path)) else {
            continue;
        };
        let version = traced.versions.get(package);
        let candidates = file["candidates"].as_array().map_or(&[][..], Vec::as_slice);
        let is_right = file["verdict"] == "known"
            && candidates.iter().any(|one| {
                one["package"] == **package && version.is_some_and(|version| one["version"] == **version)
            });
        if is_right {
            named += 1;
        } else {
            misnamed.insert(
                path.clone(),
                format!("{} {}", file["verdict"], file["candidates"]),
            );
        }
    }
    let wrong = seen
        .difference(&truth)
        .filter(|read| !traced.mapped.contains(read))
        .cloned()
        .collect();
    Ok(Side {
        both: truth.intersection(&seen).cloned().collect(),
        missed: truth.difference(&seen).cloned().collect(),
        wrong,
        misnamed,
        named,
        said: traced.said.clone(),
        report,
    })
}
