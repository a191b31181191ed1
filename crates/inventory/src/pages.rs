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
    /// Forgotten since somebody asked.
    gone: Vec<PageId>,
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
        self.trim();
    }

    fn supersede(&mut self, id: PageId) {
        if let Some(held) = self.held.get_mut(&id) {
            held.superseded = true;
            self.superseded.push_back(id);
        }
    }

    /// Of so many of those whose frames hold something else nothing more will be told.
    pub(crate) fn trim(&mut self) {
        while self.superseded.len() > MAX_LATE
            && let Some(oldest) = self.superseded.pop_front()
        {
            if let Some(held) = self.held.get_mut(&oldest) {
                held.late = true;
            }
            self.forget_unused(oldest);
        }
    }

    /// Takes a page that was written down, in the order of their numbers. None is forgotten for it: who has executed it is told
    /// later ([`Pages::trim`]).
    pub(crate) fn restore(&mut self, record: PageRecord) {
        if let Some(held) = self.held.get_mut(&record.id) {
            held.record = record;
            return;
        }
        let late = std::mem::take(&mut self.superseded);
        self.insert(record);
        let new = std::mem::replace(&mut self.superseded, late);
        self.superseded.extend(new);
    }

    /// Takes that these pages, of which the last number is not one, are forgotten; they are counted already.
    pub(crate) fn restore_forgotten(&mut self, first: u64, end: u64) {
        // All that are held, if the range is longer than that.
        let held: Vec<PageId> = self
            .held
            .keys()
            .copied()
            .filter(|id| (first..end).contains(&id.0))
            .collect();
        for id in held {
            self.held.remove(&id);
        }
        self.forgotten.insert_range(first, end);
    }

    /// Takes how many are forgotten, by class and verdict.
    pub(crate) fn restore_counts(&mut self, counts: PagesReport, forgotten: u64) {
        (self.counts, self.forgotten_count) = (counts, forgotten);
    }

    /// Which are forgotten: first numbers, and the numbers behind the last.
    pub(crate) fn forgotten_ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.forgotten.iter()
    }

    /// Those that are forgotten, by class and verdict.
    pub(crate) fn forgotten_counts(&self) -> PagesReport {
        self.counts
    }

    /// Pages that were forgotten since the last call.
    pub(crate) fn take_gone(&mut self) -> Vec<PageId> {
        std::mem::take(&mut self.gone)
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
            self.gone.push(id);
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
    fn restored_pages_are_forgotten_only_when_it_is_known_who_has_executed_them() {
        let mut pages = Pages::default();
        (1..=20_000).for_each(|id| pages.restore(in_frame(id, 7)));
        pages.use_it(PageId(3));
        pages.trim();
        assert!(pages.get(PageId(3)).is_some() && pages.get(PageId(4)).is_none());
        assert_eq!(pages.counts().user.captured, 20_000);
        pages.restore_forgotten(3, 4);
        assert!(pages.is_forgotten(PageId(3)) && pages.get(PageId(3)).is_none());
    }

    #[test]
    fn pages_in_no_frame_are_bounded_too() {
        let mut pages = Pages::default();
        (1..=20_000).for_each(|id| pages.insert(in_frame(id, 0)));
        assert!(pages.held.len() <= MAX_LATE + 1);
        assert_eq!(pages.counts().user.captured, 20_000);
    }
}
