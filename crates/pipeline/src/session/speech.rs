//! From changes to findings, and from findings to sinks.

use nephoscope_finding::{Finding, Sink};
use nephoscope_guest::{Gpa, Gva, PageId, Root};
use nephoscope_inventory::Change;
use nephoscope_judge::{Draft, Judge};

use super::Session;

impl Session {
    /// Whether there is something to [`Session::speak`] of.
    #[must_use]
    pub fn has_to_speak(&self) -> bool {
        self.judges.unknown.is_due(self.now_ns)
    }

    /// Speaks of a kernel's unknown code, and of what is still undecided after it was waited for; of all that waits, at the end. `there` tells what is mapped
    /// executable at an address in the address space of a root: where it lies, and the BLAKE3 of its bytes.
    pub fn speak(
        &mut self,
        at_the_end: bool,
        there: &dyn Fn(Root, Gva) -> Option<(Gpa, [u8; 32])>,
        sinks: &mut [&mut dyn Sink],
    ) {
        let until_ns = if at_the_end { u64::MAX } else { self.now_ns };
        if at_the_end {
            self.judges.unknown.looking(false);
        }
        let mut drafts = Vec::new();
        self.judges
            .unknown
            .later(until_ns, &self.inventory, &self.names, there, &mut drafts);
        for draft in drafts {
            self.emit(draft, sinks);
        }
    }

    pub(super) fn judge(&mut self, changes: &[Change], sinks: &mut [&mut dyn Sink]) {
        let mut drafts = Vec::new();
        for change in changes {
            self.judges
                .modified
                .judge(change, &self.inventory, &self.names, &mut drafts);
            self.judges
                .unknown
                .judge(change, &self.inventory, &self.names, &mut drafts);
            self.judges
                .files
                .judge(change, &self.inventory, &self.names, &mut drafts);
        }
        for draft in drafts {
            self.emit(draft, sinks);
        }
    }

    pub(super) fn emit(&mut self, draft: Draft, sinks: &mut [&mut dyn Sink]) {
        let page = draft.evidence.get("page").and_then(serde_json::Value::as_u64);
        if page.is_some_and(|page| self.told.is_repeated(draft.rule, PageId(page))) {
            self.counters.count("findings_repeated");
            return;
        }
        let finding = Finding {
            id: self.told.number(),
            rule: draft.rule.to_owned(),
            severity: draft.severity,
            address_space: draft.space.map(|space| space.0),
            at_ns: draft.at_ns,
            found_ns: self
                .began
                .and_then(|began| began.elapsed().as_nanos().try_into().ok()),
            summary: draft.summary,
            evidence: draft.evidence,
        };
        for sink in sinks {
            if sink.emit(&finding).is_err() {
                self.counters.count("findings_not_delivered");
            }
        }
        let gone = self.told.keep(finding);
        self.counters.add("findings_not_kept", gone);
    }
}
