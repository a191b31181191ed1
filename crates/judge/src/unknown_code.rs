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
//! until more of the module is seen, and the end of one's code may look like the JIT's; so such a page is spoken of only
//! when it still is unknown after everything that the kernel had mapped was looked at, or after a moment if nobody looks.
//! That moment is the guest's, and a monitor that is behind takes events faster than they happened, so while a look is to
//! come or under way, only its end counts: whoever looks sees to it that there is one. A look that began before a page was
//! known to have run was not for that page.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use nephoscope_finding::{Finding, Severity};
use nephoscope_guest::{Gpa, Gva, PAGE_SIZE, PageId, Root};
use nephoscope_inventory::{
    AddressSpace, Change, Inventory, Names, SpaceId, SpaceKind, Verdict, program_path,
};

use crate::draft::{Draft, Judge};
use crate::pieces::{Pieces, There};

/// How long an undecided page may take to be decided, if nobody looks at what the kernel has mapped.
const WAIT_NS: u64 = 250_000_000;

/// Pages of one program of the kernel's JIT: more than 4,096 classic instructions need.
const MAX_PROGRAM_PAGES: u64 = 32;

/// Pages waited for, and pages that are ready: as many as a kernel with all its modules has. What is beyond does
/// not wait, and what is beyond that is spoken of once.
const MAX_WAITING: usize = 16 << 10;

/// The rule.
#[derive(Debug, Default)]
pub struct UnknownCode {
    said: HashSet<SpaceId>,
    kernels: HashMap<SpaceId, Pieces>,
    /// Undecided pages in the order in which they ran, and when.
    waiting: VecDeque<Waiting>,
    looks: Looks,
    /// A look at what the kernel has mapped is to come or under way.
    looking: bool,
    ready: VecDeque<(SpaceId, PageId)>,
    /// Pages that findings of an earlier part of the watch are about.
    told: HashMap<SpaceId, Vec<PageId>>,
}

/// An undecided page.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    ran_ns: u64,
    /// How many looks had begun when it became known.
    begun: u64,
    space: SpaceId,
    page: PageId,
}

/// A look at what the kernel has mapped: when it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelLook {
    at_ns: u64,
    number: u64,
}

/// When the kernel was looked at. A look counts when all is known that ran before it: what ran later than a page may tell what that
/// was, and a monitor that is behind looks first.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    begun: u64,
    /// The last one that counts.
    counts: KernelLook,
    /// The first after it, and the last.
    next: KernelLook,
    last: KernelLook,
}

impl Looks {
    fn begins(&mut self, at_ns: u64) -> KernelLook {
        self.begun += 1;
        KernelLook {
            at_ns,
            number: self.begun,
        }
    }

    fn made(&mut self, look: KernelLook) {
        if self.next <= self.counts {
            self.next = look;
        }
        self.last = self.last.max(look);
    }

    /// The last that counts. Everything that ran before `now_ns` is known.
    fn until(mut self, now_ns: u64) -> KernelLook {
        self.pass(now_ns);
        self.counts
    }

    fn pass(&mut self, now_ns: u64) {
        for _ in 0..2 {
            if self.next > self.counts && self.next.at_ns <= now_ns {
                self.counts = self.next;
                self.next = self.last;
            }
        }
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
        let (Change::Ran { space, page } | Change::Accessed { space, page }) = change else {
            return;
        };
        let (Some(record), Some(about)) = (inventory.page(*page), inventory.space(*space)) else {
            return;
        };
        let Verdict::Unknown(unknown) = &*record.verdict else {
            return;
        };
        let kernel = about.kind == SpaceKind::Kernel;
        if kernel && unknown.undecided && self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(Waiting {
                ran_ns: record.at_ns,
                begun: self.looks.begun,
                space: *space,
                page: *page,
            });
        } else if kernel && !unknown.jit && self.ready.len() < MAX_WAITING {
            self.ready.push_back((*space, *page));
        } else if !self.said.contains(space) {
            self.one(*space, *page, inventory, names, out);
        }
    }
}

