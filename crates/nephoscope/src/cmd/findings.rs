//! `nephoscope findings`: what was concluded.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use nephoscope_finding::Finding;
use nephoscope_inventory::Report;

use crate::client::{AskError, Client};
use crate::source::{Source, read_report};
use crate::text::{Paint, Tone, output_width, print, print_json};
use crate::view;

/// List what was concluded.
///
/// One line each: number, time since the watch began, severity, address space, and the conclusion.
///
/// `nephoscope why VM f7` shows what a finding rests on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope findings web1\n  \
    nephoscope findings web1 --follow            # until the VM ends\n  \
    nephoscope findings --report web1.json       # of a VM that has ended\n  \
    nephoscope findings web1 --json | jq 'select(.severity == \"high\")'")]
pub(crate) struct FindingsArgs {
    #[command(flatten)]
    source: Source,
    /// Go on with new ones until the VM ends.
    #[arg(long, conflicts_with = "report")]
    follow: bool,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Between two questions for new ones.
const POLL: Duration = Duration::from_millis(200);

/// Runs it.
pub(crate) fn run(args: &FindingsArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.source.report {
        let report = read_report(path)?;
        return show(&report.findings, &programs(&report), args.json, true);
    }
    let (vm, mut client) = args.source.asking.connect(args.source.vm.as_deref())?;
    let mut last = 0;
    loop {
        let (findings, programs) = match news(&mut client, last, args.json) {
            Ok(news) => news,
            Err(error) if args.follow && error.is_end() => {
                // What was concluded since the last question is not lost, but it is not here.
                eprintln!(
                    "nephoscope: {} ended; what it was last found to do is in its report",
                    vm.name
                );
                return Ok(());
            }
            Err(error) => return Err(error.into_exit()),
        };
        show(&findings, &programs, args.json, !args.follow)?;
        if !args.follow {
            return Ok(());
        }
        last = findings.iter().map(|finding| finding.id).fold(last, u64::max);
        std::thread::sleep(POLL);
    }
}

type Programs = BTreeMap<u32, String>;

/// New findings, and the names of the address spaces they are about.
fn news(client: &mut Client, after: u64, json: bool) -> Result<(Vec<Finding>, Programs), AskError> {
    let findings = client.findings(after)?;
    if json || findings.is_empty() {
        return Ok((findings, Programs::new()));
    }
    let report = client.report()?;
    Ok((findings, programs(&report)))
}

fn programs(report: &Report) -> Programs {
    let about: std::collections::BTreeSet<u32> = report
        .findings
        .iter()
        .filter_map(|finding| finding.address_space)
        .collect();
    let spaces = report.address_spaces.iter().map(|space| space.id.0);
    spaces
        .filter(|id| about.contains(id))
        .map(|id| (id, view::space_name(report, id)))
        .collect()
}

/// Prints them. `say_none`: an empty list is said to be one.
fn show(findings: &[Finding], programs: &Programs, json: bool, say_none: bool) -> anyhow::Result<()> {
    let paint = Paint::stdout();
    // Lines are for people and wrapped on a terminal; in a pipe a finding is one line.
    let columns = std::io::IsTerminal::is_terminal(&std::io::stdout()).then(output_width);
    if json {
        return findings.iter().try_for_each(print_json);
    }
    let mut out = String::new();
    for finding in findings {
        let unnamed = finding.address_space.map(|id| id.to_string());
        let space = finding
            .address_space
            .and_then(|id| programs.get(&id))
            .or(unnamed.as_ref());
        out.push_str(&view::line(finding, space.map(String::as_str), columns, paint));
    }
    if findings.is_empty() && say_none {
        out.push_str(&paint.paint(Tone::Faint, "no findings"));
        out.push('\n');
    }
    print(&out)
}
