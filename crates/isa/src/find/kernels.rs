//! What the roots of one guest have in common: its kernel.
//!
//! In most modes the top-level tables of all processes name the same tables for the kernel. In some a process has copies of these
//! (PAE, where a kernel keeps its own mappings from user code): then it is the entries of the copies that are the same.

use foldhash::{HashMap, HashSet};

/// An entry that leads to a kernel's code: its number in its table, and what it names.
pub(super) type Entry = (u64, u64);

/// The kernel's entries that several roots have in common.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Kernels {
    /// Of top-level tables.
    pub(super) tops: HashSet<Entry>,
    /// Of the tables below, by the number of the top-level entry that names them.
    pub(super) copied: HashMap<u64, HashSet<Entry>>,
}

impl Kernels {
    /// Of roots with these entries; of the only one, if there is but one.
    pub(super) fn of<'a>(roots: impl ExactSizeIterator<Item = &'a Vec<Entry>>) -> Self {
        let least = if roots.len() == 1 { 1 } else { 2 };
        let mut counts: HashMap<Entry, usize> = HashMap::default();
        for entry in roots.flatten() {
            *counts.entry(*entry).or_default() += 1;
        }
        counts.retain(|_, count| *count >= least);
        Self {
            tops: counts.into_keys().collect(),
            copied: HashMap::default(),
        }
    }

    /// Looks into the tables that the roots' entries name: what is in two of them is the kernel's.
    pub(super) fn look_below(&mut self, tables: &HashSet<Entry>, mut entries: impl FnMut(u64) -> Vec<Entry>) {
        let mut counts: HashMap<(u64, Entry), usize> = HashMap::default();
        for (top, table) in tables {
            for entry in entries(*table) {
                *counts.entry((*top, entry)).or_default() += 1;
            }
        }
        for ((top, entry), count) in counts {
            if count > 1 {
                self.copied.entry(top).or_default().insert(entry);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tops.is_empty() && self.copied.is_empty()
    }

    /// Whether a root with these entries is one of them; `below` gives the entries of a table.
    pub(super) fn have(&self, kernel: &[Entry], mut below: impl FnMut(u64) -> Vec<Entry>) -> bool {
        kernel.iter().any(|entry| self.tops.contains(entry))
            || kernel.iter().any(|(top, table)| {
                let copied = self.copied.get(top);
                copied.is_some_and(|copied| below(*table).iter().any(|entry| copied.contains(entry)))
            })
    }
}
