//! Code that is in no catalogued file.
//!
//! *Sees*: pages whose verdict is `unknown`. *Cannot see*: whether somebody trusts the code that made them. *Config*:
//! none. *State*: the address spaces it has spoken of; of kernels, where unknown code ran and what it waits for. *Tests*:
//! below and in `tests/e2e` and `tests/attacks`.
//!
//! A program that makes code at run time (a JIT) makes thousands of pages. One finding per address space says so; the
//! pages are in the report. Inside an identified program it matters less than in an address space whose program is
//! itself unknown.
//!
//! The kernel is one address space, and its own JIT runs in it from the boot on. So what is laid out like that is spoken of
//! once, and each other piece of unknown code for itself: a module, a trampoline. A page of a known module may be undecided
//! until more of the module is seen; so the kernel's pages are spoken of only when they still are unknown after a moment.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use nephoscope_finding::{Finding, Severity};
use nephoscope_guest::{PAGE_SIZE, PageId};
use nephoscope_inventory::{
    AddressSpace, Change, Inventory, Names, SpaceId, SpaceKind, Verdict, program_path,
};

use crate::draft::{Draft, Judge};

/// How long the kernel's pages may take to be decided: several looks at what it has mapped.
const WAIT_NS: u64 = 250_000_000;

/// Unknown pages of the kernel this near to each other are one piece of code: less than lies between two modules that are
/// loaded one after the other, if anything does.
const NEAR_PAGES: u64 = 2;

/// Pages that change within this time of each other change together.
const AT_ONCE_NS: u64 = 1_000_000_000;

/// Pieces of unknown code that are spoken of per kernel. It stops a guest that makes its kernel run new code without end;
/// the pages are in the report.
const MAX_PIECES: usize = 1024;

/// Pages of one program of the kernel's JIT: more than 4,096 classic instructions need.
const MAX_PROGRAM_PAGES: u64 = 32;

/// Pages waited for: as many as a kernel with all its modules has. Those beyond are spoken of at once.
const MAX_WAITING: usize = 16 << 10;

/// The rule.
#[derive(Debug, Default)]
pub struct UnknownCode {
    said: HashSet<SpaceId>,
    kernels: HashMap<SpaceId, Pieces>,
    waiting: VecDeque<(u64, SpaceId, PageId)>,
    /// Pages that findings of an earlier part of the watch are about.
    told: HashMap<SpaceId, Vec<PageId>>,
}

/// Where a kernel's unknown code is.
#[derive(Debug, Default)]
struct Pieces {
    /// Numbers of virtual pages, and when each was last new.
    pages: BTreeMap<u64, u64>,
    said: usize,
}

impl Pieces {
    /// Whether a page that first ran at this time begins another piece. Beside a page that is known it does not; where
    /// another page ran before it does, unless all of that is being rewritten at this moment.
    fn is_new(&mut self, page: u64, at_ns: u64) -> bool {
        if self.said >= MAX_PIECES {
            return false;
        }
        let again = self.pages.contains_key(&page);
        let near = page.saturating_sub(NEAR_PAGES)..=page.saturating_add(NEAR_PAGES);
        let recent = |seen: u64| at_ns.abs_diff(seen) < AT_ONCE_NS;
        let known = self.pages.range(near).any(|(_, seen)| !again || recent(*seen));
        self.pages.insert(page, at_ns);
        self.said += usize::from(!known);
        !known
    }
}

impl Judge for UnknownCode {
    fn remember(&mut self, finding: &Finding) {
        let page = finding.evidence.get("page").and_then(serde_json::Value::as_u64);
        if let (true, Some(space), Some(page)) = (finding.rule == "unknown-code", finding.address_space, page)
        {
            self.told.entry(SpaceId(space)).or_default().push(PageId(page));
        }
    }

    fn judge(&mut self, change: &Change, inventory: &Inventory, names: &dyn Names, out: &mut Vec<Draft>) {
        if let Change::Summarised { space } = change {
            self.said.remove(space);
            self.kernels.remove(space);
        }
        let Change::Ran { space, page } = change else {
            return;
        };
        let (Some(record), Some(about)) = (inventory.page(*page), inventory.space(*space)) else {
            return;
        };
        let Verdict::Unknown(unknown) = &*record.verdict else {
            return;
        };
        if about.kind == SpaceKind::Kernel && !unknown.jit && self.waiting.len() < MAX_WAITING {
            self.waiting
                .push_back((record.at_ns.saturating_add(WAIT_NS), *space, *page));
        } else if !self.said.contains(space) {
            self.one(*space, *page, inventory, names, out);
        }
    }
}

/// An address space's pages by their virtual page number: `Some(true)` is unknown and laid out like the JIT's output,
/// `Some(false)` is unknown otherwise. Where several were, it is the newest.
fn by_address(space: &AddressSpace, inventory: &Inventory) -> BTreeMap<u64, Option<bool>> {
    let pages = space.pages.iter().filter_map(|(page, va)| {
        let jit = match &*inventory.page(*page)?.verdict {
            Verdict::Unknown(unknown) => Some(unknown.jit),
            _ => None,
        };
        Some(((*va)?.0 / PAGE_SIZE as u64, jit))
    });
    pages.collect()
}

/// Whether a page goes on with what the JIT made: only the first page of a long program (a seccomp filter, say) begins as the
/// JIT lets programs begin. Unknown pages lead from it to this one.
fn continues(pages: &BTreeMap<u64, Option<bool>>, page: u64) -> bool {
    let before = (1..=MAX_PROGRAM_PAGES).map(|n| {
        page.checked_sub(n)
            .and_then(|page| pages.get(&page).copied().flatten())
    });
    before.take_while(Option::is_some).any(|jit| jit == Some(true))
}

