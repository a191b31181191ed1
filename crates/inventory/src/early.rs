//! What came before the page that it is about: rings of several vCPUs are read one after the other.

use std::collections::HashMap;

use nephoscope_guest::{Executed, Gva, PageId, Root};

/// Executions that wait for their page, and addresses. It stops a ring that brings executions of pages that never come.
pub(crate) const MAX_EARLY: usize = 16 << 10;
/// When there is no more room, executions that have waited for this long make some: pages come within milliseconds.
pub(crate) const EARLY_NS: u64 = 2_000_000_000;
/// An execution waits so long for its page: replays of all pages of a guest take less.
pub(crate) const MAX_WAIT_NS: u64 = 60_000_000_000;

/// Executions and addresses of pages that did not come yet.
#[derive(Debug, Default)]
pub(crate) struct Early {
    waiting: HashMap<PageId, Vec<(u64, Executed)>>,
    count: usize,
    dropped: u64,
    places: HashMap<(Root, PageId), Gva>,
}

impl Early {
    /// An execution waits. Without room it is dropped, and counted.
    pub(crate) fn wait(&mut self, at_ns: u64, executed: Executed) {
        if self.count >= MAX_EARLY {
            self.drop_before(at_ns.saturating_sub(EARLY_NS));
        }
        if self.count >= MAX_EARLY {
            self.dropped += 1;
            return;
        }
        self.count += 1;
        self.waiting
            .entry(executed.page)
            .or_default()
            .push((at_ns, executed));
    }

    /// The page came: these waited for it.
    pub(crate) fn take(&mut self, page: PageId) -> Vec<(u64, Executed)> {
        let waited = self.waiting.remove(&page).unwrap_or_default();
        self.count = self.count.saturating_sub(waited.len());
        waited
    }

    /// Where a root sees a page that it may run later.
    pub(crate) fn locate(&mut self, root: Root, page: PageId, va: Gva) {
        if self.places.len() >= MAX_EARLY {
            self.places.clear();
        }
        self.places.insert((root, page), va);
    }

    pub(crate) fn place(&self, root: Root, page: PageId) -> Option<Gva> {
        self.places.get(&(root, page)).copied()
    }

    /// The root is another address space's from now on.
    pub(crate) fn forget(&mut self, root: Root) {
        self.places.retain(|(other, _), _| *other != root);
    }

    /// Drops executions that have waited too long, and gives the time of each: what ran then is not known.
    pub(crate) fn overdue(&mut self, now_ns: u64) -> Vec<u64> {
        self.drop_before(now_ns.saturating_sub(MAX_WAIT_NS))
    }

    /// Executions that were dropped because their page never came.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What a watch before this one had counted.
    pub(crate) fn restore_dropped(&mut self, dropped: u64) {
        self.dropped = dropped;
    }

    fn drop_before(&mut self, since_ns: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        self.waiting.retain(|_, waiting| {
            gone.extend(
                waiting
                    .iter()
                    .map(|(at_ns, _)| *at_ns)
                    .filter(|at_ns| *at_ns < since_ns),
            );
            waiting.retain(|(at_ns, _)| *at_ns >= since_ns);
            !waiting.is_empty()
        });
        self.count = self.count.saturating_sub(gone.len());
        self.dropped += gone.len() as u64;
        gone
    }
}
