//! Boots a Linux kernel under TCG and checks every page of its text, and of the modules it loaded, against the
//! recipes of the files it was booted from.
//!
//! ```text
//! kernel_guest --kernel VMLINUZ --modules DIR [--load NAME]… [--cpu MODEL] [--smp N] [--append ARGS]
//!              [--busybox FILE] [--stop-at TEXT] [--mutate]
//! ```
//!
//! `DIR` is `/lib/modules/RELEASE` of the kernel's package. `--stop-at` checks the moment at which the console shows
//! a text (init text is freed when the boot ends) instead of the end of the init script. `--mutate` also flips
//! bytes and retargets branches in the captured pages and counts how many of those go unseen.
//!
//! Exit code 1: a page differs, or a mutation went unseen.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "helpers of tests are tests: this checks recipes against a guest"
)]

mod check;
mod cpio;
mod guest;
mod memory;
mod modules;
mod mutate;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// What the command line asks for.
pub(crate) struct Options {
    pub(crate) kernel: PathBuf,
    pub(crate) modules: Option<PathBuf>,
    pub(crate) load: Vec<String>,
    pub(crate) cpu: String,
    pub(crate) smp: String,
    pub(crate) append: String,
    pub(crate) busybox: PathBuf,
    pub(crate) stop_at: Option<String>,
    pub(crate) mutate: bool,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self {
            kernel: PathBuf::new(),
            modules: None,
            load: Vec::new(),
            cpu: "qemu64".into(),
            smp: "1".into(),
            append: String::new(),
            busybox: "/usr/bin/busybox".into(),
            stop_at: None,
            mutate: false,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            if arg == "--mutate" {
                options.mutate = true;
                continue;
            }
            let value = args.next().with_context(|| format!("{arg} needs a value"))?;
            match arg.as_str() {
                "--kernel" => options.kernel = value.into(),
                "--modules" => options.modules = Some(value.into()),
                "--load" => options.load.extend(value.split(',').map(str::to_owned)),
                "--cpu" => options.cpu = value,
                "--smp" => options.smp = value,
                "--append" => options.append = value,
                "--busybox" => options.busybox = value.into(),
                "--stop-at" => options.stop_at = Some(value),
                _ => bail!("unknown argument {arg}"),
            }
        }
        Ok(options)
    }
}

fn main() -> Result<ExitCode> {
    let options = Options::parse()?;
    let modules = modules::in_order(&options)?;
    let mut snapshot = guest::boot(&options, &modules)?;
    let good = check::check(&options, &modules, &mut snapshot)?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
