//! `cargo xtask setup`: what has to be installed, and nothing when all is there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nephoscope_e2e::apt::{self, Suite};
use nephoscope_e2e::command::{output_of, privileged, run_logged};
use nephoscope_e2e::{Step, cache, qemu};

/// Packages of the machine's own suites.
const PACKAGES: [&str; 17] = [
    "busybox-static",
    "ca-certificates",
    "debian-archive-keyring",
    "e2fsprogs",
    "fdisk",
    "g++",
    "gcc",
    "ipxe-qemu",
    "libc6-dev",
    "make",
    "mmdebstrap",
    "ovmf",
    "qemu-utils",
    "seabios",
    "systemd-boot-efi",
    "xfsprogs",
    "xz-utils",
];

/// The suite that has a QEMU with the plugin interface that we need, and the package.
const QEMU_SUITE: &str = "bookworm-backports";
const QEMU_PACKAGE: &str = "qemu-system-x86";

/// Plugin API 4 came with QEMU 9.2; what is tested begins with 10.
const QEMU_MAJOR: u32 = 10;

/// Installs what is missing.
pub(crate) fn run() -> Result<()> {
    with(&[])
}

/// The same, with packages that only one task needs.
pub(crate) fn with(more: &[&'static str]) -> Result<()> {
    let log = cache::folder()?.join("setup.log");
    let missing = missing_packages(&[&PACKAGES, more].concat())?;
    let lists = lists_are_there()?;
    let qemu = qemu_is_new_enough();
    if missing.is_empty() && lists && qemu {
        return Ok(());
    }
    ensure_can_install()?;
    if !qemu {
        add_qemu_suite(&log)?;
    }
    let mut step = Step::begin("Reading the lists of packages");
    run_logged(&mut step, privileged("apt-get").arg("update"), &log)?;
    step.done("");
    if !missing.is_empty() {
        install(&missing, None, &log)?;
    }
    if !qemu {
        install(&[QEMU_PACKAGE], Some(QEMU_SUITE), &log)?;
        ensure!(
            qemu_is_new_enough(),
            "{QEMU_SUITE} brought no QEMU {QEMU_MAJOR} or later; see {}",
            log.display()
        );
    }
    Ok(())
}

fn missing_packages(wanted: &[&'static str]) -> Result<Vec<&'static str>> {
    let format = "${Package} ${db:Status-Status}\n";
    // dpkg-query fails when one of the packages is unknown to it, and tells about the others all the same.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", format])
        .args(wanted)
        .output()
        .context("cannot run dpkg-query: is this a Debian system?")?;
    let installed = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_installed = |package: &str| {
        installed
            .lines()
            .any(|line| line == format!("{package} installed"))
    };
    Ok(wanted
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect())
}

/// Fresh container images come without lists, and guests are keyed by them.
fn lists_are_there() -> Result<bool> {
    let suites = apt::suites()?;
    let base = suites.iter().find(|suite| suite.name == "bookworm");
    let Some(base) = base else {
        bail!("apt on this machine has no suite `bookworm`: this needs a Debian 12")
    };
    Ok(base.release_file.is_some())
}

fn qemu_is_new_enough() -> bool {
    let version = qemu::system().and_then(|program| qemu::version(&program)).ok();
    let major = version.and_then(|version| {
        version
            .split('.')
            .next()
            .and_then(|major| major.parse::<u32>().ok())
    });
    major.is_some_and(|major| major >= QEMU_MAJOR)
}

fn ensure_can_install() -> Result<()> {
    output_of(privileged("true").env("SUDO_ASKPASS", "/bin/false"))
        .map(drop)
        .context("packages are missing, and this is neither root nor a user with sudo")
}

/// Adds backports from the mirror that the machine already uses, unless it has them.
fn add_qemu_suite(log: &Path) -> Result<()> {
    if apt::suites()?.iter().any(|suite| suite.name == QEMU_SUITE) {
        return Ok(());
    }
    let suite = Suite {
        name: QEMU_SUITE.to_owned(),
        uri: apt::mirror()?,
        release_file: None,
    };
    let mut step = Step::begin("Adding bookworm-backports");
    let staged = cache::folder()?.join("backports.list");
    std::fs::write(&staged, format!("{}\n", suite.line()))?;
    let mut command = privileged("install");
    command
        .args(["-m", "644"])
        .arg(&staged)
        .arg("/etc/apt/sources.list.d/nephoscope-backports.list");
    run_logged(&mut step, &mut command, log)?;
    step.done("");
    Ok(())
}

fn install(packages: &[&str], suite: Option<&str>, log: &Path) -> Result<()> {
    let mut step = Step::begin(&format!("Installing {}", packages.join(", ")));
    let mut command = privileged("env");
    command.args([
        "DEBIAN_FRONTEND=noninteractive",
        "LC_ALL=C",
        "apt-get",
        "install",
        "--yes",
    ]);
    command.arg("--no-install-recommends");
    if let Some(suite) = suite {
        command.args(["--target-release", suite]);
    }
    run_logged(&mut step, command.args(packages), log)?;
    step.done("");
    Ok(())
}
