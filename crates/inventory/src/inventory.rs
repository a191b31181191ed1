//! The record: pages, address spaces, and what changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use nephoscope_guest::{Executed, Gpa, Gva, PageId, Privilege, Root};

use crate::kept::{Record, Touched, Touches};
use crate::page::PageRecord;
use crate::space::{AddressSpace, SpaceId, SpaceKind};
use crate::verdict::Verdict;

/// What an event changed, for the judges.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// An address space executed a page for the first time.
    Ran {
        /// Who.
        space: SpaceId,
        /// What.
        page: PageId,
    },
    /// A page's verdict is another one now.
    Judged {
        /// The page.
        page: PageId,
    },
    /// An address space ended.
    Ended {
        /// Which.
        space: SpaceId,
    },
}

/// Executions of pages that were not captured yet: frames of two rings may cross. Past the bound they are counted and
/// dropped.
const MAX_EARLY: usize = 16 << 10;

/// Mapped pages kept per address space: more than a library whose versions have to be told apart has. It stops a guest
/// that maps without end; what is beyond narrows nothing.
const MAX_MAPPED: usize = 16 << 10;

/// Everything known of one VM's code.
#[derive(Debug, Default)]
pub struct Inventory {
    pages: HashMap<PageId, PageRecord>,
    spaces: BTreeMap<SpaceId, AddressSpace>,
    by_incarnation: HashMap<u32, SpaceId>,
    by_root: HashMap<Root, SpaceId>,
    kernel: Option<SpaceId>,
    firmware: Option<SpaceId>,
    early: HashMap<PageId, Vec<(u64, Executed)>>,
    early_count: usize,
    dropped: u64,
    located_early: HashMap<(Root, PageId), Gva>,
    /// What changed since it was written down last, if somebody writes it down.
    pub(crate) touched: Touches,
}

/// An execution waits so long for its page: replays of all pages of a guest take less.
const MAX_WAIT_NS: u64 = 60_000_000_000;

impl Inventory {
    /// A page was captured and judged. Kernel and firmware pages run where they were captured; user pages when their
    /// address space says so.
    pub fn captured(&mut self, page: PageRecord, changes: &mut Vec<Change>) {
        let (id, at_ns, privilege, va, root) = (page.id, page.at_ns, page.privilege, page.va, page.root);
        let kernel = page.paging && va.is_high_half();
        self.pages.insert(id, page);
        self.touched.add(Touched::Page(id));
        if privilege == Privilege::Supervisor {
            let kind = if kernel {
                SpaceKind::Kernel
            } else {
                SpaceKind::Firmware
            };
            let space = self.supervisor(kind, at_ns);
            self.run(space, id, Some(va), at_ns, changes);
        } else {
            self.located_early.insert((root, id), va);
            if self.located_early.len() > MAX_EARLY {
                self.located_early.clear();
            }
        }
        if let Some(early) = self.early.remove(&id) {
            self.early_count = self.early_count.saturating_sub(early.len());
            for (at_ns, executed) in early {
                self.executed(at_ns, executed, changes);
            }
        }
    }

    /// An address space executed a page.
    pub fn executed(&mut self, at_ns: u64, executed: Executed, changes: &mut Vec<Change>) {
        if !self.pages.contains_key(&executed.page) {
            if self.early_count >= MAX_EARLY {
                self.dropped += 1;
                return;
            }
            self.early_count += 1;
            self.early
                .entry(executed.page)
                .or_default()
                .push((at_ns, executed));
            return;
        }
        let space = self.space_of(at_ns, executed.root, executed.incarnation, changes);
        let va = self.located_early.get(&(executed.root, executed.page)).copied();
        self.run(space, executed.page, va, at_ns, changes);
    }

    /// A root sees a page at an address.
    pub fn located(&mut self, root: Root, page: PageId, va: Gva) {
        if let Some(space) = self.by_root.get(&root).and_then(|id| self.spaces.get_mut(id))
            && let Some(slot) = space.pages.get_mut(&page)
        {
            if slot.is_none() {
                *slot = Some(va);
                space.version += 1;
                self.touched.add(Touched::Ran(space.id, page));
            }
            return;
        }
        if self.located_early.len() > MAX_EARLY {
            self.located_early.clear();
        }
        self.located_early.insert((root, page), va);
    }

