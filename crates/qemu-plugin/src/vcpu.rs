//! One virtual CPU: its ring, the root it has loaded, and what was already said of it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::{HashMap, HashSet};
use nephoscope_wire::RingMemory;

use crate::pending::Pending;
use nephoscope_isa::Recent;

/// The root loaded on a vCPU, as far as the plugin knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Loaded {
    /// This root, in this incarnation.
    Known { root: u64, incarnation: u32 },
    /// An instruction ran that may have changed it; the next look at the CPU tells.
    Unknown,
}

/// No root has this number: roots are frames.
const NONE: u64 = u64::MAX;

/// A virtual CPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    /// Its number.
    pub(crate) index: u16,
    /// Frames of this vCPU, whoever sends them.
    pub(crate) ring: RingMemory,
    /// Whether it ever ran.
    pub(crate) started: AtomicBool,
    /// Its thread's number, 0 before it has one.
    thread: AtomicU32,
    /// The root and its incarnation, for whoever looks while the vCPU waits; [`NONE`] if they are not known.
    root: AtomicU64,
    incarnation: AtomicU32,
    /// Held while the vCPU's marks are collected and while a frame is pushed: by the vCPU itself, and by the
    /// collector's thread. Other vCPUs never take it.
    local: Mutex<Local>,
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct Local {
    /// The root.
    pub(crate) loaded: Loaded,
    /// Roots that were left.
    pub(crate) recent: Recent,
    /// Which page generations were already reported for which address space, by incarnation.
    pub(crate) said: Said,
    /// Where pages are seen was reported for these.
    pub(crate) located: Said,
    /// Pages without a mark that were reported.
    pub(crate) unmarked: Unmarked,
    /// Bytes of known pages that began to run and were not told yet.
    pub(crate) pending: Pending,
    /// A frame being encoded.
    pub(crate) frame: Vec<u8>,
    /// Since when frames are lost, if they are, and how many.
    pub(crate) losing: Option<(u64, u64)>,
}

impl Vcpu {
    pub(crate) fn new(index: u16, ring: RingMemory) -> Self {
        let local = Local {
            loaded: Loaded::Unknown,
            recent: Recent::default(),
            said: Said::default(),
            located: Said::default(),
            unmarked: Unmarked::default(),
            pending: Pending::default(),
            frame: Vec::new(),
            losing: None,
        };
        Self {
            index,
            ring,
            started: AtomicBool::new(false),
            thread: AtomicU32::new(0),
            root: AtomicU64::new(NONE),
            incarnation: AtomicU32::new(0),
            local: Mutex::new(local),
        }
    }

    /// Takes the lock.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This thread is its own.
    pub(crate) fn adopt_thread(&self) {
        let thread = rustix::thread::gettid().as_raw_pid();
        self.thread.store(thread.unsigned_abs(), Ordering::Relaxed);
    }

    /// Whether this thread is.
    pub(crate) fn is_on_thread(&self, thread: u32) -> bool {
        self.thread.load(Ordering::Relaxed) == thread
    }

    /// Says what is loaded, by the vCPU itself. Whether that is another root than before.
    pub(crate) fn now_loaded(&self, loaded: Loaded) -> bool {
        let (root, incarnation) = match loaded {
            Loaded::Known { root, incarnation } => (root, incarnation),
            Loaded::Unknown => (NONE, 0),
        };
        let before = self.incarnation.swap(incarnation, Ordering::Relaxed);
        self.root.swap(root, Ordering::Relaxed) != root || before != incarnation
    }

    /// What is loaded, for whoever knows that the vCPU waits.
    pub(crate) fn loaded_now(&self) -> Option<(u64, u32)> {
        let root = self.root.load(Ordering::Relaxed);
        (root != NONE).then(|| (root, self.incarnation.load(Ordering::Relaxed)))
    }

    /// Takes the lock if it is free.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Local>> {
        match self.local.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }
}

impl Local {
    /// Everything will be said again.
    pub(crate) fn forget_said(&mut self) {
        self.said.clear();
        self.located.clear();
        self.unmarked = Unmarked::default();
    }
}

/// Address spaces remembered per vCPU: it stops a guest that makes them without end. What is forgotten is said again,
/// which the monitor takes for what it is.
const MAX_SAID: usize = 2048;

/// Pages without a mark remembered per vCPU, bounded for the same reason.
const MAX_UNMARKED: usize = 64 << 10;

/// Marks already reported, per incarnation.
#[derive(Debug, Default)]
pub(crate) struct Said {
    marks: HashMap<u32, Vec<u64>>,
}

impl Said {
    /// Whether this mark was reported for this incarnation.
    pub(crate) fn has(&self, incarnation: u32, mark: u32) -> bool {
        let bits = self
            .marks
            .get(&incarnation)
            .and_then(|bits| bits.get(mark as usize / 64));
        bits.is_some_and(|word| word >> (mark % 64) & 1 != 0)
    }

    /// It is now.
    pub(crate) fn set(&mut self, incarnation: u32, mark: u32) {
        if self.marks.len() >= MAX_SAID && !self.marks.contains_key(&incarnation) {
            self.marks.clear();
        }
        let bits = self.marks.entry(incarnation).or_default();
        let word = mark as usize / 64;
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        if let Some(word) = bits.get_mut(word) {
            *word |= 1 << (mark % 64);
        }
    }

    /// Everything will be said again.
    pub(crate) fn clear(&mut self) {
        self.marks.clear();
    }
}

/// Pages without a mark already reported, per incarnation.
#[derive(Debug, Default)]
pub(crate) struct Unmarked {
    pages: HashSet<(u32, u64)>,
}

impl Unmarked {
    /// Whether this page was not reported for this incarnation. It is from now on.
    pub(crate) fn is_new(&mut self, incarnation: u32, page: u64) -> bool {
        if self.pages.contains(&(incarnation, page)) {
            return false;
        }
        if self.pages.len() >= MAX_UNMARKED {
            self.pages.clear();
        }
        self.pages.insert((incarnation, page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_unmarked_bounds_the_pages_remembered_and_what_is_forgotten_is_said_again() {
        let mut unmarked = Unmarked::default();
        let most = MAX_UNMARKED as u64;
        for page in 0..most {
            assert!(unmarked.is_new(1, page));
        }
        assert!(
            !unmarked.is_new(1, 0) && !unmarked.is_new(1, most - 1),
            "as many are"
        );
        for page in 0..3 {
            assert!(unmarked.is_new(2, page) && !unmarked.is_new(2, page));
            assert!(unmarked.pages.len() <= MAX_UNMARKED);
        }
        assert!(unmarked.is_new(1, 0));
    }

    #[test]
    fn a_mark_is_said_once_per_incarnation() {
        let mut said = Said::default();
        assert!(!said.has(1, 700));
        said.set(1, 700);
        assert!(said.has(1, 700) && !said.has(1, 701) && !said.has(2, 700));
    }

    #[test]
    fn max_said_bounds_the_incarnations_remembered() {
        let mut said = Said::default();
        for incarnation in 0..10_000 {
            said.set(incarnation, 5);
        }
        assert!(said.marks.len() <= MAX_SAID);
        assert!(said.has(9_999, 5));
    }
}
