//! Finding roots without registers, by the shape of page tables.
//!
//! ```text
//!  every aligned place in RAM ─► could it be a top-level table? ─► its tables, each looked at once ─► what it maps
//!                                                                          │
//!  kernel entries of those that are roots ─► every place that has the same entries is one too ◄────┘
//! ```
//!
//! A root maps a kernel: in its upper half some memory that only the supervisor may execute, reached through tables without
//! a reserved bit. A root of a process maps memory for user code in its lower half besides. Everything else that a page may
//! hold fails one of these soon. Processes of one guest share their kernel's tables: what shares them with nobody is no root,
//! and once some are found, the others are known by these entries, whatever else is in them: a guest cannot hide one with a
//! reserved bit.
//!
//! What cannot be told from memory alone: whether a root was ever loaded, and whether a table that maps no user memory any
//! more is still somebody's. A guest that keeps a root elsewhere while it does not run is not found out either: who finds
//! roots samples, and says so.

mod kernels;
mod places;
mod shape;

use foldhash::HashMap;
use nephoscope_guest::{Gpa, PhysicalMemory, Root};

use crate::controls::Mode;
use crate::entries::EntryBuffer;
use crate::facts::{Level, SupervisorFetch};
use crate::step::{Permissions, Step, step};
use kernels::{Entry, Kernels};
use places::Sought;
use shape::Shape;

/// The most tables that a search reads. It stops a guest that makes them without end; 4 GiB in 4 KiB pages have 2,048, and
/// what processes share is read once.
pub const MAX_TABLES_SEARCHED: u64 = 1 << 18;
/// The most roots that a search gives, for the same reason.
pub const MAX_ROOTS_FOUND: usize = 1 << 16;
/// A table that somebody writes to while it is read may look like none; roots are looked at so many times.
const LOOKS: usize = 3;

/// Where memory and devices are, in a search: below 128 TiB. In memory that holds no tables, higher addresses are common.
const SEARCHED_BITS: u8 = 47;

/// What a root is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RootKind {
    /// A process: user code can reach memory in its lower half.
    Process,
    /// Nothing but a kernel: its own root, that of a process that ended, or one that a CPU starts with.
    Kernel,
}

/// What a search found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RootsFound {
    /// The roots, ascending.
    pub roots: Vec<(Root, RootKind)>,
    /// Places that could have been top-level tables and were looked into.
    pub candidates: u64,
    /// Tables read.
    pub tables: u64,
    /// Bytes of memory looked through.
    pub searched_bytes: u64,
    /// Bytes that could not be read.
    pub unreadable_bytes: u64,
    /// Whether a bound ended the search: there may be more.
    pub cut_short: bool,
}

impl RootsFound {
    /// The roots of processes.
    pub fn processes(&self) -> impl Iterator<Item = Root> {
        self.roots
            .iter()
            .filter(|(_, kind)| *kind == RootKind::Process)
            .map(|(root, _)| *root)
    }
}

/// Looks through `ranges` of memory (first address and bytes) for the roots of a guest whose CPUs are in `mode`.
///
/// The guest may run meanwhile.
#[must_use]
pub fn find_roots<M: PhysicalMemory>(mode: &Mode, memory: &M, ranges: &[(Gpa, u64)]) -> RootsFound {
    RootFinder::default().find(mode, memory, ranges, &mut |_| {})
}

/// Looks for roots again and again.
///
/// Memory is gone through twice: for what looks like a root, and for what shares its kernel's entries. If these are known from the
/// last time and are the same again, once is enough. Where pieces can be read ([`PhysicalMemory::reads_pieces`]) it is a cache line of
/// each page, and the whole of few. Each table of the roots is read once.
#[derive(Clone, Debug, Default)]
pub struct RootFinder {
    kernels: Kernels,
}

