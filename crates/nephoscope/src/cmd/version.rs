//! `nephoscope version`.

use crate::text::{print, print_json};
use clap::Args;

/// Versions of the program and of what it works with.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nephoscope version\n  nephoscope version --json")]
pub(crate) struct VersionArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints them.
pub(crate) fn run(args: VersionArgs) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    if args.json {
        let value = serde_json::json!({
            "nephoscope": version,
            "wire": nephoscope_wire::WIRE_VERSION,
            "report": nephoscope_inventory::SCHEMA,
            "plugin_apis": [4, 5, 6, 7],
        });
        print_json(&value)?;
    } else {
        print(&format!(
            "nephoscope {version}\nplugin protocol {}, report {}\nQEMU plugin APIs 4, 5, 6 and 7 (QEMU 9.2 to 11.1)\n",
            nephoscope_wire::WIRE_VERSION,
            nephoscope_inventory::SCHEMA
        ))?;
    }
    Ok(())
}
