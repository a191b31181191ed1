//! `cargo xtask bench kvm`: what watching costs under stock KVM, in instructions.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Context, Result};
use clap::Args;
use nephoscope_e2e::nested::counted;
use nephoscope_e2e::{Image, Kernel, Step};
use serde_json::{Value, json};

use super::ratio::Spread;
use super::sheet::Out;

/// Count the instructions that watching costs under stock KVM, in the nested machine.
///
/// Its clock goes by the instruction (`-icount`), so that what its kernel accounts to QEMU's process is the number of instructions
/// of the guest, of QEMU, and of the host's kernel on behalf of both: without a watch, watched, and watched with frames guarded
/// against devices; and, where it is watched, those of the module's thread in that kernel. What the monitor digests is told beside
/// it: a real host has other CPUs for that. Takes about half an hour
/// for each kernel.
#[derive(Debug, Args)]
pub(crate) struct KvmArgs {
    /// Only with this kernel: 6.1 or 6.12.
    #[arg(long, value_name = "VERSION", value_parser = crate::nested::kernel)]
    kernel: Option<Kernel>,
    /// How many guests are booted of each kind, each with all jobs.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = crate::arguments::some::<u32>)]
    boots: u32,
    /// How often each job is done in each guest. The first time meets code that was never run.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = crate::arguments::some::<u32>)]
    rounds: u32,
    #[command(flatten)]
    out: Out,
}

const ABOUT: &str = "\
Instructions of the guest, of QEMU and of the host's kernel on behalf of both, as the nested machine's kernel accounts them to QEMU's
process. The ratio also has those with which the module compares, in a thread of that kernel, what runs with what was captured; the
monitor's are not in it. There is one CPU, and each time that the monitor has it, or a timer of its own runs out, the guest is left and
entered again. So it is stopped while a job is done, and digests afterwards; \"shared\" is with a monitor that goes on meanwhile, and so
is the boot.

";

/// Runs it.
pub(crate) fn run(arguments: &KvmArgs) -> Result<()> {
    crate::setup::run()?;
    let program = crate::build::with_examples()?.program;
    let image = Image::ensure()?;
    let (mut text, mut numbers) = (ABOUT.to_owned(), Vec::new());
    for kernel in Kernel::ALL {
        if arguments.kernel.is_some_and(|only| only != kernel) {
            continue;
        }
        let mut step = Step::begin(&format!("Counting under Linux {}", kernel.version()));
        let told = counted(
            &image,
            &program,
            kernel,
            (arguments.boots, arguments.rounds),
            |line| step.note(line),
        )?;
        step.done("");
        told_of(&told, &mut text)?;
        numbers.push(told);
    }
    let only = arguments
        .kernel
        .map(|kernel| format!(" --kernel {}", kernel.version()));
    let only = only.unwrap_or_default();
    let (boots, rounds) = (arguments.boots, arguments.rounds);
    let command = format!("cargo xtask bench kvm{only} --boots {boots} --rounds {rounds}");
    arguments.out.write(
        &command,
        "What watching costs under stock KVM, in instructions",
        &text,
        json!({"kernels": numbers}),
    )
}

/// When a job was done: the first time, and all the others; with a monitor that goes on meanwhile.
const CONDITIONS: [&str; 3] = ["first", "later", "shared"];

fn condition(row: &Value) -> &'static str {
    match (row["shared"].as_bool(), row["round"].as_u64()) {
        (Some(true), _) => "shared",
        (_, Some(0 | 1)) => "first",
        _ => "later",
    }
}

/// A job's rows under one condition.
fn rows<'a>(told: &'a Value, how: &str, job: &str, when: &str) -> Vec<&'a Value> {
    let all = told[how].as_array().map_or(&[][..], Vec::as_slice).iter();
    all.filter(|row| row["job"] == job && condition(row) == when)
        .collect()
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or(f64::NAN)
}

/// The median of the rounds' ratios to the same round without a watch, of what they cost, and of what happened.
#[derive(Debug, PartialEq)]
struct Line {
    ratio: Spread,
    more: f64,
    captures: f64,
    writes: f64,
    comparing: f64,
    monitor: f64,
}

