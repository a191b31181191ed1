//! The record: pages, address spaces, and what changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use nephoscope_guest::{Executed, Gpa, Gva, PageId, Privilege, Root};

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
}

impl Inventory {
    /// A page was captured and judged. Kernel and firmware pages run where they were captured; user pages when their
    /// address space says so.
    pub fn captured(&mut self, page: PageRecord, changes: &mut Vec<Change>) {
        let (id, at_ns, privilege, va, root) = (page.id, page.at_ns, page.privilege, page.va, page.root);
        let kernel = page.paging && va.is_high_half();
        self.pages.insert(id, page);
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
        true
    }

    /// More bytes of a page ran.
    pub fn extended(&mut self, page: PageId, start: u16, end: u16) -> bool {
        let Some(record) = self.pages.get_mut(&page) else {
            return false;
        };
        record.extend(start, end);
        true
    }

    /// A page's verdict changed.
    pub fn judged(&mut self, page: PageId, verdict: Arc<Verdict>, changes: &mut Vec<Change>) {
        if let Some(record) = self.pages.get_mut(&page)
            && *record.verdict != *verdict
        {
            record.verdict = verdict;
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

    /// Another kernel took the guest over, and has run these pages: every address space of before ended. Firmware is the
    /// machine's, and stays.
    pub fn another_kernel(&mut self, at_ns: u64, pages: &[PageId], changes: &mut Vec<Change>) {
        let living = self.spaces.values().filter(|s| s.is_living());
        let of_before: Vec<SpaceId> = living
            .filter(|s| s.kind != SpaceKind::Firmware)
            .map(|s| s.id)
            .collect();
        for space in of_before {
            self.ended(space, at_ns, changes);
        }
        if let Some(old) = self.kernel.take().and_then(|id| self.spaces.get_mut(&id)) {
            old.pages.retain(|page, _| !pages.contains(page));
            old.version += 1;
        }
        let space = self.supervisor(SpaceKind::Kernel, at_ns);
        for page in pages {
            if let Some(va) = self.pages.get(page).map(|record| record.va) {
                self.run(space, *page, Some(va), at_ns, changes);
            }
        }
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

    /// Executions that were dropped because their page never came.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
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
        if let Some(id) = self.by_incarnation.get(&incarnation).copied() {
            self.revive(id);
            return id;
        }
        if let Some(previous) = self.by_root.get(&root).copied() {
            self.ended(previous, at_ns, changes);
        }
        let id = self.add(root, incarnation, SpaceKind::User, at_ns);
        self.by_incarnation.insert(incarnation, id);
        self.by_root.insert(root, id);
        id
    }

    /// What executes has not ended, whatever its page tables looked like, unless another has its root by now.
    fn revive(&mut self, id: SpaceId) {
        if let Some(space) = self.spaces.get_mut(&id).filter(|space| !space.is_living())
            && !self.by_root.contains_key(&space.root)
        {
            space.ended_ns = None;
            space.version += 1;
            self.by_root.insert(space.root, id);
        }
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
                changes.push(Change::Ran { space, page });
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                if slot.get().is_none() && va.is_some() {
                    slot.insert(va);
                    record.version += 1;
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
    fn what_executes_after_its_end_lives_unless_its_root_is_anothers() {
        let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
        inventory.captured(page(1, Privilege::User, 0x1000), &mut changes);
        inventory.executed(5, ran(1, 0x1000, 1), &mut changes);
        inventory.ended(SpaceId(1), 6, &mut changes);
        inventory.executed(7, ran(1, 0x1000, 1), &mut changes);
        assert!(inventory.space(SpaceId(1)).unwrap().is_living());
        inventory.executed(8, ran(1, 0x1000, 2), &mut changes);
        inventory.executed(9, ran(1, 0x1000, 1), &mut changes);
        let living = inventory.spaces().filter(|s| s.is_living()).map(|s| s.id.0);
        assert_eq!(living.collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn another_kernel_ends_all_of_before_but_firmware_and_takes_its_own_pages() {
        let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
        inventory.captured(page(1, Privilege::Supervisor, 0xf_0000), &mut changes);
        for id in [2, 3] {
            let va = 0xffff_ffff_8100_0000 + (id << 12);
            inventory.captured(page(id, Privilege::Supervisor, va), &mut changes);
        }
        inventory.captured(page(4, Privilege::User, 0x1000), &mut changes);
        inventory.executed(5, ran(4, 0x1000, 1), &mut changes);
        inventory.another_kernel(9, &[PageId(3)], &mut changes);
        let shown = |s: &AddressSpace| (s.kind, s.ended_ns, s.pages.keys().map(|page| page.0).collect::<Vec<_>>());
        let spaces: Vec<_> = inventory.spaces().map(shown).collect();
        let expected = [
            (SpaceKind::Firmware, None, vec![1]),
            (SpaceKind::Kernel, Some(9), vec![2]),
            (SpaceKind::User, Some(9), vec![4]),
            (SpaceKind::Kernel, None, vec![3]),
        ];
        assert_eq!(spaces, expected);
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
