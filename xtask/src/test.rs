//! `cargo xtask test`: sets everything up, then every test there is, real guests and the fuzz targets' inputs included.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::Image;

use crate::build;

/// Runs all tests; `filter` goes to the test runner.
pub(crate) fn run(filter: &[String]) -> Result<()> {
    super::setup::run()?;
    let built = build::run(false)?;
    crate::qemu11::run()?;
    Image::ensure()?;
    if filter.is_empty() {
        // First: what the test runner sums up stands at the end.
        crate::fuzz::check()?;
    }
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        .args(filter)
        .env("NEPHOSCOPE", &built.program)
        .current_dir(build::workspace())
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "some tests failed");
    Ok(())
}
