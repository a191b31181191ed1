//! The numbers, for people and for programs.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::cpu::Cost;
use super::jobs::Job;
use super::machine;
use super::pair::{Costs, Pair};
use super::ratio::Spread;

/// Everything there is to tell.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) command: &'a str,
    pub(crate) guest: &'a str,
    pub(crate) jobs: &'a [Job],
    pub(crate) pairs: &'a [Pair],
}

/// One side of a pair.
type Side = fn(&Pair) -> &Costs;

/// A job's cost in each of the pairs that have it: without a watch, and with it.
fn both<'a>(pairs: &'a [Pair], job: &Job) -> impl Iterator<Item = (&'a Cost, &'a Cost)> {
    let name = job.name;
    pairs
        .iter()
        .filter_map(move |pair| Some((pair.plain.get(name)?, pair.watched.get(name)?)))
}

fn ratio(plain: Duration, watched: Duration) -> f64 {
    watched.as_secs_f64() / plain.as_secs_f64()
}

impl Record<'_> {
    /// As it stands in `bench/record`.
    pub(crate) fn markdown(&self) -> Result<String> {
        let mut text = String::from("# What watching costs\n\n");
        text.push_str(
            "The same guest under the same QEMU, plain and behind `nephoscope run`, in alternating order; each pair's \
             ratio, and\nof all pairs the median. Of a median, what is in brackets is the least and the greatest, and \
             after it the quartiles.\n\n",
        );
        writeln!(text, "- Machine: {}.", machine::describe()?)?;
        writeln!(text, "- Date: {}. Guest: {}.", machine::date()?, self.guest)?;
        writeln!(
            text,
            "- Command: `{}`: {} pair(s) of boots, all jobs in each. Instructions were not counted.",
            self.command,
            self.pairs.len()
        )?;
        let others = |of: Side| self.spread(of, Cost::others);
        let stolen = |of: Side| self.spread(of, Cost::stolen_share);
        writeln!(
            text,
            "- CPUs that other processes used meanwhile: plain {}, watched {}; that a hypervisor took away: plain {}, \
             watched {}.\n",
            others(|pair| &pair.plain),
            others(|pair| &pair.watched),
            stolen(|pair| &pair.plain),
            stolen(|pair| &pair.watched)
        )?;
        text.push_str(
            "| job | plain QEMU, CPU s | QEMU CPU | QEMU and monitor CPU | wall |\n|---|---:|---|---|---|\n",
        );
        for job in self.jobs {
            let plain = Spread::of(both(self.pairs, job).map(|(plain, _)| plain.qemu.as_secs_f64()));
            let column = |of: fn(&Cost) -> Duration| self.ratios(job, of).map_or("–".into(), |s| shown(&s));
            writeln!(
                text,
                "| {}: {} | {} | {} | {} | {} |",
                job.name,
                job.what,
                plain.map_or("–".into(), |s| format!("{:.2}", s.median)),
                column(|cost| cost.qemu),
                column(Cost::total),
                column(|cost| cost.wall),
            )?;
        }
        Ok(text)
    }

    /// Every number that was read, and the medians.
    pub(crate) fn json(&self) -> Result<Value> {
        let costs = |costs: &Costs| -> Value {
            costs
                .iter()
                .map(|(name, cost)| ((*name).to_owned(), cost_json(cost)))
                .collect()
        };
        let pairs: Vec<Value> = self
            .pairs
            .iter()
            .map(|pair| {
                json!({
                    "plain_first": pair.plain_first,
                    "plain": costs(&pair.plain),
                    "watched": costs(&pair.watched),
                })
            })
            .collect();
        let ratios: Value = self
            .jobs
            .iter()
            .map(|job| {
                let of = |of: fn(&Cost) -> Duration| self.ratios(job, of).map(|s| spread_json(&s));
                let ratios = json!({
                    "qemu_cpu": of(|cost| cost.qemu),
                    "total_cpu": of(Cost::total),
                    "wall": of(|cost| cost.wall),
                });
                (job.name.to_owned(), ratios)
            })
            .collect();
        Ok(json!({
            "machine": machine::describe()?,
            "date": machine::date()?,
            "guest": self.guest,
            "command": self.command,
            "pairs": pairs,
            "ratios": ratios,
        }))
    }

    fn ratios(&self, job: &Job, of: fn(&Cost) -> Duration) -> Option<Spread> {
        Spread::of(both(self.pairs, job).map(|(plain, watched)| ratio(of(plain), of(watched))))
    }

    /// Of all jobs on one side of all pairs, in words.
    fn spread(&self, side: Side, of: fn(&Cost) -> f64) -> String {
        let costs = self.pairs.iter().flat_map(|pair| side(pair).values());
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

fn spread_json(spread: &Spread) -> Value {
    json!({
        "median": spread.median,
        "min": spread.min,
        "max": spread.max,
        "quartiles": [spread.quartiles.0, spread.quartiles.1],
    })
}

fn cost_json(cost: &Cost) -> Value {
    json!({
        "qemu_cpu_s": cost.qemu.as_secs_f64(),
        "monitor_cpu_s": cost.monitor.as_secs_f64(),
        "wall_s": cost.wall.as_secs_f64(),
        "machine_cpu_s": cost.machine.as_secs_f64(),
        "stolen_s": cost.stolen.as_secs_f64(),
    })
}
