//! A compiler for the guest, on a disk of its own: only who compiles something pays for its hundreds of megabytes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{disk, root};
use crate::apt::PrivateApt;
use crate::cache;
use crate::command::{privileged, run_logged};
use crate::progress::Step;

/// The compiler, and C source of some size that is in a package.
const PACKAGES: [&str; 3] = ["gcc", "libc6-dev", "libstb-dev"];

/// The disk, and what it is made of.
#[derive(Debug, Clone)]
pub struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// What the guest says to have the disk at `/mnt`. It is a root of its own, complete down to libc.
    pub const MOUNT: &str = "mountpoint -q /mnt || mount LABEL=tools /mnt";

    /// Fetches the packages with all they need and makes the disk of them, when the cache does not hold it.
    ///
    /// # Errors
    /// When the mirror cannot be reached, or a tool fails; the message names it and the log.
    pub fn ensure() -> Result<Self> {
        let mut parts: Vec<Vec<u8>> = PACKAGES.iter().map(|name| name.as_bytes().to_vec()).collect();
        for suite in root::suites()? {
            let release = suite
                .release_file
                .with_context(|| format!("apt has no package lists for {}", suite.name))?;
            parts.push(fs::read(&release).with_context(|| format!("cannot read {}", release.display()))?);
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let folder = cache::build_once(&format!("tools-{}", cache::key(&parts)), build)?;
        cache::prune("tools-", 1)?;
        Ok(Tools { folder })
    }

    /// The options of QEMU that attach the disk.
    pub fn drive(&self) -> Vec<String> {
        let disk = self.folder.join("disk.img");
        vec![
            "-drive".into(),
            format!("if=none,id=tools,format=raw,snapshot=on,file={}", disk.display()),
            "-device".into(),
            "virtio-blk-pci,drive=tools".into(),
        ]
    }

    /// The packages that it is made of, as `.deb` files.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn packages(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.folder.join("packages"))? {
            found.push(entry?.path());
        }
        found.sort();
        Ok(found)
    }
}

fn build(work: &Path) -> Result<()> {
    let log = cache::folder()?.join("tools-build.log");
    let mut step = Step::begin("Fetching a compiler for the guest");
    let parts = work.join("parts");
    let apt = PrivateApt::open(&mut step, &parts, "bookworm", &log)?;
    let mut packages = Vec::new();
    for package in PACKAGES {
        packages = apt.download_closure(&mut step, package, &log)?;
    }
    let root = work.join("root");
    fs::create_dir_all(root.join("tmp"))?;
    fs::create_dir_all(work.join("packages"))?;
    for package in &packages {
        run_logged(
            &mut step,
            privileged("dpkg-deb").arg("--extract").arg(package).arg(&root),
            &log,
        )?;
        let name = package.file_name().context("a package without a name")?;
        fs::rename(package, work.join("packages").join(name))?;
    }
    disk::build(&mut step, &root, &work.join("disk.img"), "tools", 64, &log)?;
    let removed = privileged("rm").arg("-rf").arg(&root).arg(&parts).status()?;
    anyhow::ensure!(removed.success(), "cannot remove {}", root.display());
    step.done(&format!("{} packages", packages.len()));
    Ok(())
}
