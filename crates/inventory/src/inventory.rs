//! The record: pages, address spaces, and what changed.

mod asked;
mod ends;
mod journal;
mod mapped;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use nephoscope_guest::{Executed, Gpa, Gva, PageAccessed, PageId, Privilege, Root};

use crate::early::Early;
use crate::files::{FileId, Files, PieceRead};
use crate::kept::{Touched, Touches};
use crate::page::PageRecord;
use crate::pages::Pages;
use crate::ranges::Ranges;
use crate::report::PageCounts;
use crate::space::{AddressSpace, SpaceId, SpaceKind, Supervisors};
use crate::summary::Summaries;
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
    /// An address space has a page mapped executable, and somebody read or executed something there. Whether it ran is not
    /// known: drivers that only read memory say this, and not [`Change::Ran`].
    Accessed {
        /// Who.
        space: SpaceId,
        /// What.
        page: PageId,
    },
    /// An address space ended.
    Ended {
        /// Which.
        space: SpaceId,
    },
    /// An address space that ended long ago is only counted from now on.
    Summarised {
        /// Which.
        space: SpaceId,
    },
    /// Something was read of a file, and somebody has looked what it is.
    FileJudged {
        /// Which.
        file: FileId,
    },
}

/// Mapped pages kept per address space: more than a library whose versions have to be told apart has. It stops a guest
/// that maps without end; what is beyond narrows nothing.
const MAX_MAPPED: usize = 16 << 10;

/// Pages that one address space is told to have executed, page by page. Past it, the oldest that are unknown or whose frames
/// hold something else are only counted. It stops a program that makes code without end.
const MAX_LISTED: usize = 8192;

/// Address spaces that live at once: more than Linux has processes by default. Past it, those that were idle for longest are
/// taken to have ended. It stops a kernel that loads roots without end.
const MAX_LIVING: usize = 32 << 10;

/// Everything known of one VM's code.
#[derive(Debug, Default)]
pub struct Inventory {
    pub(crate) pages: Pages,
    pub(crate) summaries: Summaries,
    pub(crate) summarised: Ranges,
    ended: VecDeque<SpaceId>,
    ended_marked: VecDeque<SpaceId>,
    /// Ended because another kernel took over, and for no other reason.
    presumed: BTreeSet<SpaceId>,
    last_id: u32,
    late: u64,
    anchors_left_out: u64,
    spaces: BTreeMap<SpaceId, AddressSpace>,
    by_incarnation: HashMap<u32, SpaceId>,
    by_root: HashMap<Root, SpaceId>,
    supervisors: Supervisors,
    /// What ran until then is of the machine before its last reset, whenever it is told.
    reset_ns: Option<u64>,
    /// The kernel and the firmware of before that reset.
    of_before: Supervisors,
    early: Early,
    /// Files that were read.
    pub files: Files,
    /// What changed since it was written down last, if somebody writes it down.
    pub(crate) touched: Touches,
}

impl Inventory {
    /// A page was captured and judged. Kernel and firmware pages run where they were captured; user pages when their
    /// address space says so.
    pub fn captured(&mut self, page: PageRecord, changes: &mut Vec<Change>) {
        let (id, at_ns, privilege, va, root) = (page.id, page.at_ns, page.privilege, page.va, page.root);
        let kernel = page.paging && va.is_high_half();
        let ran = !page.executed.is_empty();
        self.pages.insert(page);
        self.touched.add(Touched::Page(id));
        if !ran {
            // Who has it mapped is said by itself.
            return;
        }
        if privilege == Privilege::Supervisor {
            let kind = if kernel {
                SpaceKind::Kernel
            } else {
                SpaceKind::Firmware
            };
            let space = self.supervisor(kind, at_ns, changes);
            self.run(space, id, Some(va), at_ns, changes);
        } else {
            self.early.locate(root, id, va);
        }
        for (at_ns, executed) in self.early.take(id) {
            self.executed(at_ns, executed, changes);
        }
        self.note_forgotten();
    }

    /// Pages that were forgotten are said to be, in what is written down.
    fn note_forgotten(&mut self) {
        for page in self.pages.take_gone() {
            self.touched.add(Touched::Forgotten(page));
        }
    }

    /// An address space executed a page.
    pub fn executed(&mut self, at_ns: u64, executed: Executed, changes: &mut Vec<Change>) {
        if self.summarised.contains(executed.incarnation.into()) {
            self.late += 1;
            return;
        }
        if self.pages.is_forgotten(executed.page) {
            self.late += 1;
            self.space_of(at_ns, executed.root, executed.incarnation, changes);
            return;
        }
        if self.pages.get(executed.page).is_none() {
            self.early.wait(at_ns, executed);
            return;
        }
        let space = self.space_of(at_ns, executed.root, executed.incarnation, changes);
        let va = self.early.place(executed.root, executed.page);
        self.run(space, executed.page, va, at_ns, changes);
    }

