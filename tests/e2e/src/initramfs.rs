//! An initial RAM file system that is all of a guest: busybox and one script, for tests of what comes before.
//!
//! The "new ASCII" cpio format: `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::command::find_program;

/// What a guest of [`busybox`] does: says that it is there, and switches itself off.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
echo the guest is up > /dev/ttyS0
/bin/busybox poweroff -f
";

/// The line on the serial console that says that the guest came up.
pub const UP: &str = "the guest is up";

/// Writes the file system to `path`.
///
/// # Errors
/// When there is no busybox, or the file cannot be written.
pub fn busybox(path: &Path) -> Result<()> {
    let program = find_program("busybox").context("busybox is missing; run `cargo xtask setup`")?;
    let program = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let entries: [(&str, u32, &[u8]); 5] = [
        ("bin", 0o040_755, &[]),
        ("dev", 0o040_755, &[]),
        ("bin/busybox", 0o100_755, &program),
        ("init", 0o100_755, INIT.as_bytes()),
        ("TRAILER!!!", 0, &[]),
    ];
    let mut archive = Vec::new();
    for (inode, (name, mode, content)) in (1_u64..).zip(entries) {
        let numbers = [inode, mode.into(), 0, 0, 1, 0, content.len() as u64, 0, 0, 0, 0];
        archive.extend(b"070701");
        for number in numbers.into_iter().chain([name.len() as u64 + 1, 0]) {
            archive.extend(format!("{number:08x}").bytes());
        }
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    fs::write(path, archive).with_context(|| format!("cannot write {}", path.display()))
}
