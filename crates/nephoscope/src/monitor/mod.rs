//! A running watch: the driver's events through the session, the guest's memory beside it, and a socket that answers.

mod evidence;
mod kernel_mapped;
mod liveness;
mod mapped;
mod memory;
mod placing;
pub(crate) mod server;
mod sinks;
mod watch;

pub(crate) use watch::{Ending, Watch};

use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nephoscope_catalog::{Catalog, OpenError};
use nephoscope_drivers::{QemuPlugin, QemuPluginError};
use nephoscope_inventory::Report;

use crate::exit::{Failure, exit};
use crate::privilege::ReportFile;

/// Opens a catalog; what is wrong with it decides the exit code.
pub(crate) fn open_catalog(dir: &Path) -> anyhow::Result<Arc<Catalog>> {
    Catalog::open(dir).map(Arc::new).map_err(|error| {
        let failure = match error {
            OpenError::Missing(_) | OpenError::NotACatalog(_) => Failure::NoCatalog,
            OpenError::OtherVersion { .. } => Failure::CatalogVersion,
            OpenError::Damaged { .. } => Failure::CatalogDamaged,
            _ => Failure::CatalogAccess,
        };
        exit(failure, error.to_string())
    })
}

/// Attaches to a plugin.
pub(crate) fn attach(socket: &Path) -> Result<QemuPlugin, QemuPluginError> {
    QemuPlugin::attach(socket)
}

/// Attaches to the plugin of a QEMU that was just started. `None`: QEMU ended first.
pub(crate) fn attach_to_child(
    socket: &Path,
    child: &mut Child,
    timeout: Duration,
) -> anyhow::Result<Option<QemuPlugin>> {
    let deadline = Instant::now() + timeout;
    loop {
        match QemuPlugin::attach(socket) {
            Ok(driver) => return Ok(Some(driver)),
            Err(QemuPluginError::Connect { .. }) if Instant::now() < deadline => {}
            Err(error) => return Err(error).context("the VM runs unwatched"),
        }
        if child.try_wait().context("waiting for QEMU")?.is_some() {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Writes a report whole or not at all.
pub(crate) fn write_report(report: &Report, file: &mut ReportFile) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(report)?;
    text.push(b'\n');
    file.write(&text)
}
