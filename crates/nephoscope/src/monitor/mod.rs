//! A running watch: the driver's events through the session, the guest's memory beside it, a socket that answers, and a
//! journal from which another watch goes on.

mod asking;
mod driver;
mod evidence;
#[cfg(test)]
mod fixture;
mod journal;
mod kernel_mapped;
mod liveness;
mod machine;
mod mapped;
mod memory;
mod paced;
mod placing;
mod pump;
mod readers;
mod report;
mod resident;
pub(crate) mod server;
mod sinks;
mod vm;
mod watch;

pub(crate) use kernel_mapped::there as kernel_there;
pub(crate) use vm::{Over, watch_vm};

use std::path::Path;
use std::sync::Arc;

use nephoscope_catalog::{Catalog, OpenError};

use crate::exit::{Failure, exit};

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
