//! `nephoscope catalog verify`.

use std::process::ExitCode;

use clap::Args;

use crate::exit::Failure;
use crate::text::{escape, print, print_json};

use super::{Place, open_failed};

/// Read everything and find what is not as it was written.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nephoscope catalog verify --catalog ./cat\n\n\
    Exit code 12: something is damaged.")]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let report = nephoscope_catalog::verify(&args.place.catalog.path).map_err(|error| open_failed(&error))?;
    if args.place.json {
        print_json(&report)?;
    } else {
        for damage in &report.damage {
            print(&format!("damaged: {}\n", escape(&damage.to_string())))?;
        }
        for name in &report.left_over {
            let name = escape(name);
            print(&format!(
                "left over: {name} (an addition that was cut short; the next `catalog add` removes it)\n"
            ))?;
        }
        let verdict = if report.is_sound() {
            "sound"
        } else {
            "damaged: add its sources again into a new directory"
        };
        print(&format!(
            "{} bytes in {} files, {} objects: {verdict}\n",
            report.bytes, report.segments, report.objects
        ))?;
    }
    Ok(if report.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Failure::CatalogDamaged as u8)
    })
}
