//! Which address spaces are still there?
//!
//! A guest does not say when a process ends. Its page tables do: a kernel takes the user half of a dying address space
//! down before it gives the root's frame away. So from time to time the way to each living root's highest user page is
//! looked at (see [`Way`]); if it is broken or gone, the address space is.
//!
//! In some modes a kernel need not clear the top-level table (Linux does not with PAE, whose `pgd_clear` is empty): it goes on
//! naming tables that belong to another process by now. Of two that name the same, the older one is gone.

use std::collections::HashMap;

use nephoscope_guest::{PhysicalMemory, Root};
use nephoscope_inventory::SpaceId;
use nephoscope_isa::{Mode, Way, isolation_partner};

/// The ways of the living.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    ways: HashMap<SpaceId, Way>,
}

impl Liveness {
    /// Whether some of the living were not looked at yet.
    pub(super) fn has_new(&self, living: &[(SpaceId, Root)]) -> bool {
        living.iter().any(|(space, _)| !self.ways.contains_key(space))
    }

    /// Looks at the living address spaces; gives those that are gone. Without a mode those that are new have to wait.
    pub(super) fn look(
        &mut self,
        living: &[(SpaceId, Root)],
        mode: Option<&Mode>,
        memory: &impl PhysicalMemory,
    ) -> Vec<SpaceId> {
        let mut gone = Vec::new();
        let mut ways = HashMap::with_capacity(living.len());
        for (space, root) in living {
            match self.ways.get(space) {
                Some(way) if way.holds(memory, *root) => {
                    ways.insert(*space, *way);
                }
                Some(_) => gone.push(*space),
                None => match mode.map(|mode| Way::find(memory, mode, *root)) {
                    Some(Ok(Some(way))) => {
                        ways.insert(*space, way);
                    }
                    Some(Ok(None) | Err(_)) => gone.push(*space),
                    None => {}
                },
            }
        }
        let mut owners: HashMap<u64, (SpaceId, Root)> = HashMap::with_capacity(living.len());
        for (space, root) in living {
            let Some(table) = ways.get(space).and_then(Way::first_table) else {
                continue;
            };
            let (older, newer) = match owners.get(&table) {
                Some(other) if other.0 > *space => ((*space, *root), *other),
                Some(other) => (*other, (*space, *root)),
                None => {
                    owners.insert(table, (*space, *root));
                    continue;
                }
            };
            if isolation_partner(older.1) != newer.1 {
                ways.remove(&older.0);
                gone.push(older.0);
            }
            owners.insert(table, newer);
        }
        self.ways = ways;
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::fixture::{Memory, PRESENT, USER, long_mode};
    use nephoscope_guest::{Gpa, Gva};

    const STACK: Gva = Gva(0x7fff_0000_0000);

    /// So many processes with a page each.
    fn processes<const N: usize>(memory: &mut Memory) -> [(SpaceId, Root); N] {
        let mut number = 0;
        [(); N].map(|()| {
            number += 1;
            let root = Root(memory.frame());
            memory.map(root, STACK, Gpa(0x50_0000), PRESENT | USER);
            (SpaceId(number), root)
        })
    }

    #[test]
    fn one_whose_tables_are_taken_down_is_gone() {
        let mut memory = Memory::default();
        let living: [_; 2] = processes(&mut memory);
        let (mut liveness, mode) = (Liveness::default(), long_mode());
        assert!(liveness.has_new(&living));
        assert_eq!(liveness.look(&living, Some(&mode), &memory), []);
        assert!(!liveness.has_new(&living));
        memory.set(living[0].1, STACK, 0);
        assert_eq!(liveness.look(&living, None, &memory), [SpaceId(1)]);
    }

    #[test]
    fn of_two_that_name_the_same_tables_the_older_one_is_gone() {
        let mut memory = Memory::default();
        let [first, second, third] = processes(&mut memory);
        let (mut liveness, mode) = (Liveness::default(), long_mode());
        let looked = liveness.look(&[first, second, third], Some(&mode), &memory);
        assert_eq!(looked, []);
        // The first one ended, and its table was given to the second, which has another one now.
        let table = memory.get(first.1, STACK);
        memory.set(second.1, STACK, table);
        let newer = (SpaceId(4), second.1);
        let looked = liveness.look(&[newer, first, third], Some(&mode), &memory);
        assert_eq!(looked, [first.0]);
        assert_eq!(liveness.look(&[newer, third], None, &memory), []);
    }

    #[test]
    fn without_a_mode_the_new_ones_wait() {
        let mut memory = Memory::default();
        let living: [_; 1] = processes(&mut memory);
        let mut liveness = Liveness::default();
        assert_eq!(liveness.look(&living, None, &memory), []);
        assert!(liveness.has_new(&living));
    }
}