impl RootFinder {
    /// [`find_roots`]; `told` gets how many bytes were gone through, of twice those that there are.
    pub fn find<M: PhysicalMemory>(
        &mut self,
        mode: &Mode,
        memory: &M,
        ranges: &[(Gpa, u64)],
        told: &mut dyn FnMut(u64),
    ) -> RootsFound {
        let mode = mode.searched(SEARCHED_BITS);
        let mut search = Search {
            mode: &mode,
            memory,
            ranges,
            told,
            gone_through: 0,
            shapes: HashMap::default(),
            kernel_entries: HashMap::default(),
            found: RootsFound::default(),
        };
        let (candidates, mut sharing) = search.candidates(&self.kernels);
        search.found.candidates = candidates.len() as u64;
        let mut left = candidates.clone();
        let mut strict = Vec::new();
        for _ in 0..LOOKS {
            left.retain(|at| match search.root(*at) {
                Some((kind, kernel)) => {
                    strict.push((*at, kind, kernel));
                    false
                }
                None => true,
            });
            search.forget_broken();
        }
        let kernels = search.kernels(&strict);
        let mut roots: HashMap<u64, RootKind> = strict
            .into_iter()
            .filter(|(_, _, kernel)| kernels.have(kernel, |table| search.kernel_entries(table)))
            .map(|(at, kind, _)| (at, kind))
            .collect();
        if kernels == self.kernels {
            sharing.extend(candidates);
        } else {
            sharing = search.sharing(&kernels);
        }
        let mut bytes = vec![0; search.top_bytes()];
        for at in sharing {
            if !roots.contains_key(&at)
                && memory.read(Gpa(at), &mut bytes).is_ok()
                && search.shares(&bytes, &kernels)
                && search.maps_user_memory(&bytes)
            {
                roots.insert(at, RootKind::Process);
            }
        }
        let mut found = search.found;
        found.roots = roots.into_iter().map(|(at, kind)| (Root(at), kind)).collect();
        found.roots.sort_unstable();
        if found.roots.len() > MAX_ROOTS_FOUND {
            found.roots.truncate(MAX_ROOTS_FOUND);
            found.cut_short = true;
        }
        self.kernels = kernels;
        found
    }
}

struct Search<'a, M> {
    mode: &'a Mode,
    memory: &'a M,
    ranges: &'a [(Gpa, u64)],
    told: &'a mut dyn FnMut(u64),
    gone_through: u64,
    /// By level and place: processes share most of their tables.
    shapes: HashMap<(u8, u64), Shape>,
    /// Of second-level tables, by their place: the entries that lead to a kernel's code.
    kernel_entries: HashMap<u64, Vec<Entry>>,
    found: RootsFound,
}

