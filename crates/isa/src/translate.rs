//! One address, translated.

use nephoscope_guest::{Gpa, Gva, PhysicalMemory, Root};

use crate::controls::Mode;
use crate::fault::Fault;
use crate::step::{Permissions, Step, step};

/// Walks the page tables of one mode in one memory.
#[derive(Clone, Copy, Debug)]
pub struct Walker<M> {
    mode: Mode,
    memory: M,
}

/// Where an address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The byte that the address names.
    pub gpa: Gpa,
    /// Bytes that the leaf maps: 4 KiB, 2 MiB, 4 MiB or 1 GiB.
    pub size_bytes: u64,
    /// What may be done there.
    pub permissions: Permissions,
    /// The leaf's accessed bit.
    pub accessed: bool,
    /// The leaf's dirty bit.
    pub dirty: bool,
    /// Whether the translation is the same in every address space.
    pub global: bool,
}

impl<M: PhysicalMemory> Walker<M> {
    /// A walker for `mode` over `memory`; give `&memory` to keep it.
    pub const fn new(mode: Mode, memory: M) -> Self {
        Self { mode, memory }
    }

    /// The mode.
    pub const fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Translates `va` as a CPU without TLB would, whatever the access: it is for the caller to ask
    /// [`Translation::permissions`]. Reads one entry per level. On AArch64 the caller chooses the root that serves
    /// `va`.
    ///
    /// # Errors
    /// [`Fault`], at the first entry that stops the walk.
    pub fn translate(&self, root: Root, va: Gva) -> Result<Translation, Fault> {
        let facts = self.mode.facts();
        if !facts
            .spaces
            .iter()
            .any(|&(first, last)| (first..=last).contains(&va.0))
        {
            return Err(Fault::NoSuchAddress { va });
        }
        let mut table = root.0 & facts.root_mask;
        let mut rights = Permissions::ALL;
        for level in facts.levels {
            let at = Gpa(table.saturating_add(level.index(va.0) * u64::from(facts.entry_bytes)));
            let entry = self.read_entry(at).ok_or(Fault::Unreadable {
                level: level.number,
                at,
            })?;
            match step(&self.mode, level, entry, rights) {
                Step::Absent => {
                    return Err(Fault::NotPresent {
                        level: level.number,
                        at,
                    });
                }
                Step::Reserved => {
                    return Err(Fault::Reserved {
                        level: level.number,
                        at,
                    });
                }
                Step::Leaf(base, permissions) => {
                    return Ok(Translation {
                        gpa: Gpa(base | (va.0 & (level.span() - 1))),
                        size_bytes: level.span(),
                        permissions,
                        accessed: facts.accessed.holds(entry),
                        dirty: facts.dirty.holds(entry),
                        global: self.mode.global_pages() && facts.global.holds(entry),
                    });
                }
                Step::Table(base, left) => (table, rights) = (base, left),
            }
        }
        // Never reached: the last level of every mode has only leaves, which a test holds.
        Err(Fault::NoSuchAddress { va })
    }

    pub(crate) const fn memory(&self) -> &M {
        &self.memory
    }

    fn read_entry(&self, at: Gpa) -> Option<u64> {
        let mut raw = [0; 8];
        let used = raw.get_mut(..usize::from(self.mode.facts().entry_bytes))?;
        self.memory.read(at, used).ok()?;
        Some(u64::from_le_bytes(raw))
    }
}