fn line(plain: &[&Value], watched: &[&Value]) -> Option<Line> {
    let pairs = || plain.iter().zip(watched);
    let middle = |name: &str| Some(Spread::of(watched.iter().map(|row| number(row, name)))?.median);
    let vmm = |row: &Value| number(row, "vmm_instructions");
    let all = |row: &Value| vmm(row) + number(row, "comparing_instructions");
    Some(Line {
        ratio: Spread::of(pairs().map(|(plain, watched)| all(watched) / all(plain)))?,
        more: Spread::of(pairs().map(|(plain, watched)| vmm(watched) - vmm(plain)))?.median,
        captures: middle("kvm_captures")?,
        writes: middle("kvm_writes")?,
        comparing: middle("comparing_instructions")?,
        monitor: middle("monitor_instructions")?,
    })
}

fn told_of(told: &Value, text: &mut String) -> Result<()> {
    let kernel = told["kernel"].as_str().context("no kernel")?;
    writeln!(text, "## Linux {kernel}\n")?;
    writeln!(
        text,
        "| job | instructions without, millions | | ratio [least–greatest] | captures | writes | more instructions for each event | comparing, millions | the monitor's for each capture |\n\
         |---|---:|---|---:|---:|---:|---:|---:|---:|"
    )?;
    let mut jobs: Vec<&str> = Vec::new();
    let mut seen = BTreeSet::new();
    for row in told["plain"].as_array().context("no rows")? {
        let job = row["job"].as_str().context("no job")?;
        if seen.insert(job) {
            jobs.push(job);
        }
    }
    for job in jobs {
        for what in CONDITIONS {
            let plain = rows(told, "plain", job, what);
            let Some(without) = Spread::of(plain.iter().map(|row| number(row, "vmm_instructions"))) else {
                continue;
            };
            for how in ["unguarded", "guard"] {
                let Some(line) = line(&plain, &rows(told, how, job, what)) else {
                    continue;
                };
                let events = line.captures + line.writes;
                let each = |sum: f64, count: f64| {
                    if count > 0.0 {
                        format!("{:.0}", sum / count)
                    } else {
                        "–".to_owned()
                    }
                };
                writeln!(
                    text,
                    "| {job}, {what} | {:.1} | {how} | {:.4} [{:.4}–{:.4}] | {:.0} | {:.0} | {} | {:.1} | {} |",
                    without.median / 1e6,
                    line.ratio.median,
                    line.ratio.min,
                    line.ratio.max,
                    line.captures,
                    line.writes,
                    each(line.more, events),
                    line.comparing / 1e6,
                    each(line.monitor, line.captures),
                )?;
            }
        }
    }
    writeln!(text)?;
    if let Some(anew) = told["begun_anew"].as_u64().filter(|anew| *anew > 0) {
        writeln!(
            text,
            "Guests that stood still in the emulator, and were begun anew: {anew}.\n"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(round: u64, vmm: u64, captures: u64) -> Value {
        json!({"job": "forks", "round": round, "vmm_instructions": vmm, "monitor_instructions": 50 * captures,
               "comparing_instructions": 5 * captures,
               "kvm_captures": captures, "kvm_writes": 0})
    }

    #[test]
    fn rounds_are_compared_with_the_same_round_and_the_first_and_shared_ones_stand_by_themselves() {
        let shared = |vmm, captures| {
            let mut row = row(5, vmm, captures);
            row["shared"] = true.into();
            row
        };
        let told = json!({
            "kernel": "6.1",
            "plain": [row(1, 1000, 0), row(2, 1000, 0), row(3, 2000, 0), row(4, 1000, 0), shared(1000, 0)],
            "unguarded": [row(1, 2000, 10), row(2, 1100, 1), row(3, 2200, 1), row(4, 1300, 1), shared(1500, 1)],
            "guard": [],
        });
        let mut text = String::new();
        told_of(&told, &mut text).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("| forks")).collect();
        assert_eq!(
            lines,
            [
                "| forks, first | 0.0 | unguarded | 2.0500 [2.0500–2.0500] | 10 | 0 | 100 | 0.0 | 50 |",
                "| forks, later | 0.0 | unguarded | 1.1050 [1.1025–1.3050] | 1 | 0 | 200 | 0.0 | 50 |",
                "| forks, shared | 0.0 | unguarded | 1.5050 [1.5050–1.5050] | 1 | 0 | 500 | 0.0 | 50 |"
            ]
        );
    }
}