    /// Pages that this address space executed at an address that is not known, with where they lie.
    #[must_use]
    pub fn unplaced(&self, space: SpaceId) -> HashMap<Gpa, PageId> {
        let pages = self.spaces.get(&space).map(|space| space.pages.iter());
        let unplaced = pages.into_iter().flatten().filter(|(_, va)| va.is_none());
        unplaced
            .filter_map(|(page, _)| Some((self.pages.get(page)?.gpa?, *page)))
            .collect()
    }

    /// An address space sees a page that it executed here.
    pub fn place(&mut self, space: SpaceId, page: PageId, va: Gva) {
        if let Some(space) = self.spaces.get_mut(&space)
            && let Some(slot @ None) = space.pages.get_mut(&page)
        {
            *slot = Some(va);
            space.version += 1;
            self.touched.add(Touched::Ran(space.id, page));
        }
    }

    /// An address space maps a page whose contents are known. False if that is no news.
    pub fn mapped(&mut self, space: SpaceId, va: Gva, verdict: Arc<Verdict>) -> bool {
        let Some(space) = self.spaces.get_mut(&space).filter(|space| space.is_living()) else {
            return false;
        };
        let known = space.mapped.contains_key(&va);
        if !known && space.mapped.len() >= MAX_MAPPED || space.mapped.get(&va) == Some(&verdict) {
            return false;
        }
        space.mapped.insert(va, verdict);
        space.version += 1;
        self.touched.add(Touched::Mapped(space.id, va));
        true
    }

    /// More bytes of a page ran.
    pub fn extended(&mut self, page: PageId, start: u16, end: u16) -> bool {
        let Some(record) = self.pages.get_mut(&page) else {
            return false;
        };
        record.extend(start, end);
        self.touched.add(Touched::Page(page));
        true
    }

    /// A page's verdict changed.
    pub fn judged(&mut self, page: PageId, verdict: Arc<Verdict>, changes: &mut Vec<Change>) {
        if let Some(record) = self.pages.get_mut(&page)
            && *record.verdict != *verdict
        {
            record.verdict = verdict;
            self.touched.add(Touched::Page(page));
            for space in self
                .spaces
                .values_mut()
                .filter(|space| space.pages.contains_key(&page))
            {
                space.version += 1;
            }
            changes.push(Change::Judged { page });
        }
    }

    /// An address space was seen to be gone.
    pub fn ended(&mut self, space: SpaceId, at_ns: u64, changes: &mut Vec<Change>) {
        let Some(space) = self.spaces.get_mut(&space).filter(|space| space.is_living()) else {
            return;
        };
        space.ended_ns = Some(at_ns);
        self.touched.add(Touched::Space(space.id));
        if self.by_root.get(&space.root) == Some(&space.id) {
            self.by_root.remove(&space.root);
        }
        let root = space.root;
        self.located_early.retain(|(other, _), _| *other != root);
        changes.push(Change::Ended { space: space.id });
    }

    /// The machine was reset: every living address space ended.
    pub fn reset(&mut self, at_ns: u64, changes: &mut Vec<Change>) {
        let living: Vec<SpaceId> = self
            .spaces
            .values()
            .filter(|s| s.is_living())
            .map(|s| s.id)
            .collect();
        for space in living {
            self.ended(space, at_ns, changes);
        }
        (self.kernel, self.firmware) = (None, None);
    }

    /// A page.
    #[must_use]
    pub fn page(&self, page: PageId) -> Option<&PageRecord> {
        self.pages.get(&page)
    }

    /// All pages, in no order.
    pub fn pages(&self) -> impl Iterator<Item = &PageRecord> {
        self.pages.values()
    }

    /// An address space.
    #[must_use]
    pub fn space(&self, space: SpaceId) -> Option<&AddressSpace> {
        self.spaces.get(&space)
    }

    /// All address spaces, by number.
    pub fn spaces(&self) -> impl Iterator<Item = &AddressSpace> {
        self.spaces.values()
    }

    /// Drops executions that have waited too long for their page, and gives the time of each: what ran then is not known.
    pub fn overdue(&mut self, now_ns: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        self.early.retain(|_, waiting| {
            waiting.retain(|(at_ns, _)| {
                let late = now_ns.saturating_sub(*at_ns) > MAX_WAIT_NS;
                if late {
                    gone.push(*at_ns);
                }
                !late
            });
            !waiting.is_empty()
        });
        self.early_count = self.early_count.saturating_sub(gone.len());
        self.dropped += gone.len() as u64;
        gone
    }