impl UnknownCode {
    /// Speaks of the kernel's pages that had to be waited for. To be called every few milliseconds.
    pub fn later(&mut self, now_ns: u64, inventory: &Inventory, names: &dyn Names, out: &mut Vec<Draft>) {
        while let Some((_, space, page)) = self.waiting.pop_front_if(|(due, ..)| *due <= now_ns) {
            let Some(record) = inventory.page(page) else {
                continue;
            };
            let is_unknown = matches!(*record.verdict, Verdict::Unknown(_));
            if is_unknown
                && !inventory.space(space).is_some_and(|space| {
                    continues(&by_address(space, inventory), record.va.0 / PAGE_SIZE as u64)
                })
                && self
                    .kernels
                    .entry(space)
                    .or_default()
                    .is_new(record.va.0 / PAGE_SIZE as u64, record.at_ns)
            {
                self.one(space, page, inventory, names, out);
            }
        }
    }

    /// Goes on from an inventory that was restored, after its findings were ([`Judge::remember`]). What was not spoken of yet
    /// is looked at anew: a watch that was killed may have waited.
    pub fn restored(&mut self, inventory: &Inventory) {
        for (space, told) in std::mem::take(&mut self.told) {
            let Some(about) = inventory.space(space) else {
                continue;
            };
            let pieces = self.kernels.entry(space).or_default();
            for record in told.iter().filter_map(|page| inventory.page(*page)) {
                let jit = matches!(&*record.verdict, Verdict::Unknown(unknown) if unknown.jit);
                if about.kind != SpaceKind::Kernel || jit {
                    self.said.insert(space);
                } else {
                    pieces.is_new(record.va.0 / PAGE_SIZE as u64, record.at_ns);
                }
            }
            if about.kind != SpaceKind::Kernel {
                // Whatever became of the page.
                self.said.insert(space);
                self.kernels.remove(&space);
            }
        }
        for space in inventory.spaces().filter(|space| space.kind == SpaceKind::Kernel) {
            for record in space.pages.keys().filter_map(|page| inventory.page(*page)) {
                let unknown = matches!(&*record.verdict, Verdict::Unknown(unknown) if !unknown.jit);
                if unknown && self.waiting.len() < MAX_WAITING {
                    self.waiting
                        .push_back((record.at_ns.saturating_add(WAIT_NS), space.id, record.id));
                }
            }
        }
    }

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
        if space.kind != SpaceKind::Kernel || unknown.jit {
            self.said.insert(id);
        }
        let program = program_path(space, inventory, names);
        let who = match (space.kind, &program) {
            (SpaceKind::Kernel, _) => "the kernel".to_owned(),
            (_, Some(path)) => path.clone(),
            (_, None) => "an unidentified program".to_owned(),
        };
        let severity = if program.is_some() || unknown.jit {
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

#[cfg(test)]
mod tests {
    use nephoscope_guest::Privilege;

    use super::*;
    use crate::fixture::{NoNames, run};

    const LATER: u64 = 10 * AT_ONCE_NS;

    #[test]
    fn pages_side_by_side_are_one_piece_of_code_and_others_are_not() {
        let mut pieces = Pieces::default();
        let new = [(100, 0), (101, 0), (103, LATER), (106, 0)].map(|(page, at)| pieces.is_new(page, at));
        assert_eq!(new, [true, false, false, true]);
    }

    #[test]
    fn pages_that_lead_on_from_the_jits_are_the_jits_and_no_others() {
        let pages = BTreeMap::from([
            (100, Some(true)),
            (101, Some(false)),
            (102, Some(false)),
            (104, Some(false)),
            (200, None),
            (201, Some(false)),
        ]);
        let goes_on = [100, 101, 102, 104, 201].map(|page| continues(&pages, page));
        assert_eq!(goes_on, [false, true, true, false, false]);
    }

    #[test]
    fn max_program_pages_is_how_long_a_program_of_the_jit_may_be() {
        let first = (100, Some(true));
        let rest = (1..=MAX_PROGRAM_PAGES + 1).map(|n| (100 + n, Some(false)));
        let pages = std::iter::once(first).chain(rest).collect();
        assert!(continues(&pages, 100 + MAX_PROGRAM_PAGES));
        assert!(!continues(&pages, 101 + MAX_PROGRAM_PAGES));
    }

    #[test]
    fn max_waiting_pages_wait_and_the_next_is_spoken_of_at_once() {
        let (mut rule, mut inventory, mut out) = (UnknownCode::default(), Inventory::default(), Vec::new());
        for id in 0..=MAX_WAITING as u64 {
            assert!(out.is_empty(), "{id}");
            let unknown = Verdict::Unknown(nephoscope_inventory::Unknown::default());
            for change in run(&mut inventory, id, Privilege::Supervisor, unknown) {
                rule.judge(&change, &inventory, &NoNames, &mut out);
            }
        }
        assert_eq!((rule.waiting.len(), out.len()), (MAX_WAITING, 1));
    }

    #[test]
    fn other_code_at_the_same_place_is_another_piece() {
        let mut pieces = Pieces::default();
        let new = [(100, 0), (101, 0), (100, LATER), (101, LATER), (100, LATER + 1)];
        let new = new.map(|(page, at)| pieces.is_new(page, at));
        assert_eq!(new, [true, false, true, false, false]);
    }

    #[test]
    fn max_pieces_bounds_what_one_kernel_makes_us_say() {
        let mut pieces = Pieces::default();
        let said = (0..MAX_PIECES as u64 + 10)
            .filter(|n| pieces.is_new(n * 100, 0))
            .count();
        assert_eq!((said, pieces.pages.len()), (MAX_PIECES, MAX_PIECES));
    }
}
