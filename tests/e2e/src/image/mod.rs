//! The Debian guest: built from packages once for each state of the mirror, and kept.
//!
//! What is kept is the root tree (which is what gets catalogued: the catalog then holds exactly what the guest is
//! made of), the disk made from it, and the kernels with their initramfs beside it, for direct boot.

mod contents;
pub(crate) mod disk;
mod plants;
mod root;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::command::privileged;
use crate::guest::Kernel;
use crate::progress::Step;
use contents::{
    BUILDER_VERSION, CONFIGURE, EARLY_FILES, Further, LATE_FILES, LEFT_OUT, NOTHING, PACKAGES, SCRIPTS,
};
pub use plants::Plants;
pub use tools::Tools;

/// A built guest in the cache.
#[derive(Debug, Clone)]
pub struct Image {
    folder: PathBuf,
    plants: Plants,
}

impl Image {
    /// The guest for the present state of the machine's mirror, built when it is not there yet.
    ///
    /// # Errors
    /// When a tool is missing or fails; the message names it and the log.
    pub fn ensure() -> Result<Self> {
        Self::with("guest", &NOTHING)
    }

    /// The same with applications that interpreters run: one of some hundred PHP files, one of jars, one of Python's modules, and shell
    /// scripts; and with `strace`, to be told what they read.
    ///
    /// # Errors
    /// As [`Image::ensure`].
    pub fn with_scripts() -> Result<Self> {
        Self::with("scripts", &SCRIPTS)
    }

    fn with(name: &str, further: &Further) -> Result<Self> {
        let prefix = format!("{name}-");
        let folder = cache::build_once(&format!("{prefix}{}", key(further)?), |work| build(work, further))?;
        cache::prune(&prefix, 2)?;
        Ok(Image {
            folder,
            plants: Plants::ensure()?,
        })
    }

    /// A guest that somebody else built and put into this folder: its disk, kernels and initramfs.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Image {
            plants: Plants::at(folder.join("plants")),
            folder,
        }
    }

    /// The tree that the disk was made from, with its dpkg database.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// The guest's disk: raw, one ext4 file system, no partitions.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    /// A copy of the disk in this folder, for one guest to write to. It has a journal, as guests' disks have; the image's has none.
    ///
    /// # Errors
    /// When it cannot be copied, or `tune2fs` says so.
    pub fn writable_disk(&self, folder: &Path) -> Result<PathBuf> {
        let disk = folder.join("root.raw");
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .args([&self.disk(), &disk])
            .status()?;
        anyhow::ensure!(copied.success(), "cannot copy {}", self.disk().display());
        let journal = Command::new("/usr/sbin/tune2fs")
            .args(["-O", "has_journal"])
            .arg(&disk)
            .output()?;
        anyhow::ensure!(
            journal.status.success(),
            "tune2fs: {}",
            String::from_utf8_lossy(&journal.stderr)
        );
        Ok(disk)
    }

    /// A kernel image for QEMU's `-kernel`.
    pub fn kernel(&self, kernel: Kernel) -> PathBuf {
        self.folder.join(format!("vmlinuz-{}", kernel.version()))
    }

    /// The initramfs that goes with it.
    pub fn initramfs(&self, kernel: Kernel) -> PathBuf {
        self.folder.join(format!("initrd-{}", kernel.version()))
    }

    /// The release of one of its kernels, as `uname -r` says it.
    ///
    /// # Errors
    /// When the tree has no such kernel.
    pub fn release(&self, kernel: Kernel) -> Result<String> {
        let name = kernel_name(&self.root().join("boot"), kernel)?;
        Ok(name.trim_start_matches("vmlinuz-").to_owned())
    }

    /// The programs that no catalog knows.
    pub fn plants(&self) -> &Plants {
        &self.plants
    }

    /// A name for this guest's content, to key what is derived from it (a catalog, say).
    pub fn key(&self) -> String {
        self.folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

/// What the guest is made of and by which rules. The second kernel's suite is not asked: what is in the cache stays
/// until the machine's own lists change, and starting needs no network.
fn key(further: &Further) -> Result<String> {
    let mut parts: Vec<Vec<u8>> = vec![BUILDER_VERSION.to_vec(), CONFIGURE.to_vec()];
    parts.extend(
        PACKAGES
            .iter()
            .chain(LEFT_OUT.iter())
            .chain(further.packages)
            .map(|text| text.as_bytes().to_vec()),
    );
    let files = EARLY_FILES.iter().chain(LATE_FILES.iter());
    for (path, mode, content) in files.chain(further.early).chain(further.files) {
        parts.push([path.as_bytes(), &mode.to_le_bytes(), content].concat());
    }
    for suite in root::suites()? {
        let Some(release) = suite.release_file else {
            bail!(
                "apt has no package lists for {}; run `cargo xtask setup`",
                suite.name
            );
        };
        parts.push(fs::read(&release).with_context(|| format!("cannot read {}", release.display()))?);
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    Ok(cache::key(&parts))
}

fn build(work: &Path, further: &Further) -> Result<()> {
    let log = cache::folder()?.join("guest-build.log");
    fs::write(&log, "")?;
    let root = root::build(work, further, &log)?;
    let mut step = Step::begin("Making the guest's disk");
    disk::build(&mut step, &root, &work.join("disk.img"), "guest", 512, &log)?;
    step.done("");
    for kernel in Kernel::ALL {
        extract_kernel(&root.join("boot"), kernel, work)?;
    }
    Ok(())
}

/// The name of the file in the tree's `boot` whose version begins like this kernel's.
fn kernel_name(boot: &Path, kernel: Kernel) -> Result<String> {
    let prefix = format!("vmlinuz-{}.", kernel.version());
    let mut names = fs::read_dir(boot)?
        .filter_map(|entry| entry.ok().map(|e| e.file_name().to_string_lossy().into_owned()));
    names
        .find(|name| name.starts_with(&prefix))
        .with_context(|| format!("the guest has no {prefix}*"))
}

/// Copies a kernel and its initramfs out of the tree's `boot`.
fn extract_kernel(boot: &Path, kernel: Kernel, work: &Path) -> Result<()> {
    let name = kernel_name(boot, kernel)?;
    let initramfs = name.replacen("vmlinuz-", "initrd.img-", 1);
    for (from, to) in [(name, "vmlinuz"), (initramfs, "initrd")] {
        let target = work.join(format!("{to}-{}", kernel.version()));
        let status = privileged("install")
            .args(["-m", "644"])
            .arg(boot.join(&from))
            .arg(&target)
            .status()?;
        anyhow::ensure!(status.success(), "cannot copy {from} out of the guest");
    }
    Ok(())
}
