//! `nephoscope catalog info`.

use std::process::ExitCode;

use clap::Args;

use crate::text::{print, print_json};

use super::{Place, read_failed};

/// Say how much is in a catalog.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nephoscope catalog info\n  nephoscope catalog info --catalog ./cat --json"
)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &InfoArgs) -> anyhow::Result<ExitCode> {
    let info = args.place.open()?.info().map_err(|error| read_failed(&error))?;
    if args.place.json {
        print_json(&info)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![("files with code".to_owned(), info.objects)];
    for (kind, count) in &info.kinds {
        let kind = serde_json::to_value(kind)?;
        let kind = kind.as_str().unwrap_or_default().replace('_', " ");
        rows.push((format!("  {kind}"), *count));
    }
    rows.push(("packages and other sources".to_owned(), info.sources));
    rows.push(("places of files".to_owned(), info.placements));
    rows.push(("pages".to_owned(), info.pages));
    rows.push(("content windows".to_owned(), info.windows));
    rows.push((
        "left out as too common".to_owned(),
        info.pages_left_out + info.windows_left_out,
    ));
    rows.push(("files on disk".to_owned(), info.segments));
    rows.push(("bytes on disk".to_owned(), info.bytes));
    let lines = rows
        .iter()
        .map(|(name, count)| format!("{name:<28} {count:>14}\n"));
    print(&lines.collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}