    /// Memory that held a piece of a file was accessed; `digest` is BLAKE3 of what it held, `None` if it was about to be written. What
    /// was read, if something was.
    pub fn accessed(
        &mut self,
        at_ns: u64,
        access: &PageAccessed,
        digest: Option<[u8; 32]>,
        changes: &mut Vec<Change>,
    ) -> Option<PieceRead> {
        let by = access
            .by
            .filter(|(_, incarnation)| !self.summarised.contains((*incarnation).into()));
        self.late += u64::from(by != access.by);
        let space = by.map(|(root, incarnation)| self.space_of(at_ns, root, incarnation, changes));
        self.files.accessed(at_ns, access.gpa, digest, space)
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
                if let Some(record) = self.pages.get(page) {
                    self.anchors_left_out += space.anchor(va, &record.verdict);
                }
            }
            return;
        }
        self.early.locate(root, page, va);
    }

    /// Pages that this address space executed at an address that is not known, with where they lie.
    #[must_use]
    pub fn unplaced(&self, space: SpaceId) -> HashMap<Gpa, PageId> {
        let pages = self.spaces.get(&space).map(|space| space.pages.iter());
        let unplaced = pages.into_iter().flatten().filter(|(_, va)| va.is_none());
        unplaced
            .filter_map(|(page, _)| Some((self.pages.get(*page)?.gpa?, *page)))
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
            if let Some(record) = self.pages.get(page) {
                self.anchors_left_out += space.anchor(va, &record.verdict);
            }
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
        let Some(record) = self.pages.get_mut(page) else {
            return false;
        };
        record.extend(start, end);
        self.touched.add(Touched::Extended(page));
        true
    }

    /// A page's verdict changed.
    pub fn judged(&mut self, page: PageId, verdict: Arc<Verdict>, changes: &mut Vec<Change>) {
        if let Some(record) = self.pages.get_mut(page)
            && *record.verdict != *verdict
        {
            record.verdict = verdict;
            self.touched.add(Touched::Page(page));
            for space in self.spaces.values_mut().filter(|space| space.has(page)) {
                space.version += 1;
            }
            changes.push(Change::Judged { page });
        }
    }

    fn supervisor(&mut self, kind: SpaceKind, at_ns: u64, changes: &mut Vec<Change>) -> SpaceId {
        let ended_ns = self.reset_ns.filter(|reset_ns| at_ns <= *reset_ns);
        let supervisors = match ended_ns {
            Some(_) => self.of_before,
            None => self.supervisors,
        };
        if let Some(id) = supervisors.get(kind) {
            return id;
        }
        let id = self.add(Root(0), 0, kind, at_ns);
        match ended_ns {
            Some(ended_ns) => {
                self.of_before.set(kind, Some(id));
                self.ended(id, ended_ns, changes);
            }
            None => self.supervisors.set(kind, Some(id)),
        }
        id
    }

    fn space_of(&mut self, at_ns: u64, root: Root, incarnation: u32, changes: &mut Vec<Change>) -> SpaceId {
        if let Some(id) = self.by_incarnation.get(&incarnation).copied() {
            self.revive(id);
            return id;
        }
        if let Some(ended_ns) = self.reset_ns.filter(|reset_ns| at_ns <= *reset_ns) {
            let id = self.add(root, incarnation, SpaceKind::User, at_ns);
            self.by_incarnation.insert(incarnation, id);
            self.ended(id, ended_ns, changes);
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

    /// What executes has not ended with its kernel, unless another has its root by now. Of others, executions are told late
    /// and mean nothing: their tables were seen to be gone.
    fn revive(&mut self, id: SpaceId) {
        if self.presumed.remove(&id)
            && let Some(space) = self.spaces.get_mut(&id).filter(|space| !space.is_living())
            && !self.by_root.contains_key(&space.root)
        {
            space.ended_ns = None;
            space.version += 1;
            self.ended.retain(|ended| *ended != id);
            self.ended_marked.retain(|ended| *ended != id);
            self.by_root.insert(space.root, id);
            self.touched.add(Touched::Space(id));
        }
    }

    fn add(&mut self, root: Root, incarnation: u32, kind: SpaceKind, at_ns: u64) -> SpaceId {
        self.last_id = self.last_id.saturating_add(1);
        let id = SpaceId(self.last_id);
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
            code_mapped: BTreeMap::new(),
            unlisted: PageCounts::default(),
            anchors: BTreeMap::new(),
            listed_from: PageId(0),
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
                self.pages.use_it(page);
                if let (Some(va), Some(held)) = (va, self.pages.get(page)) {
                    self.anchors_left_out += record.anchor(va, &held.verdict);
                }
                changes.push(Change::Ran { space, page });
                if record.pages.len() > MAX_LISTED {
                    self.leave_one_out(space);
                }
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                if slot.get().is_none() && va.is_some() {
                    slot.insert(va);
                    record.version += 1;
                    self.touched.add(Touched::Ran(space, page));
                    if let (Some(va), Some(held)) = (va, self.pages.get(page)) {
                        self.anchors_left_out += record.anchor(va, &held.verdict);
                    }
                }
            }
        }
    }

    /// Counts the oldest page of an address space that need not be told by itself, instead of listing it.
    fn leave_one_out(&mut self, space: SpaceId) {
        let Some(space) = self.spaces.get_mut(&space) else {
            return;
        };
        let pages = &self.pages;
        let can_go = |page: PageId| {
            let unknown = pages
                .get(page)
                .is_none_or(|p| matches!(*p.verdict, Verdict::Unknown(_)));
            unknown || pages.is_superseded(page)
        };
        let mut listed = space.pages.range(space.listed_from..).map(|(page, _)| *page);
        let Some(oldest) = listed.find(|page| can_go(*page)) else {
            // All that is listed is known and still there: guest memory bounds it. From the beginning the next time.
            space.listed_from = PageId(0);
            return;
        };
        space.listed_from = oldest;
        space.pages.remove(&oldest);
        if let Some(page) = self.pages.get(oldest) {
            space.unlisted.count(&page.verdict);
        }
        self.touched.add(Touched::Space(space.id));
        self.touched.add(Touched::Ran(space.id, oldest));
        self.pages.leave(oldest);
        self.note_forgotten();
    }
}

#[cfg(test)]
mod tests;
