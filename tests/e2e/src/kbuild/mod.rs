//! Kernel modules, compiled for the guest's kernels with nothing installed.

mod debug;
mod headers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::command::run_logged;
use crate::guest::Kernel;
use crate::image::Image;
use crate::progress::Step;

pub use debug::{DebugKernel, PACKAGES};

/// The compiler may be an older one than the kernel's, without the first option; type information is of no use here.
const OPTIONS: [&str; 3] = [
    "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=",
    "CONFIG_DEBUG_INFO_BTF_MODULES=",
    "CC=gcc",
];

/// Compiles sources as this `Kbuild` says, when the cache does not hold the result, and gives the folder with the modules.
/// `what` names them for people, and `kind` in the cache.
///
/// # Errors
/// When the kernel's headers cannot be had, or the compiler refuses.
pub fn ensure(
    image: &Image,
    kernel: Kernel,
    kind: &str,
    what: &str,
    kbuild: &str,
    sources: &[PathBuf],
) -> Result<PathBuf> {
    let release = image.release(kernel)?;
    compile(
        &release,
        || headers::ensure(&release),
        kind,
        what,
        kbuild,
        sources,
    )
}

/// [`ensure`] for a kernel that is described so, with what `tree` gives.
fn compile(
    about: &str,
    tree: impl FnOnce() -> Result<PathBuf>,
    kind: &str,
    what: &str,
    kbuild: &str,
    sources: &[PathBuf],
) -> Result<PathBuf> {
    let mut parts = vec![about.into(), OPTIONS.join(" ").into_bytes(), kbuild.into()];
    for path in sources {
        parts.push(path.file_name().unwrap_or_default().as_encoded_bytes().to_vec());
        parts.push(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let folder = cache::build_once(&format!("{kind}-{}", cache::key(&parts)), |work| {
        build(work, &tree()?, what, kbuild, sources)
    })?;
    // Of each kernel, these and those before.
    cache::prune(&format!("{kind}-"), 4)?;
    Ok(folder)
}

fn build(work: &Path, tree: &Path, what: &str, kbuild: &str, sources: &[PathBuf]) -> Result<()> {
    let kernel = tree
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut step = Step::begin(&format!("Compiling {what} against {kernel}"));
    for path in sources {
        fs::copy(
            path,
            work.join(path.file_name().context("a source without a name")?),
        )?;
    }
    fs::write(work.join("Kbuild"), kbuild)?;
    let mut make = Command::new("make");
    make.args(["--silent", "-C"]).arg(tree);
    make.arg(format!("M={}", work.display()))
        .args(OPTIONS)
        .arg("modules");
    run_logged(&mut step, &mut make, &work.join("build.log"))?;
    step.done("");
    Ok(())
}

/// The project's own module, as it is loaded.
///
/// # Errors
/// As [`ensure`].
pub fn trap_module(image: &Image, kernel: Kernel) -> Result<PathBuf> {
    let (kbuild, sources) = trap_sources()?;
    let built = ensure(image, kernel, "trap-module", "nephoscope-kvm", &kbuild, &sources)?;
    Ok(built.join("nephoscope_kvm.ko"))
}

/// The same, expecting that a function of KVM takes something else than it does, as it may on another kernel.
///
/// # Errors
/// As [`ensure`], and when it expects nothing like `right`.
pub fn trap_module_expecting(image: &Image, kernel: Kernel, right: &str, otherwise: &str) -> Result<PathBuf> {
    const CHECK: &str = "check.c";
    let (kbuild, mut sources) = trap_sources()?;
    let changed = tempfile::tempdir()?;
    let place = sources.iter_mut().find(|path| path.ends_with(CHECK));
    let place = place.with_context(|| format!("the module has no {CHECK}"))?;
    let text = fs::read_to_string(&place)?;
    ensure!(text.contains(right), "{CHECK} does not expect {right}");
    *place = changed.path().join(CHECK);
    fs::write(&place, text.replace(right, otherwise))?;
    let built = ensure(
        image,
        kernel,
        "trap-module",
        "nephoscope-kvm for another KVM",
        &kbuild,
        &sources,
    )?;
    Ok(built.join("nephoscope_kvm.ko"))
}

/// A module that tests load in a nested machine's kernel (`modules/*.c`).
///
/// # Errors
/// As [`ensure`].
pub fn test_module(image: &Image, kernel: Kernel, name: &str) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("modules/{name}.c"));
    let kbuild = format!("obj-m += {name}.o\nccflags-y += -Wall -Werror\n");
    let built = ensure(image, kernel, "test-module", name, &kbuild, &[source])?;
    Ok(built.join(format!("{name}.ko")))
}

/// Its `Kbuild`, with which a warning is an error, and its sources.
fn trap_sources() -> Result<(String, Vec<PathBuf>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernel/nephoscope-kvm");
    let mut sources = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "c" || extension == "h")
        {
            sources.push(path);
        }
    }
    sources.sort();
    let kbuild = fs::read_to_string(folder.join("Kbuild"))? + "ccflags-y += -Werror\n";
    Ok((kbuild, sources))
}
