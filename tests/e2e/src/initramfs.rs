//! Initial RAM file systems: archives, and the one that is all of a guest, busybox and one script, for tests of what comes
//! before.
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

/// An archive that is being made.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u64,
}

impl Archive {
    /// One with busybox in `bin`, and the folders that every system has.
    ///
    /// # Errors
    /// When there is no busybox.
    pub fn with_busybox() -> Result<Self> {
        let program = find_program("busybox").context("busybox is missing; run `cargo xtask setup`")?;
        let program = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        Ok(Self::with_program("bin/busybox", &program))
    }

    /// One with this program and the folders that every system has.
    #[must_use]
    pub fn with_program(path: &str, program: &[u8]) -> Self {
        let mut archive = Self::default();
        for name in ["bin", "dev", "proc", "sys"] {
            archive.folder(name);
        }
        archive.file(path, true, program);
        archive
    }

    /// A folder; those above it must be there.
    pub fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    /// A file.
    pub fn file(&mut self, name: &str, executable: bool, content: &[u8]) {
        self.entry(name, if executable { 0o100_755 } else { 0o100_644 }, content);
    }

    fn entry(&mut self, name: &str, mode: u64, content: &[u8]) {
        self.entries += 1;
        let length = content.len() as u64;
        let numbers = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0];
        self.bytes.extend(b"070701");
        for number in numbers.into_iter().chain([name.len() as u64 + 1, 0]) {
            self.bytes.extend(format!("{number:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(mut self, path: &Path) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[]);
        fs::write(path, self.bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Writes the one that is all of a guest to `path`.
///
/// # Errors
/// When there is no busybox, or the file cannot be written.
pub fn busybox(path: &Path) -> Result<()> {
    let mut archive = Archive::with_busybox()?;
    archive.file("init", true, INIT.as_bytes());
    archive.write(path)
}
