//! Where attacks take place: this machine, or one with KVM that runs in it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use nephoscope_e2e::{Catalog, Image, Options};

use crate::modules::Modules;
use crate::tools::Tools;

/// What there is, and how a guest is started.
#[derive(Debug)]
pub struct Place {
    /// The `nephoscope` that is put to the proof.
    pub program: PathBuf,
    /// The guest.
    pub image: Image,
    /// Its catalog.
    pub catalog: PathBuf,
    /// The attacks' programs.
    pub tools: Tools,
    /// Their modules for the guest's kernel, where they cannot be compiled when they are needed.
    pub modules: Option<Modules>,
    /// Further options of `nephoscope run`.
    pub watch_with: Vec<String>,
    /// For QEMU's `-accel`.
    pub accel: Option<String>,
    /// The machine is so many times slower than an ordinary one: everything that is waited for may take so much longer.
    pub slowness: u32,
    /// Who runs a page is sampled: that is not taken for a gap.
    pub samples_attribution: bool,
}

impl Place {
    /// This machine, under TCG. Builds what is missing.
    ///
    /// # Errors
    /// When something cannot be had.
    pub fn here(program: PathBuf) -> Result<Self> {
        let image = Image::ensure()?;
        let catalog = Catalog::ensure(&image, &program)?.path();
        Ok(Place {
            program,
            image,
            catalog,
            tools: Tools::ensure()?,
            modules: None,
            watch_with: Vec::new(),
            accel: None,
            slowness: 1,
            samples_attribution: false,
        })
    }

    /// Within a nested machine, whose folder holds everything ([`crate::nested`]).
    #[must_use]
    pub fn nested(folder: &Path) -> Self {
        Place {
            program: folder.join("nephoscope"),
            image: Image::at(folder.join("image")),
            catalog: folder.join("catalog"),
            tools: Tools::at(folder.join("tools")),
            modules: Some(Modules::at(folder.join("modules"))),
            watch_with: vec!["--audit".to_owned()],
            accel: Some("kvm".to_owned()),
            slowness: SLOWNESS,
            samples_attribution: true,
        }
    }

    /// Changes what is particular to the place.
    pub(crate) fn adapt(&self, options: &mut Options) {
        if let Some(accel) = &self.accel {
            options.accel.clone_from(accel);
        }
        options.boot_timeout *= self.slowness;
        options.command_timeout *= self.slowness;
    }
}

/// A guest within an emulated machine with an emulated hypervisor: one instruction of the guest is some tens of this machine's, an
/// exit some ten thousand.
const SLOWNESS: u32 = 10;
