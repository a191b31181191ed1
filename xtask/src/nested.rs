//! `cargo xtask nested -- CMD`: a command in a machine that has KVM, made of this one without any.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use nephoscope_e2e::nested::{Nested, Shape, share};
use nephoscope_e2e::{Image, Kernel};

/// Run a command in a nested machine with KVM.
///
/// QEMU's TCG emulates a processor with SVM; a guest of it (L1) is up in seconds, has /dev/kvm and stock QEMU, and the disk of
/// the Debian guest as /dev/vdb. The folder in --share is /host there. The exit code is the command's.
#[derive(Debug, Args)]
pub(crate) struct NestedArgs {
    /// L1's kernel: 6.1 or 6.12.
    #[arg(long, value_name = "VERSION", default_value = "6.1", value_parser = kernel)]
    kernel: Kernel,
    /// L1's CPUs for the command. Of several, the emulator makes one more, which the command does not run on.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = crate::arguments::vcpus)]
    smp: u32,
    /// Its clock goes by the instruction, a nanosecond each, on one CPU (QEMU's -icount): what it measures is a count.
    #[arg(long)]
    count: bool,
    /// What is /host there; a folder in the cache otherwise.
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,
    /// How long it may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = crate::arguments::some::<u64>)]
    limit: u64,
    /// The command, run by a shell.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn kernel(text: &str) -> Result<Kernel, String> {
    let found = Kernel::ALL.into_iter().find(|kernel| kernel.version() == text);
    found.ok_or_else(|| "the kernels are 6.1 and 6.12".to_owned())
}

/// Runs it.
pub(crate) fn run(arguments: &NestedArgs) -> Result<i32> {
    crate::setup::run()?;
    let nested = Nested::ensure(&Image::ensure()?)?;
    let share = match &arguments.share {
        Some(folder) => folder.clone(),
        None => share()?,
    };
    ensure!(share.is_dir(), "{} is no folder", share.display());
    let shape = Shape {
        kernel: arguments.kernel,
        smp: arguments.smp,
        counted: arguments.count,
        ..Shape::default()
    };
    let limit = Duration::from_secs(arguments.limit);
    nested.run(&shape, &share, &arguments.command.join(" "), limit, |line| {
        println!("{line}")
    })
}
