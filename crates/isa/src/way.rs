//! The way from a root to its highest user page: what a living address space keeps.
//!
//! A guest frees the tables of a process that ended and soon uses their frames again, often in the same order, so a
//! root's number says little. What a living address space keeps are the tables on the way to its highest user page: the
//! first thread's stack (or the system's shared page), there from before the first user instruction to the end. If a
//! step of the way is another one later, so is the address space.

use nephoscope_guest::{MemoryFault, PhysicalMemory, Root};

use crate::controls::Mode;
use crate::entries::EntryBuffer;
use crate::facts::Level;
use crate::step::{Permissions, Step, step};

/// Tables above the last level: as many as five levels have.
const LEGS: usize = 4;
/// Tables read for one way. A guest can fill tables with entries that lead to empty ones; in one that does not, a few have to
/// be looked at: those of the kernel, where the mode does not say where it begins. Linux marks its tables for `vmalloc` as
/// user ones there, some 64, and only the pages in them as its own (`pmd_populate_kernel`).
pub const MAX_TABLES_OF_A_WAY: u32 = 128;

/// One step from a table to the next: the entry's number and the table it names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Leg {
    entry: u64,
    table: u64,
}

/// The tables on the way. The last level's entries are pages, which may move; they are not part of it.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    mode: Mode,
    legs: [Option<Leg>; LEGS],
}

impl Way {
    /// Follows the last entry of each level through which user code may get to memory; in a mode whose addresses are two halves,
    /// in the lower one. `None` if there is no user memory: it was never mapped, or is taken down already.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn find(memory: &impl PhysicalMemory, mode: &Mode, root: Root) -> Result<Option<Self>, MemoryFault> {
        let facts = mode.facts();
        let Some((top, below)) = facts.levels.split_first() else {
            return Ok(None);
        };
        let halves = facts.spaces.len() > 1;
        let entries = if halves { top.entries() / 2 } else { top.entries() };
        let mut search = Search {
            mode,
            memory,
            halves,
            left: MAX_TABLES_OF_A_WAY,
            legs: [None; LEGS],
        };
        let found = search.below((top, below), mode.root(root.0).0, entries, Permissions::ALL, 0)?;
        let way = Self {
            mode: *mode,
            legs: search.legs,
        };
        // A large page in the top-level table alone says nothing of an address space.
        Ok((found && way.legs.iter().any(Option::is_some)).then_some(way))
    }

    /// The first table below the top-level one: two that live have two, but for the two roots of one address space.
    #[must_use]
    pub fn first_table(&self) -> Option<u64> {
        self.legs.iter().flatten().map(|leg| leg.table).next()
    }

    /// Whether every step is still there.
    pub fn holds(&self, memory: &impl PhysicalMemory, root: Root) -> bool {
        self.leads(memory, root, LEGS)
    }

    /// Whether its first step is still there, which the kernel takes down when an address space ends: one read.
    pub fn begins(&self, memory: &impl PhysicalMemory, root: Root) -> bool {
        self.leads(memory, root, 1)
    }

    fn leads(&self, memory: &impl PhysicalMemory, root: Root, steps: usize) -> bool {
        let facts = self.mode.facts();
        let mut at = self.mode.root(root.0).0;
        let mut buffer = EntryBuffer::new(facts.entry_bytes);
        let legs = self.legs.iter().flatten().zip(facts.levels);
        legs.take(steps).all(|(leg, level)| {
            let read = buffer.read(memory, at, leg.entry, leg.entry);
            at = leg.table;
            read.is_ok()
                && buffer.get(leg.entry).is_some_and(|entry| {
                    matches!(step(&self.mode, level, entry, Permissions::ALL), Step::Table(table, _) if table == leg.table)
                })
        })
    }
}

struct Search<'a, M> {
    mode: &'a Mode,
    memory: &'a M,
    /// Whether nothing but user memory is looked at.
    halves: bool,
    left: u32,
    legs: [Option<Leg>; LEGS],
}

