//! A guest that runs a guest, and one whose memory is of huge pages, watched by way of the kernel module.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Shape, Stage, modules};
use crate::initramfs::{Archive, UP};
use crate::{Image, Kernel};

/// What the inner guest changes: a file that the catalog knows, under a name of its own.
const KNOWN: &str = "usr/lib/x86_64-linux-gnu/libz.so.1";

/// What was seen.
#[derive(Debug)]
pub struct Inner {
    /// The report on the guest that ran a guest.
    pub nested: Value,
    /// The report on the one with huge pages.
    pub huge: Value,
    /// Where its program said that the byte lies which the inner guest changed.
    pub changed: u64,
    /// What L1's kernel warned of.
    pub warnings: Vec<String>,
}

/// Has both run. `program` as with [`super::watch`].
///
/// # Errors
/// When a part cannot be built, the machine does not come up, or what runs in it fails.
pub fn inner(
    image: &Image,
    program: &Path,
    kernel: Kernel,
    limit: Duration,
    line: impl FnMut(&str),
) -> Result<Inner> {
    let stage = Stage::set(image, program, Shape::of(kernel))?;
    initramfs(image, kernel, &stage.at("guest-initramfs"))?;
    fs::write(stage.at("inner"), include_bytes!("../../guest-files/inner"))?;
    let command = format!("sh /host/inner vmlinuz-{}", kernel.version());
    let ended = stage.run(&command, limit, line)?;
    let report = |name: &str| -> Result<Value> {
        let report = serde_json::from_slice(&fs::read(stage.at(name))?)?;
        crate::report::validate(&report)?;
        Ok(report)
    };
    let changed = ended.said.iter().find_map(|line| {
        let offset = line.strip_prefix("/known ")?.split(' ').next()?;
        u64::from_str_radix(offset, 16).ok()
    });
    Ok(Inner {
        nested: report("nested.json")?,
        huge: report("huge.json")?,
        changed: changed
            .with_context(|| format!("the inner guest did not run:\n  {}", ended.said.join("\n  ")))?,
        warnings: ended.warnings,
    })
}

/// What both guests are made of: the first one is told on its command line to run a guest.
fn initramfs(image: &Image, kernel: Kernel, path: &Path) -> Result<()> {
    let mut archive = Archive::with_busybox()?;
    let known = image.root().join(KNOWN);
    let known = fs::read(&known).with_context(|| format!("cannot read {}", known.display()))?;
    archive.file("known", false, &known);
    archive.file(
        "inner-guest",
        true,
        &fs::read(image.plants().program("inner-guest"))?,
    );
    archive.folder("modules");
    let mut load = String::new();
    for (name, content) in modules::of(&image.root(), &image.release(kernel)?, &modules::KVM)? {
        archive.file(&format!("modules/{name}"), false, &content);
        load.push_str(&format!("    $b insmod /modules/{name}\n"));
    }
    let init = format!(
        "#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
if $b grep -q inner.guest /proc/cmdline; then
{load}    /inner-guest /known > /dev/ttyS0 2>&1
fi
echo {UP} > /dev/ttyS0
$b poweroff -f
"
    );
    archive.file("init", true, init.as_bytes());
    archive.write(path)
}
