//! What was written down by an earlier part of the watch, taken up again.

use nephoscope_guest::PageId;

use super::Inventory;
use crate::kept::{Record, Totals};
use crate::space::{SpaceId, SpaceKind};

impl Inventory {
    /// Whether a page was there and is only counted any more.
    #[must_use]
    pub fn is_forgotten(&self, page: PageId) -> bool {
        self.pages.is_forgotten(page)
    }

    /// What is only counted, in numbers.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            forgotten: self.pages.forgotten_counts(),
            forgotten_count: self.pages.forgotten(),
            late: self.late,
            dropped: self.dropped(),
            last_id: self.last_id,
            reset_ns: self.reset_ns,
        }
    }

    /// Everything that was written down is restored: what is kept of it is within its bounds from now on.
    pub fn restored(&mut self) {
        let mut ended: Vec<(u64, SpaceId)> = self
            .spaces
            .values()
            .filter_map(|space| Some((space.ended_ns?, space.id)))
            .collect();
        ended.sort_unstable();
        self.ended.clear();
        self.ended_marked.clear();
        for (_, id) in ended {
            self.queue_ended(id);
        }
        for space in self.spaces.values() {
            if space.ended_ns.is_some() && space.ended_ns == self.reset_ns {
                self.of_before.set(space.kind, Some(space.id));
            }
        }
        self.pages.trim();
        self.note_forgotten();
    }

    /// Takes what was written down of another inventory of the same watch ([`Inventory::changes`]). [`Inventory::restored`]
    /// has to follow.
    pub fn restore(&mut self, record: Record) {
        match record {
            Record::Page(page) => self.pages.restore(page),
            Record::Executed { page, ranges } => {
                if let Some(record) = self.pages.get_mut(page) {
                    record.executed = ranges;
                }
            }
            Record::Left { space, page } => {
                if let Some(space) = self.spaces.get_mut(&space)
                    && space.pages.remove(&page).is_some()
                {
                    self.pages.leave(page);
                }
            }
            Record::Gone { space } => {
                if let Some(space) = self.spaces.remove(&space) {
                    for page in space.pages.keys() {
                        self.pages.leave(*page);
                    }
                    self.by_incarnation.remove(&space.incarnation);
                    if self.by_root.get(&space.root) == Some(&space.id) {
                        self.by_root.remove(&space.root);
                    }
                }
            }
            Record::Summarised { first, end } => self.summarised.insert_range(first, end),
            Record::Forgotten { first, end } => self.pages.restore_forgotten(first, end),
            Record::Summary(summary) => self.summaries.restore(summary),
            Record::Totals(totals) => {
                self.pages
                    .restore_counts(totals.forgotten, totals.forgotten_count);
                self.late = totals.late;
                self.early.restore_dropped(totals.dropped);
                self.last_id = self.last_id.max(totals.last_id);
                self.reset_ns = totals.reset_ns;
            }
            Record::Space(kept) => {
                let (id, living) = (kept.id, kept.ended_ns.is_none());
                self.last_id = self.last_id.max(id.0);
                // One that ended is not the one that lives.
                let now = |before: Option<SpaceId>| {
                    if living {
                        Some(id)
                    } else {
                        before.filter(|before| *before != id)
                    }
                };
                match kept.kind {
                    kind @ (SpaceKind::Kernel | SpaceKind::Firmware) => {
                        self.supervisors.set(kind, now(self.supervisors.get(kind)));
                    }
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
                space.unlisted = kept.unlisted;
            }
            Record::Ran { space, page, va } => {
                if let Some(space) = self.spaces.get_mut(&space) {
                    if space.pages.insert(page, va).is_none() {
                        self.pages.use_it(page);
                    }
                    if let (Some(va), Some(held)) = (va, self.pages.get(page)) {
                        self.anchors_left_out += space.anchor(va, &held.verdict);
                    }
                }
            }
            Record::Mapped { space, va, verdict } => {
                if let Some(space) = self.spaces.get_mut(&space) {
                    space.mapped.insert(va, verdict);
                }
            }
        }
    }
}
