//! What a nested machine is given, so that a guest is watched in it by way of the kernel module.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Nested, Shape};
use crate::{Catalog, Image, kbuild};

/// A machine and its folder: `nephoscope` with its plugins, a catalog, the module, the guest's kernel and disk.
#[derive(Debug)]
pub struct Stage {
    nested: Nested,
    shape: Shape,
    share: tempfile::TempDir,
}

/// How what ran there ended.
#[derive(Debug)]
pub struct Ended {
    /// What L1's kernel warned of.
    pub warnings: Vec<String>,
    /// Everything that was said.
    pub said: Vec<String>,
}

impl Stage {
    /// Builds what is missing. `program` is `nephoscope`, with its plugins beside it; L1 and the guest run the same kernel.
    ///
    /// # Errors
    /// When a part cannot be built.
    pub fn set(image: &Image, program: &Path, shape: Shape) -> Result<Self> {
        let nested = Nested::ensure(image)?;
        let share = tempfile::tempdir()?;
        let stage = Stage { nested, shape, share };
        let kernel = stage.shape.kernel;
        stage.give(program, "nephoscope")?;
        stage.give(&program.with_file_name("plugins"), "plugins")?;
        let catalog = Catalog::ensure_with(image, program, &stage.nested.firmware()?)?;
        stage.give(&catalog.path(), "catalog")?;
        let module = match &stage.shape.debug {
            Some(debug) => debug.trap_module()?,
            None => kbuild::trap_module(image, kernel)?,
        };
        stage.give(&module, "nephoscope_kvm.ko")?;
        fs::create_dir(stage.at("image"))?;
        for file in [image.kernel(kernel), image.initramfs(kernel)] {
            let name = file.file_name().context("no file name")?.to_string_lossy();
            stage.give(&file, &format!("image/{name}"))?;
        }
        std::os::unix::fs::symlink("/dev/vdb", stage.at("image/disk.img"))?;
        Ok(stage)
    }

    /// The same, and one of this crate's examples, which is beside `program` in the folder `examples`.
    ///
    /// # Errors
    /// When a part cannot be built, or the example was not.
    pub fn with(image: &Image, program: &Path, shape: Shape, example: &str) -> Result<Self> {
        let stage = Stage::set(image, program, shape)?;
        stage.give(&program.with_file_name("examples").join(example), example)?;
        Ok(stage)
    }

    /// Where a file of the machine's `/host` is here.
    pub fn at(&self, name: &str) -> PathBuf {
        self.share.path().join(name)
    }

    /// Puts a file or a folder there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn give(&self, from: &Path, name: &str) -> Result<()> {
        give(from, &self.at(name)).with_context(|| format!("cannot give {} to the machine", from.display()))
    }

    /// Runs a command with the module loaded, and takes the module out after it. `line` is given what they say.
    ///
    /// # Errors
    /// When the machine does not come up, the module cannot be loaded or unloaded, or the command fails.
    pub fn run(&self, command: &str, limit: Duration, line: impl FnMut(&str)) -> Result<Ended> {
        let script = format!(
            "export HOME=/tmp\n\
             insmod /host/nephoscope_kvm.ko || exit 91\n\
             {command} || exit 92\n\
             rmmod nephoscope_kvm || exit 93"
        );
        self.script(&script, limit, line)
    }

    /// Runs a shell script as it is.
    ///
    /// # Errors
    /// When the machine does not come up, or the script fails.
    pub fn script(&self, script: &str, limit: Duration, mut line: impl FnMut(&str)) -> Result<Ended> {
        let (mut warnings, mut said) = (Vec::new(), Vec::new());
        let code = self
            .nested
            .run(&self.shape, self.share.path(), script, limit, |text| {
                if ["WARNING:", "BUG:", "Oops"]
                    .iter()
                    .any(|word| text.contains(word))
                {
                    warnings.push(text.to_owned());
                }
                said.push(text.to_owned());
                line(text);
            })?;
        ensure!(code == 0, "it ended with {code}:\n  {}", said.join("\n  "));
        Ok(Ended { warnings, said })
    }
}

/// A file or a folder, without a copy where that can be.
fn give(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            give(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if fs::hard_link(from, to).is_err() {
        fs::copy(from, to)?;
    }
    Ok(())
}
