//! A 32-bit guest with three-level page tables (PAE): Debian's kernel for the 686 and its busybox, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::PrivateApt;
use crate::cache;
use crate::command::{run_logged, write_file};
use crate::initramfs::{Archive, UP};
use crate::progress::Step;

const KERNEL: &str = "linux-image-686-pae";
const BUSYBOX: &str = "busybox-static";
const ARCHITECTURE: &str = "i386";

/// How many processes do nothing.
pub const SLEEPERS: usize = 12;

/// Some that sleep, and one that starts others without end.
fn init() -> String {
    format!(
        "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
i=0
while [ $i -lt {SLEEPERS} ]; do /bin/busybox sleep 100000 & i=$((i + 1)); done
(while :; do /bin/busybox true; done) &
echo {UP} > /dev/ttyS0
exec /bin/busybox sleep 100000
"
    )
}

/// The guest, for QEMU's `-kernel` and `-initrd`.
#[derive(Debug, Clone)]
pub struct Pae {
    /// The kernel's image.
    pub kernel: PathBuf,
    /// All else.
    pub initramfs: PathBuf,
    /// The program of all its processes, for a catalog.
    pub busybox: PathBuf,
}

impl Pae {
    /// The guest for the present state of the machine's mirror, fetched when it is not there yet.
    ///
    /// # Errors
    /// When the mirror cannot be reached.
    pub fn ensure() -> Result<Self> {
        let mut parts = vec![init().into_bytes(), KERNEL.into(), BUSYBOX.into()];
        for suite in crate::apt::suites()? {
            if let Some(release) = suite.release_file.filter(|_| suite.name == "bookworm") {
                parts.push(fs::read(&release).with_context(|| format!("cannot read {}", release.display()))?);
            }
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let folder = cache::build_once(&format!("pae-{}", cache::key(&parts)), build)?;
        cache::prune("pae-", 1)?;
        Ok(Self {
            kernel: folder.join("vmlinuz"),
            initramfs: folder.join("initramfs"),
            busybox: folder.join("busybox"),
        })
    }
}

fn build(work: &Path) -> Result<()> {
    let log = cache::folder()?.join("pae.log");
    fs::write(&log, "")?;
    let mut step = Step::begin("Fetching a 32-bit guest");
    let apt = PrivateApt::open_architecture(&mut step, &work.join("apt"), "bookworm", ARCHITECTURE, &log)?;
    let dependencies = apt.dependencies(KERNEL)?;
    let kernel = dependencies.iter().find(|name| name.starts_with("linux-image-"));
    let kernel = kernel.with_context(|| format!("{KERNEL} depends on no kernel"))?;
    let tree = work.join("tree");
    for name in [kernel, BUSYBOX] {
        let deb = apt.download(&mut step, name, &work.join("debs").join(name), &log)?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(deb).arg(&tree);
        run_logged(&mut step, &mut unpack, &log)?;
    }
    let release = kernel.trim_start_matches("linux-image-");
    let image = tree.join("boot").join(format!("vmlinuz-{release}"));
    fs::rename(&image, work.join("vmlinuz")).with_context(|| format!("there is no {}", image.display()))?;
    let busybox = fs::read(tree.join("bin/busybox")).context("busybox is not where it was")?;
    let mut archive = Archive::with_program("bin/busybox", &busybox);
    archive.file("init", true, init().as_bytes());
    archive.write(&work.join("initramfs"))?;
    write_file(&work.join("busybox"), &busybox)?;
    for rest in ["apt", "debs", "tree"] {
        fs::remove_dir_all(work.join(rest))?;
    }
    step.done(release);
    Ok(())
}
