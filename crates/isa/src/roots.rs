//! Telling a reused root from the address space that had it before.
//!
//! [`Way`] says how. It is found when user code of a root was first seen, and looked at again whenever the root is
//! loaded. That alone would take two children of one process for one, where the kernel gives the second the frames of the
//! first in the same order: they have the same tables at the same addresses. But between the end of the first and the
//! start of the second the kernel takes the tables down, and its parent runs. So whenever a root is loaded, those that
//! were left before it are looked at too ([`Recent`]).

use std::sync::Mutex;

use foldhash::HashMap;
use nephoscope_guest::{PhysicalMemory, Root};

use crate::controls::Mode;
use crate::way::Way;

#[derive(Debug, Default)]
struct Known {
    incarnation: u32,
    /// In which it was loaded.
    mode: Option<Mode>,
    way: Option<Way>,
}

const SHARDS: usize = 64;
/// Roots remembered per shard: it stops a guest that loads roots by the million. Forgetting one only means that a
/// later reuse is told apart by its pages instead.
const MAX_PER_SHARD: usize = 1024;

/// All roots seen.
#[derive(Debug)]
pub struct Roots {
    shards: Vec<Mutex<HashMap<u64, Known>>>,
    next: std::sync::atomic::AtomicU32,
}

impl Default for Roots {
    fn default() -> Self {
        Self::new()
    }
}

impl Roots {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::numbered_from(1)
    }

    /// None yet; incarnations have numbers from this one on.
    #[must_use]
    pub fn numbered_from(first: u32) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next: std::sync::atomic::AtomicU32::new(first.max(1)),
        }
    }

    fn shard(&self, root: u64) -> Option<std::sync::MutexGuard<'_, HashMap<u64, Known>>> {
        // In some modes there are many in one page.
        let number = usize::try_from((root >> 12 ^ root >> 5) % SHARDS as u64).ok()?;
        Some(
            self.shards
                .get(number)?
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    fn fresh(&self) -> u32 {
        self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// The root is about to be loaded by a CPU in this mode: which address space is it now?
    pub fn loaded(&self, memory: &impl PhysicalMemory, mode: &Mode, root: u64) -> u32 {
        let Some(mut shard) = self.shard(root) else {
            return 0;
        };
        if shard.len() >= MAX_PER_SHARD && !shard.contains_key(&root) {
            shard.clear();
        }
        let known = shard.entry(root).or_default();
        let moved = known.way.is_some_and(|way| !way.holds(memory, Root(root)));
        if moved || known.incarnation == 0 {
            *known = Known {
                incarnation: self.fresh(),
                mode: None,
                way: None,
            };
        }
        known.mode = Some(*mode);
        known.incarnation
    }

    /// A CPU in this mode has the root loaded, by what somebody saw: which address space is it now, if user code may run in it?
    pub fn living(&self, memory: &impl PhysicalMemory, mode: &Mode, root: u64) -> Option<u32> {
        let mut shard = self.shard(root)?;
        if shard.len() >= MAX_PER_SHARD && !shard.contains_key(&root) {
            shard.clear();
        }
        let known = shard.entry(root).or_default();
        if known.way.is_some_and(|way| way.holds(memory, Root(root))) {
            return Some(known.incarnation);
        }
        // The kernel's own root has none, and gets no number each time that it is seen.
        let Ok(Some(way)) = Way::find(memory, mode, Root(root)) else {
            shard.remove(&root);
            return None;
        };
        if known.way.is_some() || known.incarnation == 0 {
            known.incarnation = self.fresh();
        }
        (known.mode, known.way) = (Some(*mode), Some(way));
        Some(known.incarnation)
    }

    /// Whether the address space that had this root last is gone: then the next one to load it is another.
    pub fn look_again(&self, memory: &impl PhysicalMemory, root: u64) {
        let Some(mut shard) = self.shard(root) else { return };
        if let Some(known) = shard.get_mut(&root)
            && known.way.is_some_and(|way| !way.holds(memory, Root(root)))
        {
            *known = Known::default();
        }
    }

    /// The same by the first step of the way alone, for who reads at a cost.
    pub fn glance(&self, memory: &impl PhysicalMemory, root: u64) {
        let Some(mut shard) = self.shard(root) else { return };
        if let Some(known) = shard.get_mut(&root)
            && known.way.is_some_and(|way| !way.begins(memory, Root(root)))
        {
            *known = Known::default();
        }
    }

    /// [`Self::look_again`] at every root.
    pub fn look_at_all(&self, memory: &impl PhysicalMemory) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (root, known) in shard.iter_mut() {
                if known.way.is_some_and(|way| !way.holds(memory, Root(*root))) {
                    *known = Known::default();
                }
            }
        }
    }

    /// Whoever has this root from now on is another address space.
    pub fn gone(&self, root: u64) {
        if let Some(mut shard) = self.shard(root) {
            shard.remove(&root);
        }
    }

    /// Whoever has a root from now on is another address space.
    pub fn forget(&self) {
        for shard in &self.shards {
            shard
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .clear();
        }
    }

    /// User code ran in this root: remember the way to its highest page, once. A short process may have come and gone
    /// before its code is collected: there is no way any more, and the next one that loads the root is another.
    pub fn ran_user_code(&self, memory: &impl PhysicalMemory, root: u64) {
        let Some(mut shard) = self.shard(root) else { return };
        if let Some(known) = shard.get_mut(&root)
            && let (None, Some(mode)) = (&known.way, known.mode)
        {
            match Way::find(memory, &mode, Root(root)) {
                Ok(Some(way)) => known.way = Some(way),
                Ok(None) => *known = Known::default(),
                // It says nothing about the address space.
                Err(_) => {}
            }
        }
    }
}

