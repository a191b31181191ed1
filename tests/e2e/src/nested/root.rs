//! The root of L1: stock QEMU with all it needs, from Debian's packages, unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::apt::PrivateApt;
use crate::cache;
use crate::command::{privileged, run_logged};
use crate::image::disk;
use crate::progress::Step;

/// The suite whose QEMU it is.
const SUITE: &str = "trixie";

/// QEMU, and what a script needs.
const PACKAGES: [&str; 12] = [
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "dmsetup",
    "findutils",
    "grep",
    "kmod",
    "mount",
    "procps",
    "qemu-system-x86",
    "util-linux",
];

/// Where QEMU's firmware is in the packages, and what its files end with.
const FIRMWARE: [(&str, &[&str]); 3] = [
    ("usr/share/seabios", &["bin"]),
    ("usr/share/qemu", &["bin", "rom"]),
    ("usr/lib/ipxe/qemu", &["rom"]),
];

/// The folder with `disk.img` and `firmware`, made when the cache does not hold it.
pub(super) fn ensure() -> Result<PathBuf> {
    let parts: Vec<&[u8]> = PACKAGES
        .iter()
        .map(|name| name.as_bytes())
        // And how the folder is laid out.
        .chain([SUITE.as_bytes(), b"disk and firmware"])
        .collect();
    let folder = cache::build_once(&format!("nested-root-{}", cache::key(&parts)), build)?;
    cache::prune("nested-root-", 1)?;
    Ok(folder)
}

fn build(work: &Path) -> Result<()> {
    let log = cache::folder()?.join("nested-build.log");
    let mut step = Step::begin("Fetching QEMU for the nested machine");
    let parts = work.join("parts");
    let apt = PrivateApt::open(&mut step, &parts, SUITE, &log)?;
    let mut packages = Vec::new();
    for package in PACKAGES {
        packages = apt.download_closure(&mut step, package, &log)?;
    }
    let root = work.join("root");
    // The first has the links from `/bin` to `/usr/bin`.
    packages.sort_by_key(|path| !path.to_string_lossy().contains("/base-files_"));
    fs::create_dir_all(&root)?;
    for package in &packages {
        let mut unpack = privileged("dpkg-deb");
        run_logged(&mut step, unpack.arg("--extract").arg(package).arg(&root), &log)?;
    }
    let firmware = work.join("firmware");
    fs::create_dir(&firmware)?;
    for (folder, endings) in FIRMWARE {
        let folder = root.join(folder);
        // QEMU's package only recommends option ROMs.
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let ending = path
                .extension()
                .and_then(|ending| ending.to_str())
                .unwrap_or_default();
            if endings.contains(&ending) && path.metadata().is_ok_and(|about| about.is_file()) {
                fs::copy(&path, firmware.join(path.file_name().unwrap_or_default()))?;
            }
        }
    }
    disk::build(&mut step, &root, &work.join("disk.img"), "nested", 256, &log)?;
    let removed = privileged("rm").arg("-rf").arg(&root).arg(&parts).status()?;
    ensure!(removed.success(), "cannot remove {}", root.display());
    step.done(&format!("{} packages", packages.len()));
    Ok(())
}
