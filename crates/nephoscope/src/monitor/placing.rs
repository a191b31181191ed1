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
}

impl Placing {
    fn open(&self, session: &Session) -> Vec<(SpaceId, Root, u32)> {
        session
            .unplaced()
            .filter(|(space, _, version)| self.walked.get(space) != Some(version))
            .take(MAX_SPACES)
            .collect()
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
            session.place(space, |unplaced| find(&walker, root, &user, unplaced));
            self.walked.insert(space, version);
        }
    }
}

fn find<M: PhysicalMemory>(
    walker: &Walker<M>,
    root: Root,
    user: &std::ops::RangeInclusive<Gva>,
    unplaced: &HashMap<Gpa, PageId>,
) -> Vec<(PageId, Gva)> {
    let mut found = Vec::new();
    walker.leaves(root, user, Want::Executable, BOUNDS, |leaf| {
        let reaches = leaf.gpa.0..leaf.gpa.0.saturating_add(leaf.size_bytes);
        if leaf.size_bytes == PAGE_SIZE as u64 {
            found.extend(unplaced.get(&leaf.gpa).map(|page| (*page, leaf.va)));
        } else {
            let inside = unplaced.iter().filter(|(gpa, _)| reaches.contains(&gpa.0));
            found.extend(inside.map(|(gpa, page)| (*page, Gva(leaf.va.0 + (gpa.0 - reaches.start)))));
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use nephoscope_guest::{CodeCaptured, Event, Executed, PageBytes, Privilege, Stamped};

    use super::*;
    use crate::monitor::fixture::{Memory, PRESENT, USER, long_mode, session};

    #[test]
    fn max_spaces_bounds_one_look_and_the_next_takes_the_others() {
        let spaces = MAX_SPACES + 5;
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
            memory.map(root, Gva(0x40_0000), gpa, PRESENT | USER);
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
        let mut placing = Placing::default();
        for unplaced in [spaces, spaces - MAX_SPACES, 0] {
            assert_eq!(session.unplaced().count(), unplaced);
            assert_eq!(placing.is_due(&session), unplaced > 0);
            placing.look(&mut session, long_mode(), &memory);
        }
    }
}
