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
    /// Whose pages were read when the last look ended. The next begins behind it: who changes all the time keeps nobody from a turn.
    last: Option<SpaceId>,
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
        let mut wanted: Vec<&Ambiguous> = wanted.iter().collect();
        wanted.sort_by_key(|w| (Some(w.space) <= self.last, w.space));
        for ambiguous in wanted {
            let read = self.read.entry(ambiguous.space).or_default();
            let mut found = Vec::new();
            let last = Gva(ambiguous.range.end.0.saturating_sub(1));
            let census = walker.leaves(
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
            session.walked(census.is_cut_short());
            for (va, gpa) in found {
                if left == 0 {
                    self.last = Some(ambiguous.space);
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

#[cfg(test)]
mod tests {
    use nephoscope_guest::Root;

    use super::*;
    use crate::monitor::fixture::{Memory, PRESENT, USER, given, long_mode, session};

    #[test]
    fn max_pages_bounds_one_look_and_the_next_goes_on_with_the_rest() {
        let mut memory = Memory::default();
        let root = Root(memory.frame());
        let constant = Gpa(memory.frame());
        let wanted = [(1, 0x40_0000_u64, MAX_PAGES + 40), (2, 0x8000_0000, 7)];
        let wanted = wanted.map(|(space, from, pages)| {
            let end = from + pages as u64 * PAGE_SIZE as u64;
            for va in (from..end).step_by(PAGE_SIZE) {
                memory.map(root, Gva(va), constant, PRESENT | USER);
            }
            let (space, range) = (SpaceId(space), Gva(from)..Gva(end));
            Ambiguous { space, root, range }
        });
        let (mut session, mut mapped) = (session(), Mapped::default());
        let mut look = || {
            mapped.look(&mut session, &wanted, long_mode(), &memory);
            given(&mut session)
        };
        let all = MAX_PAGES + 40 + 7;
        assert_eq!([look(), look(), look()], [MAX_PAGES, all, all]);
    }
}
