//! Where do address spaces see the pages that they executed?
//!
//! QEMU translates position-independently: one translation of a frame serves every address space that executes it, at
//! whatever address, so the driver tells the address of the first only. The page tables of the others have it.

use std::collections::HashMap;

use nephoscope_guest::{Gpa, Gva, PAGE_SIZE, PageId, PhysicalMemory, Root};
use nephoscope_inventory::SpaceId;
use nephoscope_isa::{Bounds, Mode, Walker, Want};
use nephoscope_pipeline::Session;

/// Work of one walk: it stops tables that never end.
const BOUNDS: Bounds = Bounds {
    tables: 2048,
    leaves: 1 << 16,
};
/// Address spaces that are walked in one look; the next takes the others.
const MAX_SPACES: usize = 64;

/// Address spaces that were walked, and how they were then.
#[derive(Debug, Default)]
pub(super) struct Placing {
    walked: HashMap<SpaceId, u32>,
    /// The last that was walked. The next look begins behind it: who changes all the time keeps nobody from a turn.
    last: Option<SpaceId>,
}

impl Placing {
    fn open(&self, session: &Session) -> Vec<(SpaceId, Root, u32)> {
        let spaces = session.unplaced();
        let mut open: Vec<_> = spaces
            .filter(|(space, _, version)| self.walked.get(space) != Some(version))
            .collect();
        let had = open.partition_point(|(space, ..)| Some(*space) <= self.last);
        open.rotate_left(had);
        open.truncate(MAX_SPACES);
        open
    }

    /// Whether there is something to look for.
    pub(super) fn is_due(&mut self, session: &Session) -> bool {
        let living: HashMap<SpaceId, u32> = session.unplaced().map(|(space, _, v)| (space, v)).collect();
        self.walked.retain(|space, _| living.contains_key(space));
        !self.open(session).is_empty()
    }

    /// Looks for it. What is not mapped at this moment stays without an address until the address space changes.
    pub(super) fn look(&mut self, session: &mut Session, mode: Mode, memory: &impl PhysicalMemory) {
        let walker = Walker::new(mode, memory);
        let Some(user) = mode.spaces().next() else { return };
        for (space, root, version) in self.open(session) {
            let mut cut_short = false;
            session.place(space, |unplaced| {
                find(&walker, root, &user, unplaced, &mut cut_short)
            });
            session.walked(cut_short);
            self.walked.insert(space, version);
            self.last = Some(space);
        }
    }
}

fn find<M: PhysicalMemory>(
    walker: &Walker<M>,
    root: Root,
    user: &std::ops::RangeInclusive<Gva>,
    unplaced: &HashMap<Gpa, PageId>,
    cut_short: &mut bool,
) -> Vec<(PageId, Gva)> {
    let mut found = Vec::new();
    let census = walker.leaves(root, user, Want::Executable, BOUNDS, |leaf| {
        let reaches = leaf.gpa.0..leaf.gpa.0.saturating_add(leaf.size_bytes);
        if leaf.size_bytes == PAGE_SIZE as u64 {
            found.extend(unplaced.get(&leaf.gpa).map(|page| (*page, leaf.va)));
        } else {
            let inside = unplaced.iter().filter(|(gpa, _)| reaches.contains(&gpa.0));
            found.extend(inside.map(|(gpa, page)| (*page, Gva(leaf.va.0 + (gpa.0 - reaches.start)))));
        }
    });
    *cut_short = census.is_cut_short();
    found
}

#[cfg(test)]
mod tests {
    use nephoscope_guest::{CodeCaptured, Event, Executed, PageBytes, Privilege, Stamped};

    use super::*;
    use crate::monitor::fixture::{Memory, PRESENT, USER, long_mode, session};

    /// A session with so many address spaces that ran one page and do not know where they see it. Their page tables do, if it
    /// is mapped still.
    fn unplaced(spaces: usize, mapped: bool) -> (Memory, Session) {
        let (mut memory, mut session) = (Memory::default(), session());
        let gpa = Gpa(memory.frame());
        // The address that is told is the one of a root that nobody else has.
        let captured = CodeCaptured {
            page: PageId(1),
            gpa: Some(gpa),
            frame: 1,
            generation: 0,
            vcpu: 0,
            root: Root(0xdead_b000),
            va: Gva(0x1000),
            privilege: Privilege::User,
            paging: true,
            bits: 64,
            start: 0,
            end: 8,
            replay: false,
            bytes: PageBytes::zeroed(),
        };
        let mut events = vec![Event::CodeCaptured(Box::new(captured))];
        for incarnation in 1..=u32::try_from(spaces).unwrap() {
            let root = Root(memory.frame());
            if mapped {
                memory.map(root, Gva(0x40_0000), gpa, PRESENT | USER);
            }
            events.push(Event::Executed(Executed {
                page: PageId(1),
                root,
                vcpu: 0,
                incarnation,
            }));
        }
        for event in events {
            session.take(Stamped { at_ns: 1, event }, &|_| None, &mut []);
        }
        (memory, session)
    }

    #[test]
    fn max_spaces_bounds_one_look_and_the_next_takes_the_others() {
        let spaces = MAX_SPACES + 5;
        let (memory, mut session) = unplaced(spaces, true);
        let mut placing = Placing::default();
        for unplaced in [spaces, spaces - MAX_SPACES, 0] {
            assert_eq!(session.unplaced().count(), unplaced);
            assert_eq!(placing.is_due(&session), unplaced > 0);
            placing.look(&mut session, long_mode(), &memory);
        }
    }

    #[test]
    fn those_that_change_all_the_time_keep_no_other_from_a_turn() {
        let (memory, mut session) = unplaced(3 * MAX_SPACES, false);
        let mut placing = Placing::default();
        for turn in 1..=3 {
            placing.look(&mut session, long_mode(), &memory);
            assert_eq!(placing.walked.len(), turn * MAX_SPACES);
            // As if the first had changed since.
            for version in placing.walked.values_mut() {
                *version = u32::MAX;
            }
        }
    }
}
