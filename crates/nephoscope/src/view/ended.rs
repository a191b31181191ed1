//! Address spaces that ended long ago, by program.

use nephoscope_inventory::{Report, SummaryReport};

use super::candidates::alternatives;
use super::spaces::program_label;
use crate::text::{Cell, Column, Table, Tone, count};

/// How many address spaces are only counted.
#[must_use]
pub(crate) fn summarised(report: &Report) -> u64 {
    let counts = report.ended_summary.iter().map(|summary| summary.count);
    counts.fold(0, u64::saturating_add)
}

/// Them as a table.
#[must_use]
pub(crate) fn ended_table(report: &Report) -> Table {
    let mut table = Table::new([
        Column::flexible("PROGRAM", 2),
        Column::flexible("PACKAGE", 3),
        Column::right("ENDED"),
        Column::right("PAGES"),
        Column::left("VERDICT"),
    ]);
    for summary in &report.ended_summary {
        let program = summary.program.as_ref();
        let (tone, verdict) = verdict(summary);
        table.push(vec![
            Cell::path(program_label(summary.kind, program)),
            Cell::alternatives(program.map_or(Vec::new(), |program| alternatives(&program.candidates))),
            Cell::text(count(summary.count)),
            Cell::text(count(summary.pages.captured)),
            Cell::text(verdict).toned(tone),
        ]);
    }
    table
}

fn verdict(summary: &SummaryReport) -> (Tone, String) {
    match (summary.pages.modified, summary.pages.unknown) {
        (0, 0) => (Tone::Plain, "identified".to_owned()),
        (0, unknown) => (Tone::Warn, format!("{unknown} unknown")),
        (modified, 0) => (Tone::Bad, format!("{modified} modified")),
        (modified, unknown) => (Tone::Bad, format!("{modified} modified, {unknown} unknown")),
    }
}
