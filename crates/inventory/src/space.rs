//! Address spaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use nephoscope_catalog::ObjectId;
use nephoscope_guest::{Gva, PageId, Root};
use serde::{Deserialize, Serialize};

use crate::report::PageCounts;
use crate::verdict::Verdict;

/// Names an address space for the length of a watch, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpaceId(pub u32);

/// What an address space is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpaceKind {
    /// A process.
    User,
    /// The kernel, whichever root is loaded.
    Kernel,
    /// Firmware, boot loaders and boot code, before or below the kernel.
    Firmware,
}

/// The kernel and the firmware of a machine: each is one address space, whichever root is loaded.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Supervisors {
    kernel: Option<SpaceId>,
    firmware: Option<SpaceId>,
}

impl Supervisors {
    pub(crate) fn get(self, kind: SpaceKind) -> Option<SpaceId> {
        match kind {
            SpaceKind::Kernel => self.kernel,
            SpaceKind::Firmware => self.firmware,
            SpaceKind::User => None,
        }
    }

    /// Users are none of them.
    pub(crate) fn set(&mut self, kind: SpaceKind, space: Option<SpaceId>) {
        match kind {
            SpaceKind::Kernel => self.kernel = space,
            SpaceKind::Firmware => self.firmware = space,
            SpaceKind::User => {}
        }
    }
}

/// A page that is mapped executable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedCode {
    /// The page.
    pub page: PageId,
    /// Whether somebody read or executed something there since the guest last cleared the accessed bit.
    pub accessed: bool,
}

/// Files at a place remembered per address space: more than any program loads. They only help to find what a modified page
/// is near to.
pub(crate) const MAX_ANCHORS: usize = 4096;

/// One address space.
#[derive(Clone, Debug)]
pub struct AddressSpace {
    /// Its number.
    pub id: SpaceId,
    /// The root that it had; 0 for kernel and firmware, which have many.
    pub root: Root,
    /// The driver's number for it, 0 for kernel and firmware.
    pub incarnation: u32,
    /// What it is of.
    pub kind: SpaceKind,
    /// When it first executed.
    pub first_ns: u64,
    /// When it last executed a page for the first time.
    pub last_ns: u64,
    /// When it was seen to have ended.
    pub ended_ns: Option<u64>,
    /// The pages it executed, and where it sees them, as far as that is known.
    pub pages: BTreeMap<PageId, Option<Gva>>,
    /// Pages that it maps and that were looked at to tell versions apart; whether they executed is not known by this.
    pub mapped: BTreeMap<Gva, Arc<Verdict>>,
    /// What it has mapped executable, as a driver that reads memory saw it last. Such a driver does not know what ran.
    pub code_mapped: BTreeMap<Gva, MappedCode>,
    /// Pages that it executed beyond those that are kept (`MAX_LISTED`), by verdict. One that comes back is counted again.
    pub unlisted: PageCounts,
    /// Where files lie that its pages are of: file and load address minus link address, with the first and the last page.
    pub(crate) anchors: BTreeMap<(ObjectId, u64), (Gva, Gva)>,
    /// No page before this one can be left out of the list.
    pub(crate) listed_from: PageId,
    /// Goes up with every change, so that what was derived from it can be kept until then.
    pub version: u32,
}

impl AddressSpace {
    /// Files that pages within `distance` bytes of `va` are of, and their bias, at most `most`.
    pub fn files_near(&self, va: Gva, distance: u64, most: usize) -> impl Iterator<Item = (ObjectId, u64)> {
        let near = move |(first, last): &(Gva, Gva)| {
            va.0 >= first.0.saturating_sub(distance) && va.0 <= last.0.saturating_add(distance)
        };
        let anchors = self.anchors.iter().filter(move |(_, span)| near(span));
        anchors.map(|(anchor, _)| *anchor).take(most)
    }

    /// Whether it executed the page, or has it mapped executable.
    #[must_use]
    pub fn has(&self, page: PageId) -> bool {
        self.pages.contains_key(&page) || self.code_mapped.values().any(|mapped| mapped.page == page)
    }

    /// Every page that it has something to do with, once for each: those that it executed, and those mapped executable.
    pub(crate) fn all_pages(&self) -> impl Iterator<Item = PageId> {
        self.pages
            .keys()
            .copied()
            .chain(self.code_mapped.values().map(|mapped| mapped.page))
    }

    /// Remembers what a page says of where files lie; how much of it there is no room for.
    pub(crate) fn anchor(&mut self, va: Gva, verdict: &Verdict) -> u64 {
        let mut left_out = 0;
        for place in verdict.places() {
            let anchor = (place.object, va.0.wrapping_sub(place.link));
            if self.anchors.len() >= MAX_ANCHORS && !self.anchors.contains_key(&anchor) {
                left_out += 1;
                continue;
            }
            let span = self.anchors.entry(anchor).or_insert((va, va));
            *span = (span.0.min(va), span.1.max(va));
        }
        left_out
    }

    /// Whether it was still there when last looked at.
    #[must_use]
    pub fn is_living(&self) -> bool {
        self.ended_ns.is_none()
    }
}
