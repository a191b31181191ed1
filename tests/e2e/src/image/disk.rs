//! Disk images from folders, without loop devices and without mounting anything.

use std::path::Path;

use anyhow::{Context, Result};

use crate::command::{find_program, output_of, privileged, run_logged};
use crate::progress::Step;

/// Makes a raw image of an ext4 file system at `image` with the content of `folder`, `spare_mib` of free room and
/// the given label. The file is sparse; what nobody wrote takes no space.
pub(crate) fn build(
    step: &mut Step,
    folder: &Path,
    image: &Path,
    label: &str,
    spare_mib: u64,
    log: &Path,
) -> Result<()> {
    let mke2fs = find_program("mke2fs").context("mke2fs is missing; run `cargo xtask setup`")?;
    let used = output_of(
        privileged("du")
            .args(["--summarize", "--block-size=1M"])
            .arg(folder),
    )?;
    let used_mib: u64 = used
        .split_whitespace()
        .next()
        .and_then(|size| size.parse().ok())
        .context("du says nothing")?;
    // A tenth more for the file system's own tables.
    let size_mib = used_mib.saturating_mul(11).div_ceil(10).saturating_add(spare_mib);
    let mut command = privileged("env");
    command.arg(mke2fs).args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-m",
        "0",
        "-L",
        label,
    ]);
    // The emulated guest need not initialise tables in the background.
    command
        .args(["-E", "lazy_itable_init=0,nodiscard", "-d"])
        .arg(folder)
        .arg(image)
        .arg(format!("{size_mib}M"));
    run_logged(step, &mut command, log)?;
    run_logged(step, privileged("chmod").arg("644").arg(image), log)
}
