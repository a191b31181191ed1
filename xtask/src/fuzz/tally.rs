//! What all runs so far come to: one line for each, in the cache, never rewritten.
//!
//! ```text
//! target ⇥ executions ⇥ seconds ⇥ commit ⇥ what was found, or -
//! ```

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nephoscope_e2e::cache;
use nephoscope_e2e::command::output_of;

use super::campaign::Outcome;
use super::targets::Target;
use crate::build;

/// All runs of one target.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) executions: u64,
    pub(crate) seconds: u64,
    /// Runs that ended with a harmful input.
    pub(crate) found: u64,
}

fn file() -> Result<PathBuf> {
    Ok(cache::folder()?.join("fuzz/tally.tsv"))
}

/// Adds a run.
pub(crate) fn add(outcome: &Outcome) -> Result<()> {
    let file = file()?;
    let mut lines = File::options()
        .create(true)
        .append(true)
        .open(&file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    writeln!(
        lines,
        "{}\t{}\t{:.0}\t{}\t{}",
        outcome.target,
        outcome.executions,
        outcome.seconds,
        commit()?,
        outcome
            .harmful
            .as_deref()
            .unwrap_or("-")
            .replace(['\t', '\n'], " ")
    )?;
    Ok(())
}

/// What a target has behind it.
pub(crate) fn of(target: &Target) -> Result<Sum> {
    let file = file()?;
    if !file.exists() {
        return Ok(Sum::default());
    }
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(sum(&text, target.name))
}

fn sum(text: &str, target: &str) -> Sum {
    let mut sum = Sum::default();
    for line in text.lines() {
        let mut words = line.split('\t');
        if words.next() != Some(target) {
            continue;
        }
        let mut number = || {
            words
                .next()
                .and_then(|word| word.parse::<u64>().ok())
                .unwrap_or(0)
        };
        sum.executions += number();
        sum.seconds += number();
        let found = words.nth(1).is_some_and(|found| found != "-");
        sum.found += u64::from(found);
    }
    sum
}

/// The commit that is being tested.
pub(crate) fn commit() -> Result<String> {
    let mut command = Command::new("git");
    command
        .args(["describe", "--always", "--dirty", "--exclude=*"])
        .current_dir(build::workspace());
    Ok(output_of(&mut command)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_target_are_summed_and_those_of_others_are_not() {
        let text = "elf\t10\t2\tabc\t-\nelfin\t5\t5\tabc\t-\nelf\t7\t1\tdef\tcrash-1\n\nelf\n";
        let expected = Sum {
            executions: 17,
            seconds: 3,
            found: 1,
        };
        assert_eq!(sum(text, "elf"), expected);
        assert_eq!(sum(text, "walk"), Sum::default());
    }
}