    /// Executions that were dropped because their page never came.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes what was written down of another inventory of the same watch ([`Inventory::changes`]).
    pub fn restore(&mut self, record: Record) {
        match record {
            Record::Page(page) => {
                self.pages.insert(page.id, page);
            }
            Record::Space(kept) => {
                let (id, living) = (kept.id, kept.ended_ns.is_none());
                match kept.kind {
                    SpaceKind::Kernel => self.kernel = living.then_some(id),
                    SpaceKind::Firmware => self.firmware = living.then_some(id),
                    SpaceKind::User => {
                        self.by_incarnation.insert(kept.incarnation, id);
                        if living {
                            self.by_root.insert(kept.root, id);
                        } else if self.by_root.get(&kept.root) == Some(&id) {
                            self.by_root.remove(&kept.root);
                        }
                    }
                }
                let space = self.spaces.entry(id).or_insert_with(|| kept.empty());
                (space.last_ns, space.ended_ns) = (kept.last_ns, kept.ended_ns);
            }
            Record::Ran { space, page, va } => {
                if let Some(space) = self.spaces.get_mut(&space) {
                    space.pages.insert(page, va);
                }
            }
            Record::Mapped { space, va, verdict } => {
                if let Some(space) = self.spaces.get_mut(&space) {
                    space.mapped.insert(va, verdict);
                }
            }
        }
    }

    fn supervisor(&mut self, kind: SpaceKind, at_ns: u64) -> SpaceId {
        let known = if kind == SpaceKind::Kernel {
            self.kernel
        } else {
            self.firmware
        };
        if let Some(id) = known {
            return id;
        }
        let id = self.add(Root(0), 0, kind, at_ns);
        if kind == SpaceKind::Kernel {
            self.kernel = Some(id);
        } else {
            self.firmware = Some(id);
        }
        id
    }

    fn space_of(&mut self, at_ns: u64, root: Root, incarnation: u32, changes: &mut Vec<Change>) -> SpaceId {
        if let Some(id) = self.by_incarnation.get(&incarnation) {
            return *id;
        }
        if let Some(previous) = self.by_root.get(&root).copied() {
            self.ended(previous, at_ns, changes);
        }
        let id = self.add(root, incarnation, SpaceKind::User, at_ns);
        self.by_incarnation.insert(incarnation, id);
        self.by_root.insert(root, id);
        id
    }

    fn add(&mut self, root: Root, incarnation: u32, kind: SpaceKind, at_ns: u64) -> SpaceId {
        let id = SpaceId(u32::try_from(self.spaces.len()).unwrap_or(u32::MAX - 1) + 1);
        let space = AddressSpace {
            id,
            root,
            incarnation,
            kind,
            first_ns: at_ns,
            last_ns: at_ns,
            ended_ns: None,
            pages: BTreeMap::new(),
            mapped: BTreeMap::new(),
            version: 0,
        };
        self.spaces.insert(id, space);
        id
    }

