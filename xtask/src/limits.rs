//! Every limit has a test of its name: a constant `MAX_…` in a crate stops somebody, and a test of that crate says so.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::build::workspace;

/// Checks all crates.
pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for entry in fs::read_dir(workspace().join("crates"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut sources = BTreeMap::new();
        read(&entry.path(), &entry.path(), &mut sources)?;
        wrong.extend(untested(&name, &sources));
    }
    ensure!(
        wrong.is_empty(),
        "every limit needs a test that has its name in its own: {}",
        wrong.join(", ")
    );
    Ok(())
}

/// Paths and texts of all sources beneath a folder.
fn read(base: &Path, folder: &Path, sources: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read(base, &path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path
                .strip_prefix(base)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            sources.insert(name, text);
        }
    }
    Ok(())
}

/// Limits without a test.
fn untested(name: &str, sources: &BTreeMap<String, String>) -> Vec<String> {
    let tests: Vec<&str> = sources.values().flat_map(|text| tests(text)).collect();
    let of_product = sources.iter().filter(|(path, _)| path.starts_with("src/"));
    let limits = of_product.flat_map(|(_, text)| limits(text));
    let is_tested = |limit: &str| {
        let wanted = limit.to_ascii_lowercase();
        tests.iter().any(|test| test.contains(&wanted))
    };
    let mut wrong: Vec<String> = limits
        .filter(|limit| !is_tested(limit))
        .map(|limit| format!("{name}/{limit}"))
        .collect();
    wrong.sort();
    wrong.dedup();
    wrong
}

fn limits(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let (before, after) = line.trim_start().split_once("const ")?;
        let is_const = before.is_empty() || before.starts_with("pub");
        let limit = after.split(':').next()?.trim();
        (is_const && limit.starts_with("MAX_")).then_some(limit)
    })
}

/// Names of functions that `#[test]` is above of, other attributes between.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    let mut marked = false;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if line == "#[test]" {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            return std::mem::take(&mut marked).then(|| rest.split(['(', '<']).next())?;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            marked = false;
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(test: &str) -> BTreeMap<String, String> {
        let product = "pub(crate) const MAX_DEPTH: usize = 8;\nfn f() { let max = MAX_DEPTH; }\n";
        BTreeMap::from([
            ("src/a.rs".to_owned(), product.to_owned()),
            (
                "tests/b.rs".to_owned(),
                format!("const MAX_OTHER: u8 = 1;\n{test}"),
            ),
        ])
    }

    #[test]
    fn a_limit_without_a_test_of_its_name_is_found() {
        let named = "#[test]\n#[ignore = \"slow\"]\nfn max_depth_stops_a_tree() {\n";
        assert_eq!(untested("x", &sources(named)), [""; 0]);
        for bad in [
            "",
            "fn max_depth_is_no_test() {\n",
            "#[test]\nfn another() {}\nfn max_depth() {}\n",
        ] {
            assert_eq!(untested("x", &sources(bad)), ["x/MAX_DEPTH"], "{bad}");
        }
    }
}
