//! Debian's kernel as its developers run it when they look for their own mistakes: compiled from the source package, with
//! KASAN, lockdep and kmemleak, and with little else so that it is there in a quarter of an hour.
//!
//! Debian has packages of such kernels for some architectures and not for this one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result, ensure};

use super::{compile, trap_sources};
use crate::apt::{self, PrivateApt};
use crate::cache;
use crate::command::{output_of, run_logged};
use crate::progress::Step;

/// Debian's patches are in it: its KVM is that of the kernel that guests have.
const PACKAGE: &str = "linux-source-6.1";

/// What is wanted of the kernel.
const FRAGMENT: &str = include_str!("../../kernel/debug.config");

/// What its compilation needs of Debian's packages, beside a compiler.
pub const PACKAGES: [&str; 5] = ["bc", "bison", "dwarves", "flex", "libelf-dev"];

/// KVM, each after those that it needs. All else is part of the kernel.
const MODULES: [&str; 3] = [
    "virt/lib/irqbypass.ko",
    "arch/x86/kvm/kvm.ko",
    "arch/x86/kvm/kvm-amd.ko",
];

/// What remains of the sources: enough to compile a module.
const KEPT: [&str; 8] = [
    ".config",
    "Kbuild",
    "Kconfig",
    "Makefile",
    "Module.symvers",
    "arch",
    "include",
    "scripts",
];

/// The kernel, its modules, and what others are compiled against.
#[derive(Debug, Clone)]
pub struct DebugKernel {
    folder: PathBuf,
}

impl DebugKernel {
    /// Of the version that the machine's apt would install, compiled when the cache does not hold it.
    ///
    /// # Errors
    /// When the sources cannot be had, an option of the fragment does not come out as it is there, or the compiler refuses.
    pub fn ensure() -> Result<Self> {
        let version = version()?;
        let key = cache::key(&[
            FRAGMENT.as_bytes(),
            version.as_bytes(),
            MODULES.join(" ").as_bytes(),
        ]);
        let folder = cache::build_once(&format!("debug-kernel-{key}"), |work| build(work, &version))?;
        cache::prune("debug-kernel-", 1)?;
        Ok(DebugKernel { folder })
    }

    /// For QEMU's `-kernel`.
    pub fn image(&self) -> PathBuf {
        self.folder.join("bzImage")
    }

    /// In the order in which they are loaded.
    pub fn modules(&self) -> Vec<PathBuf> {
        let names = MODULES.map(|path| path.rsplit('/').next().unwrap_or(path));
        names.into_iter().map(|name| self.folder.join(name)).collect()
    }

    /// The project's own module for it.
    ///
    /// # Errors
    /// When the compiler refuses.
    pub fn trap_module(&self) -> Result<PathBuf> {
        let (kbuild, sources) = trap_sources()?;
        let about = format!("{} {FRAGMENT}", version()?);
        let tree = || Ok(self.folder.join("linux-debug"));
        let built = compile(
            &about,
            tree,
            "debug-trap-module",
            "nephoscope-kvm",
            &kbuild,
            &sources,
        )?;
        Ok(built.join("nephoscope_kvm.ko"))
    }
}

fn version() -> Result<String> {
    let policy = output_of(
        Command::new("apt-cache")
            .env("LC_ALL", "C")
            .args(["policy", PACKAGE]),
    )?;
    let candidate = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)");
    let version = candidate.with_context(|| format!("apt knows no {PACKAGE}: run `apt-get update`"))?;
    Ok(version.to_owned())
}

fn build(work: &Path, version: &str) -> Result<()> {
    let log = cache::folder()?.join("debug-kernel.log");
    let mut step = Step::begin(&format!("Fetching the sources of Linux {version}"));
    let tree = unpack(&mut step, work, version, &log)?;
    step.done("");
    let mut step = Step::begin(&format!("Compiling Linux {version} with KASAN and lockdep"));
    configure(&mut step, &tree, &log)?;
    let jobs = available_parallelism().map_or(1, usize::from);
    let mut make = make(&tree);
    make.arg(format!("-j{jobs}")).args(["bzImage", "modules"]);
    run_logged(&mut step, &mut make, &log)?;
    fs::copy(tree.join("arch/x86/boot/bzImage"), work.join("bzImage"))?;
    for path in MODULES {
        let name = path.rsplit('/').next().unwrap_or(path);
        fs::copy(tree.join(path), work.join(name)).with_context(|| format!("the kernel has no {path}"))?;
    }
    strip(&tree)?;
    step.done("");
    Ok(())
}

