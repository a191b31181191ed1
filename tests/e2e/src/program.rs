//! The program that is tested.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The `nephoscope` that `cargo xtask test` built, with the plugins beside it.
///
/// # Errors
/// When the tests were not started by it.
pub fn program() -> Result<PathBuf> {
    let program = std::env::var_os("NEPHOSCOPE").context("NEPHOSCOPE is not set: run `cargo xtask test`")?;
    Ok(PathBuf::from(program))
}
