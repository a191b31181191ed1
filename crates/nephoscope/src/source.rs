//! Which VM, or which saved report, a command is about.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nephoscope_inventory::{Report, SCHEMA};

use crate::client::{AskError, Client};
use crate::exit::{Failure, exit};
use crate::runtime::{self, VmDir};
use crate::text::escape;

/// Options of every command that asks a watch.
#[derive(Clone, Debug, Args)]
pub(crate) struct Asking {
    /// How long to wait for a word of the watch.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
}

impl Asking {
    /// As a duration.
    #[must_use]
    pub(crate) fn quiet(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Connects to a VM's watch: the one named, or the only one there is.
    ///
    /// # Errors
    /// If there is none of this name, none at all, or several and none is named.
    pub(crate) fn connect(&self, name: Option<&str>) -> anyhow::Result<(VmDir, Client)> {
        let vm = match name {
            Some(name) => VmDir::named(name)?,
            None => self.only()?,
        };
        let client = Client::connect(&vm, self.quiet()).map_err(AskError::into_exit)?;
        Ok((vm, client))
    }

    /// The only VM that is watched. Those whose watch is gone do not count.
    fn only(&self) -> anyhow::Result<VmDir> {
        let (mut running, mut gone) = (Vec::new(), Vec::new());
        for vm in runtime::all()? {
            match Client::connect(&vm, self.quiet()) {
                Err(error) if error.is_end() => gone.push(vm),
                _ => running.push(vm),
            }
        }
        match running.len() {
            0 => Err(nobody(&gone)),
            1 => running.pop().ok_or_else(|| nobody(&gone)),
            _ => {
                let names: Vec<&str> = running.iter().map(|vm| vm.name.as_str()).collect();
                let message = format!("several VMs are being watched, name one: {}", names.join(", "));
                Err(exit(Failure::Usage, message))
            }
        }
    }
}

/// There is nobody to ask.
#[must_use]
pub(crate) fn nobody(gone: &[VmDir]) -> anyhow::Error {
    let message = match gone.first() {
        None => "no VM is being watched by this user: `nephoscope run` starts one".to_owned(),
        Some(vm) => format!(
            "no VM is being watched by this user; the watch of {0} is gone: if the VM still runs, \
             `nephoscope attach --name {0}` watches it again",
            vm.name
        ),
    };
    exit(Failure::NoVm, message)
}

/// The largest report that is read: whoever wrote it.
const MAX_REPORT: u64 = 1 << 30;

/// Reads a saved report.
///
/// # Errors
/// If the file cannot be read, or is no report.
pub(crate) fn read_report(path: &Path) -> anyhow::Result<Report> {
    let shown = escape(&path.to_string_lossy()).into_owned();
    let unreadable = |error: std::io::Error| {
        let failure = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Failure::Permission,
            _ => Failure::Usage,
        };
        exit(
            failure,
            format!("{shown}: {error}: give a file that `--report` wrote"),
        )
    };
    let not_understood = |why: String| {
        let message =
            format!("{shown} is no report of this version ({why}): give a file that `--report` wrote");
        exit(Failure::NotUnderstood, message)
    };
    let too_long = || not_understood(format!("longer than {} MiB", MAX_REPORT >> 20));
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().is_ok_and(|about| about.len() > MAX_REPORT) {
        return Err(too_long());
    }
    // A pipe does not say how much will come.
    let mut text = Vec::new();
    let read = file.take(MAX_REPORT + 1).read_to_end(&mut text);
    if read.map_err(unreadable)? as u64 > MAX_REPORT {
        return Err(too_long());
    }
    let report: Report = serde_json::from_slice(&text).map_err(|error| not_understood(error.to_string()))?;
    if report.schema != SCHEMA {
        return Err(not_understood(format!("schema {}", escape(&report.schema))));
    }
    Ok(report)
}

/// A VM, or a saved report.
#[derive(Clone, Debug, Args)]
pub(crate) struct Source {
    /// The VM. Not needed if only one is being watched.
    #[arg(value_name = "VM")]
    pub(crate) vm: Option<String>,
    /// Read a saved report instead of asking a watch.
    #[arg(long, value_name = "FILE", conflicts_with = "vm")]
    pub(crate) report: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_report_is_the_longest_report_that_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refusal = |len| {
            file.as_file().set_len(len).unwrap();
            read_report(file.path()).unwrap_err().to_string()
        };
        assert!(refusal(MAX_REPORT + 1).contains("longer than 1024 MiB"));
        assert!(!refusal(1).contains("longer"));
    }
}
