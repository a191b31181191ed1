//! `bench/record/fuzz.md`: its table is made anew from the tally; what people wrote below it stays.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::tally::{self, Tally};
use super::targets::{HANG_SECONDS, PROCESS_MIB, TARGETS};
use crate::bench::machine;

/// What is below this line is not the record's to change.
const FOUND: &str = "\n## What was found on the way\n";

/// Writes it.
pub(crate) fn write(file: &Path) -> Result<()> {
    let old = fs::read_to_string(file).unwrap_or_default();
    let below = old.find(FOUND).and_then(|at| old.get(at..)).unwrap_or(FOUND);
    let tally = Tally::beside(file);
    let mut text = String::from("# Hostile bytes\n\n");
    text.push_str(
        "What each fuzz target has behind it, all runs together. Every edge of the code that an input reaches steers the \
         next\ninputs (libFuzzer), debug assertions and overflow checks are on, and every target holds its answers to what \
         must be\ntrue of any (`fuzz/src`).\n\n",
    );
    writeln!(text, "- Machine: {}.", machine::describe()?)?;
    writeln!(
        text,
        "- Date: {}. Commit: {}.",
        machine::date()?,
        tally::commit()?
    )?;
    writeln!(
        text,
        "- Command: `cargo xtask fuzz --executions 10000000 --seconds 7200 --record bench/record/fuzz.md`. Each run and its\n  \
         commit stand in `fuzz.tsv`; the next goes on from there. Other work ran on the machines meanwhile, so seconds\n  are \
         an upper bound."
    )?;
    writeln!(
        text,
        "- Bounds: an input may take {HANG_SECONDS} s, a process {PROCESS_MIB} MiB, the heap what `fuzz/src/bin/TARGET.rs` \
         says.\n"
    )?;
    text.push_str("| target | what it reads | executions | of them by edges alone | seconds | runs that found something |\n|---|---|---:|---:|---:|---:|\n");
    for target in TARGETS {
        let sum = tally.of(&target)?;
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            target.name,
            target.reads,
            grouped(sum.executions),
            grouped(sum.by_edges),
            grouped(sum.seconds),
            sum.found
        )?;
    }
    text.push_str(below);
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_parted() {
        assert_eq!(
            ["7", "1,000", "12,345,678"].map(String::from),
            [7, 1000, 12_345_678].map(grouped)
        );
    }
}
