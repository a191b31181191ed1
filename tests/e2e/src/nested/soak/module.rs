//! The module in the nested machine: it comes, it goes, and it stays while somebody watches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::command::output_of;

const NAME: &str = "nephoscope_kvm";
const DEVICE: &str = "/dev/nephoscope-kvm";

/// How long watches may take to end when nothing is left that they could watch.
const LEAVES: Duration = Duration::from_secs(300);

/// The module's file, and what was done with it.
#[derive(Debug)]
pub(super) struct Module {
    file: PathBuf,
    loads: u32,
    unloads: u32,
    /// Unloads while VMs that nobody watched ran on.
    beside: u32,
    refused: u32,
}

impl Module {
    pub(super) fn new(file: PathBuf) -> Self {
        Module {
            file,
            loads: 0,
            unloads: 0,
            beside: 0,
            refused: 0,
        }
    }

    pub(super) fn load(&mut self) -> Result<()> {
        output_of(Command::new("insmod").arg(&self.file)).context("the module cannot be loaded")?;
        ensure!(
            Path::new(DEVICE).exists(),
            "the module is loaded and there is no {DEVICE}"
        );
        self.loads += 1;
        Ok(())
    }

    /// Waits until nobody watches, and unloads at that moment. `running`: VMs that run on.
    pub(super) fn unload(&mut self, running: usize) -> Result<()> {
        let deadline = Instant::now() + LEAVES;
        while watches() > 0 {
            ensure!(
                Instant::now() < deadline,
                "{} watches are left {LEAVES:?} after everything that could watch has ended",
                watches()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        output_of(Command::new("rmmod").arg(NAME)).context("nobody watches, and the module stays")?;
        ensure!(
            !Path::new(DEVICE).exists(),
            "the module is gone and {DEVICE} is not"
        );
        self.unloads += 1;
        self.beside += u32::from(running > 0);
        Ok(())
    }

    /// Tries to unload while somebody watches. That has to be refused; if the last watch ended just before, it is loaded again.
    pub(super) fn must_stay(&mut self) -> Result<()> {
        if watches() == 0 {
            return Ok(());
        }
        let tried = output_of(Command::new("rmmod").arg(NAME));
        match tried {
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(
                    said.contains("in use") || said.contains("temporarily unavailable"),
                    "the module is not unloaded while somebody watches, but for another reason: {said}"
                );
                ensure!(
                    Path::new(DEVICE).exists(),
                    "unloading was refused, and {DEVICE} is gone"
                );
                self.refused += 1;
                Ok(())
            }
            Ok(_) => {
                self.unloads += 1;
                self.load()
            }
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "loads": self.loads,
            "unloads": self.unloads,
            "unloads_beside_running_vms": self.beside,
            "unloads_refused_while_watched": self.refused,
        })
    }
}

/// How many hold the module.
pub(super) fn watches() -> u32 {
    references(NAME).unwrap_or(0)
}

/// How many hold a module; nothing if it is not loaded.
pub(super) fn references(module: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/sys/module/{module}/refcnt")).ok()?;
    text.trim().parse().ok()
}