impl<M: PhysicalMemory> Search<'_, M> {
    /// Whether user memory is below the first `entries` of this table; the way there is in `legs` then. Recursion ends with the
    /// levels of the mode, at most five.
    fn below(
        &mut self,
        (level, levels): (&'static Level, &'static [Level]),
        at: u64,
        entries: u64,
        rights: Permissions,
        depth: usize,
    ) -> Result<bool, MemoryFault> {
        let next = levels.split_first();
        if next.is_none() && self.halves {
            // What the last table holds may change at any time.
            return Ok(true);
        }
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(false);
        };
        self.left = left;
        let mut buffer = EntryBuffer::new(self.mode.facts().entry_bytes);
        let read = buffer.read(self.memory, at, 0, entries.saturating_sub(1));
        read.map_err(|at| MemoryFault { at })?;
        for number in (0..entries).rev() {
            let entry = buffer.get(number).unwrap_or(0);
            match step(self.mode, level, entry, rights) {
                Step::Leaf(_, rights) if rights.user => return Ok(true),
                Step::Table(table, rights) if rights.user => {
                    let Some(next) = next else { continue };
                    if self.below(next, table, next.0.entries(), rights, depth + 1)? {
                        if let Some(leg) = self.legs.get_mut(depth) {
                            *leg = Some(Leg { entry: number, table });
                        }
                        return Ok(true);
                    }
                }
                Step::Absent | Step::Reserved | Step::Leaf(..) | Step::Table(..) => {}
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controls::X86Controls;
    use nephoscope_guest::Gpa;
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
        let way = Way::find(&memory, &Mode::long(), ROOT).unwrap().unwrap();
        memory.0.insert(0x1000 + 8 * 100, 0x9000 | 7);
        memory.0.insert(0x4000 + 8 * 3, 0xdef_0000 | 7);
        assert!(way.holds(&memory, ROOT));
    }

    #[test]
    fn the_same_frames_in_the_same_order_at_another_address_are_another_way() {
        let way = Way::find(
            &process([0x2000, 0x3000, 0x4000], [511, 500, 3]),
            &Mode::long(),
            ROOT,
        )
        .unwrap()
        .unwrap();
        assert!(!way.holds(&process([0x2000, 0x3000, 0x4000], [511, 499, 3]), ROOT));
        assert!(!way.holds(&process([0x3000, 0x2000, 0x4000], [511, 500, 3]), ROOT));
    }

    #[test]
    fn an_empty_user_half_has_no_way() {
        let kernel = Tables(HashMap::from([(0x1000 + 511 * 8, 0xff_f007)]));
        assert!(Way::find(&kernel, &Mode::long(), ROOT).unwrap().is_none());
    }

    #[test]
    fn memory_of_the_kernel_alone_in_the_lower_half_is_no_way() {
        let memory = Tables(HashMap::from([(0x1000 + 8, 0x2003), (0x2000, 0x3003)]));
        assert!(Way::find(&memory, &Mode::long(), ROOT).unwrap().is_none());
    }

    #[test]
    fn a_pae_guest_has_its_kernel_above_the_highest_user_page() {
        let pae = Mode::x86(&X86Controls {
            cr0: 1 << 31,
            cr4: 1 << 5,
            efer: 0,
            physical_bits: 36,
            gib_pages: false,
        })
        .unwrap();
        // Two roots in one page. The top-level table does not say which of its entries is the kernel's.
        let mut words = HashMap::new();
        for (root, tables) in [(0x1020_u64, 0x20_0000_u64), (0x1040, 0x21_0000)] {
            words.insert(root, (tables + 0x1000) | 1);
            words.insert(root + 16, tables | 1);
            words.insert(root + 24, 0x10_0000 | 1);
            words.insert(tables + 0x1000, (tables + 0x3000) | 7);
            words.insert(tables + 511 * 8, (tables + 0x2000) | 7);
            words.insert(tables + 0x2000, 0x30_0007);
        }
        // The kernel's own table for pages says that user code may get there, its pages do not.
        words.insert(0x10_0000, 0x11_0067);
        words.insert(0x11_0000, 0x12_0063);
        let mut memory = Tables(words);
        let [first, second] =
            [0x1020, 0x1040].map(|root| Way::find(&memory, &pae, Root(root)).unwrap().unwrap());
        assert!(first.holds(&memory, Root(0x1020)) && second.holds(&memory, Root(0x1040)));
        assert!(!first.holds(&memory, Root(0x1040)));
        memory.0.insert(0x20_0000 + 511 * 8, 0);
        assert!(!first.holds(&memory, Root(0x1020)), "its highest page is gone");
        assert!(second.holds(&memory, Root(0x1040)));
    }

    #[test]
    fn max_tables_of_a_way_bounds_what_tables_that_lead_nowhere_cost() {
        struct Counted(std::cell::Cell<u32>);
        impl PhysicalMemory for Counted {
            fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
                self.0.set(self.0.get() + 1);
                buf.fill(0);
                if at.0 == ROOT.0 {
                    // Each entry of the root is a table without any.
                    for (number, entry) in (2_u64..).zip(buf.chunks_mut(8)) {
                        entry.copy_from_slice(&(number << 12 | 7).to_le_bytes());
                    }
                }
                Ok(())
            }
        }
        let memory = Counted(std::cell::Cell::new(0));
        assert!(Way::find(&memory, &Mode::long(), ROOT).unwrap().is_none());
        assert_eq!(memory.0.get(), MAX_TABLES_OF_A_WAY);
    }

    #[test]
    fn a_table_that_cannot_be_read_is_not_an_empty_one() {
        struct Nothing;
        impl PhysicalMemory for Nothing {
            fn read(&self, at: Gpa, _: &mut [u8]) -> Result<(), MemoryFault> {
                Err(MemoryFault { at })
            }
        }
        assert!(Way::find(&Nothing, &Mode::long(), ROOT).is_err());
    }
}
