//! The guest's job in a nested machine, watched by way of the kernel module.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::{Shape, Stage};
use crate::{Image, Kernel, Truth};

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
    line: impl FnMut(&str),
) -> Result<Seen> {
    let stage = Stage::with(image, program, Shape::of(kernel), "inside")?;
    let command = format!("/host/inside /host {} {vcpus} guard", kernel.version());
    let ended = stage.run(&command, limit, line)?;
    let report: Value = serde_json::from_slice(&fs::read(stage.at("report.json"))?)?;
    crate::report::validate(&report)?;
    let truth = Truth::parse(&fs::read_to_string(stage.at("truth"))?)?;
    Ok(Seen {
        report,
        truth,
        warnings: ended.warnings,
    })
}
