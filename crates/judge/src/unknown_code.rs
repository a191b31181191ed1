//! Code that is in no catalogued file.
//!
//! *Sees*: pages whose verdict is `unknown`. *Cannot see*: whether somebody trusts the code that made them. *Config*:
//! none. *State*: the address spaces it has spoken of, and how many pages it saw since. *Tests*: below and in
//! `tests/e2e`.
//!
//! A program that makes code at run time (a JIT) makes thousands of pages. One finding per address space says so; the
//! pages are in the report. Inside an identified program it matters less than in an address space whose program is
//! itself unknown.

use std::collections::HashSet;

use nephoscope_finding::{Finding, Severity};
use nephoscope_guest::PageId;
use nephoscope_inventory::{Change, Inventory, Names, SpaceId, SpaceKind, Verdict, program_path};

use crate::draft::{Draft, Judge};

/// The rule.
#[derive(Debug, Default)]
pub struct UnknownCode {
    said: HashSet<SpaceId>,
}

impl Judge for UnknownCode {
    fn remember(&mut self, finding: &Finding) {
        if let (true, Some(space)) = (finding.rule == "unknown-code", finding.address_space) {
            self.said.insert(SpaceId(space));
        }
    }

    fn judge(&mut self, change: &Change, inventory: &Inventory, names: &dyn Names, out: &mut Vec<Draft>) {
        if let Change::Ran { space, page } = change
            && !self.said.contains(space)
        {
            self.one(*space, *page, inventory, names, out);
        }
    }
}

impl UnknownCode {
    fn one(
        &mut self,
        id: SpaceId,
        page: PageId,
        inventory: &Inventory,
        names: &dyn Names,
        out: &mut Vec<Draft>,
    ) {
        let (Some(record), Some(space)) = (inventory.page(page), inventory.space(id)) else {
            return;
        };
        let Verdict::Unknown(unknown) = &*record.verdict else {
            return;
        };
        // Firmware and boot code are counted and reported page by page; before the kernel runs there is nobody to tell.
        if space.kind == SpaceKind::Firmware {
            return;
        }
        self.said.insert(id);
        let program = program_path(space, inventory, names);
        let who = match (space.kind, &program) {
            (SpaceKind::Kernel, _) => "the kernel".to_owned(),
            (_, Some(path)) => path.clone(),
            (_, None) => "an unidentified program".to_owned(),
        };
        let severity = if program.is_some() || space.kind == SpaceKind::Kernel {
            Severity::Low
        } else {
            Severity::Medium
        };
        let va = space.pages.get(&page).copied().flatten().unwrap_or(record.va);
        out.push(Draft {
            rule: "unknown-code",
            severity,
            space: Some(id),
            at_ns: record.at_ns,
            summary: format!("{who} runs code that is in no catalogued file, first at {va}"),
            evidence: serde_json::json!({
                "page": page.0,
                "va": format!("{va}"),
                "generation": record.generation,
                "origin": unknown.origin,
                "program": program,
            }),
        });
    }
}
