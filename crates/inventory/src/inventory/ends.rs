//! How address spaces end, and what is kept of those that ended long ago.

use nephoscope_guest::{PageId, Root};

use super::{Change, Inventory, MAX_LIVING};
use crate::kept::Touched;
use crate::report::{Names, PageCounts, space_report};
use crate::space::{SpaceId, SpaceKind};
use crate::summary::MAX_ENDED;
use crate::verdict::Verdict;

impl Inventory {
    /// An address space was seen to be gone.
    pub fn ended(&mut self, space: SpaceId, at_ns: u64, changes: &mut Vec<Change>) {
        let Some(space) = self.spaces.get_mut(&space).filter(|space| space.is_living()) else {
            return;
        };
        space.ended_ns = Some(at_ns);
        self.touched.add(Touched::Space(space.id));
        let (id, root) = (space.id, space.root);
        self.queue_ended(id);
        if self.by_root.get(&root) == Some(&id) {
            self.by_root.remove(&root);
        }
        self.early.forget(root);
        changes.push(Change::Ended { space: id });
    }

    /// The machine was reset: every living address space ended, and so did those of which is told later that they ran before.
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
        self.reset_ns = Some(at_ns);
        self.of_before = std::mem::take(&mut self.supervisors);
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
            self.presumed.insert(space);
        }
        let old = self.supervisors.get(SpaceKind::Kernel);
        let new = self.add(Root(0), 0, SpaceKind::Kernel, at_ns);
        self.supervisors.set(SpaceKind::Kernel, Some(new));
        for page in pages {
            if let Some(va) = self.pages.get(*page).map(|record| record.va) {
                self.run(new, *page, Some(va), at_ns, changes);
            }
            if let Some(old) = old.and_then(|id| self.spaces.get_mut(&id))
                && old.pages.remove(page).is_some()
            {
                old.version += 1;
                self.touched.add(Touched::Ran(old.id, *page));
                self.pages.leave(*page);
            }
        }
        self.note_forgotten();
    }

    /// Counts ended address spaces past [`MAX_ENDED`] under their programs. Gives the number of living ones that there was no
    /// room for: from then on they are taken to have ended, which is a gap in attribution.
    pub fn summarise(&mut self, now_ns: u64, names: &dyn Names, changes: &mut Vec<Change>) -> u64 {
        let crowded = self.by_root.len().saturating_sub(MAX_LIVING);
        if crowded > 0 {
            let living = self
                .spaces
                .values()
                .filter(|s| s.is_living() && s.kind == SpaceKind::User);
            let mut living: Vec<(u64, SpaceId)> = living.map(|s| (s.last_ns, s.id)).collect();
            living.sort_unstable();
            for (_, space) in living.into_iter().take(crowded) {
                self.ended(space, now_ns, changes);
            }
        }
        while self.ended.len() > MAX_ENDED {
            let space = self.ended.pop_front();
            self.summarise_one(space, names, changes);
        }
        while self.ended_marked.len() > MAX_ENDED {
            let space = self.ended_marked.pop_front();
            self.summarise_one(space, names, changes);
        }
        self.note_forgotten();
        crowded as u64
    }

    fn summarise_one(&mut self, space: Option<SpaceId>, names: &dyn Names, changes: &mut Vec<Change>) {
        let ended = space.filter(|space| self.spaces.get(space).is_some_and(|space| !space.is_living()));
        let Some(space) = ended.and_then(|space| self.spaces.remove(&space)) else {
            return;
        };
        let mut counts = space.unlisted;
        for page in space.all_pages().filter_map(|page| self.pages.get(page)) {
            counts.count(&page.verdict);
        }
        let report = space_report(&space, self, names);
        let program = report.program.as_ref().map(|program| program.path.as_str());
        self.files.gone(space.id, program);
        self.summaries.add(&report, counts);
        for page in space.all_pages() {
            self.pages.leave(page);
        }
        if space.kind == SpaceKind::User {
            self.by_incarnation.remove(&space.incarnation);
            self.presumed.remove(&space.id);
            self.summarised.insert(space.incarnation.into());
            self.touched.add(Touched::Summarised(space.incarnation));
        }
        self.touched.add(Touched::Gone(space.id));
        changes.push(Change::Summarised { space: space.id });
    }

    /// Drops executions that have waited too long for their page, and gives the time of each: what ran then is not known.
    pub fn overdue(&mut self, now_ns: u64) -> Vec<u64> {
        self.early.overdue(now_ns)
    }

    pub(super) fn queue_ended(&mut self, id: SpaceId) {
        let Some(space) = self.spaces.get(&id) else {
            return;
        };
        let mut verdicts = space.all_pages().filter_map(|page| self.pages.get(page));
        let is_clean = space.unlisted == PageCounts::default()
            && verdicts.all(|page| matches!(*page.verdict, Verdict::Identified(_)));
        if is_clean {
            self.ended.push_back(id);
        } else {
            self.ended_marked.push_back(id);
        }
    }
}
