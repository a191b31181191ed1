//! The guest's job in a nested machine, watched by way of the kernel module.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Nested, Shape};
use crate::{Catalog, Image, Kernel, Truth, kbuild};

/// What was seen, and what there was.
#[derive(Debug)]
pub struct Seen {
    /// The report.
    pub report: Value,
    /// What the guest said of itself.
    pub truth: Truth,
    /// What L1's kernel warned of.
    pub warnings: Vec<String>,
}

/// Watches the guest's job. `program` is `nephoscope`, with its plugins and `examples/inside` of this crate beside it; L1 and the
/// guest run the same kernel; `line` is given what they say.
///
/// # Errors
/// When a part cannot be built, the machine does not come up, or what runs in it fails.
pub fn watch(
    image: &Image,
    program: &Path,
    kernel: Kernel,
    vcpus: u32,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<Seen> {
    let nested = Nested::ensure(image)?;
    let share = tempfile::tempdir()?;
    let at = |name: &str| share.path().join(name);
    give(program, &at("nephoscope"))?;
    give(&program.with_file_name("plugins"), &at("plugins"))?;
    give(&program.with_file_name("examples").join("inside"), &at("inside"))?;
    let catalog = Catalog::ensure_with(image, program, &nested.firmware()?)?;
    give(&catalog.path(), &at("catalog"))?;
    give(&kbuild::trap_module(image, kernel)?, &at("nephoscope_kvm.ko"))?;
    fs::create_dir(at("image"))?;
    for file in [image.kernel(kernel), image.initramfs(kernel)] {
        let name = file.file_name().context("no file name")?;
        give(&file, &at("image").join(name))?;
    }
    std::os::unix::fs::symlink("/dev/vdb", at("image").join("disk.img"))?;
    // The module is there before the guest, and gone after it.
    let script = format!(
        "export HOME=/tmp\n\
         insmod /host/nephoscope_kvm.ko || exit 91\n\
         /host/inside /host {} {vcpus} || exit 92\n\
         rmmod nephoscope_kvm || exit 93",
        kernel.version()
    );
    let shape = Shape {
        kernel,
        ..Shape::default()
    };
    let mut warnings = Vec::new();
    let mut said = Vec::new();
    let code = nested.run(&shape, share.path(), &script, limit, |text| {
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
    let report: Value = serde_json::from_slice(&fs::read(at("report.json"))?)?;
    crate::report::validate(&report)?;
    let truth = Truth::parse(&fs::read_to_string(at("truth"))?)?;
    Ok(Seen {
        report,
        truth,
        warnings,
    })
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
