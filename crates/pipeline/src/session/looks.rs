//! What is looked up in the guest's page tables beside what ran.

use std::collections::HashMap;

use nephoscope_finding::Sink;
use nephoscope_guest::{Gpa, Gva, PageBytes, PageId, Root};
use nephoscope_inventory::{SpaceId, SpaceKind};
use nephoscope_judge::KernelLook;

use super::Session;
use crate::narrow::Ambiguous;

impl Session {
    /// What the kernel has mapped executable at this time is given to [`Session::mapped_by_kernel`] from now on.
    pub fn look_in_kernel_begins(&mut self, at_ns: u64) -> KernelLook {
        self.judges.unknown.look_begins(at_ns)
    }

    /// All of it was given.
    pub fn looked_in_kernel(&mut self, look: KernelLook, sinks: &mut [&mut dyn Sink]) {
        self.settle(sinks);
        self.judges.unknown.looked(look);
    }

    /// Whether what the kernel has mapped is being looked at, or will be in a moment.
    pub fn looking_in_kernel(&mut self, looking: bool) {
        self.judges.unknown.looking(looking);
    }

    /// The root to look in for what else the kernel has mapped executable, if a page ran since the last time that this
    /// may explain.
    pub fn lacking(&mut self) -> Option<Root> {
        self.lacking.take()
    }

    /// Whether [`Session::lacking`] has one.
    #[must_use]
    pub const fn is_lacking(&self) -> bool {
        self.lacking.is_some()
    }

    /// A page of the kernel's text and where it lay when it ran: every root that is one now leads there.
    #[must_use]
    pub fn kernel_text(&self) -> Option<(Gva, Gpa)> {
        self.kernel_text
    }

    /// The kernel has this page mapped executable. Whether an image is known to lie there now; if not, the page may tell of one
    /// when more of them are ([`Session::placements`]).
    pub fn mapped_by_kernel(&mut self, va: Gva, bytes: &PageBytes) -> bool {
        self.counters.count("mapped_pages_read");
        match self.identifier.mapped_by_kernel(va, bytes) {
            Ok(true) => self.placed(),
            Ok(false) => {}
            Err(_) => self.counters.count("catalog_errors"),
        }
        !self.identifier.images.at(va.0).is_empty()
    }

    /// How often something was learnt of where images lie.
    #[must_use]
    pub const fn placements(&self) -> u64 {
        self.placements
    }

    /// What was learnt of where images lie may tell what pages are that are open.
    pub(super) fn placed(&mut self) {
        self.placements += 1;
        self.touched.extend(self.open.keys().copied());
    }

    /// Page tables of the guest were walked; whether not all of what they map was seen.
    pub fn walked(&mut self, cut_short: bool) {
        self.counters.add("walks_cut_short", u64::from(cut_short));
    }

    /// Living address spaces with pages whose address in them is not known: a translation that serves several address
    /// spaces tells the address of the first. With each, its root, and how often it changed.
    pub fn unplaced(&self) -> impl Iterator<Item = (SpaceId, Root, u32)> {
        self.inventory
            .spaces()
            .filter(|s| s.is_living() && s.kind == SpaceKind::User && s.pages.values().any(Option::is_none))
            .map(|s| (s.id, s.root, s.version))
    }

    /// Says where an address space sees pages that it executed: `at` gives it for pages by where they lie.
    pub fn place(&mut self, space: SpaceId, at: impl FnOnce(&HashMap<Gpa, PageId>) -> Vec<(PageId, Gva)>) {
        let unplaced = self.inventory.unplaced(space);
        for (page, va) in at(&unplaced) {
            self.inventory.place(space, page, va);
        }
    }

    /// Where pages that are mapped and did not execute would tell which of several files a module is.
    pub fn ambiguous(&mut self) -> Vec<Ambiguous> {
        let wanted = self.narrow.look(&self.inventory, &self.names);
        let cut = std::mem::take(&mut self.narrow.cut);
        self.counters.add("mapped_files_cut", cut);
        wanted
    }

    /// An address space maps this page, which nobody may write to.
    pub fn mapped(&mut self, space: SpaceId, va: Gva, bytes: &PageBytes) {
        self.counters.count("mapped_pages_read");
        match self.identifier.mapped(bytes) {
            Ok(Some(verdict)) => {
                self.inventory.mapped(space, va, verdict);
            }
            Ok(None) => {}
            Err(_) => self.counters.count("catalog_errors"),
        }
    }

    /// Living user address spaces with their roots.
    pub fn living(&self) -> impl Iterator<Item = (SpaceId, Root)> {
        self.inventory
            .spaces()
            .filter(|s| s.is_living() && s.root.0 != 0)
            .map(|s| (s.id, s.root))
    }
}
