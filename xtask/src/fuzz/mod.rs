//! `cargo xtask fuzz`: hostile bytes for everything that reads what a guest, a package or a peer made.
//!
//! ```text
//!  fuzz/src/bin/TARGET.rs ─► built with coverage (libFuzzer) ─► run from fuzz/corpus/TARGET and what was found before
//!                                                              ├─► a table; a crash, a hang or too much memory fails
//!                                                              └─► the tally: executions so far, beside the record
//! ```

mod campaign;
mod engine;
mod keep;
mod record;
mod table;
mod tally;
mod targets;

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use anyhow::{Result, anyhow, ensure};
use clap::Args;
use nephoscope_e2e::Step;

use campaign::{Effort, Outcome};
use engine::{Profile, Steering};
use tally::Tally;
use targets::{TARGETS, Target};

/// Fuzz everything that reads hostile bytes.
///
/// Each target is run for a time, one after the other, from its committed inputs and from what earlier runs found. With
/// `--record`, its executions are added to the tally beside the record. A crash, a hang or more memory than the target may have is an error, and
/// the input is kept.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// For each target, at most so long.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = crate::arguments::some::<u64>)]
    seconds: u64,
    /// Only this target; may be given several times.
    #[arg(long, value_name = "TARGET", value_parser = target)]
    only: Vec<Target>,
    /// Until a target has so many executions behind it, those in the record included; targets that have are left out.
    #[arg(long, value_name = "N")]
    executions: Option<u64>,
    /// Add the runs to the record there, as it stands in `bench/record`: FILE.md, and FILE.tsv for the runs.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Let edges alone steer, not comparisons: some three times as many executions in the same time, which get through no
    /// magic number that no input has yet. For targets that were run the other way before.
    #[arg(long)]
    edges: bool,
    /// Take what was found into the committed inputs: few, small ones that reach the same code.
    #[arg(long)]
    keep: bool,
    /// Every target over its committed inputs, and 5,000 executions beyond; nothing is added to the tally.
    #[arg(long, conflicts_with_all = ["seconds", "only", "executions", "record", "keep", "edges"])]
    check: bool,
}

fn target(text: &str) -> Result<Target, String> {
    let known = || TARGETS.map(|target| target.name).join(", ");
    TARGETS
        .into_iter()
        .find(|target| target.name == text)
        .ok_or_else(|| format!("the targets are {}", known()))
}

/// Runs it.
pub(crate) fn run(arguments: &FuzzArgs) -> Result<()> {
    if arguments.check {
        return check();
    }
    let steering = if arguments.edges {
        Steering::Edges
    } else {
        Steering::Comparisons
    };
    let engine = engine::build(steering, Profile::Release)?;
    let chosen: Vec<Target> = TARGETS
        .into_iter()
        .filter(|target| arguments.only.is_empty() || arguments.only.contains(target))
        .collect();
    let tally = arguments.record.as_deref().map(Tally::beside);
    let mut outcomes = Vec::new();
    for target in &chosen {
        let done = match &tally {
            Some(tally) => tally.of(target)?.executions,
            None => 0,
        };
        let left = arguments.executions.map(|wanted| wanted.saturating_sub(done));
        if left == Some(0) || arguments.seconds == 0 {
            continue;
        }
        let effort = Effort {
            seconds: arguments.seconds,
            executions: left,
            fixed: false,
        };
        let outcome = campaign::run(&engine, *target, effort)?;
        if let Some(tally) = &tally {
            tally.add(&outcome, steering)?;
        }
        outcomes.push(outcome);
    }
    table::print(&outcomes);
    if arguments.keep {
        for target in &chosen {
            keep::keep(&engine, *target)?;
        }
    }
    if let Some(file) = &arguments.record {
        record::write(file)?;
    }
    fail_on_findings(&outcomes)
}

/// Every target over its committed inputs, and a fixed number of executions beyond.
pub(crate) fn check() -> Result<()> {
    let engine = engine::build(Steering::Comparisons, Profile::Quick)?;
    let effort = Effort {
        seconds: 2,
        executions: Some(5_000),
        fixed: true,
    };
    // Each takes one CPU, and half of its time to begin.
    let (next, cpus) = (
        AtomicUsize::new(0),
        available_parallelism().map_or(1, NonZero::get),
    );
    let work = || -> Result<Vec<(usize, Outcome)>> {
        let mut outcomes = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(target) = TARGETS.get(number) else {
                return Ok(outcomes);
            };
            outcomes.push((number, campaign::run(&engine, *target, effort)?));
        }
    };
    let mut outcomes = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cpus).map(|_| scope.spawn(work)).collect();
        let ended = workers.into_iter().map(|worker| worker.join());
        let outcomes: Result<Vec<_>> = ended
            .map(|outcomes| outcomes.map_err(|_| anyhow!("a campaign ended in a panic"))?)
            .collect();
        outcomes.map(|outcomes| outcomes.concat())
    })?;
    outcomes.sort_by_key(|(number, _)| *number);
    let outcomes: Vec<Outcome> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    let step = Step::begin("Fuzzing");
    table::print(&outcomes);
    fail_on_findings(&outcomes)?;
    let executions: u64 = outcomes.iter().map(|outcome| outcome.executions).sum();
    step.done(&format!("{executions} executions of {} targets", outcomes.len()));
    Ok(())
}

fn fail_on_findings(outcomes: &[Outcome]) -> Result<()> {
    let found: Vec<String> = outcomes.iter().filter_map(Outcome::trouble).collect();
    ensure!(found.is_empty(), "fuzzing found: {}", found.join("; "));
    Ok(())
}
