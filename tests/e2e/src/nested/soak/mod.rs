//! VMs that are started, watched and ended in random order on a kernel that looks for mistakes, while the module comes and goes.
//!
//! ```text
//!  seed ── plan ──► waves of VMs ──► in L1, a debug kernel, for each wave:
//!    load ─► all VMs of it at once ─► each ends in its way ─► unload, as soon as nobody watches
//!            rmmod meanwhile: refused                         who runs on does so, and is watched again after the next load
//!  in the end: the kernel's log, lockdep, kmemleak, what is held
//! ```
//!
//! [`Soak`] runs here and [`soak_inside`] in L1.

mod guest;
mod health;
mod inside;
mod module;
mod plan;
mod vm;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::{Shape, Stage};
use crate::Image;
use crate::initramfs::Archive;
use crate::kbuild::DebugKernel;

pub use inside::soak_inside;

/// L1's memory: KASAN takes an eighth of it, and keeps for a while what is freed.
const MEMORY_MIB: u32 = 6144;

/// The log holds all that is said; a kernel that is emulated is not stalled when it is slow.
const CMDLINE: &str = "loglevel=5 log_buf_len=16M rcupdate.rcu_cpu_stall_timeout=180 kmemleak=on";

/// What is run.
#[derive(Debug, Clone)]
pub struct Soak {
    /// From which all follows.
    pub seed: u64,
    /// How many VMs.
    pub vms: usize,
    /// On a kernel that looks for mistakes, not on the guests' own.
    pub debug: bool,
    /// How long it may take.
    pub limit: Duration,
    /// Where the kernel's log is put.
    pub log: PathBuf,
}

impl Soak {
    /// Runs it. `program` is `nephoscope`, with its plugins and `examples/soak` of this crate beside it; `line` is given what L1
    /// says. In what is given back, `wrong` lists all that is not as it has to be.
    ///
    /// # Errors
    /// When a part cannot be built, or the machine does not come up or does not end.
    pub fn run(&self, image: &Image, program: &Path, line: impl FnMut(&str)) -> Result<Value> {
        let debug = self.debug.then(DebugKernel::ensure).transpose()?;
        let shape = Shape {
            debug,
            memory_mib: MEMORY_MIB,
            cmdline: CMDLINE.to_owned(),
            ..Shape::default()
        };
        let stage = Stage::with(image, program, shape, "soak")?;
        let mut archive = Archive::with_busybox()?;
        archive.file("init", true, guest::init().as_bytes());
        archive.write(&stage.at("guest-initramfs"))?;
        let kernel = if self.debug { "debug" } else { "stock" };
        let script = format!(
            "export HOME=/tmp\n/host/soak /host {} {} {kernel} || exit 92",
            self.seed, self.vms
        );
        let ended = stage.script(&script, self.limit, line);
        // Also of one that did not come to its end.
        if stage.at("dmesg").exists() {
            fs::copy(stage.at("dmesg"), &self.log)?;
        }
        ended?;
        Ok(serde_json::from_slice(&fs::read(stage.at("soak.json"))?)?)
    }
}
