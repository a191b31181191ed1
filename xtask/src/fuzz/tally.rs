//! What all runs so far come to: one line for each, beside the record (`fuzz.tsv` beside `fuzz.md`), never rewritten. It
//! is committed, so that the next machine goes on from where the last one stopped.
//!
//! ```text
//! target ⇥ executions ⇥ seconds ⇥ commit ⇥ what was found, or - ⇥ what steered
//! ```
//!
//! Lines without the last field are from before there was a choice: comparisons.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nephoscope_e2e::command::output_of;

use super::campaign::Outcome;
use super::engine::Steering;
use super::targets::Target;
use crate::build;

/// All runs of one target.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) executions: u64,
    /// Of them, those steered by edges alone.
    pub(crate) by_edges: u64,
    pub(crate) seconds: u64,
    /// Runs that ended with a harmful input.
    pub(crate) found: u64,
}

/// The runs behind a record.
#[derive(Debug)]
pub(crate) struct Tally {
    file: PathBuf,
}

impl Tally {
    /// That of the record in this file.
    pub(crate) fn beside(record: &Path) -> Self {
        Self {
            file: record.with_extension("tsv"),
        }
    }

    /// Adds a run.
    pub(crate) fn add(&self, outcome: &Outcome, steering: Steering) -> Result<()> {
        let cannot = || format!("cannot write {}", self.file.display());
        let mut lines = File::options()
            .create(true)
            .append(true)
            .open(&self.file)
            .with_context(cannot)?;
        // Which machine it was found on, and where it lies there, is no matter.
        let found = outcome.harmful.as_deref().map(|found| {
            let kept = |word: &str| {
                word.rsplit_once('/')
                    .map_or_else(|| word.to_owned(), |(_, name)| name.to_owned())
            };
            found.split_whitespace().map(kept).collect::<Vec<_>>().join(" ")
        });
        // One write: two campaigns may add to it.
        let line = format!(
            "{}\t{}\t{:.0}\t{}\t{}\t{}\n",
            outcome.target,
            outcome.executions,
            outcome.seconds,
            commit()?,
            found.as_deref().unwrap_or("-"),
            steering.name()
        );
        lines.write_all(line.as_bytes()).with_context(cannot)
    }

    /// What a target has behind it.
    pub(crate) fn of(&self, target: &Target) -> Result<Sum> {
        if !self.file.exists() {
            return Ok(Sum::default());
        }
        let text = std::fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        sum(&text, target.name).with_context(|| format!("{} cannot be summed up", self.file.display()))
    }
}

fn sum(text: &str, target: &str) -> Result<Sum> {
    let mut sum = Sum::default();
    for (number, line) in (1..).zip(text.lines()) {
        let fields: Vec<_> = line.split('\t').collect();
        let ([name, executions, seconds, _, found] | [name, executions, seconds, _, found, _]) = fields[..]
        else {
            bail!("line {number} has not six fields: {line:?}");
        };
        if name != target {
            continue;
        }
        let count = |text: &str| {
            let count = text.parse::<u64>();
            count.with_context(|| format!("line {number} has {text:?} for a number"))
        };
        sum.executions += count(executions)?;
        if fields.get(5) == Some(&Steering::Edges.name()) {
            sum.by_edges += count(executions)?;
        }
        sum.seconds += count(seconds)?;
        sum.found += u64::from(found != "-");
    }
    Ok(sum)
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
    fn runs_are_kept_beside_the_record() {
        let folder = tempfile::tempdir().unwrap();
        let tally = Tally::beside(&folder.path().join("fuzz.md"));
        let [first, second, ..] = crate::fuzz::targets::TARGETS;
        assert_eq!(tally.of(&first).unwrap(), Sum::default());
        let mut outcome = Outcome {
            target: first.name,
            executions: 40,
            seconds: 2.2,
            ..Outcome::default()
        };
        tally.add(&outcome, Steering::Comparisons).unwrap();
        outcome.harmful = Some("/somewhere/else/crash-1 (panicked at\t/home/x/y.rs:7:1)".into());
        tally.add(&outcome, Steering::Edges).unwrap();
        let expected = Sum {
            executions: 80,
            by_edges: 40,
            seconds: 4,
            found: 1,
        };
        assert_eq!(tally.of(&first).unwrap(), expected);
        assert_eq!(tally.of(&second).unwrap(), Sum::default());
        let lines = std::fs::read_to_string(folder.path().join("fuzz.tsv")).unwrap();
        assert!(
            lines.ends_with("\tcrash-1 (panicked at y.rs:7:1)\tedges\n"),
            "{lines}"
        );
    }

    #[test]
    fn runs_of_one_target_are_summed_and_those_of_others_are_not() {
        let text = "elf\t10\t2\tabc\t-\nelfin\t5\t5\tabc\t-\nelf\t7\t1\tdef\tcrash-1\tedges\n";
        let expected = Sum {
            executions: 17,
            by_edges: 7,
            seconds: 3,
            found: 1,
        };
        assert_eq!(sum(text, "elf").unwrap(), expected);
        assert_eq!(sum(text, "walk").unwrap(), Sum::default());
        for (bad, what) in [
            ("elf\n", "line 1 has not six fields"),
            ("elf\tx\t1\tabc\t-", "\"x\" for a number"),
        ] {
            let error = sum(bad, "elf").unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
