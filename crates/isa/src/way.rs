//! The way from a root to its highest user page: what a living address space keeps.
//!
//! A guest frees the tables of a process that ended and soon uses their frames again, often in the same order, so a
//! root's number says little. What a living address space keeps are the tables on the way to its highest user page: the
//! first thread's stack (or the system's shared page), there from before the first user instruction to the end. If a
//! step of the way is another one later, so is the address space.

use nephoscope_guest::{Gpa, MemoryFault, PhysicalMemory, Root};

/// Frame bits of a long-mode table entry: 51:12 (Intel SDM 3A, tables 4-15 to 4-20).
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// P.
const PRESENT: u64 = 1;
/// PS: the entry is a leaf.
const LEAF: u64 = 1 << 7;
/// Entries of the user half of a top-level table.
const USER_ENTRIES: usize = 256;

/// One step from a table to the next: the entry's number and the frame it names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Step {
    entry: u16,
    frame: u64,
}

/// The tables on the way, in long mode. The last level's entries are pages, which may move; they are not part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    steps: [Option<Step>; 4],
}

impl Way {
    /// Follows the last present entry of each level, at the first level in its user half only. `None` if there is no
    /// user memory: it was never mapped, or is taken down already.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn find(memory: &impl PhysicalMemory, root: Root, levels: u8) -> Result<Option<Self>, MemoryFault> {
        let mut steps = [None; 4];
        let mut frame = root.0;
        let mut most = USER_ENTRIES;
        for step in steps.iter_mut().take(usize::from(levels).saturating_sub(1)) {
            let entries = table(memory, frame)?;
            let last = (0_u16..)
                .zip(&entries)
                .take(most)
                .filter(|(_, entry)| **entry & PRESENT != 0)
                .last();
            let Some((number, entry)) = last else {
                return Ok(None);
            };
            if *entry & LEAF != 0 && most != USER_ENTRIES {
                break;
            }
            frame = entry & FRAME;
            most = entries.len();
            *step = Some(Step { entry: number, frame });
        }
        Ok(steps.iter().any(Option::is_some).then_some(Self { steps }))
    }

    /// Whether every step is still there.
    pub fn holds(&self, memory: &impl PhysicalMemory, root: Root) -> bool {
        let mut frame = root.0;
        self.steps.iter().flatten().all(|step| {
            let mut bytes = [0; 8];
            let read = memory.read(Gpa(frame.wrapping_add(u64::from(step.entry) * 8)), &mut bytes);
            let entry = u64::from_le_bytes(bytes);
            frame = step.frame;
            read.is_ok() && entry & PRESENT != 0 && entry & FRAME == step.frame
        })
    }
}

fn table(memory: &impl PhysicalMemory, frame: u64) -> Result<[u64; 512], MemoryFault> {
    let mut bytes = [0; 4096];
    memory.read(Gpa(frame), &mut bytes)?;
    let mut entries = [0; 512];
    for (entry, chunk) in entries.iter_mut().zip(bytes.as_chunks().0) {
        *entry = u64::from_le_bytes(*chunk);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    struct Tables(HashMap<u64, u64>);

    impl PhysicalMemory for Tables {
        fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
            for (i, chunk) in buf.chunks_mut(8).enumerate() {
                let word = self.0.get(&(at.0 + 8 * i as u64)).copied().unwrap_or(0);
                chunk.copy_from_slice(&word.to_le_bytes());
            }
            Ok(())
        }
    }

    fn process(tables: [u64; 3], numbers: [u64; 3]) -> Tables {
        Tables(HashMap::from([
            (0x1000 + 255 * 8, tables[0] | 7),
            (0x1000 + 511 * 8, 0xff_f000 | 3),
            (tables[0] + numbers[0] * 8, tables[1] | 7),
            (tables[1] + numbers[1] * 8, tables[2] | 7),
            (tables[2] + numbers[2] * 8, 0xabc_0000 | 7),
        ]))
    }

    const ROOT: Root = Root(0x1000);

    #[test]
    fn the_way_holds_while_pages_come_and_go() {
        let mut memory = process([0x2000, 0x3000, 0x4000], [511, 500, 3]);
        let way = Way::find(&memory, ROOT, 4).unwrap().unwrap();
        memory.0.insert(0x1000 + 8 * 100, 0x9000 | 7);
        memory.0.insert(0x4000 + 8 * 3, 0xdef_0000 | 7);
        assert!(way.holds(&memory, ROOT));
    }

    #[test]
    fn the_same_frames_in_the_same_order_at_another_address_are_another_way() {
        let way = Way::find(&process([0x2000, 0x3000, 0x4000], [511, 500, 3]), ROOT, 4)
            .unwrap()
            .unwrap();
        assert!(!way.holds(&process([0x2000, 0x3000, 0x4000], [511, 499, 3]), ROOT));
        assert!(!way.holds(&process([0x3000, 0x2000, 0x4000], [511, 500, 3]), ROOT));
    }

    #[test]
    fn an_empty_user_half_has_no_way() {
        assert_eq!(
            Way::find(&Tables(HashMap::from([(0x1000 + 511 * 8, 0xff_f003)])), ROOT, 4),
            Ok(None)
        );
    }

    #[test]
    fn a_table_that_cannot_be_read_is_not_an_empty_one() {
        struct Nothing;
        impl PhysicalMemory for Nothing {
            fn read(&self, at: Gpa, _: &mut [u8]) -> Result<(), MemoryFault> {
                Err(MemoryFault { at })
            }
        }
        assert!(Way::find(&Nothing, ROOT, 4).is_err());
    }
}
