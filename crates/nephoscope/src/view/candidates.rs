//! The package versions that a file may be of.

use nephoscope_inventory::CandidateReport;

use crate::text::escape;

/// What it may be, shortest first mention: `openssl 3.0.15`, `3.0.17`, `other 1.0`.
#[must_use]
pub(crate) fn alternatives(candidates: &[CandidateReport]) -> Vec<String> {
    let mut said: Option<&str> = None;
    let mut all: Vec<String> = Vec::new();
    for candidate in candidates {
        let package = candidate.package.as_deref();
        let text = match (package, candidate.version.as_deref()) {
            (None, _) => "no package".to_owned(),
            (Some(name), None) => name.to_owned(),
            (Some(name), Some(version)) if said == Some(name) => version.to_owned(),
            (Some(name), Some(version)) => format!("{name} {version}"),
        };
        said = package;
        all.push(escape(&text).into_owned());
    }
    // One file may stand at two places of the same package.
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(package: Option<&str>, version: Option<&str>) -> CandidateReport {
        CandidateReport {
            package: package.map(str::to_owned),
            source: None,
            version: version.map(str::to_owned),
        }
    }

    #[test]
    fn versions_of_one_package_name_it_once() {
        let all = alternatives(&[
            candidate(None, None),
            candidate(Some("openssl"), Some("3.0.15")),
            candidate(Some("openssl"), Some("3.0.17")),
            candidate(Some("ssl\x1b"), Some("1")),
        ]);
        assert_eq!(all, ["no package", "openssl 3.0.15", "3.0.17", "ssl\\u{1b} 1"]);
    }
}
