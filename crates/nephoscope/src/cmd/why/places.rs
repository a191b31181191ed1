//! Where the bytes of a page stand, file by file.

use std::collections::BTreeMap;

use nephoscope_inventory::CandidateReport;

use crate::control::PlaceEvidence;
use crate::text::{alternatives, escape};
use crate::view;

/// Files that are shown when not all are asked for.
const FEW: usize = 4;

/// One line per file: path, address as linked, and the package versions it may be of.
pub(super) fn lines(places: &[PlaceEvidence], all: bool, columns: usize) -> Vec<String> {
    let mut files: BTreeMap<(&str, u64), Vec<CandidateReport>> = BTreeMap::new();
    for place in places {
        files
            .entry((&place.path, place.link))
            .or_default()
            .push(CandidateReport {
                package: place.package.clone(),
                source: place.source.clone(),
                version: place.version.clone(),
            });
    }
    let shown = if all { files.len() } else { FEW };
    let hidden = files.len().saturating_sub(shown);
    let mut lines: Vec<String> = files
        .into_iter()
        .take(shown)
        .flat_map(|((path, link), mut candidates)| {
            candidates.sort();
            candidates.dedup();
            let versions = view::alternatives(&candidates);
            let versions = if all {
                versions.join(" | ")
            } else {
                alternatives(&versions, columns.saturating_sub(2))
            };
            [
                format!("{}, linked at {link:#x}", escape(path)),
                format!("{}{versions}{}", "  ", sources(&candidates)),
            ]
        })
        .collect();
    if hidden > 0 {
        lines.push(format!("and {hidden} more: --all shows them"));
    }
    lines
}

/// The source packages, where they have another name.
fn sources(candidates: &[CandidateReport]) -> String {
    let mut names: Vec<&str> = candidates
        .iter()
        .filter(|candidate| candidate.source != candidate.package)
        .filter_map(|candidate| candidate.source.as_deref())
        .collect();
    names.dedup();
    match names.as_slice() {
        [] => String::new(),
        names => format!(" (source {})", escape(&names.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str, version: &str) -> PlaceEvidence {
        PlaceEvidence {
            path: path.to_owned(),
            package: Some("libssl3".into()),
            source: Some("openssl".into()),
            version: Some(version.to_owned()),
            link: 0x1000,
        }
    }

    #[test]
    fn versions_of_one_file_are_one_line_and_many_files_are_counted() {
        let places = [
            place("/lib/libssl.so.3", "3.0.17"),
            place("/lib/libssl.so.3", "3.0.15"),
        ];
        assert_eq!(
            lines(&places, false, 80),
            [
                "/lib/libssl.so.3, linked at 0x1000",
                "  libssl3 3.0.15 | 3.0.17 (source openssl)"
            ]
        );
        let many: Vec<PlaceEvidence> = (0..10).map(|i| place(&format!("/lib/{i}"), "1")).collect();
        assert_eq!(
            lines(&many, false, 80).last().unwrap(),
            "and 6 more: --all shows them"
        );
        assert_eq!(lines(&many, true, 80).len(), 20);
    }
}