fn unpack(step: &mut Step, work: &Path, version: &str, log: &Path) -> Result<PathBuf> {
    let parts = work.join("parts");
    let apt = PrivateApt::open_suites(step, &parts.join("apt"), &apt::suites()?, log)?;
    let package = format!("{PACKAGE}={version}");
    let deb = apt
        .download(step, &package, &parts, log)
        .with_context(|| format!("the mirror has no {package} any more: run `apt-get update`"))?;
    let unpacked = parts.join("unpacked");
    let mut extract = Command::new("dpkg-deb");
    run_logged(step, extract.arg("--extract").arg(deb).arg(&unpacked), log)?;
    let archive = unpacked.join(format!("usr/src/{PACKAGE}.tar.xz"));
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(archive);
    run_logged(step, tar.arg("--directory").arg(work), log)?;
    fs::remove_dir_all(&parts)?;
    let tree = work.join("linux-debug");
    fs::rename(work.join(PACKAGE), &tree)?;
    Ok(tree)
}

fn make(tree: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("--directory").arg(tree);
    make
}

/// The smallest configuration there is, and the fragment on top.
fn configure(step: &mut Step, tree: &Path, log: &Path) -> Result<()> {
    run_logged(step, make(tree).arg("tinyconfig"), log)?;
    let fragment = tree.join("debug.config");
    fs::write(&fragment, FRAGMENT)?;
    let mut merge = Command::new(tree.join("scripts/kconfig/merge_config.sh"));
    merge.current_dir(tree).args(["-m", ".config"]).arg(&fragment);
    run_logged(step, &mut merge, log)?;
    run_logged(step, make(tree).arg("olddefconfig"), log)?;
    let wrong = not_as_wanted(FRAGMENT, &fs::read_to_string(tree.join(".config"))?);
    ensure!(
        wrong.is_empty(),
        "this kernel cannot be configured as tests/e2e/kernel/debug.config says, what these options depend on is missing there: {}",
        wrong.join(", ")
    );
    Ok(())
}

/// The options of a fragment that a configuration does not have like this. What Kconfig does not know, it drops silently.
fn not_as_wanted<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let lines: Vec<&str> = config.lines().collect();
    let is_so = |line: &str| match line
        .strip_prefix("# ")
        .and_then(|rest| rest.strip_suffix(" is not set"))
    {
        // An option whose dependencies are missing is off as well.
        Some(name) => !lines
            .iter()
            .any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('='))),
        None => lines.contains(&line),
    };
    fragment
        .lines()
        .filter(|line| line.starts_with("CONFIG_") || line.ends_with(" is not set"))
        .filter(|line| !is_so(line))
        .collect()
}

/// Takes away what is not needed to compile modules: gigabytes.
fn strip(tree: &Path) -> Result<()> {
    let objtool = tree.join("tools/objtool/objtool");
    let tool = fs::read(&objtool).with_context(|| format!("cannot read {}", objtool.display()))?;
    for (folder, kept) in [(tree.to_owned(), &KEPT[..]), (tree.join("arch"), &["x86"])] {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if kept.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    crate::command::write_file(&objtool, tool)?;
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&objtool, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_did_not_come_out_as_wanted_is_named() {
        let fragment = "# about\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\n# CONFIG_D is not set\n";
        let config = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\nCONFIG_DD=y\n";
        let wrong = not_as_wanted(fragment, config);
        assert_eq!(wrong, ["CONFIG_B=m", "# CONFIG_C is not set"]);
    }

    #[test]
    fn what_the_soak_is_for_is_in_the_fragment() {
        for option in [
            "CONFIG_KASAN=y",
            "CONFIG_PROVE_LOCKING=y",
            "CONFIG_PROVE_RCU=y",
            "CONFIG_DEBUG_ATOMIC_SLEEP=y",
            "CONFIG_DEBUG_KMEMLEAK=y",
            "CONFIG_DEBUG_INFO_BTF_MODULES=y",
            "CONFIG_KVM_AMD=m",
        ] {
            assert!(FRAGMENT.lines().any(|line| line == option), "{option}");
        }
    }
}
