//! Known code that is not what it was: an inline hook, a patched binary.
//!
//! *Sees*: every page whose verdict is `modified`, in each address space that runs it. *Cannot see*: changes that add no
//! code. *Config*: none. *State*: what was said. *Tests*: below and in `tests/e2e`.

use std::collections::{HashMap, HashSet};

use nephoscope_finding::{Finding, Severity};
use nephoscope_guest::PageId;
use nephoscope_inventory::{Change, Inventory, Names, SpaceId, Verdict};

use crate::draft::{Draft, Judge};

/// The rule.
#[derive(Debug, Default)]
pub struct ModifiedCode {
    said: HashMap<SpaceId, HashSet<PageId>>,
}

/// Findings about one address space: it stops a program that changes its code without end. The report has all pages.
const MAX_PER_SPACE: usize = 64;

impl Judge for ModifiedCode {
    fn remember(&mut self, finding: &Finding) {
        let page = finding.evidence.get("page").and_then(serde_json::Value::as_u64);
        if let (true, Some(space), Some(page)) =
            (finding.rule == "modified-code", finding.address_space, page)
        {
            self.said.entry(SpaceId(space)).or_default().insert(PageId(page));
        }
    }

    fn judge(&mut self, change: &Change, inventory: &Inventory, names: &dyn Names, out: &mut Vec<Draft>) {
        match change {
            Change::Ran { space, page } | Change::Accessed { space, page } => {
                self.one(*space, *page, inventory, names, out)
            }
            Change::Judged { page } => {
                let spaces: Vec<SpaceId> = inventory
                    .spaces()
                    .filter(|s| s.has(*page))
                    .map(|s| s.id)
                    .collect();
                for space in spaces {
                    self.one(space, *page, inventory, names, out);
                }
            }
            Change::Ended { .. } | Change::FileJudged { .. } => {}
            Change::Summarised { space } => {
                self.said.remove(space);
            }
        }
    }
}

impl ModifiedCode {
    fn one(
        &mut self,
        space: SpaceId,
        page: PageId,
        inventory: &Inventory,
        names: &dyn Names,
        out: &mut Vec<Draft>,
    ) {
        let Some(record) = inventory.page(page) else {
            return;
        };
        let Verdict::Modified(modified) = &*record.verdict else {
            return;
        };
        let said = self.said.entry(space).or_default();
        if said.len() >= MAX_PER_SPACE || !said.insert(page) {
            return;
        }
        let more = if said.len() == MAX_PER_SPACE {
            "; of further pages the report tells"
        } else {
            ""
        };
        let path = names.placements(modified.nearest.object).into_iter().next();
        let (path, candidate) =
            path.map_or((String::new(), None), |(path, candidate)| (path, Some(candidate)));
        let bytes: usize = modified.differences.iter().map(|d| d.after.len()).sum();
        let places = modified.differences.len();
        let va = inventory
            .space(space)
            .and_then(|s| s.pages.get(&page).copied().flatten());
        let at = va.map_or(String::new(), |va| format!(" at {va}"));
        out.push(Draft {
            rule: "modified-code",
            severity: Severity::High,
            space: Some(space),
            at_ns: record.at_ns,
            summary: format!(
                "{path} runs with {bytes} changed byte(s) in {places} place(s) of one page{at}{more}"
            ),
            evidence: serde_json::json!({
                "page": page.0,
                "path": path,
                "nearest": candidate.map(|c| serde_json::json!({
                    "package": c.package, "source": c.source, "version": c.version,
                })),
                "link_address": format!("{:#x}", modified.nearest.link),
                "generation": record.generation,
                "differences": modified.differences.iter().map(|d| serde_json::json!({
                    "offset": d.offset,
                    "before": hex(&d.before),
                    "after": hex(&d.after),
                })).collect::<Vec<_>>(),
            }),
        });
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use nephoscope_guest::Privilege;
    use nephoscope_inventory::{Difference, Modified, Place};

    use super::*;
    use crate::fixture::{NoNames, run};

    #[test]
    fn max_per_space_bounds_what_is_said_of_one_address_space_and_the_last_says_so() {
        let (mut rule, mut inventory, mut out) = (ModifiedCode::default(), Inventory::default(), Vec::new());
        for id in 0..MAX_PER_SPACE as u64 + 10 {
            let verdict = Verdict::Modified(Modified {
                nearest: Place {
                    object: nephoscope_catalog::ObjectId(1),
                    part: None,
                    link: 0,
                },
                differences: vec![Difference {
                    offset: 0,
                    before: vec![0],
                    after: vec![1],
                }],
            });
            for change in run(&mut inventory, id, Privilege::User, verdict) {
                rule.judge(&change, &inventory, &NoNames, &mut out);
            }
        }
        assert_eq!(out.len(), MAX_PER_SPACE);
        let says_so = |draft: &Draft| draft.summary.ends_with("of further pages the report tells");
        let (last, others) = out.split_last().unwrap();
        assert!(says_so(last) && !others.iter().any(says_so));
    }
}
