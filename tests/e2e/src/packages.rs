//! A few hundred real packages, as a catalog would take them in; fetched once and kept.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::{self, PrivateApt};
use crate::cache;
use crate::progress::Step;

/// What a server may have, with all that these need: some three hundred packages.
const WANTED: [&str; 12] = [
    "apache2",
    "build-essential",
    "git",
    "mariadb-server",
    "nginx",
    "openssh-server",
    "php-fpm",
    "postgresql",
    "python3-numpy",
    "redis-server",
    "samba",
    "systemd-sysv",
];

/// The packages as `.deb` files.
///
/// # Errors
/// When the mirror cannot be reached.
pub fn ensure() -> Result<Vec<PathBuf>> {
    let mut parts: Vec<Vec<u8>> = WANTED.iter().map(|name| name.as_bytes().to_vec()).collect();
    for suite in apt::suites()? {
        if let Some(release) = suite.release_file.filter(|_| suite.name == "bookworm") {
            parts.push(fs::read(&release).with_context(|| format!("cannot read {}", release.display()))?);
        }
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let folder = cache::build_once(&format!("packages-{}", cache::key(&parts)), fetch)?;
    cache::prune("packages-", 1)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        found.push(entry?.path());
    }
    found.sort();
    Ok(found)
}

fn fetch(work: &Path) -> Result<()> {
    let log = cache::folder()?.join("packages.log");
    let mut step = Step::begin("Fetching packages to be catalogued");
    let parts = work.join("parts");
    let apt = PrivateApt::open(&mut step, &parts, "bookworm", &log)?;
    let mut packages = Vec::new();
    for package in WANTED {
        packages = apt.download_closure(&mut step, package, &log)?;
    }
    for package in &packages {
        let name = package.file_name().context("a package without a name")?;
        fs::rename(package, work.join(name))?;
    }
    fs::remove_dir_all(&parts)?;
    step.done(&format!("{} packages", packages.len()));
    Ok(())
}
