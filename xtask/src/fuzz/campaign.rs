//! One target, run for a while; what libFuzzer says of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use nephoscope_e2e::Step;

use super::engine::Engine;
use super::targets::{HANG_SECONDS, PROCESS_MIB, Target};

/// For how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) seconds: u64,
    pub(crate) executions: Option<u64>,
    /// The same inputs each time: from the committed ones alone, from one seed.
    pub(crate) fixed: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) target: &'static str,
    pub(crate) executions: u64,
    pub(crate) seconds: f64,
    /// Inputs that each reach something of their own, at the end.
    pub(crate) corpus: u64,
    /// Edges of the program that were reached, before the first new input and at the end.
    pub(crate) coverage: (u64, u64),
    pub(crate) peak_mib: u64,
    /// What went wrong, and the input that does it.
    pub(crate) harmful: Option<String>,
}

impl Outcome {
    /// What it found, in words.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.harmful
            .as_ref()
            .map(|what| format!("{}: {what}", self.target))
    }

    /// Takes what a line of libFuzzer's tells.
    fn take(&mut self, line: &str) {
        let after = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            let rest = rest.trim_start();
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest.get(..end)?.parse::<u64>().ok()
        };
        if let Some(value) = after("stat::number_of_executed_units:") {
            self.executions = value;
        }
        if let Some(value) = after("stat::peak_rss_mb:") {
            self.peak_mib = value;
        }
        if line.starts_with('#') {
            let coverage = after(" cov: ").unwrap_or(self.coverage.1);
            if line.contains("INITED") {
                self.coverage.0 = coverage;
            }
            self.coverage.1 = coverage;
            self.corpus = after(" corp: ").unwrap_or(self.corpus);
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            // Slow, but not too slow, is no failure.
            if !path.contains("slow-unit-") {
                self.harmful = Some(path.trim().to_owned());
            }
        }
    }
}

/// Runs it.
pub(crate) fn run(engine: &Engine, target: Target, effort: Effort) -> Result<Outcome> {
    let mut step = Step::begin(&format!("Fuzzing {}", target.name));
    let found = engine.found(target);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let mut command = Command::new(engine.program(target));
    command
        .arg(format!("-max_total_time={}", effort.seconds))
        .arg(format!("-max_len={}", target.longest))
        .arg(format!("-timeout={HANG_SECONDS}"))
        .arg(format!("-rss_limit_mb={PROCESS_MIB}"))
        .arg(format!(
            "-artifact_prefix={}/{}-",
            engine.harmful().display(),
            target.name
        ))
        .arg("-print_final_stats=1");
    if let Some(executions) = effort.executions {
        command.arg(format!("-runs={executions}"));
    }
    if effort.fixed {
        command.arg("-seed=1");
    } else {
        // The first folder is where new inputs go.
        command.arg(&found);
    }
    let scratch = tempfile::tempdir()?;
    if effort.fixed {
        command.arg(scratch.path());
    }
    let committed = Engine::committed(target);
    if committed.is_dir() {
        command.arg(committed);
    }
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start the program of {}", target.name))?;
    let mut outcome = Outcome {
        target: target.name,
        ..Outcome::default()
    };
    let mut last = String::new();
    for line in child
        .stderr
        .take()
        .into_iter()
        .flat_map(|pipe| BufReader::new(pipe).split(b'\n'))
    {
        let line = String::from_utf8_lossy(&line?).into_owned();
        outcome.take(&line);
        if line.starts_with('#') {
            step.note(&line);
        } else if line.contains("panicked at") || line.contains("HEAP BOUND") {
            last = line;
        }
    }
    let status = child.wait()?;
    outcome.seconds = begun.elapsed().as_secs_f64();
    if !status.success() && outcome.harmful.is_none() {
        outcome.harmful = Some(format!("it ended with {status} before it ran an input"));
    }
    if let Some(harmful) = &mut outcome.harmful
        && !last.is_empty()
    {
        *harmful = format!("{harmful} ({last})");
    }
    let executions = outcome.executions;
    step.done(
        &outcome
            .trouble()
            .unwrap_or_else(|| format!("{executions} executions")),
    );
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_read_from_what_libfuzzer_prints() {
        let mut outcome = Outcome::default();
        for line in [
            "#32\tINITED cov: 356 ft: 474 corp: 30/2303b exec/s: 0 rss: 27Mb",
            "#667865\tDONE   cov: 503 ft: 1282 corp: 267/108Kb lim: 4076 exec/s: 74207 rss: 28Mb",
            "stat::number_of_executed_units: 667865",
            "stat::peak_rss_mb:              28",
        ] {
            outcome.take(line);
        }
        assert_eq!(
            (outcome.executions, outcome.corpus, outcome.peak_mib),
            (667_865, 267, 28)
        );
        assert_eq!((outcome.coverage, outcome.trouble()), ((356, 503), None));
        outcome.take("artifact_prefix='x/'; Test unit written to x/slow-unit-1");
        assert_eq!(outcome.trouble(), None);
        outcome.take("artifact_prefix='x/'; Test unit written to x/crash-1");
        assert_eq!(outcome.harmful.as_deref(), Some("x/crash-1"));
    }
}
