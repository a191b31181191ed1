//! Kernel modules, compiled for the guest's kernels with nothing installed.

mod headers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache;
use crate::command::run_logged;
use crate::guest::Kernel;
use crate::image::Image;
use crate::progress::Step;

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
    let mut parts = vec![
        release.clone().into_bytes(),
        OPTIONS.join(" ").into_bytes(),
        kbuild.into(),
    ];
    for path in sources {
        parts.push(path.file_name().unwrap_or_default().as_encoded_bytes().to_vec());
        parts.push(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let folder = cache::build_once(&format!("{kind}-{}", cache::key(&parts)), |work| {
        build(work, &release, what, kbuild, sources)
    })?;
    // Of each kernel, these and those before.
    cache::prune(&format!("{kind}-"), 4)?;
    Ok(folder)
}

fn build(work: &Path, release: &str, what: &str, kbuild: &str, sources: &[PathBuf]) -> Result<()> {
    let headers = headers::ensure(release)?;
    let mut step = Step::begin(&format!("Compiling {what} for Linux {release}"));
    for path in sources {
        fs::copy(
            path,
            work.join(path.file_name().context("a source without a name")?),
        )?;
    }
    fs::write(work.join("Kbuild"), kbuild)?;
    let mut make = Command::new("make");
    make.args(["--silent", "-C"]).arg(headers);
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
    let built = ensure(image, kernel, "trap-module", "nephoscope-kvm", &kbuild, &sources)?;
    Ok(built.join("nephoscope_kvm.ko"))
}
