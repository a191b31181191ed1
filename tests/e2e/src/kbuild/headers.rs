//! What kernel modules are compiled against: the headers of the guest's kernels, unpacked from Debian's packages into the
//! cache. Nothing is installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{self, PrivateApt};
use crate::cache;
use crate::command::{run_logged, write_file};
use crate::progress::Step;
use anyhow::{Context, Result, bail};

/// Debian's suite of the guest's second kernel, which the machine does not have.
const OTHER_SUITE: &str = "trixie";

/// What Kbuild runs while it makes a module, and the program behind it where that only chooses one by architecture.
const HOST_PROGRAMS: [(&str, &str); 3] = [
    ("scripts/basic/fixdep", ""),
    ("scripts/mod/modpost", ".real-lsb-64"),
    ("tools/objtool/objtool", ".real-x86"),
];

/// The programs of the second kernel's suite need the C library of that suite.
const WRAPPER: &str = r#"#!/bin/sh
program=$(readlink -f "$0")
tree=$(dirname "$program")/../../../../..
for root in "$tree/usr" "$tree"; do
    loader=$root/lib64/ld-linux-x86-64.so.2
    libraries=$tree/usr/lib/x86_64-linux-gnu:$tree/lib/x86_64-linux-gnu
    [ -e "$loader" ] && exec "$loader" --library-path "$libraries" "$program.elf" "$@"
done
echo "$tree has no loader" >&2
exit 127
"#;

/// The folder for `make -C` for a kernel of this release.
///
/// # Errors
/// When no suite has the packages any more (the guest is older than the mirror's state then), or they cannot be unpacked.
pub(super) fn ensure(release: &str) -> Result<PathBuf> {
    let key = cache::key(&[release.as_bytes(), WRAPPER.as_bytes()]);
    let folder = cache::build_once(&format!("headers-{key}"), |work| build(work, release))?;
    // Of each kernel, these and those before.
    cache::prune("headers-", 4)?;
    Ok(folder.join("tree/usr/src").join(headers(release)))
}

fn headers(release: &str) -> String {
    format!("linux-headers-{release}")
}

fn build(work: &Path, release: &str) -> Result<()> {
    let log = cache::folder()?.join("headers.log");
    let mut step = Step::begin(&format!("Fetching the headers of Linux {release}"));
    let package = headers(release);
    let apt = find(&mut step, work, &package, &log)?;
    let parts = apt.dependencies(&package)?;
    let part = |start: &str| {
        let found = parts.iter().find(|name| name.starts_with(start));
        found.with_context(|| format!("{package} depends on no {start}*"))
    };
    // Kbuild's programs with their libraries; the headers of the architecture, and those of all.
    let mut debs = apt.download_closure(&mut step, part("linux-kbuild-")?, &log)?;
    for name in [&package, part("linux-headers-")?] {
        debs.push(apt.download(&mut step, name, &work.join("debs").join(name), &log)?);
    }
    let tree = work.join("tree");
    for deb in &debs {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(deb).arg(&tree);
        run_logged(&mut step, &mut unpack, &log)?;
    }
    // The package refers to its other part by where it would be installed.
    let makefile = tree.join("usr/src").join(&package).join("Makefile");
    let text = fs::read_to_string(&makefile)?.replace("/usr/src/", "../");
    write_file(&makefile, text)?;
    for (name, chosen) in HOST_PROGRAMS {
        wrap(&tree.join("usr/lib").join(part("linux-kbuild-")?), name, chosen)?;
    }
    for rest in ["apt", "debs"] {
        fs::remove_dir_all(work.join(rest))?;
    }
    step.done("");
    Ok(())
}

/// The machine's suites, or the second kernel's, whichever has the package.
fn find(step: &mut Step, work: &Path, package: &str, log: &Path) -> Result<PrivateApt> {
    let folder = work.join("apt");
    let own = PrivateApt::open_suites(step, &folder, &apt::suites()?, log)?;
    if own.candidate(package)?.is_some() {
        return Ok(own);
    }
    fs::remove_dir_all(&folder)?;
    let other = PrivateApt::open(step, &folder, OTHER_SUITE, log)?;
    if other.candidate(package)?.is_some() {
        return Ok(other);
    }
    bail!(
        "no suite has {package} any more: the guest in the cache is older than the mirror; remove {} and build it again",
        cache::folder()?.join("guest-*").display()
    )
}

fn wrap(kbuild: &Path, name: &str, chosen: &str) -> Result<()> {
    let program = kbuild.join(name);
    let real = kbuild.join(format!("{name}{chosen}"));
    let real = if real.is_file() { real } else { program.clone() };
    fs::rename(&real, kbuild.join(format!("{name}.elf")))
        .with_context(|| format!("Kbuild has no {}", real.display()))?;
    write_file(&program, WRAPPER)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
