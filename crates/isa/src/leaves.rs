//! All mappings of a range of addresses, within bounds.
//!
//! The guest decides how many there are: a table that names itself makes 512⁴ leaves out of one page. So the
//! number of tables read and of leaves given is bounded, and [`Census::ended`] says where a bound stopped it.

use std::ops::{ControlFlow, RangeInclusive};

use nephoscope_guest::{Gpa, Gva, PhysicalMemory, Root};

use crate::controls::Mode;
use crate::entries::{EntryBuffer, clipped};
use crate::facts::Level;
use crate::step::{Permissions, Step, step};
use crate::translate::Walker;

/// One present leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The first address that it maps; with a large leaf this can be below the range asked for.
    pub va: Gva,
    /// The memory it maps there.
    pub gpa: Gpa,
    /// Bytes mapped: 4 KiB, 2 MiB, 4 MiB or 1 GiB.
    pub size_bytes: u64,
    /// What may be done there.
    pub permissions: Permissions,
    /// The accessed bit.
    pub accessed: bool,
    /// The dirty bit.
    pub dirty: bool,
    /// Whether it is the same in every address space.
    pub global: bool,
}

/// Which leaves are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Every present leaf.
    Everything,
    /// Those that somebody may execute; tables under which nothing is executable are not read.
    Executable,
}

/// How much work a walk may do. It stops a guest whose tables never end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Tables read, at most; each costs one read of at most 4 KiB.
    pub tables: u64,
    /// Leaves given, at most.
    pub leaves: u64,
}

impl Default for Bounds {
    /// 16,384 tables map 32 GiB in 4 KiB pages; a walk of that size takes some 50 ms.
    fn default() -> Self {
        Self {
            tables: 1 << 14,
            leaves: 1 << 23,
        }
    }
}

/// Whether a walk saw its whole range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It did, apart from what the counters name.
    Complete,
    /// A bound stopped it: nothing at or above this address was looked at.
    Bound {
        /// Where to go on.
        at: Gva,
    },
}

/// What a walk saw and what it could not see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Census {
    /// Tables read.
    pub tables: u64,
    /// Leaves given.
    pub leaves: u64,
    /// Tables not read because nothing under them was wanted.
    pub pruned: u64,
    /// Entries that set reserved bits: nothing is mapped there.
    pub reserved: u64,
    /// Tables that could not be read: unknown what is mapped there.
    pub unreadable: u64,
    /// Whether that is all.
    pub ended: Ended,
}

impl Census {
    /// Whether something may be mapped that was not given: a bound stopped the walk, or a table could not be read.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        self.ended != Ended::Complete || self.unreadable > 0
    }
}

impl<M: PhysicalMemory> Walker<M> {
    /// Gives every present leaf that maps a part of `range` to `visit`, in ascending order of address. A range may
    /// reach over addresses that do not exist.
    pub fn leaves(
        &self,
        root: Root,
        range: &RangeInclusive<Gva>,
        want: Want,
        bounds: Bounds,
        visit: impl FnMut(Leaf),
    ) -> Census {
        let facts = self.mode().facts();
        let census = Census {
            tables: 0,
            leaves: 0,
            pruned: 0,
            reserved: 0,
            unreadable: 0,
            ended: Ended::Complete,
        };
        let mut walk = Walk {
            mode: self.mode(),
            memory: self.memory(),
            want,
            bounds,
            visit,
            census,
        };
        let mut buffers: Vec<_> = facts
            .levels
            .iter()
            .map(|_| EntryBuffer::new(facts.entry_bytes))
            .collect();
        for (first, last) in clipped(facts.spaces, range) {
            let top = Table {
                base: root.0 & facts.root_mask,
                first,
                last,
                rights: Permissions::ALL,
            };
            if walk.table(facts.levels, &mut buffers, top).is_break() {
                break;
            }
        }
        walk.census
    }
}

/// A table to look at, and the part of it that is in the range: the addresses `first..=last`.
struct Table {
    base: u64,
    first: u64,
    last: u64,
    rights: Permissions,
}

struct Walk<'a, M, F> {
    mode: &'a Mode,
    memory: &'a M,
    want: Want,
    bounds: Bounds,
    visit: F,
    census: Census,
}

impl<M: PhysicalMemory, F: FnMut(Leaf)> Walk<'_, M, F> {
    /// Goes through one table and everything below it. Recursion ends with the levels of the mode, at most five.
    fn table(&mut self, levels: &[Level], buffers: &mut [EntryBuffer], table: Table) -> ControlFlow<()> {
        let (Some((level, below)), Some((buffer, spare))) = (levels.split_first(), buffers.split_first_mut())
        else {
            return ControlFlow::Continue(());
        };
        if self.census.tables >= self.bounds.tables {
            return self.stop(table.first);
        }
        self.census.tables += 1;
        let (low, high) = (level.index(table.first), level.index(table.last));
        if buffer.read(self.memory, table.base, low, high).is_err() {
            self.census.unreadable += 1;
            return ControlFlow::Continue(());
        }
        let start = table.first & !(level.span() * level.entries() - 1);
        for index in low..=high {
            let Some(entry) = buffer.get(index) else { break };
            let va = start | index << level.shift;
            match step(self.mode, level, entry, table.rights) {
                Step::Absent => {}
                Step::Reserved => self.census.reserved += 1,
                Step::Leaf(base, permissions) => {
                    self.leaf(level, entry, va.max(table.first), Gpa(base), permissions)?;
                }
                Step::Table(_, rights) if !self.wants(rights) => self.census.pruned += 1,
                Step::Table(base, rights) => {
                    let last = table.last.min(va | (level.span() - 1));
                    let next = Table {
                        base,
                        first: table.first.max(va),
                        last,
                        rights,
                    };
                    self.table(below, spare, next)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn leaf(
        &mut self,
        level: &Level,
        entry: u64,
        va: u64,
        gpa: Gpa,
        permissions: Permissions,
    ) -> ControlFlow<()> {
        if !self.wants(permissions) {
            return ControlFlow::Continue(());
        }
        if self.census.leaves >= self.bounds.leaves {
            return self.stop(va);
        }
        self.census.leaves += 1;
        let facts = self.mode.facts();
        (self.visit)(Leaf {
            va: Gva(va & !(level.span() - 1)),
            gpa,
            size_bytes: level.span(),
            permissions,
            accessed: facts.accessed.holds(entry),
            dirty: facts.dirty.holds(entry),
            global: self.mode.global_pages() && facts.global.holds(entry),
        });
        ControlFlow::Continue(())
    }

    fn wants(&self, rights: Permissions) -> bool {
        self.want == Want::Everything || rights.execute()
    }

    fn stop(&mut self, at: u64) -> ControlFlow<()> {
        self.census.ended = Ended::Bound { at: Gva(at) };
        ControlFlow::Break(())
    }
}
