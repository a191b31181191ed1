//! The programs that no catalog knows, on a small disk of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::disk;
use crate::cache;
use crate::command::run_logged;
use crate::progress::Step;

/// The programs, as `tests/guest-tools` names them.
const PROGRAMS: [&str; 6] = [
    "plant-memfd",
    "plant-patch",
    "flash",
    "stranger",
    "inner-guest",
    "disk-work",
];

/// The planted programs on the host, and the disk that brings them into a guest at `/opt/planted`.
#[derive(Debug, Clone)]
pub struct Plants {
    folder: PathBuf,
}

impl Plants {
    /// Those that somebody else built and put into this folder.
    pub(super) fn at(folder: PathBuf) -> Self {
        Plants { folder }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Builds the programs (statically: the guest's libraries do not matter) and their disk.
    ///
    /// # Errors
    /// When the compiler or `mke2fs` says so.
    pub fn ensure() -> Result<Self> {
        let mut step = Step::begin("Building the planted programs");
        let target = cache::folder()?.join("planted-target");
        let log = cache::folder()?.join("planted-build.log");
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // The target is named although it is the host's: otherwise the flags would reach build scripts too.
        cargo
            .args([
                "build",
                "--release",
                "--locked",
                "--package",
                "nephoscope-guest-tools",
            ])
            .args(["--target", TARGET, "--target-dir"])
            .arg(&target)
            .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
            .current_dir(workspace);
        {
            let _held = cache::lock("planted-build")?;
            run_logged(&mut step, &mut cargo, &log)?;
        }
        let programs = PROGRAMS.map(|name| (name, target.join(TARGET).join("release").join(name)));
        let mut contents = Vec::new();
        for (_, path) in &programs {
            contents.push(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        let parts: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        let folder = cache::build_once(&format!("plants-{}", cache::key(&parts)), |work| {
            for (name, path) in &programs {
                fs::create_dir_all(work.join("files"))?;
                fs::copy(path, work.join("files").join(name))?;
            }
            disk::build(
                &mut step,
                &work.join("files"),
                &work.join("disk.img"),
                "planted",
                4,
                &work.join("build.log"),
            )
        })?;
        cache::prune("plants-", 2)?;
        step.done("");
        Ok(Plants { folder })
    }

    /// The disk.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    /// One of the programs, on the host.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("files").join(name)
    }
}

/// The guests are x86-64, whatever builds them.
const TARGET: &str = "x86_64-unknown-linux-gnu";
