//! The captured pages: those that can still matter, and the numbers of all others.
//!
//! A page stays as long as its frame holds it (another address space may execute it at any time), or as long as an address
//! space that is told one by one has executed it. Of others a few thousand stay for executions that are told late; then they
//! are counted and forgotten.

use std::collections::{HashMap, VecDeque};

use nephoscope_guest::PageId;

use crate::page::PageRecord;
use crate::ranges::Ranges;
use crate::report::PagesReport;

/// Pages whose frames hold something else by now, kept for executions that are told late: marks are collected when a root
/// changes and every few milliseconds. It stops a guest that rewrites its code without end.
const MAX_LATE: usize = 4096;

#[derive(Debug)]
struct Held {
    record: PageRecord,
    /// Address spaces that have executed it and are kept.
    users: u32,
    /// Its frame has been captured anew.
    superseded: bool,
    /// So long ago that nothing more will be told of it.
    late: bool,
}

/// All pages.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    held: HashMap<PageId, Held>,
    by_frame: HashMap<u64, PageId>,
    superseded: VecDeque<PageId>,
    forgotten: Ranges,
    counts: PagesReport,
    forgotten_count: u64,
}

impl Pages {
    /// Takes a new page.
    pub(crate) fn insert(&mut self, record: PageRecord) {
        let (id, frame) = (record.id, record.frame);
        let held = Held {
            record,
            users: 0,
            superseded: false,
            late: false,
        };
        self.held.insert(id, held);
        // What lies in no frame has no name that comes back: it counts as gone at once, and stays while somebody has it.
        let before = if frame == 0 {
            Some(id)
        } else {
            self.by_frame.insert(frame, id).filter(|before| *before != id)
        };
        if let Some(before) = before {
            self.supersede(before);
        }
    }

    fn supersede(&mut self, id: PageId) {
        if let Some(held) = self.held.get_mut(&id) {
            held.superseded = true;
            self.superseded.push_back(id);
        }
        if self.superseded.len() > MAX_LATE
            && let Some(oldest) = self.superseded.pop_front()
        {
            if let Some(held) = self.held.get_mut(&oldest) {
                held.late = true;
            }
            self.forget_unused(oldest);
        }
    }

    /// A page, if it is still kept.
    pub(crate) fn get(&self, id: PageId) -> Option<&PageRecord> {
        self.held.get(&id).map(|held| &held.record)
    }

    /// The same, to change it.
    pub(crate) fn get_mut(&mut self, id: PageId) -> Option<&mut PageRecord> {
        self.held.get_mut(&id).map(|held| &mut held.record)
    }

    /// All that are kept, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &PageRecord> {
        self.held.values().map(|held| &held.record)
    }

    /// Whether it was there and is forgotten.
    pub(crate) fn is_forgotten(&self, id: PageId) -> bool {
        self.forgotten.contains(id.0)
    }

    /// Whether its frame holds something else by now.
    pub(crate) fn is_superseded(&self, id: PageId) -> bool {
        self.held.get(&id).is_none_or(|held| held.superseded)
    }

    /// An address space has executed it.
    pub(crate) fn use_it(&mut self, id: PageId) {
        if let Some(held) = self.held.get_mut(&id) {
            held.users = held.users.saturating_add(1);
        }
    }

    /// An address space that had executed it is not kept any more, or does not list it.
    pub(crate) fn leave(&mut self, id: PageId) {
        if let Some(held) = self.held.get_mut(&id) {
            held.users = held.users.saturating_sub(1);
        }
        self.forget_unused(id);
    }

    fn forget_unused(&mut self, id: PageId) {
        if self
            .held
            .get(&id)
            .is_some_and(|held| held.late && held.users == 0)
            && let Some(held) = self.held.remove(&id)
        {
            self.counts.count(&held.record);
            self.forgotten_count += 1;
            self.forgotten.insert(id.0);
        }
    }

    /// All pages of the watch by class and verdict, forgotten ones too.
    pub(crate) fn counts(&self) -> PagesReport {
        let mut counts = self.counts;
        self.iter().for_each(|page| counts.count(page));
        counts
    }

    /// How many are forgotten.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::page;

    fn in_frame(id: u64, frame: u64) -> PageRecord {
        PageRecord { frame, ..page(id) }
    }

    #[test]
    fn a_page_stays_while_its_frame_holds_it_whatever_else_comes() {
        let mut pages = Pages::default();
        pages.insert(in_frame(1, 7));
        (2..20_000).for_each(|id| pages.insert(in_frame(id, 8)));
        assert!(pages.get(PageId(1)).is_some() && !pages.is_superseded(PageId(1)));
    }

    #[test]
    fn max_late_bounds_generations_and_all_are_counted() {
        let mut pages = Pages::default();
        for id in 1..=20_000 {
            pages.insert(in_frame(id, 7));
        }
        assert!(pages.held.len() <= MAX_LATE + 1, "{}", pages.held.len());
        assert_eq!(pages.counts().user.captured, 20_000);
        assert_eq!(pages.forgotten() + pages.held.len() as u64, 20_000);
        assert!(pages.is_forgotten(PageId(1)) && !pages.is_forgotten(PageId(20_000)));
    }

    #[test]
    fn a_page_that_somebody_has_executed_stays_until_the_last_one_leaves() {
        let mut pages = Pages::default();
        pages.insert(in_frame(1, 7));
        pages.use_it(PageId(1));
        (2..20_000).for_each(|id| pages.insert(in_frame(id, 7)));
        assert!(pages.get(PageId(1)).is_some());
        pages.leave(PageId(1));
        assert!(pages.is_forgotten(PageId(1)));
        assert_eq!(pages.counts().user.captured, 19_999);
    }

    #[test]
    fn pages_in_no_frame_are_bounded_too() {
        let mut pages = Pages::default();
        (1..=20_000).for_each(|id| pages.insert(in_frame(id, 0)));
        assert!(pages.held.len() <= MAX_LATE + 1);
        assert_eq!(pages.counts().user.captured, 20_000);
    }
}