    fn run(&mut self, space: SpaceId, page: PageId, va: Option<Gva>, at_ns: u64, changes: &mut Vec<Change>) {
        let Some(record) = self.spaces.get_mut(&space) else {
            return;
        };
        record.last_ns = record.last_ns.max(at_ns);
        match record.pages.entry(page) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(va);
                record.version += 1;
                self.touched.add(Touched::Space(space));
                self.touched.add(Touched::Ran(space, page));
                changes.push(Change::Ran { space, page });
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                if slot.get().is_none() && va.is_some() {
                    slot.insert(va);
                    record.version += 1;
                    self.touched.add(Touched::Ran(space, page));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Unknown;

    fn page(id: u64, privilege: Privilege, va: u64) -> PageRecord {
        PageRecord {
            id: PageId(id),
            at_ns: id,
            gpa: Some(Gpa(0)),
            frame: 1,
            generation: 0,
            root: Root(0x1000),
            va: Gva(va),
            privilege,
            paging: true,
            bits: 64,
            first: 0,
            digest: [0; 32],
            verdict: Arc::new(Verdict::Unknown(Unknown::default())),
            executed: vec![(0, 1)],
        }
    }

    fn ran(page: u64, root: u64, incarnation: u32) -> Executed {
        Executed {
            page: PageId(page),
            root: Root(root),
            vcpu: 0,
            incarnation,
        }
    }

    #[test]
    fn a_reused_root_is_another_address_space_and_the_old_one_is_kept_as_ended() {
        let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
        inventory.captured(page(1, Privilege::User, 0x1000), &mut changes);
        inventory.executed(5, ran(1, 0x1000, 1), &mut changes);
        inventory.executed(9, ran(1, 0x1000, 2), &mut changes);
        let spaces: Vec<_> = inventory.spaces().map(|s| (s.id.0, s.ended_ns)).collect();
        assert_eq!(spaces, [(1, Some(9)), (2, None)]);
    }

    #[test]
    fn an_execution_that_comes_before_its_capture_is_kept_for_it() {
        let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
        inventory.executed(5, ran(1, 0x1000, 1), &mut changes);
        assert!(changes.is_empty());
        inventory.captured(page(1, Privilege::User, 0x7000), &mut changes);
        assert_eq!(
            changes,
            [Change::Ran {
                space: SpaceId(1),
                page: PageId(1)
            }]
        );
        let space = inventory.spaces().next().unwrap();
        assert_eq!(space.pages.get(&PageId(1)), Some(&Some(Gva(0x7000))));
    }

    #[test]
    fn max_early_bounds_what_is_kept_and_the_rest_is_counted() {
        let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
        for i in 0..(MAX_EARLY as u64 + 10) {
            inventory.executed(5, ran(i + 1, 0x1000, 1), &mut changes);
        }
        assert_eq!(inventory.dropped(), 10);
    }

    #[test]
    fn a_page_is_placed_once_and_only_where_it_ran() {
        let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
        inventory.captured(page(1, Privilege::User, 0x1000), &mut changes);
        inventory.executed(5, ran(1, 0x2000, 1), &mut changes);
        let space = SpaceId(1);
        assert_eq!(inventory.unplaced(space), HashMap::from([(Gpa(0), PageId(1))]));
        inventory.place(space, PageId(7), Gva(0x5000));
        inventory.place(space, PageId(1), Gva(0x6000));
        inventory.place(space, PageId(1), Gva(0x7000));
        let pages: Vec<_> = inventory
            .space(space)
            .unwrap()
            .pages
            .clone()
            .into_iter()
            .collect();
        assert_eq!(pages, [(PageId(1), Some(Gva(0x6000)))]);
        assert!(inventory.unplaced(space).is_empty());
    }

    #[test]
    fn max_mapped_bounds_what_one_address_space_makes_us_keep() {
        let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
        inventory.captured(page(1, Privilege::User, 0x1000), &mut changes);
        inventory.executed(5, ran(1, 0x1000, 1), &mut changes);
        let verdict = Arc::new(Verdict::Unknown(Unknown::default()));
        let took = (0..MAX_MAPPED as u64 + 10)
            .filter(|i| inventory.mapped(SpaceId(1), Gva(i << 12), verdict.clone()))
            .count();
        assert_eq!(took, MAX_MAPPED);
        assert!(!inventory.mapped(SpaceId(7), Gva(0), verdict), "nobody's");
    }

    #[test]
    fn an_execution_whose_page_never_comes_is_told_with_its_time() {
        let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
        inventory.executed(5, ran(1, 0x1000, 1), &mut changes);
        inventory.executed(7, ran(2, 0x1000, 1), &mut changes);
        assert!(inventory.overdue(MAX_WAIT_NS).is_empty());
        assert_eq!(inventory.overdue(MAX_WAIT_NS + 6), [5]);
        assert_eq!(inventory.dropped(), 1);
        inventory.captured(page(2, Privilege::User, 0x7000), &mut changes);
        assert_eq!(changes.len(), 1, "the other one still waits for its page");
    }

    #[test]
    fn kernel_and_firmware_are_their_own() {
        let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
        inventory.captured(
            page(1, Privilege::Supervisor, 0xffff_ffff_8100_0000),
            &mut changes,
        );
        inventory.captured(page(2, Privilege::Supervisor, 0xf_0000), &mut changes);
        let kinds: Vec<_> = inventory.spaces().map(|s| s.kind).collect();
        assert_eq!(kinds, [SpaceKind::Kernel, SpaceKind::Firmware]);
    }
}
