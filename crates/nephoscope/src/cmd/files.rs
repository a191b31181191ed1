//! `nephoscope files`: which files were read, and by whom.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use nephoscope_inventory::{FileReport, Report};

use crate::client::AskError;
use crate::source::{Source, read_report};
use crate::text::{Paint, Tone, output_width, print, print_json};
use crate::view;

/// List the files that interpreters read, and who read them.
///
/// Of a VM that was started with `nephoscope run --watch-files`: scripts, classes and what holds them, each with what it is of and the
/// programs that read it. A file that the catalog does not know, or only in part, is marked.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope files web1\n  \
    nephoscope files web1 --program php          # read by programs with that in their path\n  \
    nephoscope files web1 --follow               # until the VM ends\n  \
    nephoscope files --report web1.json          # of a VM that has ended\n  \
    nephoscope files web1 --json | jq 'select(.verdict != \"known\").path'")]
pub(crate) struct FilesArgs {
    #[command(flatten)]
    source: Source,
    /// Only files that a program read which has this in its path.
    #[arg(long, value_name = "TEXT")]
    program: Option<String>,
    /// Go on with files that are read for the first time, until the VM ends.
    #[arg(long, conflicts_with = "report")]
    follow: bool,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Between two questions for new ones.
const POLL: Duration = Duration::from_millis(500);

/// Runs it.
pub(crate) fn run(args: &FilesArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.source.report {
        let report = read_report(path)?;
        show(&chosen(&report, args), args, true)?;
        return missing(&report, args);
    }
    let (vm, mut client) = args.source.asking.connect(args.source.vm.as_deref())?;
    let mut said = BTreeSet::new();
    loop {
        let report = match client.report() {
            Ok(report) => report,
            Err(error) if args.follow && error.is_end() => {
                eprintln!(
                    "nephoscope: {} ended; what was read last is in its report",
                    vm.name
                );
                return Ok(());
            }
            Err(error) => return Err(AskError::into_exit(error)),
        };
        let mut files = chosen(&report, args);
        files.retain(|file| said.insert((file.disk, file.partition, file.inode, file.generation)));
        show(&files, args, !args.follow)?;
        if !args.follow {
            return missing(&report, args);
        }
        std::thread::sleep(POLL);
    }
}

fn chosen(report: &Report, args: &FilesArgs) -> Vec<FileReport> {
    let is_by = |file: &&FileReport| {
        let Some(wanted) = &args.program else { return true };
        let mut programs = file.readers.iter().filter_map(|reader| reader.program.as_deref());
        programs.any(|program| program.contains(wanted.as_str()))
    };
    report.files.iter().filter(is_by).cloned().collect()
}

/// Says what is missing in the list.
fn missing(report: &Report, args: &FilesArgs) -> anyhow::Result<()> {
    match &report.coverage.files {
        Some(coverage) if !coverage.complete && !args.json => {
            print(&view::files_missing(coverage, output_width(), Paint::stdout()))
        }
        _ => Ok(()),
    }
}

/// Prints them. `say_none`: an empty list is said to be one.
fn show(files: &[FileReport], args: &FilesArgs, say_none: bool) -> anyhow::Result<()> {
    if args.json {
        return files.iter().try_for_each(print_json);
    }
    let paint = Paint::stdout();
    if files.is_empty() {
        let none = "no files: of a VM that is not started with --watch-files none are seen";
        return if say_none {
            print(&format!("{}\n", paint.paint(Tone::Faint, none)))
        } else {
            Ok(())
        };
    }
    print(&view::file_table(files).render(output_width(), paint))
}