/// What an address space is known to have at an address.
#[derive(Clone, Copy, Debug)]
struct Ran {
    gpa: Option<Gpa>,
    /// `Some(true)` is unknown and laid out like the JIT's output, `Some(false)` is unknown otherwise.
    jit: Option<bool>,
}

/// An address space's pages before this one by their virtual page number; where several were, the newest.
fn before(space: &AddressSpace, inventory: &Inventory, page: u64) -> BTreeMap<u64, Ran> {
    let near = page.saturating_sub(MAX_PROGRAM_PAGES)..page;
    let pages = space.pages.iter().filter_map(|(id, va)| {
        let number = (*va)?.0 / PAGE_SIZE as u64;
        let record = near.contains(&number).then(|| inventory.page(*id))??;
        let jit = match &*record.verdict {
            Verdict::Unknown(unknown) => Some(unknown.jit),
            _ => None,
        };
        let gpa = record.gpa;
        Some((number, Ran { gpa, jit }))
    });
    pages.collect()
}

/// Whether a page goes on with what the JIT made: only the first page of a long program (a seccomp filter, say) begins as the
/// JIT lets programs begin. Unknown pages lead from it to this one, and all of them are where they were.
fn continues(pages: &BTreeMap<u64, Ran>, page: u64, there: There<'_>) -> bool {
    let before = (1..=MAX_PROGRAM_PAGES).map_while(|n| {
        let page = page.checked_sub(n)?;
        let ran = pages.get(&page)?;
        let jit = ran.jit?;
        let (gpa, _) = there(Gva(page.checked_mul(PAGE_SIZE as u64)?))?;
        (ran.gpa == Some(gpa)).then_some(jit)
    });
    before.into_iter().any(|jit| jit)
}

impl UnknownCode {
    /// What the kernel has mapped at this time is looked at from now on.
    pub fn look_begins(&mut self, at_ns: u64) -> KernelLook {
        self.looks.begins(at_ns)
    }

    /// Everything was looked at: pages that were known before it began are decided, or will not be.
    pub fn looked(&mut self, look: KernelLook) {
        self.looks.made(look);
    }

    /// Whether what the kernel has mapped is being looked at, or will be in a moment.
    pub fn looking(&mut self, looking: bool) {
        self.looking = looking;
    }

    fn has_waited(&self, page: &Waiting, now_ns: u64) -> bool {
        let was_for = |look: KernelLook| page.ran_ns < look.at_ns && page.begun < look.number;
        let nobody_looks = !self.looking && !was_for(self.looks.last);
        was_for(self.looks.until(now_ns)) || nobody_looks && page.ran_ns.saturating_add(WAIT_NS) <= now_ns
    }

    /// Whether there are pages of a kernel to speak of.
    #[must_use]
    pub fn is_due(&self, now_ns: u64) -> bool {
        let waiting = self.waiting.front();
        !self.ready.is_empty() || waiting.is_some_and(|waiting| self.has_waited(waiting, now_ns))
    }

