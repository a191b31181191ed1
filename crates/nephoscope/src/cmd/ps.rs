//! `nephoscope ps`: which VMs are watched, and what runs in one.

mod list;

use clap::Args;
use nephoscope_inventory::Report;

use crate::client::AskError;
use crate::runtime;
use crate::source::{Source, nobody, read_report};
use crate::text::{Paint, Tone, output_width, print, print_json};
use crate::view;

/// Say which VMs are watched, and what runs in one.
///
/// With a VM, or if only one is being watched: its address spaces, each with the program, package and version identified
/// in it. Several versions mean that they cannot be told apart. Without, and if several are being watched: those.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope ps                        # the VMs, or the programs of the only one\n  \
    nephoscope ps web1 --all             # also what has ended\n  \
    nephoscope ps --report web1.json     # a report that `nephoscope run --report` wrote\n  \
    nephoscope ps web1 --json | jq '.address_spaces[].program.path'")]
pub(crate) struct PsArgs {
    #[command(flatten)]
    source: Source,
    /// Also show address spaces that have ended.
    #[arg(long)]
    all: bool,
    /// Print JSON: the report as `--report` writes it; of several VMs, a list.
    #[arg(long)]
    json: bool,
}

/// Coverage gaps that are shown.
const MAX_GAPS: usize = 4;

/// Runs it.
pub(crate) fn run(args: &PsArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.source.report {
        return show(&read_report(path)?, args);
    }
    if args.source.vm.is_some() {
        let (_, mut client) = args.source.asking.connect(args.source.vm.as_deref())?;
        return show(&client.report().map_err(AskError::into_exit)?, args);
    }
    let vms = list::ask(runtime::all()?, args.source.asking.quiet());
    let is_gone = |vm: &list::Listed| vm.answer.as_ref().is_err_and(AskError::is_end);
    match vms.iter().filter(|vm| !is_gone(vm)).count() {
        0 => {
            let gone: Vec<_> = vms.into_iter().map(|listed| listed.vm).collect();
            Err(nobody(&gone))
        }
        1 => match vms.into_iter().find(|vm| !is_gone(vm)) {
            Some(only) => show(&only.answer.map_err(AskError::into_exit)?, args),
            None => Err(nobody(&[])),
        },
        _ => list::show(vms, args.json),
    }
}

fn show(report: &Report, args: &PsArgs) -> anyhow::Result<()> {
    if args.json {
        return print_json(report);
    }
    print(&inventory(report, args.all, output_width(), Paint::stdout()))
}

/// The inventory as text.
fn inventory(report: &Report, all: bool, columns: usize, paint: Paint) -> String {
    let mut out = String::new();
    let mut say = |tone: Tone, indent: usize, text: &str| {
        for line in crate::text::wrap(text, columns.saturating_sub(indent)) {
            out.push_str(&" ".repeat(indent));
            out.push_str(&paint.paint(tone, &line));
            out.push('\n');
        }
    };
    say(Tone::Strong, 0, &view::vm_line(report));
    let (tone, headline) = view::headline(&report.coverage);
    say(tone, 0, &headline);
    for gap in view::gaps(&report.coverage, MAX_GAPS) {
        say(tone, 2, &gap);
    }
    let rows = view::rows(report, all);
    let ended = view::rows(report, true).iter().filter(|row| row.ended).count();
    let ended = u64::try_from(ended)
        .unwrap_or(u64::MAX)
        .saturating_add(view::summarised(report));
    let (findings_tone, findings) = view::tally(&report.findings);
    out.push('\n');
    if rows.is_empty() {
        out.push_str("Nothing runs.\n");
    } else {
        out.push_str(&view::space_table(&rows).render(columns, paint));
    }
    if ended > 0 {
        let note = if all {
            "* ended".to_owned()
        } else {
            format!("{ended} ended: --all shows them")
        };
        out.push_str(&format!("{}\n", paint.paint(Tone::Faint, &note)));
    }
    if all && !report.ended_summary.is_empty() {
        out.push_str("\nEnded before these, by program:\n");
        out.push_str(&view::ended_table(report).render(columns, paint));
    }
    out.push('\n');
    out.push_str(&view::page_table(report).render(columns, paint));
    out.push('\n');
    out.push_str(&paint.paint(findings_tone, &findings));
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::{any_report, canned};
    use proptest::prelude::*;

    fn widest(text: &str) -> usize {
        text.lines().map(crate::text::width).max().unwrap_or(0)
    }

    #[test]
    fn a_report_is_laid_out_for_80_and_for_100_columns() {
        for columns in [80, 100] {
            let text = inventory(&canned(), true, columns, Paint::OFF);
            assert!(widest(&text) <= columns, "{text}");
            for word in [
                "COVERAGE NOT COMPLETE",
                "no monitor was attached",
                "kernel",
                "firmware",
                "/usr/sbin/nginx",
            ] {
                assert!(text.contains(word), "{word} is missing:\n{text}");
            }
        }
        let text = inventory(&canned(), true, 100, Paint::OFF);
        assert!(
            text.contains("openssl 3.0.15") && text.contains("… | 3.0.17"),
            "two versions are two:\n{text}"
        );
    }

    #[test]
    fn ended_address_spaces_are_counted_and_shown_when_asked() {
        let without = inventory(&canned(), false, 100, Paint::OFF);
        assert!(!without.contains("*\n") && without.contains("ended: --all shows them"));
        assert!(inventory(&canned(), true, 100, Paint::OFF).contains("s*\n"));
    }

    proptest! {
        #[test]
        fn no_content_makes_a_line_wider_or_reaches_the_terminal(
            report in any_report(),
            columns in 80_usize..=100,
            all: bool,
        ) {
            let text = inventory(&report, all, columns, Paint::OFF);
            prop_assert!(widest(&text) <= columns, "{text}");
            prop_assert!(text.lines().all(|line| crate::text::escape(line) == line));
        }
    }
}
