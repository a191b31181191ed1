//! The kernel modules of the attacks: `modules/*.c`, compiled for one of the guest's kernels.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nephoscope_e2e::command::run_logged;
use nephoscope_e2e::{Image, Kernel, Step, cache};

use crate::headers;
use crate::tools::sources;

/// The compiled modules on the host.
#[derive(Debug, Clone)]
pub struct Modules {
    folder: PathBuf,
}

impl Modules {
    /// Compiles all of them when they are not there yet.
    ///
    /// # Errors
    /// When the kernel's headers cannot be had, or the compiler refuses one.
    pub fn ensure(image: &Image, kernel: Kernel) -> Result<Self> {
        let release = image.release(kernel)?;
        let sources = sources("modules")?;
        let mut parts = vec![release.clone().into_bytes(), OPTIONS.join(" ").into_bytes()];
        for path in &sources {
            parts.push(path.file_name().unwrap_or_default().as_encoded_bytes().to_vec());
            parts.push(fs::read(path)?);
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let folder = cache::build_once(&format!("modules-{}", cache::key(&parts)), |work| {
            build(work, &release, &sources)
        })?;
        // Of each kernel, these and those before.
        cache::prune("modules-", 4)?;
        Ok(Modules { folder })
    }

    /// One of them, as it is loaded: `umbra` of `modules/umbra.c`.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.folder.join(format!("{name}.ko"));
        fs::read(&path).with_context(|| format!("no module {}", path.display()))
    }
}

/// The compiler may be an older one than the kernel's, without the first option; type information is of no use here.
const OPTIONS: [&str; 3] = [
    "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=",
    "CONFIG_DEBUG_INFO_BTF_MODULES=",
    "CC=gcc",
];

fn build(work: &Path, release: &str, sources: &[PathBuf]) -> Result<()> {
    let headers = headers::ensure(release)?;
    let mut step = Step::begin(&format!("Compiling the attacks' modules for Linux {release}"));
    let mut objects = String::from("ccflags-y := -Wall -Werror\n");
    for path in sources {
        let name = path.file_name().context("a source without a name")?;
        fs::copy(path, work.join(name))?;
        if let Some(name) = name.to_string_lossy().strip_suffix(".c") {
            objects.push_str(&format!("obj-m += {name}.o\n"));
        }
    }
    fs::write(work.join("Kbuild"), objects)?;
    let mut make = Command::new("make");
    make.args(["--silent", "-C"]).arg(headers);
    make.arg(format!("M={}", work.display()))
        .args(OPTIONS)
        .arg("modules");
    run_logged(&mut step, &mut make, &work.join("build.log"))?;
    step.done("");
    Ok(())
}
