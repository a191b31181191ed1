//! The numbers, for people and for programs.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::cpu::{Cost, Used};
use super::jobs::Job;
use super::machine;
use super::ratio::{Spread, geometric_mean};
use super::turns::{Mode, Side, Turn};

/// Everything there is to tell.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) command: &'a str,
    pub(crate) guest: &'a str,
    pub(crate) jobs: &'a [Job],
    pub(crate) turns: &'a [Turn],
    /// Other plugins that were measured.
    pub(crate) with: &'a [Mode],
}

/// A time that is compared.
type Of = fn(&Cost) -> Duration;

/// All of QEMU's threads: the guest, with what is done in its place.
///
/// User and system together: the scheduler measures this sum, but how much of it is whose it guesses from what its ticks
/// meet (`cputime_adjust` in kernel/sched/cputime.c), and slices begin and end with ticks. Next to other work, all of a
/// guest's time became system time on one side and user time on the other.
const QEMU: Of = |cost| cost.qemu.total();
/// That and the monitor.
const BOTH: Of = Cost::total;
const WALL: Of = |cost| cost.wall;

impl Record<'_> {
    /// As it stands in `bench/record`.
    pub(crate) fn markdown(&self) -> Result<String> {
        let mut text = String::from("# What watching costs\n\n");
        text.push_str(
            "The same guest under the same QEMU, plain and behind `nephoscope run`, in slices of a tenth of a \
             second by turns; each\npair's ratio, and of all pairs the median. Of a median, what is in brackets is the least and the greatest, and \
             after it the quartiles.\nCPU time is user and system time together: the kernel measures the sum and guesses the parts.\n\n",
        );
        writeln!(text, "- Machine: {}.", machine::describe()?)?;
        writeln!(
            text,
            "- Date: {}. Commit: {}. Guest: {}.",
            machine::date()?,
            machine::commit()?,
            self.guest
        )?;
        writeln!(
            text,
            "- Command: `{}`. Instructions were not counted.",
            self.command
        )?;
        let others = |of: Side| self.conditions(of, Cost::others);
        let stolen = |of: Side| self.conditions(of, Cost::stolen_share);
        writeln!(
            text,
            "- CPUs that other processes used meanwhile: plain {}, watched {}; that a hypervisor took away: plain {}, \
             watched {}.\n",
            others(Side::Plain),
            others(Side::Watched),
            stolen(Side::Plain),
            stolen(Side::Watched)
        )?;
        text.push_str("| job | pairs | plain QEMU, s | QEMU | QEMU and monitor | wall |");
        for mode in self.with {
            write!(text, " QEMU with {} |", mode.what())?;
        }
        text.push_str("\n|---|---:|---:|---|---|---|");
        text.push_str(&"---|".repeat(self.with.len()));
        text.push('\n');
        for job in self.jobs {
            let column = |of: Of, side: Side| self.ratios(job, of, side).map_or("–".into(), |s| shown(&s));
            write!(
                text,
                "| {}: {} | {} | {:.2} | {} | {} | {} |",
                job.name,
                job.what,
                self.of(job).count(),
                self.median(job, QEMU, Side::Plain).unwrap_or_default(),
                column(QEMU, Side::Watched),
                column(BOTH, Side::Watched),
                column(WALL, Side::Watched),
            )?;
            for mode in self.with {
                write!(text, " {} |", column(QEMU, Side::Other(*mode)))?;
            }
            text.push('\n');
        }
        let mean = |of: Of, side: Side| {
            let medians = self
                .jobs
                .iter()
                .filter_map(|job| Some(self.ratios(job, of, side)?.median));
            geometric_mean(medians).map_or("–".into(), |mean| format!("{mean:.3}"))
        };
        write!(
            text,
            "| geometric mean of the medians | | | {} | {} | {} |",
            mean(QEMU, Side::Watched),
            mean(BOTH, Side::Watched),
            mean(WALL, Side::Watched)
        )?;
        for mode in self.with {
            write!(text, " {} |", mean(QEMU, Side::Other(*mode)))?;
        }
        text.push('\n');
        Ok(text)
    }

    /// For each job its ratios, and every number that was read.
    ///
    /// `base` and `watched` are medians in seconds, the `ratio_`s those of the pairs: of QEMU's and the monitor's CPU
    /// time. The objects within say the same of other times.
    pub(crate) fn json(&self) -> Result<Value> {
        let (machine, date, commit) = (machine::describe()?, machine::date()?, machine::commit()?);
        let jobs = self.jobs.iter().map(|job| {
            let mut value = self.compared(job, BOTH, Side::Watched);
            let with = self.with.iter().map(|mode| {
                let side = Side::Other(*mode);
                (side.word().to_owned(), self.compared(job, QEMU, side))
            });
            let more = json!({
                "unit": "CPU seconds of QEMU and the monitor",
                "what": job.what,
                "qemu": self.compared(job, QEMU, Side::Watched),
                "wall": self.compared(job, WALL, Side::Watched),
                "with": with.collect::<serde_json::Map<_, _>>(),
                "turns": self.of(job).map(turn_json).collect::<Vec<_>>(),
                "machine": machine,
                "date": date,
                "commit": commit,
                "guest": self.guest,
                "command": self.command,
            });
            if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
                value.extend(more);
            }
            (job.name.to_owned(), value)
        });
        Ok(jobs.collect())
    }

    fn of<'b>(&'b self, job: &'b Job) -> impl Iterator<Item = &'b Turn> {
        self.turns.iter().filter(|turn| turn.job == job.name)
    }

    fn ratios(&self, job: &Job, of: Of, side: Side) -> Option<Spread> {
        let ratios = self.of(job).filter_map(|turn| {
            Some(of(turn.on(side)?).as_secs_f64() / of(turn.on(Side::Plain)?).as_secs_f64())
        });
        Spread::of(ratios)
    }

    fn median(&self, job: &Job, of: Of, side: Side) -> Option<f64> {
        let seconds = self
            .of(job)
            .filter_map(|turn| Some(of(turn.on(side)?).as_secs_f64()));
        Spread::of(seconds).map(|spread| spread.median)
    }

    fn compared(&self, job: &Job, of: Of, side: Side) -> Value {
        let Some(ratios) = self.ratios(job, of, side) else {
            return Value::Null;
        };
        json!({
            "base": self.median(job, of, Side::Plain),
            side.word(): self.median(job, of, side),
            "ratio_median": ratios.median,
            "ratio_min": ratios.min,
            "ratio_max": ratios.max,
            "ratio_quartiles": [ratios.quartiles.0, ratios.quartiles.1],
            "pairs": self.of(job).filter(|turn| turn.on(side).is_some()).count(),
        })
    }

    /// Of all jobs on one side, in words.
    fn conditions(&self, side: Side, of: fn(&Cost) -> f64) -> String {
        let costs = self.turns.iter().filter_map(|turn| turn.on(side));
        Spread::of(costs.map(of)).map_or("–".into(), |spread| shown(&spread))
    }
}

fn shown(spread: &Spread) -> String {
    let Spread {
        median,
        min,
        max,
        quartiles: (first, third),
    } = spread;
    format!("{median:.3} [{min:.3}–{max:.3}] {first:.3}–{third:.3}")
}

/// In the order in which they were done.
fn turn_json(turn: &Turn) -> Value {
    let used =
        |used: &Used| json!({"user_s": used.user.as_secs_f64(), "system_s": used.system.as_secs_f64()});
    let costs = turn.costs.iter().map(|(side, cost)| {
        json!({
            "side": side.word(),
            "qemu": used(&cost.qemu),
            "monitor": used(&cost.monitor),
            "wall_s": cost.wall.as_secs_f64(),
            "machine_s": cost.machine.as_secs_f64(),
            "stolen_s": cost.stolen.as_secs_f64(),
        })
    });
    costs.collect()
}
