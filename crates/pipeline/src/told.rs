//! What was concluded so far, within bounds.

use std::collections::HashMap;

use nephoscope_finding::Finding;
use nephoscope_guest::PageId;

/// Findings that are kept. Past it the oldest go; sinks had them. It stops a guest that runs ever new unknown programs.
const MAX_FINDINGS: usize = 8192;

/// Findings of one rule about one page, in as many address spaces. Further ones would say the same of children of the same
/// program; the report lists their pages. It stops a program that forks without end.
const MAX_PER_PAGE: u32 = 16;

/// Pages of which it is remembered how often they were told. Past it they are told anew.
const MAX_REMEMBERED: usize = 64 << 10;

/// The findings.
#[derive(Debug, Default)]
pub(crate) struct Told {
    findings: Vec<Finding>,
    times: HashMap<(&'static str, PageId), u32>,
    last: u64,
}

impl Told {
    /// Those that are kept, oldest first.
    pub(crate) fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// A number for a finding.
    pub(crate) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The number of the last one.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// An earlier watch made so many findings that were not kept: their numbers are not given again.
    pub(crate) fn go_on(&mut self, not_kept: u64) {
        self.last = self.last.max(self.findings.len() as u64 + not_kept);
    }

    /// Takes one that an earlier watch made.
    pub(crate) fn restore(&mut self, finding: Finding) {
        self.last = self.last.max(finding.id);
        self.keep(finding);
    }

    /// Whether a rule spoke of this page as often as anybody reads.
    pub(crate) fn is_repeated(&mut self, rule: &'static str, page: PageId) -> bool {
        if self.times.len() >= MAX_REMEMBERED && !self.times.contains_key(&(rule, page)) {
            self.times.clear();
        }
        let times = self.times.entry((rule, page)).or_default();
        *times = times.saturating_add(1);
        *times > MAX_PER_PAGE
    }

    /// Keeps a finding, and says how many older ones had to go.
    pub(crate) fn keep(&mut self, finding: Finding) -> u64 {
        // Not one by one: all that follow move.
        let gone = if self.findings.len() >= MAX_FINDINGS {
            self.findings.drain(..MAX_FINDINGS / 8).count()
        } else {
            0
        };
        self.findings.push(finding);
        gone as u64
    }
}

#[cfg(test)]
mod tests {
    use nephoscope_finding::Severity;

    use super::*;

    fn finding(id: u64) -> Finding {
        Finding {
            id,
            rule: "unknown-code".into(),
            severity: Severity::Low,
            address_space: None,
            at_ns: 0,
            found_ns: None,
            summary: String::new(),
            evidence: serde_json::Value::Null,
        }
    }

    #[test]
    fn max_findings_bounds_what_is_kept_and_the_newest_are_there() {
        let mut told = Told::default();
        let gone: u64 = (0..20_000)
            .map(|_| {
                let id = told.number();
                told.keep(finding(id))
            })
            .sum();
        assert!(told.findings().len() <= MAX_FINDINGS);
        assert_eq!(told.findings().len() as u64 + gone, 20_000);
        assert_eq!(told.findings().last().unwrap().id, 20_000);
    }

    #[test]
    fn max_per_page_stops_what_says_the_same_and_nothing_else() {
        let mut told = Told::default();
        let said =
            |told: &mut Told, rule, page| (0..100).filter(|_| !told.is_repeated(rule, PageId(page))).count();
        assert_eq!(said(&mut told, "unknown-code", 1), 16);
        assert_eq!(said(&mut told, "modified-code", 1), 16);
        assert_eq!(said(&mut told, "unknown-code", 2), 16);
    }

    #[test]
    fn max_remembered_bounds_how_many_pages_are_counted() {
        let mut told = Told::default();
        for page in 0..(MAX_REMEMBERED as u64 * 2 + 5) {
            assert!(!told.is_repeated("unknown-code", PageId(page)));
        }
        assert!(told.times.len() <= MAX_REMEMBERED);
    }
}
