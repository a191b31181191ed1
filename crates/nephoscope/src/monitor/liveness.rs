//! Which address spaces are still there?
//!
//! A guest does not say when a process ends. Its page tables do: a kernel takes the user half of a dying address space
//! down before it gives the root's frame away. So from time to time the way to each living root's highest user page is
//! looked at (see [`Way`]); if it is broken or gone, the address space is.

use std::collections::HashMap;

use nephoscope_guest::{PhysicalMemory, Root};
use nephoscope_inventory::SpaceId;
use nephoscope_isa::{Mode, Way};

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
        self.ways = ways;
        gone
    }
}
