//! What others ask.

use nephoscope_guest::{PageId, Root};

use super::Inventory;
use crate::page::PageRecord;
use crate::report::PagesReport;
use crate::space::{AddressSpace, SpaceId};
use crate::summary::Summaries;

impl Inventory {
    /// A page.
    #[must_use]
    pub fn page(&self, page: PageId) -> Option<&PageRecord> {
        self.pages.get(page)
    }

    /// Pages that are kept, in no order.
    pub fn pages(&self) -> impl Iterator<Item = &PageRecord> {
        self.pages.iter()
    }

    /// All pages of the watch by class and verdict, those that are not kept too.
    #[must_use]
    pub fn counts(&self) -> PagesReport {
        self.pages.counts()
    }

    /// Pages that are only counted any more.
    #[must_use]
    pub fn pages_forgotten(&self) -> u64 {
        self.pages.forgotten()
    }

    /// Places of files in an address space that are not remembered, because it has more than can be: pages near them are
    /// compared with less.
    #[must_use]
    pub fn anchors_left_out(&self) -> u64 {
        self.anchors_left_out
    }

    /// Executions that were told after their page or their address space had been reduced to a number.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Ended address spaces that are not told one by one any more.
    pub(crate) fn summaries(&self) -> &Summaries {
        &self.summaries
    }

    /// The living user address space that has this root.
    #[must_use]
    pub fn living_at(&self, root: Root) -> Option<&AddressSpace> {
        self.by_root.get(&root).and_then(|id| self.spaces.get(id))
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
        self.early.dropped()
    }
}
