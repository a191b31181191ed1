//! Attacks on guests under stock KVM, in the nested machine, watched by way of the kernel module.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::nested::{Shape, Stage};
use nephoscope_e2e::{Image, Kernel};

use crate::attack::Attack;
use crate::modules::Modules;
use crate::row::Row;
use crate::tools::Tools;

/// The attacks that are about code, by number: those that a driver may get wrong, whatever it learns of page tables.
const ABOUT_CODE: [u8; 15] = [1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 15, 18, 19, 20];

/// Whether an attack is to be run there.
pub fn is_about_code(attack: &dyn Attack) -> bool {
    ABOUT_CODE.contains(&attack.number())
}

/// Runs the attacks there. `program` is `nephoscope`, with its plugins and `examples/attacked` of this crate beside it.
///
/// # Errors
/// When a part cannot be built, the machine does not come up, or its kernel warns of something.
pub fn run(
    program: &Path,
    kernel: Kernel,
    attacks: &[&'static dyn Attack],
    limit: Duration,
    line: impl FnMut(&str),
) -> Result<Vec<Row>> {
    let image = Image::ensure()?;
    let shape = Shape {
        kernel,
        ..Shape::default()
    };
    let stage = Stage::set(&image, program, shape)?;
    stage.give(&program.with_file_name("examples").join("attacked"), "attacked")?;
    stage.give(Tools::ensure()?.folder(), "tools")?;
    stage.give(Modules::ensure(&image, kernel)?.folder(), "modules")?;
    stage.give(image.plants().folder(), "image/plants")?;
    // What attacks read of the guest's files is on its disk, which nobody writes to.
    std::os::unix::fs::symlink("/tmp/root", stage.at("image/root"))?;
    let names: Vec<&str> = attacks.iter().map(|attack| attack.name()).collect();
    let command = format!(
        "mkdir /tmp/root && mount -o ro,noload /dev/vdb /tmp/root || exit 94\n\
         /host/attacked /host {} {}",
        kernel.version(),
        names.join(" ")
    );
    let ended = stage.run(&command, limit, line)?;
    ensure!(
        ended.warnings.is_empty(),
        "the machine's kernel warned: {}",
        ended.warnings.join("; ")
    );
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(stage.at("rows.json"))?)?;
    rows.iter()
        .map(|row| Row::parse(row, kernel).context("a row that is none"))
        .collect()
}
