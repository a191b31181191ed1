//! `--catalog`, which means the same wherever it is.

use std::path::PathBuf;

use clap::Args;

/// Where the catalog is.
#[derive(Debug, Args)]
pub(crate) struct CatalogDir {
    /// The catalog.
    #[arg(
        id = "catalog",
        long = "catalog",
        value_name = "DIR",
        env = "NEPHOSCOPE_CATALOG",
        default_value = "/var/lib/nephoscope/catalog"
    )]
    pub(crate) path: PathBuf,
}