impl<M: PhysicalMemory> Search<'_, M> {
    fn top(&self) -> Option<(&'static Level, &'static [Level])> {
        self.mode.facts().levels.split_first()
    }

    fn top_bytes(&self) -> usize {
        let entries = self.top().map_or(0, |(level, _)| level.entries());
        usize::try_from(entries).unwrap_or(0) * usize::from(self.mode.facts().entry_bytes)
    }

    /// The places of what could be top-level tables, and those that share an entry with these kernels.
    fn candidates(&mut self, kernels: &Kernels) -> (Vec<u64>, Vec<u64>) {
        let (mut candidates, mut sharing) = (Vec::new(), Vec::new());
        let sought = Sought { any: true, kernels };
        self.places(&sought, |search, at, bytes| {
            if search.is_candidate(bytes) {
                candidates.push(at);
            } else if search.shares(bytes, kernels) {
                sharing.push(at);
            }
        });
        (candidates, sharing)
    }

    /// The places of all that shares an entry with these kernels.
    fn sharing(&mut self, kernels: &Kernels) -> Vec<u64> {
        let mut sharing = Vec::new();
        if kernels.is_empty() {
            return sharing;
        }
        let before = self.found.clone();
        let sought = Sought { any: false, kernels };
        self.places(&sought, |search, at, bytes| {
            if search.shares(bytes, kernels) {
                sharing.push(at);
            }
        });
        self.found.searched_bytes = before.searched_bytes;
        self.found.unreadable_bytes = before.unreadable_bytes;
        sharing
    }

    /// The entries of a table's copy, with their numbers.
    fn entries<'b>(&self, bytes: &'b [u8]) -> impl DoubleEndedIterator<Item = (u64, u64)> + use<'b, M> {
        let size = usize::from(self.mode.facts().entry_bytes);
        bytes
            .chunks_exact(size.max(1))
            .enumerate()
            .map(|(index, raw)| (index as u64, little_endian(raw)))
    }

    /// Whether these bytes could be a top-level table of a guest that does nothing strange: something in the upper half, every
    /// present entry without a reserved bit, and nothing in the others.
    fn is_candidate(&self, bytes: &[u8]) -> bool {
        let Some((level, _)) = self.top() else {
            return false;
        };
        // Most memory is zero throughout, or no entry at its end.
        let half = level.entries() / 2;
        let in_half = bytes.len() / 2;
        if bytes
            .get(in_half..)
            .is_none_or(|upper| upper.iter().all(|byte| *byte == 0))
        {
            return false;
        }
        let mut upper = 0;
        for (index, entry) in self.entries(bytes).rev() {
            if entry & self.mode.facts().reserved_when_loaded != 0 {
                return false;
            }
            match step(self.mode, level, entry, Permissions::ALL) {
                Step::Absent if entry == 0 => {}
                Step::Absent | Step::Reserved => return false,
                Step::Leaf(..) | Step::Table(..) => upper += u64::from(index >= half),
            }
        }
        upper > 0
    }

    /// Whether a root is there, and of what; the entries that lead to its kernel's code.
    fn root(&mut self, at: u64) -> Option<(RootKind, Vec<Entry>)> {
        let (level, below) = self.top()?;
        let mut bytes = vec![0; self.top_bytes()];
        self.memory.read(Gpa(at), &mut bytes).ok()?;
        let (half, users) = (level.entries() / 2, self.user_entries(level));
        let (mut user, mut kernel) = (false, Vec::new());
        for (index, entry) in self.entries(&bytes) {
            let shape = self.below(level, below, entry, true);
            if shape.broken {
                return None;
            }
            user |= index < users && shape.has_user_memory();
            if index >= half && shape.has_kernel_code() {
                kernel.push((index, self.named(level, entry)));
            }
        }
        if kernel.is_empty() {
            return None;
        }
        let kind = if user { RootKind::Process } else { RootKind::Kernel };
        Some((kind, kernel))
    }

    /// What an entry names, without the bits that a CPU sets.
    fn named(&self, level: &Level, entry: u64) -> u64 {
        match step(self.mode, level, entry, Permissions::ALL) {
            Step::Table(at, _) | Step::Leaf(at, _) => at,
            Step::Absent | Step::Reserved => 0,
        }
    }

    /// What these roots have in common.
    fn kernels(&mut self, roots: &[(u64, RootKind, Vec<Entry>)]) -> Kernels {
        let mut kernels = Kernels::of(roots.iter().map(|(_, _, kernel)| kernel));
        let alone = |kernel: &Vec<Entry>| !kernel.iter().any(|entry| kernels.tops.contains(entry));
        if roots.iter().any(|(_, _, kernel)| alone(kernel)) {
            let tables = roots.iter().flat_map(|(_, _, kernel)| kernel).copied().collect();
            kernels.look_below(&tables, |table| self.kernel_entries(table));
        }
        kernels
    }

    /// The entries of a second-level table that lead to a kernel's code.
    fn kernel_entries(&mut self, table: u64) -> Vec<Entry> {
        if let Some(known) = self.kernel_entries.get(&table) {
            return known.clone();
        }
        let mut found = Vec::new();
        let levels = self.mode.facts().levels.get(1..).and_then(<[_]>::split_first);
        let mut buffer = EntryBuffer::new(self.mode.facts().entry_bytes);
        if let Some((level, below)) = levels
            && self.may_read(table)
            && buffer.read(self.memory, table, 0, level.entries() - 1).is_ok()
        {
            for index in 0..level.entries() {
                let entry = buffer.get(index).unwrap_or(0);
                if self.below(level, below, entry, true).has_kernel_code() {
                    found.push((index, self.named(level, entry)));
                }
            }
        }
        self.kernel_entries.insert(table, found.clone());
        found
    }

    /// Whether a table may be read: it is in memory, and not one too many.
    fn may_read(&mut self, table: u64) -> bool {
        if !self.is_memory(table) {
            return false;
        }
        let may = self.found.tables < MAX_TABLES_SEARCHED;
        self.found.tables += u64::from(may);
        self.found.cut_short |= !may;
        may
    }

    /// Whether the table at the top is of one of these kernels.
    fn shares(&mut self, bytes: &[u8], kernels: &Kernels) -> bool {
        let Some((level, _)) = self.top() else {
            return false;
        };
        let (size, reserved) = (
            usize::from(self.mode.facts().entry_bytes),
            self.mode.facts().reserved_when_loaded,
        );
        // No CPU loads such a root.
        let refused = |entry: u64| level.present.holds(entry) && entry & reserved != 0;
        if reserved != 0 && self.entries(bytes).any(|(_, entry)| refused(entry)) {
            return false;
        }
        let at = |index: u64| {
            let at = usize::try_from(index).unwrap_or(0) * size;
            bytes.get(at..at + size).map_or(0, little_endian)
        };
        let same = |(index, named): &Entry| at(*index) != 0 && self.named(level, at(*index)) == *named;
        if kernels.tops.iter().any(same) {
            return true;
        }
        let copies: Vec<Entry> = kernels
            .copied
            .keys()
            .filter_map(
                |index| match step(self.mode, level, at(*index), Permissions::ALL) {
                    Step::Table(table, _) => Some((*index, table)),
                    Step::Absent | Step::Reserved | Step::Leaf(..) => None,
                },
            )
            .collect();
        kernels.have(&copies, |table| self.kernel_entries(table))
    }

    /// How many entries of the top-level table may lead to user memory: in a mode without halves it is the guest's choice where
    /// its kernel begins.
    fn user_entries(&self, level: &Level) -> u64 {
        match self.mode.facts().spaces {
            [_, _, ..] => level.entries() / 2,
            _ => level.entries(),
        }
    }

    /// Whether user code can reach memory, whatever else is there.
    fn maps_user_memory(&mut self, bytes: &[u8]) -> bool {
        let Some((level, below)) = self.top() else {
            return false;
        };
        let users = self.user_entries(level);
        let mut entries = self.entries(bytes).take_while(|(index, _)| *index < users);
        entries.any(|(_, entry)| self.below(level, below, entry, false).has_user_memory())
    }

    /// What lies below one entry. Nothing more of it is looked at, if that is asked for, once something is broken.
    fn below(&mut self, level: &Level, below: &'static [Level], entry: u64, strict: bool) -> Shape {
        let mut shape = Shape::default();
        match step(self.mode, level, entry, Permissions::ALL) {
            Step::Absent => {}
            Step::Reserved => shape.broken = true,
            // What is no memory, devices for instance, tells nothing.
            Step::Leaf(at, permissions) if self.is_memory(at) => shape.leaf(permissions),
            Step::Leaf(..) => {}
            Step::Table(at, permissions) => shape.below(self.table(below, at, strict), permissions),
        }
        shape
    }

    /// What lies below a table. Recursion ends with the levels of the mode, at most five.
    fn table(&mut self, levels: &'static [Level], at: u64, strict: bool) -> Shape {
        let Some((level, below)) = levels.split_first() else {
            return Shape::default();
        };
        let known = self.shapes.get(&(level.number, at));
        if let Some(shape) = known.filter(|shape| strict || !shape.partial) {
            return *shape;
        }
        if self.found.tables >= MAX_TABLES_SEARCHED {
            self.found.cut_short = true;
            return Shape::default();
        }
        self.found.tables += 1;
        let mut buffer = EntryBuffer::new(self.mode.facts().entry_bytes);
        let mut shape = Shape::default();
        if buffer.read(self.memory, at, 0, level.entries() - 1).is_ok() {
            for index in 0..level.entries() {
                let entry = buffer.get(index).unwrap_or(0);
                let here = self.below(level, below, entry, strict);
                shape.leaves |= here.leaves;
                shape.broken |= here.broken;
                shape.partial |= here.partial;
                if shape.broken && strict {
                    shape.partial = true;
                    break;
                }
            }
        } else {
            shape.broken = true;
        }
        self.shapes.insert((level.number, at), shape);
        shape
    }

    fn is_memory(&self, at: u64) -> bool {
        self.ranges
            .iter()
            .any(|(first, len)| at.checked_sub(first.0).is_some_and(|offset| offset < *len))
    }

    /// Tables that looked broken are looked at again.
    fn forget_broken(&mut self) {
        self.shapes.retain(|_, shape| !shape.broken);
    }
}

fn little_endian(raw: &[u8]) -> u64 {
    raw.iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Mode {
    /// The same for a search: with at most so many bits of physical addresses, and with the rule left out that keeps the
    /// supervisor from executing user memory, because it looks at a way as a whole.
    fn searched(self, most_bits: u8) -> Self {
        self.with_supervisor_fetch(SupervisorFetch::Anywhere)
            .with_physical_bits(most_bits)
    }
}
