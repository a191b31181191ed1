//! `cargo xtask qemu11`: a newer QEMU beside the system's, with the libraries it was built against.
//!
//! Debian 12 has QEMU 10 at most, and a newer one needs a newer C library. So the package and all it depends on
//! are unpacked into the cache, and a wrapper starts QEMU through the dynamic loader that came with it. Nothing of the
//! system changes, its list of suites included.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nephoscope_e2e::apt::PrivateApt;
use nephoscope_e2e::command::{output_of, write_file};
use nephoscope_e2e::{Step, cache, qemu};

/// Where to look, the more settled one first.
const SUITES: [&str; 2] = ["forky", "sid"];

/// The oldest that will do: it has plugin API 7 and takes nothing older.
const WANTED: (u32, u32) = (11, 1);

const PACKAGE: &str = "qemu-system-x86";

/// Unpacks it when the cache does not hold one, and returns the wrapper.
pub(crate) fn run() -> Result<PathBuf> {
    if let Some(program) = qemu::newer()? {
        return Ok(program);
    }
    super::setup::run()?;
    let folder = cache::build_once("qemu-11", build)?;
    let program = folder.join("qemu-system-x86_64");
    check(&program)?;
    Ok(program)
}

fn build(work: &Path) -> Result<()> {
    let log = cache::folder()?.join("qemu-11.log");
    let mut step = Step::begin("Fetching a newer QEMU");
    let apt = find(&mut step, work, &log)?;
    let debs = apt.download_closure(&mut step, PACKAGE, &log)?;
    step.done(&format!("{} packages", debs.len()));
    let mut step = Step::begin("Unpacking it");
    let tree = work.join("tree");
    fs::create_dir(&tree)?;
    for deb in &debs {
        step.note(&deb.file_name().unwrap_or_default().to_string_lossy());
        unpack(deb, &tree)?;
    }
    fs::remove_dir_all(work.join("apt"))?;
    write_file(&work.join("qemu-system-x86_64"), WRAPPER)?;
    fs::set_permissions(work.join("qemu-system-x86_64"), fs::Permissions::from_mode(0o755))?;
    step.done("");
    Ok(())
}

/// QEMU finds its firmware relative to where it was installed, which is not where it is: `-L`.
const WRAPPER: &str = r#"#!/bin/sh
# QEMU with the loader and the libraries it was built against, instead of the system's.
tree=$(dirname "$(readlink -f "$0")")/tree
libraries=$tree/usr/lib/x86_64-linux-gnu
exec "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libraries:$libraries/pulseaudio" \
    --argv0 "$0" "$tree/usr/bin/qemu-system-x86_64" \
    -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" -L "$tree/usr/lib/ipxe/qemu" "$@"
"#;

fn find(step: &mut Step, work: &Path, log: &Path) -> Result<PrivateApt> {
    let mut seen = Vec::new();
    for suite in SUITES {
        let apt = PrivateApt::open(step, &work.join("apt"), suite, log)?;
        let Some(version) = apt.candidate(PACKAGE)? else {
            continue;
        };
        if is_wanted(&version) {
            return Ok(apt);
        }
        seen.push(format!("{suite} {version}"));
        fs::remove_dir_all(work.join("apt"))?;
    }
    bail!(
        "no suite has QEMU {}.{} or later: {}",
        WANTED.0,
        WANTED.1,
        seen.join(", ")
    )
}

/// Whether a Debian version such as `1:11.1.2+ds-3` is new enough.
fn is_wanted(version: &str) -> bool {
    let upstream = version.split_once(':').map_or(version, |(_, upstream)| upstream);
    let mut numbers = upstream
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= WANTED)
}

fn unpack(deb: &Path, tree: &Path) -> Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = archive.stdout.take().context("dpkg-deb without output")?;
    let status = Command::new("tar")
        .args(["--extract", "--keep-directory-symlink", "--no-same-owner"])
        .args([
            "--exclude=./usr/share/doc",
            "--exclude=./usr/share/man",
            "--exclude=./usr/share/locale",
        ])
        .arg("--directory")
        .arg(tree)
        .stdin(output)
        .status()?;
    ensure!(
        archive.wait()?.success() && status.success(),
        "cannot unpack {}",
        deb.display()
    );
    Ok(())
}

fn check(program: &Path) -> Result<()> {
    let version = qemu::version(program)?;
    let help = output_of(Command::new(program).arg("-help"))?;
    ensure!(
        help.contains("-plugin"),
        "QEMU {version} was built without plugins"
    );
    eprintln!("QEMU {version} takes plugins");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_wanted;

    #[test]
    fn a_version_is_compared_by_numbers_and_not_by_letters() {
        assert!(is_wanted("1:11.1.2+ds-3") && is_wanted("1:12.0~rc1") && is_wanted("11.10"));
        assert!(!is_wanted("1:9.2.0+ds-1") && !is_wanted("1:11.0.50") && !is_wanted(""));
    }
}
