//! The kernel modules of the attacks: `modules/*.c`, compiled for one of the guest's kernels.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nephoscope_e2e::{Image, Kernel, kbuild};

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
        let sources = sources("modules")?;
        let mut objects = String::from("ccflags-y := -Wall -Werror\n");
        for path in &sources {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if let Some(name) = name.strip_suffix(".c") {
                objects.push_str(&format!("obj-m += {name}.o\n"));
            }
        }
        let folder = kbuild::ensure(
            image,
            kernel,
            "modules",
            "the attacks' modules",
            &objects,
            &sources,
        )?;
        Ok(Modules { folder })
    }

    /// Those that somebody else compiled and put into this folder.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Modules { folder }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
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
