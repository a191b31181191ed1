//! `nephoscope catalog add`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nephoscope_catalog::{Adder, Summary};

use crate::exit::Failure;
use crate::text::{escape, print, print_json};

use super::{Place, add_failed};

/// Take in packages, root trees, kernels, firmware and programs.
///
/// A PATH is a `.deb`, a directory with packages or loose files, the root of an installed system (its dpkg database
/// says who owns what), a kernel image or module, a firmware image, or a program. What a file is, its contents say.
/// The catalog is changed at once at the end, or not at all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope catalog add --catalog ./cat bash_5.2_amd64.deb ./more-debs\n  \
    nephoscope catalog add --catalog ./cat /srv/guest-root /usr/share/seabios\n\n\
    Exit code 14: some inputs were refused; everything else was added.")]
pub(super) struct AddArgs {
    #[command(flatten)]
    place: Place,
    /// What to take in.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Work with so many threads instead of one per core.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Refusals that are shown to people; JSON has up to a thousand.
const SHOWN: usize = 20;

pub(super) fn run(args: &AddArgs) -> anyhow::Result<ExitCode> {
    let bar = bar(args.place.json);
    let shown = bar.clone();
    let mut adder = Adder::new(&args.place.catalog.path)
        .map_err(|error| add_failed(&error))?
        .progress(move |progress| {
            shown.set_length(progress.total);
            shown.set_position(progress.done);
            shown.set_message(escape(&progress.input).into_owned());
        });
    if let Some(threads) = args.threads {
        adder = adder.threads(threads);
    }
    adder.add(&args.paths).map_err(|error| add_failed(&error))?;
    bar.set_message("writing");
    let summary = adder.commit().map_err(|error| add_failed(&error))?;
    bar.finish_and_clear();
    if args.place.json {
        print_json(&summary)?;
    } else {
        show(&summary, &args.place)?;
    }
    let refused = summary.refused_total > 0;
    Ok(if refused {
        ExitCode::from(Failure::Refused as u8)
    } else {
        ExitCode::SUCCESS
    })
}

/// On standard error, and only if somebody watches it.
fn bar(json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
    let style =
        ProgressStyle::with_template("{bar:30} {percent:>3}% {bytes_per_sec:>12} {eta:>4} {wide_msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(summary: &Summary, place: &Place) -> anyhow::Result<()> {
    for refusal in summary.refused.iter().take(SHOWN) {
        let within = if refusal.path.is_empty() || refusal.path == refusal.input {
            String::new()
        } else {
            format!(": {}", refusal.path)
        };
        let line = format!("{}{within}: {}", refusal.input, refusal.reason);
        eprintln!("refused {}", escape(&line));
    }
    let hidden = summary
        .refused_total
        .saturating_sub(summary.refused.len().min(SHOWN) as u64);
    if hidden > 0 {
        eprintln!("refused {hidden} more; --json names them");
    }
    let mut text = format!(
        "{} packages, {} files: {} hold code, {} do not, {} refused\n",
        summary.packages, summary.files, summary.recognised, summary.no_code, summary.refused_total
    );
    if summary.altered > 0 {
        text.push_str(&format!(
            "{} files are not as their package brought them: kept as files outside any package\n",
            summary.altered
        ));
    }
    if summary.changed {
        text.push_str(&format!(
            "{}: {} new files, {} new places\n",
            place.catalog.path.display(),
            summary.objects_added,
            summary.placements_added
        ));
    } else {
        text.push_str(&format!(
            "{}: nothing new, unchanged\n",
            place.catalog.path.display()
        ));
    }
    print(&text)
}
