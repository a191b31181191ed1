//! `nephoscope why`: the evidence for a page or a finding.

mod disassembly;
mod evidence;
mod hunks;
mod places;

use clap::Args;
use nephoscope_finding::Finding;

use crate::client::{AskError, Client};
use crate::control::PageEvidence;
use crate::exit::{Failure, exit};
use crate::source::Asking;
use crate::text::{Paint, escape_lines, output_width, print, print_json};
use crate::view;

/// Show the evidence for a page or a finding.
///
/// For a modified page: the nearest file, every byte that differs, and the instructions before and after. For an unknown
/// one: what is known of where it came from, and the instructions that ran first. Reports and findings name pages by
/// number.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope why web1 f7               # the page that finding 7 rests on\n  \
    nephoscope why web1 p123 --all       # page 123, with every file it may be of\n  \
    nephoscope why web1 p9 --bits 16     # firmware, read as 16-bit code\n  \
    nephoscope why web1 f7 --json | jq -r .page.bytes | xxd -r -p > page.bin\n\n\
    Exit code 32: there is no such page or finding.")]
pub(crate) struct WhyArgs {
    /// The VM.
    #[arg(value_name = "VM")]
    vm: String,
    /// A page (`p123` or `123`), or a finding (`f7`).
    #[arg(value_name = "PAGE|FINDING", value_parser = item)]
    item: Item,
    /// Show every file it may be of, and everything that ran it.
    #[arg(long)]
    all: bool,
    /// Print JSON: an object of `finding` and `page`.
    #[arg(long)]
    json: bool,
    /// Decode as code of so many bits, whatever the vCPU was set to.
    #[arg(long, value_name = "BITS", value_parser = ["16", "32", "64"])]
    bits: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Item {
    Page(u64),
    Finding(u64),
}

fn item(text: &str) -> Result<Item, String> {
    let number = |digits: &str| {
        digits
            .parse()
            .map_err(|_| "give a page, such as p123, or a finding, such as f7".to_owned())
    };
    match text.split_at_checked(1) {
        Some(("f", digits)) => number(digits).map(Item::Finding),
        Some(("p", digits)) => number(digits).map(Item::Page),
        _ => number(text).map(Item::Page),
    }
}

/// The evidence as it is shown, for `fuzz`.
#[cfg(fuzzing)]
pub(crate) fn shown(page: &PageEvidence, report: &nephoscope_inventory::Report, columns: usize) -> String {
    let view = evidence::View {
        page,
        report,
        all: columns.is_multiple_of(2),
        bits: None,
        columns,
        paint: Paint::OFF,
    };
    view.text()
}

/// Runs it.
pub(crate) fn run(args: &WhyArgs) -> anyhow::Result<()> {
    let (_, mut client) = args.asking.connect(Some(&args.vm))?;
    let (finding, page) = ask(&mut client, args.item, &args.vm)?;
    if args.json {
        return print_json(&serde_json::json!({"finding": finding, "page": page}));
    }
    let report = client.report().map_err(AskError::into_exit)?;
    let (columns, paint) = (output_width(), Paint::stdout());
    let mut out = String::new();
    if let Some(finding) = &finding {
        let space = finding.address_space.map(|id| view::space_name(&report, id));
        out.push_str(&view::line(finding, space.as_deref(), Some(columns), paint));
        out.push('\n');
    }
    match (&page, &finding) {
        (Some(page), _) => {
            let bits = args.bits.as_deref().and_then(|bits| bits.parse().ok());
            let view = evidence::View {
                page,
                report: &report,
                all: args.all,
                bits,
                columns,
                paint,
            };
            out.push_str(&view.text());
        }
        (None, Some(finding)) => out.push_str(&plain_evidence(finding, columns)?),
        (None, None) => {}
    }
    print(&out)
}

fn ask(client: &mut Client, item: Item, vm: &str) -> anyhow::Result<(Option<Finding>, Option<PageEvidence>)> {
    let id = match item {
        Item::Page(page) => {
            let page = client.page(page).map_err(|error| match error {
                AskError::Nothing(why) => exit(
                    Failure::NoSuchItem,
                    format!("{why}: pages are in `nephoscope ps {vm} --json`"),
                ),
                other => other.into_exit(),
            })?;
            return Ok((None, Some(page)));
        }
        Item::Finding(id) => id,
    };
    let findings = client
        .findings(id.saturating_sub(1))
        .map_err(AskError::into_exit)?;
    let finding = findings
        .into_iter()
        .find(|finding| finding.id == id)
        .ok_or_else(|| {
            let message = format!("{vm:?} has no finding f{id}: `nephoscope findings {vm}` lists them");
            exit(Failure::NoSuchItem, message)
        })?;
    let page = finding.evidence.get("page").and_then(serde_json::Value::as_u64);
    let page = page
        .map(|page| client.page(page))
        .transpose()
        .map_err(AskError::into_exit)?;
    Ok((Some(finding), page))
}

/// A finding that is not about a page: its evidence as it is.
fn plain_evidence(finding: &Finding, columns: usize) -> anyhow::Result<String> {
    let pretty = serde_json::to_string_pretty(&finding.evidence)?;
    let lines: Vec<String> = escape_lines(&pretty)
        .flat_map(|line| crate::text::wrap(&line, columns))
        .collect();
    Ok(format!("{}\n", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_findings_are_told_apart_by_their_letter() {
        assert_eq!(item("p123"), Ok(Item::Page(123)));
        assert_eq!(item("123"), Ok(Item::Page(123)));
        assert_eq!(item("f7"), Ok(Item::Finding(7)));
        for wrong in ["", "p", "f", "x7", "f-1", "\u{e9}7", "p99999999999999999999999"] {
            assert!(item(wrong).is_err(), "{wrong}");
        }
    }
}
