//! Reads pages that address spaces map, where they tell versions of one file apart (`pipeline::Ambiguous`).

use std::collections::HashMap;

use nephoscope_guest::{Gpa, Gva, PAGE_SIZE, PageBytes, PhysicalMemory};
use nephoscope_inventory::SpaceId;
use nephoscope_isa::{Bounds, Mode, Walker, Want};
use nephoscope_pipeline::{Ambiguous, Session};

/// Pages read in one look, which it keeps short: the next look goes on with the rest.
const MAX_PAGES: usize = 512;
/// Work of one walk: it stops tables that never end. A file of 256 MiB needs a quarter of the tables.
const BOUNDS: Bounds = Bounds {
    tables: 512,
    leaves: 1 << 16,
};

/// Which pages were read, in which frame.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    read: HashMap<SpaceId, HashMap<Gva, Gpa>>,
}

impl Mapped {
    /// Gives the session pages of its ambiguous modules that it has not had.
    pub(super) fn look(
        &mut self,
        session: &mut Session,
        wanted: &[Ambiguous],
        mode: Mode,
        memory: &impl PhysicalMemory,
    ) {
        self.read
            .retain(|space, _| wanted.iter().any(|w| w.space == *space));
        let walker = Walker::new(mode, memory);
        let mut left = MAX_PAGES;
        for ambiguous in wanted {
            let read = self.read.entry(ambiguous.space).or_default();
            let mut found = Vec::new();
            let last = Gva(ambiguous.range.end.0.saturating_sub(1));
            walker.leaves(
                ambiguous.root,
                &(ambiguous.range.start..=last),
                Want::Everything,
                BOUNDS,
                |leaf| {
                    let constant = leaf.permissions.user && !leaf.permissions.write;
                    if constant
                        && leaf.size_bytes == PAGE_SIZE as u64
                        && read.get(&leaf.va) != Some(&leaf.gpa)
                    {
                        found.push((leaf.va, leaf.gpa));
                    }
                },
            );
            for (va, gpa) in found {
                if left == 0 {
                    return;
                }
                left -= 1;
                read.insert(va, gpa);
                let mut bytes = PageBytes::zeroed();
                if memory.read(gpa, &mut bytes[..]).is_ok() {
                    session.mapped(ambiguous.space, va, &bytes);
                }
            }
        }
    }
}
