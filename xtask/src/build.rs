//! `cargo xtask build`: the program, and the plugin for each version of QEMU's plugin API, where the program looks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The versions of the plugin API that there is a build for.
const PLUGIN_APIS: [u32; 4] = [4, 5, 6, 7];

/// What was built.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    /// The program `nephoscope`.
    pub(crate) program: PathBuf,
    /// The plugin of benchmarks, which learns nothing.
    pub(crate) bench: PathBuf,
}

/// Builds both; `release` as they are shipped.
pub(crate) fn run(release: bool) -> Result<Built> {
    let profile = if release { "release" } else { "dev" };
    cargo(&["build", "--profile", profile, "-p", "nephoscope", "--bins"])?;
    cargo(&[
        "build",
        "--profile",
        profile,
        "-p",
        "nephoscope-qemu-plugin",
        "--examples",
    ])?;
    placed(release)
}

/// The same and all tests, as `cargo test` wants them: building the program by itself first would compile what it depends on
/// twice, because the whole workspace wants more of that.
pub(crate) fn with_tests() -> Result<Built> {
    cargo(&["test", "--workspace", "--no-run"])?;
    placed(false)
}

/// As it is shipped, with what runs in a nested machine beside it.
pub(crate) fn with_examples() -> Result<Built> {
    let built = run(true)?;
    let packages = ["--package", "nephoscope-e2e", "--package", "nephoscope-attacks"];
    cargo(&[&["build", "--release", "--examples"], &packages[..]].concat())?;
    Ok(built)
}

/// Puts what was built where the program looks.
fn placed(release: bool) -> Result<Built> {
    let folder = target_folder().join(if release { "release" } else { "debug" });
    let plugins = folder.join("plugins");
    fs::create_dir_all(&plugins)?;
    for api in PLUGIN_APIS {
        let built = folder.join(format!("examples/libnephoscope_qemu_api{api}.so"));
        place(&built, &plugins.join(format!("libnephoscope-qemu-api{api}.so")))?;
    }
    Ok(Built {
        program: folder.join("nephoscope"),
        bench: folder.join("examples/libnephoscope_qemu_bench.so"),
    })
}

/// By a rename: a QEMU that has the old one mapped keeps it, and of two who build at once, neither has half of the other's.
fn place(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(to);
    let staged = tempfile::NamedTempFile::new_in(folder)?;
    fs::copy(from, staged.path()).with_context(|| format!("cannot copy {}", from.display()))?;
    staged
        .persist(to)
        .with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

/// Runs cargo in this workspace, its output on the terminal.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .current_dir(workspace())
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

/// The workspace's folder.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}