/// Roots left last on one vCPU. A process that ended is seen by its tables at the next root that is loaded, or at one of
/// those after it where the kernel takes its time.
#[derive(Debug, Default)]
pub struct Recent {
    roots: [u64; RECENT],
    next: usize,
}

/// As many: each costs four reads of guest memory per root change.
const RECENT: usize = 8;

impl Recent {
    /// This root was left; it and those before it are looked at.
    pub fn left(&mut self, root: u64, roots: &Roots, memory: &impl PhysicalMemory) {
        self.remember(root);
        for root in self.roots.iter().filter(|root| **root != 0) {
            roots.look_again(memory, *root);
        }
    }

    /// This root was left.
    pub fn remember(&mut self, root: u64) {
        if !self.roots.contains(&root)
            && let Some(slot) = self.roots.get_mut(self.next % RECENT)
        {
            *slot = root;
            self.next = self.next.wrapping_add(1);
        }
    }

    /// Glances at those that were left last.
    pub fn glance(&self, roots: &Roots, memory: &impl PhysicalMemory) {
        for root in self.roots.iter().filter(|root| **root != 0) {
            roots.glance(memory, *root);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldhash::HashMapExt;
    use nephoscope_guest::{Gpa, MemoryFault};
    use std::cell::RefCell;

    struct Tables(RefCell<HashMap<u64, u64>>);

    impl PhysicalMemory for Tables {
        fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
            for (i, chunk) in buf.chunks_mut(8).enumerate() {
                let word = self.0.borrow().get(&(at.0 + 8 * i as u64)).copied().unwrap_or(0);
                chunk.copy_from_slice(&word.to_le_bytes());
            }
            Ok(())
        }
    }

    fn process(root: u64, tables: [u64; 3], numbers: [u64; 3]) -> Tables {
        let mut words = HashMap::new();
        words.insert(root + 255 * 8, tables[0] | 7);
        words.insert(root + 511 * 8, 0xfff000 | 3);
        words.insert(tables[0] + numbers[0] * 8, tables[1] | 7);
        words.insert(tables[1] + numbers[1] * 8, tables[2] | 7);
        words.insert(tables[2] + numbers[2] * 8, 0xabc000 | 7);
        Tables(RefCell::new(words))
    }

    #[test]
    fn a_root_without_user_memory_has_no_number_and_uses_none_up() {
        let kernel = Tables(RefCell::new(
            [(0x1000 + 511 * 8, 0xfff000 | 3)].into_iter().collect(),
        ));
        let roots = Roots::new();
        for _ in 0..3 {
            assert_eq!(roots.living(&kernel, &Mode::long(), 0x1000), None);
        }
        let tables = process(0x1000, [0x2000, 0x3000, 0x4000], [1, 2, 3]);
        assert_eq!(roots.living(&tables, &Mode::long(), 0x1000), Some(1));
        assert_eq!(roots.living(&tables, &Mode::long(), 0x1000), Some(1));
        assert_eq!(roots.living(&kernel, &Mode::long(), 0x1000), None);
        assert_eq!(roots.living(&tables, &Mode::long(), 0x1000), Some(2));
    }

    #[test]
    fn a_living_address_space_keeps_its_incarnation_while_it_maps_and_unmaps() {
        let roots = Roots::new();
        let memory = process(0x1000, [0x2000, 0x3000, 0x4000], [511, 500, 3]);
        let first = roots.loaded(&memory, &Mode::long(), 0x1000);
        roots.ran_user_code(&memory, 0x1000);
        memory.0.borrow_mut().insert(0x1000 + 8 * 100, 0x9000 | 7);
        memory.0.borrow_mut().insert(0x4000 + 8 * 3, 0xdef000 | 7);
        assert_eq!(roots.loaded(&memory, &Mode::long(), 0x1000), first);
    }

    #[test]
    fn a_root_with_other_tables_below_is_another_address_space() {
        let roots = Roots::new();
        let old = process(0x1000, [0x2000, 0x3000, 0x4000], [511, 500, 3]);
        let first = roots.loaded(&old, &Mode::long(), 0x1000);
        roots.ran_user_code(&old, 0x1000);
        let same_frames = process(0x1000, [0x2000, 0x3000, 0x4000], [511, 499, 3]);
        let second = roots.loaded(&same_frames, &Mode::long(), 0x1000);
        assert_ne!(
            first, second,
            "the same frames in the same order, at another address"
        );
        roots.ran_user_code(&same_frames, 0x1000);
        let third = roots.loaded(
            &process(0x1000, [0x3000, 0x2000, 0x4000], [511, 499, 3]),
            &Mode::long(),
            0x1000,
        );
        assert_ne!(second, third);
    }

    #[test]
    fn children_of_one_process_that_get_the_same_frames_are_two() {
        let roots = Roots::new();
        let child = process(0x1000, [0x2000, 0x3000, 0x4000], [511, 500, 3]);
        let mut recent = Recent::default();
        let first = roots.loaded(&child, &Mode::long(), 0x1000);
        roots.ran_user_code(&child, 0x1000);
        recent.left(0x1000, &roots, &child);
        assert_eq!(
            roots.loaded(&child, &Mode::long(), 0x1000),
            first,
            "it only slept"
        );
        recent.left(0x1000, &roots, &child);
        // The child ends: its tables are taken down. Its parent runs, and is left for the next child.
        recent.left(0x9000, &roots, &Tables(RefCell::default()));
        assert_ne!(roots.loaded(&child, &Mode::long(), 0x1000), first);
    }

    #[test]
    fn a_process_that_was_gone_before_its_code_was_collected_leaves_its_root_to_another() {
        let roots = Roots::new();
        let child = process(0x1000, [0x2000, 0x3000, 0x4000], [511, 500, 3]);
        let first = roots.loaded(&child, &Mode::long(), 0x1000);
        roots.ran_user_code(&Tables(RefCell::default()), 0x1000);
        assert_ne!(roots.loaded(&child, &Mode::long(), 0x1000), first);
    }

    #[test]
    fn memory_that_was_replaced_beneath_makes_other_address_spaces_of_those_whose_tables_moved() {
        let roots = Roots::new();
        let memory = process(0x1000, [0x2000, 0x3000, 0x4000], [511, 500, 3]);
        let first = roots.loaded(&memory, &Mode::long(), 0x1000);
        roots.ran_user_code(&memory, 0x1000);
        roots.look_at_all(&memory);
        assert_eq!(
            roots.loaded(&memory, &Mode::long(), 0x1000),
            first,
            "the same tables"
        );
        roots.look_at_all(&process(0x1000, [0x2000, 0x5000, 0x4000], [511, 500, 3]));
        assert_ne!(roots.loaded(&memory, &Mode::long(), 0x1000), first);
        let second = roots.loaded(&memory, &Mode::long(), 0x1000);
        roots.forget();
        assert_ne!(roots.loaded(&memory, &Mode::long(), 0x1000), second);
    }

    #[test]
    fn roots_left_long_ago_make_room() {
        let (roots, memory) = (Roots::new(), Tables(RefCell::default()));
        let mut recent = Recent::default();
        for root in 1..100 {
            recent.left(root << 12, &roots, &memory);
        }
        assert!(recent.roots.contains(&(99 << 12)) && !recent.roots.contains(&(1 << 12)));
    }

    #[test]
    fn a_root_that_never_ran_user_code_is_not_judged() {
        let roots = Roots::new();
        let first = roots.loaded(
            &process(0x1000, [0x2000, 0x3000, 0x4000], [511, 511, 510]),
            &Mode::long(),
            0x1000,
        );
        let moved = process(0x1000, [0x2000, 0x5000, 0x6000], [510, 20, 10]);
        assert_eq!(
            roots.loaded(&moved, &Mode::long(), 0x1000),
            first,
            "exec moves the stack before the program runs"
        );
    }

    #[test]
    fn max_per_shard_bounds_the_roots_remembered() {
        let roots = Roots::new();
        let memory = Tables(RefCell::default());
        for i in 0..200_000_u64 {
            roots.loaded(&memory, &Mode::long(), i << 12);
        }
        let kept: usize = roots.shards.iter().map(|s| s.lock().unwrap().len()).sum();
        assert!(kept <= SHARDS * MAX_PER_SHARD);
    }
}
