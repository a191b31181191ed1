//! Programs of `nephoscope-bench`: built as they are shipped, their numbers taken from what they print.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::ratio::Spread;
use crate::build::{cargo, target_folder};

/// Runs one of them; what it says meanwhile goes to the terminal.
pub(crate) fn run<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Result<Value> {
    cargo(&["build", "--release", "-p", "nephoscope-bench", "--bins"])?;
    let program = target_folder().join("release").join(name);
    let output = Command::new(&program)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(output.status.success(), "{name} ended with {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A list of numbers that it printed.
pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_f64).collect()
}

/// The spread of such a list.
pub(crate) fn spread(value: &Value) -> Option<Spread> {
    Spread::of(numbers(value))
}
