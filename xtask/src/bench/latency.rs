//! `cargo xtask bench latency`: from the first execution of new code to its finding.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nephoscope_e2e::{Catalog, Control, Guest, Image, Options, Step, Watched};
use serde_json::{Value, json};

use super::cpu;
use super::sheet::Out;
use crate::build;

/// Measure the time from the first execution of new code to its finding.
///
/// In one guest, programs are run from a memfd and pages of a known library are changed and run, one after the other; then
/// the same with all of the host's CPUs kept busy.
#[derive(Debug, Args)]
pub(crate) struct LatencyArgs {
    /// Plantings of each kind, under each of the two conditions.
    #[arg(long, value_name = "N", default_value_t = 150, value_parser = crate::arguments::some::<usize>)]
    runs: usize,
    #[command(flatten)]
    out: Out,
}

/// A page that ran so long before its address space was heard of was run by another one.
const LONG_BEFORE_NS: f64 = 100e6;

/// What was measured under one condition.
struct Measured {
    condition: &'static str,
    /// In milliseconds, sorted.
    late_ms: Vec<f64>,
    /// CPUs that others used meanwhile: not QEMU, not the monitor.
    others: f64,
}

/// Runs it.
pub(crate) fn run(arguments: &LatencyArgs) -> Result<()> {
    crate::setup::run()?;
    let built = build::run(true)?;
    let image = Image::ensure()?;
    let catalog = Catalog::ensure(&image, &built.program)?;
    let name = format!("latency-{}", std::process::id());
    let options = Options {
        watched: Some(Watched {
            program: built.program,
            catalog: catalog.path(),
            name: name.clone(),
            report: None,
            extra: Vec::new(),
        }),
        ..Options::default()
    };
    let step = Step::begin("A guest");
    let mut guest = Guest::boot_ready(&image, options)?;
    guest.run("systemctl is-system-running --wait; sleep 2")?;
    step.done("");
    let mut control = Control::connect(&name)?;
    let calm = plant(&mut guest, &mut control, arguments.runs, "nothing else from us")?;
    let busy = {
        let burning = Burning::begin()?;
        let measured = plant(
            &mut guest,
            &mut control,
            arguments.runs,
            "every CPU of the host kept busy",
        );
        drop(burning);
        measured?
    };
    guest.power_off()?;
    let all = [calm, busy];
    let command = format!("cargo xtask bench latency --runs {}", arguments.runs);
    let numbers = json!({"conditions": all.iter().map(json_of).collect::<Result<Vec<_>>>()?});
    arguments.out.write(
        &command,
        "From the first execution of new code to its finding",
        &told(&all)?,
        numbers,
    )
}

/// Plants all, and gathers how late the findings of new pages were.
fn plant(guest: &mut Guest, control: &mut Control, runs: usize, condition: &'static str) -> Result<Measured> {
    let mut step = Step::begin(condition);
    let before = control.findings(0)?;
    let mut known: BTreeSet<u64> = before.iter().filter_map(page).collect();
    let last = before
        .iter()
        .filter_map(|finding| finding["id"].as_u64())
        .max()
        .unwrap_or(0);
    let repeated_before = repeated(control)?;
    let meter = cpu::Meter::of(guest.pid(), true)?;
    let began = meter.read()?;
    let mut done = 0;
    while done < runs {
        let some = 10.min(runs - done);
        guest.run_ok(&format!(
            "for i in $(seq {some}); do /opt/planted/plant-memfd /opt/planted/stranger 0 >/dev/null\n\
             /opt/planted/flash /usr/lib/x86_64-linux-gnu/libc.so.6 0 >/dev/null; done"
        ))?;
        done += some;
        step.note(&format!("{done} of {runs}"));
    }
    let used = meter.read()? - began;
    // What is late is still to come.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let mut late_ms = Vec::new();
    let mut again = repeated(control)? - repeated_before;
    let report = control.report()?;
    let spaces = report["address_spaces"].as_array().context("no address spaces")?;
    let began_at = |id: &Value| spaces.iter().find(|space| space["id"] == *id)?["first_ns"].as_f64();
    for finding in control.findings(last)? {
        // A page that ran before, now in another address space, is not new: `at_ns` is of its first execution.
        if !page(&finding).is_some_and(|page| known.insert(page)) {
            again += 1;
            continue;
        }
        let found = finding["found_ns"]
            .as_f64()
            .context("a finding does not say when it was made")?;
        let ran = finding["at_ns"]
            .as_f64()
            .context("a finding does not say when its code ran")?;
        // Who runs a page that others ran long before is spoken of from its own beginning on. An address space is first
        // heard of a few milliseconds after its page.
        let began = began_at(&finding["address_space"]).context("a finding about nobody")?;
        let from = if began - ran > LONG_BEFORE_NS { began } else { ran };
        late_ms.push((found - from) / 1e6);
    }
    late_ms.sort_by(f64::total_cmp);
    let all = late_ms.len() as u64 + again;
    ensure!(
        all >= 2 * runs as u64,
        "{all} of {} plantings were found, {again} of them in frames that held the same before",
        2 * runs
    );
    step.done(&format!(
        "{} findings, {again} more of pages that ran before, 99th percentile {:.1} ms",
        late_ms.len(),
        at(&late_ms, 99.0)?
    ));
    Ok(Measured {
        condition,
        late_ms,
        others: used.others(),
    })
}