    /// Speaks of a kernel's pages that are ready or were waited for. `there` tells what the kernel has mapped executable now,
    /// as the address space of this root sees it.
    pub fn later(
        &mut self,
        now_ns: u64,
        inventory: &Inventory,
        names: &dyn Names,
        there: &dyn Fn(Root, Gva) -> Option<(Gpa, [u8; 32])>,
        out: &mut Vec<Draft>,
    ) {
        self.looks.pass(now_ns);
        while let Some(waiting) = self.waiting.pop_front() {
            if !self.has_waited(&waiting, now_ns) {
                self.waiting.push_front(waiting);
                break;
            }
            self.ready.push_back((waiting.space, waiting.page));
        }
        for (space, page) in std::mem::take(&mut self.ready) {
            let (Some(record), Some(about)) = (inventory.page(page), inventory.space(space)) else {
                continue;
            };
            let Verdict::Unknown(unknown) = &*record.verdict else {
                continue;
            };
            if unknown.jit {
                if !self.said.contains(&space) {
                    self.one(space, page, inventory, names, out);
                }
                continue;
            }
            let there = |va| there(record.root, va);
            let number = record.va.0 / PAGE_SIZE as u64;
            let pieces = self.kernels.entry(space).or_default();
            if !continues(&before(about, inventory, number), number, &there)
                && pieces.is_new(number, record.at_ns, record.digest, &there)
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
                    pieces.remember(record.va.0 / PAGE_SIZE as u64, record.at_ns, record.digest);
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
                    self.waiting.push_back(Waiting {
                        ran_ns: record.at_ns,
                        begun: self.looks.begun,
                        space: space.id,
                        page: record.id,
                    });
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
    use nephoscope_inventory::Unknown;

    use super::*;
    use crate::fixture::{NoNames, run};

    /// Pages that ran, each where it lies still.
    fn ran(pages: impl IntoIterator<Item = (u64, Option<bool>)>) -> BTreeMap<u64, Ran> {
        let gpa = |page| Some(Gpa(page << 12));
        let pages = pages.into_iter();
        pages
            .map(|(page, jit)| (page, Ran { gpa: gpa(page), jit }))
            .collect()
    }

    fn there(va: Gva) -> Option<(Gpa, [u8; 32])> {
        Some((Gpa(va.0), [0; 32]))
    }

    #[test]
    fn pages_that_lead_on_from_the_jits_are_the_jits_and_no_others() {
        let pages = ran([
            (100, Some(true)),
            (101, Some(false)),
            (102, Some(false)),
            (104, Some(false)),
            (200, None),
            (201, Some(false)),
        ]);
        let goes_on = [100, 101, 102, 104, 201].map(|page| continues(&pages, page, &there));
        assert_eq!(goes_on, [false, true, true, false, false]);
    }

    #[test]
    fn what_is_loaded_behind_a_program_of_the_jit_that_is_gone_is_not_the_jits() {
        let pages = ran([(100, Some(true)), (101, Some(false))]);
        let elsewhere = |va: Gva| Some((Gpa(va.0 + 0x10_0000), [0; 32]));
        assert!(continues(&pages, 101, &there));
        assert!(!continues(&pages, 101, &|_| None) && !continues(&pages, 101, &elsewhere));
    }

    #[test]
    fn max_program_pages_is_how_long_a_program_of_the_jit_may_be() {
        let first = (100, Some(true));
        let rest = (1..=MAX_PROGRAM_PAGES + 1).map(|n| (100 + n, Some(false)));
        let pages = ran(std::iter::once(first).chain(rest));
        assert!(continues(&pages, 100 + MAX_PROGRAM_PAGES, &there));
        assert!(!continues(&pages, 101 + MAX_PROGRAM_PAGES, &there));
    }

    #[test]
    fn while_the_kernel_is_looked_at_only_the_end_of_that_counts() {
        let (mut rule, mut inventory, mut out) = (UnknownCode::default(), Inventory::default(), Vec::new());
        let unknown = Verdict::Unknown(Unknown {
            undecided: true,
            ..Unknown::default()
        });
        for change in run(&mut inventory, 0, Privilege::Supervisor, unknown) {
            rule.judge(&change, &inventory, &NoNames, &mut out);
        }
        let due = |rule: &UnknownCode| [WAIT_NS - 1, WAIT_NS, u64::MAX].map(|at| rule.is_due(at));
        assert_eq!(due(&rule), [false, true, true]);
        rule.looking(true);
        assert_eq!(due(&rule), [false; 3]);
        let look = rule.look_begins(1);
        rule.looked(look);
        assert_eq!(due(&rule), [true; 3]);
    }

    #[test]
    fn a_look_that_began_before_a_page_was_known_is_not_for_that_page() {
        let (mut rule, mut inventory, mut out) = (UnknownCode::default(), Inventory::default(), Vec::new());
        // A monitor that is behind: the page ran at 0, and a look that began at 1 is under way when that becomes known.
        rule.looking(true);
        let early = rule.look_begins(1);
        let unknown = Verdict::Unknown(Unknown {
            undecided: true,
            ..Unknown::default()
        });
        for change in run(&mut inventory, 0, Privilege::Supervisor, unknown) {
            rule.judge(&change, &inventory, &NoNames, &mut out);
        }
        rule.looked(early);
        assert!(!rule.is_due(u64::MAX));
        let look = rule.look_begins(2);
        rule.looked(look);
        assert_eq!([1, 2].map(|now| rule.is_due(now)), [false, true]);
    }

    #[test]
    fn a_look_counts_when_all_is_known_that_ran_before_it() {
        let make = |looks: &mut Looks, at_ns| {
            let look = looks.begins(at_ns);
            looks.made(look);
        };
        let mut looks = Looks::default();
        make(&mut looks, 10);
        assert_eq!([9, 10].map(|now| looks.until(now).at_ns), [0, 10]);
        make(&mut looks, 20);
        make(&mut looks, 30);
        assert_eq!([9, 10, 29, 30].map(|now| looks.until(now).at_ns), [0, 10, 10, 30]);
        looks.pass(12);
        make(&mut looks, 40);
        assert_eq!([29, 30, 40].map(|now| looks.until(now).at_ns), [10, 30, 40]);
        // One that was passed over while more and more of them are made.
        let mut behind = Looks::default();
        for at in 1..100 {
            make(&mut behind, at * 10);
            behind.pass(at);
        }
        assert_eq!(behind.counts.at_ns, 10);
    }

    #[test]
    fn an_undecided_page_that_looks_like_the_jits_is_waited_for_and_the_jit_is_spoken_of_once() {
        let (mut rule, mut inventory, mut out) = (UnknownCode::default(), Inventory::default(), Vec::new());
        let mut ran = |rule: &mut UnknownCode, id, undecided, out: &mut Vec<Draft>| {
            let unknown = Verdict::Unknown(Unknown {
                undecided,
                jit: true,
                ..Unknown::default()
            });
            for change in run(&mut inventory, id, Privilege::Supervisor, unknown) {
                rule.judge(&change, &inventory, &NoNames, out);
            }
            rule.later(WAIT_NS - 1, &inventory, &NoNames, &|_, _| None, out);
        };
        ran(&mut rule, 0, true, &mut out);
        assert!(out.is_empty() && !rule.is_due(WAIT_NS - 1));
        let look = rule.look_begins(1);
        rule.looked(look);
        ran(&mut rule, 1, true, &mut out);
        let pages: Vec<_> = out.iter().map(|draft| draft.evidence["page"].as_u64()).collect();
        assert_eq!(pages, [Some(0)]);
        ran(&mut rule, 2, false, &mut out);
        assert_eq!(out.len(), 1);
    }

    #[test]
    fn max_waiting_undecided_pages_wait_and_the_next_is_ready_at_once() {
        let (mut rule, mut inventory, mut out) = (UnknownCode::default(), Inventory::default(), Vec::new());
        for id in 0..=MAX_WAITING as u64 {
            assert!(!rule.is_due(WAIT_NS - 1), "{id}");
            let unknown = Verdict::Unknown(Unknown {
                undecided: true,
                ..Unknown::default()
            });
            for change in run(&mut inventory, id, Privilege::Supervisor, unknown) {
                rule.judge(&change, &inventory, &NoNames, &mut out);
            }
        }
        assert_eq!((rule.waiting.len(), rule.ready.len()), (MAX_WAITING, 1));
        assert!(rule.is_due(WAIT_NS - 1) && out.is_empty());
    }
}
