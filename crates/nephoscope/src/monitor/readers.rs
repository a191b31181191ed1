//! Do those who read files have them mapped, or did the kernel copy for them?
//!
//! Their page tables say so: memory that holds a piece of a file and was mapped is in the reader's user half. A reader may be gone when it
//! is looked, or have unmapped it; then it is not known, or taken for copied.

use std::collections::HashSet;

use nephoscope_guest::PhysicalMemory;
use nephoscope_isa::{Bounds, Mode, Walker, Want};
use nephoscope_pipeline::Session;

/// Work of one walk: it stops tables that never end.
const BOUNDS: Bounds = Bounds {
    tables: 4096,
    leaves: 1 << 18,
};
/// Address spaces that are walked in one look; the next takes the others.
const MAX_SPACES: usize = 16;

/// Looks for all who read something since the last time.
pub(super) fn look(session: &mut Session, mode: Mode, memory: &impl PhysicalMemory) {
    let walker = Walker::new(mode, memory);
    let Some(user) = mode.spaces().next() else { return };
    let mut readers = session.readers_to_look_at();
    readers.truncate(MAX_SPACES);
    for (space, root) in readers {
        let mut cut_short = false;
        session.look_at_reader(space, |frames| {
            let mut mapped = HashSet::new();
            let census = walker.leaves(root, &user, Want::Everything, BOUNDS, |leaf| {
                let reaches = leaf.gpa.0..leaf.gpa.0.saturating_add(leaf.size_bytes);
                if !leaf.permissions.user {
                } else if leaf.size_bytes == 4096 {
                    mapped.extend(frames.get(&leaf.gpa).copied());
                } else {
                    mapped.extend(frames.iter().filter(|gpa| reaches.contains(&gpa.0)).copied());
                }
            });
            cut_short = census.is_cut_short();
            (!cut_short).then_some(mapped)
        });
        session.walked(cut_short);
    }
}

#[cfg(test)]
mod tests {
    use nephoscope_guest::{Event, FileHeld, FileSeen, Gpa, Gva, PageAccessed, PageBytes, Root, Stamped};

    use super::*;
    use crate::monitor::fixture::{Memory, PRESENT, USER, long_mode, session};

    /// So many readers of one page of a file, of which every second has it mapped.
    fn readers(count: u32) -> (Memory, Session) {
        let (mut memory, mut session) = (Memory::default(), session());
        let gpa = Gpa(memory.frame());
        let bytes = PageBytes::zeroed();
        let about = FileSeen {
            disk: 0,
            partition: 0,
            inode: 12,
            generation: 0,
            bytes: 4096,
            path: b"/a.py".to_vec(),
        };
        let held = FileHeld {
            file: 1,
            at: 0,
            gpa,
            len: 4096,
            written: false,
            digest: *blake3::hash(&bytes[..]).as_bytes(),
        };
        let mut events = vec![
            Event::FileSeen(1, Box::new(about)),
            Event::FileHeld(Box::new(held)),
        ];
        for incarnation in 1..=count {
            let root = Root(memory.frame());
            let bits = if incarnation % 2 == 0 {
                PRESENT | USER
            } else {
                PRESENT
            };
            memory.map(root, Gva(0x40_0000), gpa, bits);
            events.push(Event::PageAccessed(Box::new(PageAccessed {
                gpa,
                by: Some((root, incarnation)),
                held: Some(bytes.clone()),
            })));
        }
        for event in events {
            session.take(Stamped { at_ns: 1, event }, &|_| None, &mut []);
        }
        (memory, session)
    }

    fn how(session: &mut Session) -> Vec<String> {
        let report = session.report();
        let [file] = &report.files[..] else { panic!() };
        file.readers.iter().map(|reader| reader.how.clone()).collect()
    }

    #[test]
    fn who_has_it_mapped_for_itself_did_not_copy() {
        let (memory, mut session) = readers(2);
        assert_eq!(how(&mut session), ["not known", "not known"]);
        look(&mut session, long_mode(), &memory);
        assert_eq!(how(&mut session), ["copied", "mapped"]);
    }

    #[test]
    fn max_spaces_bounds_one_look_and_the_next_takes_the_others() {
        let (memory, mut session) = readers(u32::try_from(MAX_SPACES).unwrap() + 3);
        look(&mut session, long_mode(), &memory);
        assert_eq!(session.readers_to_look_at().len(), 3);
        look(&mut session, long_mode(), &memory);
        assert_eq!(session.readers_to_look_at().len(), 0);
    }
}