/// Findings of a page in one more address space that were not made, because enough said the same.
fn repeated(control: &mut Control) -> Result<u64> {
    let report = control.report()?;
    Ok(report["counters"]["findings_repeated"].as_u64().unwrap_or(0))
}

fn page(finding: &Value) -> Option<u64> {
    finding["evidence"]["page"].as_u64()
}

/// The value that so many per cent do not exceed (nearest rank).
fn at(sorted: &[f64], percent: f64) -> Result<f64> {
    let count = f64::from(u32::try_from(sorted.len())?);
    let rank = sorted
        .iter()
        .zip(1_u32..)
        .find(|(_, rank)| f64::from(*rank) >= percent / 100.0 * count);
    rank.map(|(value, _)| *value).context("nothing was measured")
}

const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 100.0];

fn told(all: &[Measured]) -> Result<String> {
    let mut text = String::from(
        "Programs run from a memfd (unknown code) and pages of libc that a process changed and ran (modified code), one after \
         the other in\na guest with one vCPU. From the moment before the first instruction of the page ran, as the plugin \
         stamps it, to the moment at\nwhich the finding was made and given to the sinks, both by the host's clock.\n\n\
         | host | CPUs used by others | findings | median, ms | 90 %, ms | 99 %, ms | most, ms |\n\
         |---|---:|---:|---:|---:|---:|---:|\n",
    );
    for one in all {
        write!(
            text,
            "| {} | {:.2} | {} |",
            one.condition,
            one.others,
            one.late_ms.len()
        )?;
        for percent in PERCENTILES {
            write!(text, " {:.2} |", at(&one.late_ms, percent)?)?;
        }
        text.push('\n');
    }
    Ok(text)
}

fn json_of(one: &Measured) -> Result<Value> {
    Ok(json!({
        "condition": one.condition,
        "others_cpus": one.others,
        "findings": one.late_ms.len(),
        "p50_ms": at(&one.late_ms, 50.0)?,
        "p90_ms": at(&one.late_ms, 90.0)?,
        "p99_ms": at(&one.late_ms, 99.0)?,
        "max_ms": at(&one.late_ms, 100.0)?,
        "all_ms": one.late_ms,
    }))
}

/// A thread for every CPU that does nothing but use it, until dropped.
struct Burning {
    stop: std::sync::Arc<AtomicBool>,
}

impl Burning {
    fn begin() -> Result<Self> {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism()?.get() {
            let stop = stop.clone();
            std::thread::Builder::new().name("busy".into()).spawn(move || {
                let mut number = 1_u64;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..100_000 {
                        number = black_box(number.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ 1);
                    }
                }
            })?;
        }
        Ok(Burning { stop })
    }
}

impl Drop for Burning {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::at;

    #[test]
    fn a_percentile_is_a_value_that_so_many_do_not_exceed() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(at(&hundred, 50.0).unwrap(), 50.0);
        assert_eq!(at(&hundred, 99.0).unwrap(), 99.0);
        assert_eq!(at(&hundred, 100.0).unwrap(), 100.0);
        assert_eq!(at(&[7.0], 99.0).unwrap(), 7.0);
        assert!(at(&[], 99.0).is_err());
    }
}
