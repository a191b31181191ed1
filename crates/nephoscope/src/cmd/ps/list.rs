//! Several VMs.

use std::time::Duration;

use nephoscope_inventory::Report;
use serde_json::{Value, json};

use crate::client::{AskError, Client};
use crate::exit::exit;
use crate::runtime::VmDir;
use crate::text::{Cell, Column, Paint, Table, Tone, age, count, escape, output_width, print, print_json};
use crate::view;

/// A VM and what its watch answered.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) vm: VmDir,
    pub(super) answer: Result<Report, AskError>,
}

/// Asks all at once: one that hangs does not hold up the others.
pub(super) fn ask(vms: Vec<VmDir>, quiet: Duration) -> Vec<Listed> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = vms
            .into_iter()
            .map(|vm| {
                let dir = vm.clone();
                let asking = scope.spawn(move || Client::connect(&dir, quiet)?.report());
                (vm, asking)
            })
            .collect();
        asked
            .into_iter()
            .filter_map(|(vm, asking)| {
                let answer = asking.join().ok()?;
                Some(Listed { vm, answer })
            })
            .collect()
    })
}

/// Shows them. A watch that is there and gives no answer decides the exit code, after all are shown.
pub(super) fn show(vms: Vec<Listed>, json: bool) -> anyhow::Result<()> {
    if json {
        let all: Vec<Value> = vms.iter().map(as_json).collect();
        print_json(&all)?;
    } else {
        print(&table(&vms).render(output_width(), Paint::stdout()))?;
    }
    let mut failed = vms.into_iter().filter_map(|listed| listed.answer.err());
    match failed.find(|error| !error.is_end()) {
        Some(error) => Err(exit(error.failure(), error.to_string())),
        None => Ok(()),
    }
}

fn table(vms: &[Listed]) -> Table {
    let mut table = Table::new([
        Column::left("NAME"),
        Column::flexible("VMM", 1),
        Column::right("VCPUS"),
        Column::right("WATCHED"),
        Column::flexible("COVERAGE", 2),
        Column::right("LIVING"),
        Column::right("ENDED"),
        Column::flexible("FINDINGS", 2),
    ]);
    for listed in vms {
        table.push(match &listed.answer {
            Ok(report) => answered(&listed.vm.name, report),
            Err(error) => silent(&listed.vm.name, error),
        });
    }
    table
}

fn answered(name: &str, report: &Report) -> Vec<Cell> {
    let (living, ended) = spaces(report);
    let (coverage_tone, _) = view::headline(&report.coverage);
    let coverage = if coverage_tone == Tone::Good {
        "complete".to_owned()
    } else {
        format!(
            "CODE {}, ATTR. {}",
            word(&report.coverage.code),
            word(&report.coverage.attribution)
        )
    };
    let (tone, findings) = match report.findings.as_slice() {
        [] => (Tone::Plain, "none".to_owned()),
        some => view::tally(some),
    };
    let findings = findings
        .split_once(": ")
        .map_or(findings.as_str(), |(_, kinds)| kinds)
        .to_owned();
    vec![
        Cell::text(name),
        Cell::text(escape(&report.vm.vmm)),
        Cell::text(report.vm.vcpus.to_string()),
        Cell::text(age(view::watched_ns(report))),
        Cell::text(coverage).toned(coverage_tone),
        Cell::text(count(living)),
        Cell::text(count(ended)),
        Cell::text(findings).toned(tone),
    ]
}

fn silent(name: &str, error: &AskError) -> Vec<Cell> {
    let (tone, what) = match error {
        AskError::Absent(_) | AskError::Dead(_) | AskError::Closed(_) => (Tone::Faint, "watch gone"),
        AskError::Denied(..) => (Tone::Bad, "not allowed"),
        AskError::Silent(..) => (Tone::Bad, "NO ANSWER"),
        _ => (Tone::Bad, "NOT UNDERSTOOD"),
    };
    let nothing = || Cell::text("–").toned(Tone::Faint);
    vec![
        Cell::text(name),
        nothing(),
        nothing(),
        nothing(),
        Cell::text(what).toned(tone),
        nothing(),
        nothing(),
        nothing(),
    ]
}

/// Living and ended address spaces.
fn spaces(report: &Report) -> (u64, u64) {
    let all = report.address_spaces.iter();
    let (ended, living): (Vec<_>, Vec<_>) = all.partition(|space| space.ended.is_some());
    let length = |spaces: Vec<_>| u64::try_from(spaces.len()).unwrap_or(u64::MAX);
    let ended = length(ended).saturating_add(view::summarised(report));
    (length(living), ended)
}

fn word(coverage: &impl std::fmt::Debug) -> String {
    format!("{coverage:?}").to_ascii_lowercase()
}

fn as_json(listed: &Listed) -> Value {
    match &listed.answer {
        Ok(report) => {
            let (living, ended) = spaces(report);
            json!({
                "vm": report.vm,
                "watched_ns": view::watched_ns(report),
                "coverage": {"code": report.coverage.code, "attribution": report.coverage.attribution},
                "address_spaces": {"living": living, "ended": ended},
                "findings": report.findings.len(),
                "error": null,
            })
        }
        Err(error) => json!({"vm": {"name": listed.vm.name}, "error": error.to_string()}),
    }
}
