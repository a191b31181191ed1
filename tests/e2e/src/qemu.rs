//! Which QEMUs there are on this machine.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache;
use crate::command::{find_program, output_of};

/// The system's QEMU.
///
/// # Errors
/// When there is none.
pub fn system() -> Result<PathBuf> {
    find_program("qemu-system-x86_64").context("qemu-system-x86_64 is missing; run `cargo xtask setup`")
}

/// The newer QEMU that `cargo xtask qemu11` unpacked beside the system, when it has: the youngest of them.
///
/// # Errors
/// When the cache cannot be read.
pub fn newer() -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(cache::folder()?)? {
        let entry = entry?;
        let program = entry.path().join("qemu-system-x86_64");
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("qemu-") && !name.ends_with(".partial") && program.is_file() {
            found.push((entry.metadata()?.modified()?, program));
        }
    }
    found.sort();
    Ok(found.pop().map(|(_, program)| program))
}

/// What a QEMU says about its version: `11.1.2`.
///
/// # Errors
/// When it does not run or says something else.
pub fn version(program: &std::path::Path) -> Result<String> {
    let text = output_of(Command::new(program).arg("--version"))?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "version");
    let version = words
        .nth(1)
        .with_context(|| format!("{} tells no version", program.display()))?;
    Ok(version.to_owned())
}
