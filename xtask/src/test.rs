//! `cargo xtask test`: sets everything up, then every test there is, real guests and the fuzz targets' inputs included.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::nested::Nested;
use nephoscope_e2e::pae::Pae;
use nephoscope_e2e::{Image, Step, guest};

use crate::build;

/// Runs all tests; `filter` goes to the test runner.
pub(crate) fn run(filter: &[String]) -> Result<()> {
    super::setup::run()?;
    // One waits for the network, the other for the processor.
    let guests = std::thread::spawn(guests);
    let built = build::with_tests()?;
    if filter.is_empty() {
        // First: what the test runner sums up stands at the end.
        crate::fuzz::check()?;
    }
    let step = Step::begin("Waiting for the guests");
    guests
        .join()
        .map_err(|_| anyhow::anyhow!("building the guests ended in a panic"))??;
    step.done("");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        .args(filter)
        .env("NEPHOSCOPE", &built.program)
        .env(guest::TOGETHER, "1")
        // A failed check says what it wanted and what it got; where it was called from is not what matters of a guest.
        .env("RUST_BACKTRACE", "0")
        .current_dir(build::workspace())
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "some tests failed");
    Ok(())
}

/// All that tests boot, so that none has to fetch it.
fn guests() -> Result<()> {
    crate::qemu11::run()?;
    Nested::ensure(&Image::ensure()?)?;
    Pae::ensure()?;
    Ok(())
}
