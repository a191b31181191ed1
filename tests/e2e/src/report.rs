//! Whether a report is what `docs/report.schema.json` says and does not contradict itself, and what it names.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow, ensure};
use serde_json::Value;

const SCHEMA: &str = include_str!("../../../docs/report.schema.json");

/// Checks a report.
///
/// # Errors
/// If it is not what the schema says: every place and what is wrong there. If it has a finding about a page that it names
/// otherwise: who was told of it was told too early.
pub fn validate(report: &Value) -> Result<()> {
    let schema: Value = serde_json::from_str(SCHEMA)?;
    let validator = jsonschema::draft202012::new(&schema)
        .map_err(|error| anyhow!("docs/report.schema.json is no schema: {error}"))?;
    let wrong: Vec<String> = validator
        .iter_errors(report)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    ensure!(wrong.is_empty(), "not a report: {}", wrong.join("; "));
    let early = contradictions(report);
    ensure!(
        early.is_empty(),
        "findings about pages that were named in the end: {}",
        early.join("; ")
    );
    Ok(())
}

/// Findings of pages that are not listed as what the finding says of them.
fn contradictions(report: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let spaces = list(&report["address_spaces"]);
    let mut wrong = Vec::new();
    for finding in list(&report["findings"]) {
        let verdict = match finding["rule"].as_str() {
            Some("unknown-code") => "unknown",
            Some("modified-code") => "modified",
            _ => continue,
        };
        // One that ended may be summarised, and one with very many pages does not list all.
        let space = spaces
            .iter()
            .find(|space| space["id"] == finding["address_space"]);
        let Some(space) = space.filter(|space| space["unlisted"].is_null()) else {
            continue;
        };
        let page = &finding["evidence"]["page"];
        if !list(&space[verdict]).iter().any(|listed| listed["page"] == *page) {
            wrong.push(finding.to_string());
        }
    }
    wrong
}

/// What a report says of a file, in all address spaces of one kind taken together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// It is the program of some.
    pub is_program: bool,
    /// Package and version of each candidate.
    pub packages: BTreeSet<(String, String)>,
    /// How its pages were judged.
    pub verdicts: BTreeSet<String>,
}

/// Which files a report names, by the kind of address space and by path. Where a file is there by two names because `/bin` and
/// `/lib` are links into `/usr`, it has the short one; firmware has the name of its file, because it lies where the machine has it.
#[must_use]
pub fn names(report: &Value) -> BTreeMap<(String, String), Said> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut names: BTreeMap<(String, String), Said> = BTreeMap::new();
    for space in list(&report["address_spaces"]) {
        let kind = text(&space["kind"]);
        let program = Some(space["program"].clone()).filter(|program| !program.is_null());
        let files = list(&space["modules"]).into_iter().map(|file| (file, false));
        for (file, is_program) in files.chain(program.map(|program| (program, true))) {
            let path = text(&file["path"]);
            let path = match path.strip_prefix("/usr/") {
                _ if kind == "firmware" => path.rsplit('/').next().unwrap_or_default().to_owned(),
                Some(rest) => format!("/{rest}"),
                None => path,
            };
            let said = names.entry((kind.clone(), path)).or_default();
            said.is_program |= is_program;
            said.verdicts
                .extend(file["verdict"].as_str().map(ToOwned::to_owned));
            for candidate in list(&file["candidates"]) {
                said.packages
                    .insert((text(&candidate["package"]), text(&candidate["version"])));
            }
        }
    }
    names
}

/// In what one report names otherwise than another, a line each; empty if in nothing.
#[must_use]
pub fn named_otherwise(one: (&str, &Value), other: (&str, &Value)) -> Vec<String> {
    let (ours, theirs) = (names(one.1), names(other.1));
    let files: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let mut lines = Vec::new();
    for file in files {
        let (kind, path) = file;
        let (ours, theirs) = match (ours.get(file), theirs.get(file)) {
            (Some(ours), Some(theirs)) => (ours, theirs),
            (None, _) => {
                lines.push(format!("{kind} {path}: only in {}", other.0));
                continue;
            }
            (_, None) => {
                lines.push(format!("{kind} {path}: only in {}", one.0));
                continue;
            }
        };
        if ours.is_program != theirs.is_program {
            let by = if ours.is_program { one.0 } else { other.0 };
            lines.push(format!("{kind} {path}: a program only in {by}"));
        }
        if ours.packages != theirs.packages {
            lines.push(format!(
                "{kind} {path}: of {:?} in {}, of {:?} in {}",
                ours.packages, one.0, theirs.packages, other.0
            ));
        }
        if ours.verdicts != theirs.verdicts {
            lines.push(format!(
                "{kind} {path}: {:?} in {}, {:?} in {}",
                ours.verdicts, one.0, theirs.verdicts, other.0
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_about_a_page_that_is_named_in_the_end_contradicts_its_report() {
        let with = |listed: u64| {
            serde_json::json!({
                "address_spaces": [{"id": 2, "unknown": [{"page": listed}], "modified": []}],
                "findings": [{
                    "rule": "unknown-code", "address_space": 2, "summary": "unknown", "evidence": {"page": 7},
                }],
            })
        };
        assert_eq!(contradictions(&with(7)), Vec::<String>::new());
        let wrong = contradictions(&with(8));
        assert!(wrong.len() == 1 && wrong[0].contains("\"page\":7"), "{wrong:?}");
    }

    fn with(path: &str, version: &str, verdict: &str) -> Value {
        let candidates = serde_json::json!([{"package": "p", "source": "p", "version": version}]);
        serde_json::json!({"address_spaces": [{
            "kind": "user",
            "program": {"path": path, "candidates": candidates},
            "modules": [{"path": path, "candidates": candidates, "verdict": verdict}],
        }]})
    }

    #[test]
    fn reports_differ_in_files_versions_and_verdicts_and_not_in_links() {
        let one = with("/usr/bin/a", "1", "identified");
        let differ = |other: &Value| named_otherwise(("one", &one), ("other", other));
        assert_eq!(differ(&with("/bin/a", "1", "identified")), Vec::<String>::new());
        assert_eq!(
            differ(&with("/bin/b", "1", "identified")),
            ["user /bin/a: only in one", "user /bin/b: only in other"]
        );
        assert!(differ(&with("/bin/a", "2", "identified"))[0].contains("\"2\""));
        assert!(differ(&with("/bin/a", "1", "modified"))[0].contains("modified"));
        let mut library = one.clone();
        library["address_spaces"][0]["program"] = Value::Null;
        assert_eq!(differ(&library), ["user /bin/a: a program only in one"]);
    }

    #[test]
    fn a_report_that_is_none_is_refused_with_what_is_missing() {
        let error = validate(&serde_json::json!({"schema": "nephoscope.report/1"})).unwrap_err();
        assert!(error.to_string().contains("address_spaces"), "{error}");
    }
}
