//! What is left of address spaces that ended long ago: nothing that ran disappears from the report, but only the last ones
//! are told one by one.
//!
//! A guest can start processes without end. Past [`MAX_ENDED`], the ones that ended first are counted under the program that
//! was identified in them, with the files that they executed and how many of their pages were what; their pages are forgotten
//! when nobody else has them and their frames hold something else. Address spaces with modified or unknown pages are kept
//! apart, so that those of which nothing is to be said do not push them out.

use std::collections::{BTreeMap, BTreeSet};

use crate::report::{
    CandidateReport, ModuleReport, PageCounts, ProgramReport, SpaceReport, SummaryReport, UsedReport,
};
use crate::space::SpaceKind;

/// Ended address spaces told one by one: so many with identified pages only, and as many others.
pub const MAX_ENDED: usize = 1024;

/// What address spaces are counted under: their kind and program.
type Key = (SpaceKind, Option<(String, Vec<CandidateReport>)>);

/// Ended address spaces of one program. There are not more of them than there are programs in the catalog and ways to take
/// one for another, so that a guest cannot make this grow.
#[derive(Clone, Debug, Default)]
struct Summary {
    count: u64,
    first_ns: u64,
    last_ns: u64,
    pages: PageCounts,
    modules: BTreeMap<(String, Vec<CandidateReport>, Option<String>), u64>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summaries {
    all: BTreeMap<Key, Summary>,
    /// What changed since somebody asked.
    changed: BTreeSet<Key>,
}

impl Summaries {
    /// Adds an address space, as it would be reported, with its pages by verdict.
    pub(crate) fn add(&mut self, space: &SpaceReport, pages: PageCounts) {
        let program = space.program.as_ref();
        let named = program.map(|program| (program.path.clone(), program.candidates.clone()));
        let key = (space.kind, named);
        self.changed.insert(key.clone());
        let summary = self.all.entry(key).or_default();
        if summary.count == 0 {
            summary.first_ns = space.first_ns;
        }
        summary.count += 1;
        summary.first_ns = summary.first_ns.min(space.first_ns);
        summary.last_ns = summary.last_ns.max(space.ended.unwrap_or(space.last_ns));
        summary.pages.add(pages);
        for module in &space.modules {
            *summary.modules.entry(used(module)).or_default() += 1;
        }
    }

    /// As they stand in the report.
    pub(crate) fn report(&self) -> Vec<SummaryReport> {
        self.all.iter().map(|(key, summary)| told(key, summary)).collect()
    }

    /// Those that changed since the last call.
    pub(crate) fn take_changed(&mut self) -> Vec<SummaryReport> {
        let changed = std::mem::take(&mut self.changed);
        let changed = changed.iter().filter_map(|key| self.all.get_key_value(key));
        changed.map(|(key, summary)| told(key, summary)).collect()
    }

    /// Takes one that was written down, instead of what is known under its program.
    pub(crate) fn restore(&mut self, told: SummaryReport) {
        let named = told.program.map(|program| (program.path, program.candidates));
        let modules = told.modules.into_iter();
        let summary = Summary {
            count: told.count,
            first_ns: told.first_ns,
            last_ns: told.last_ns,
            pages: told.pages,
            modules: modules
                .map(|used| ((used.path, used.candidates, used.build_id), used.address_spaces))
                .collect(),
        };
        self.all.insert((told.kind, named), summary);
    }
}

fn told((kind, named): &Key, summary: &Summary) -> SummaryReport {
    SummaryReport {
        kind: *kind,
        program: named.as_ref().map(|(path, candidates)| ProgramReport {
            path: path.clone(),
            candidates: candidates.clone(),
            // The path says it.
            left_out: 0,
        }),
        count: summary.count,
        first_ns: summary.first_ns,
        last_ns: summary.last_ns,
        pages: summary.pages,
        modules: summary
            .modules
            .iter()
            .map(|((path, candidates, build_id), spaces)| UsedReport {
                path: path.clone(),
                candidates: candidates.clone(),
                build_id: build_id.clone(),
                address_spaces: *spaces,
            })
            .collect(),
    }
}

fn used(module: &ModuleReport) -> (String, Vec<CandidateReport>, Option<String>) {
    (
        module.path.clone(),
        module.candidates.clone(),
        module.build_id.clone(),
    )
}
