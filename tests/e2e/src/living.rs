//! Holds the address spaces of a report against what the guest says of its own processes.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::truth::{Process, Truth};

/// Every way in which a report and a guest disagree, in words; empty if they do not.
///
/// `before` and `after` are what the guest said around the moment of the report. The processes that were there both
/// times are what the report must show as living, no more and no less; those that wrote the truth down come and go.
pub fn disagreements(report: &Value, before: &Truth, after: &Truth) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut processes: BTreeMap<String, Vec<&Process>> = BTreeMap::new();
    for (pid, process) in &after.processes {
        if before
            .processes
            .get(pid)
            .is_some_and(|was| was.exe == process.exe)
        {
            processes
                .entry(merged(&process.exe).to_owned())
                .or_default()
                .push(process);
        }
    }
    let mut spaces: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for space in living(report) {
        let path = space["program"]["path"].as_str().unwrap_or("(no program)");
        spaces.entry(merged(path).to_owned()).or_default().push(space);
    }
    for (exe, processes) in &processes {
        let named = spaces.remove(exe).unwrap_or_default();
        if named.len() != processes.len() {
            wrong.push(format!(
                "{exe}: {} processes, {} address spaces",
                processes.len(),
                named.len()
            ));
        }
        for space in named {
            of_one(space, processes, after, &mut wrong);
        }
    }
    for (path, spaces) in spaces {
        for space in spaces {
            wrong.push(format!(
                "{path}: address space {} is no process: {}",
                space["id"],
                shown(space)
            ));
        }
    }
    wrong
}

/// Living user address spaces of a report.
pub fn living(report: &Value) -> impl Iterator<Item = &Value> {
    list(report, "address_spaces")
        .iter()
        .filter(|space| space["kind"] == "user" && space["ended"].is_null())
}

/// One address space against the processes that run its program.
fn of_one(space: &Value, processes: &[&Process], truth: &Truth, wrong: &mut Vec<String>) {
    let who = format!("address space {} ({})", space["id"], space["program"]["path"]);
    if let Some(exe) = processes.first().map(|process| process.exe.as_str()) {
        owned(&space["program"], exe, truth, &who, wrong);
    }
    let mut not_mapped = Vec::new();
    for module in list(space, "modules") {
        let path = module["path"].as_str().unwrap_or_default();
        let mapped = processes
            .iter()
            .filter_map(|process| {
                let mut code = process.mappings.iter().filter(|mapping| mapping.executable());
                code.find(|mapping| merged(&mapping.path) == merged(path))
            })
            .next();
        match mapped {
            None => not_mapped.push(path),
            Some(mapping) => owned(module, &mapping.path, truth, &who, wrong),
        }
    }
    if !not_mapped.is_empty() {
        wrong.push(format!(
            "{who} has modules that are not mapped: {}",
            not_mapped.join(", ")
        ));
    }
}

/// The one candidate of a program or module is what the guest's package manager says of the file.
fn owned(named: &Value, path: &str, truth: &Truth, who: &str, wrong: &mut Vec<String>) {
    if !path.starts_with('/') {
        return;
    }
    let candidates = list(named, "candidates");
    let right = truth.owner(path).map_or_else(
        || candidates.iter().all(|candidate| candidate["package"].is_null()),
        |owner| {
            candidates.len() == 1
                && candidates.iter().all(|candidate| {
                    candidate["package"] == owner.package.as_str()
                        && candidate["source"] == owner.source.as_str()
                        && candidate["version"] == owner.version.as_str()
                })
        },
    );
    if !right {
        let candidates = &named["candidates"];
        wrong.push(format!(
            "{who}: {path} is of {:?}, not of {candidates}",
            truth.owner(path)
        ));
    }
}

fn shown(space: &Value) -> String {
    let modules: Vec<&str> = list(space, "modules")
        .iter()
        .filter_map(|module| module["path"].as_str())
        .collect();
    format!(
        "root {}, first {}, last {}, modules {modules:?}, {} unknown",
        space["root"],
        space["first_ns"],
        space["last_ns"],
        list(space, "unknown").len()
    )
}

/// A member that is a list; empty if it is none.
pub fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// Paths before and after `/usr` was merged are the same file.
pub fn merged(path: &str) -> &str {
    path.strip_prefix("/usr").unwrap_or(path)
}
