//! Going through memory, for places that may be a top-level table.

use nephoscope_guest::{Gpa, PAGE_SIZE, PhysicalMemory};

use super::kernels::Kernels;
use super::{Search, little_endian};
use crate::step::{Permissions, Step, step};

/// How much memory is read at a time where reads are dear, and how often it is said how far it is.
const CHUNK: usize = 64 << 10;
/// What is looked at first of a table that is as large as a page.
const LINE: usize = 64;

impl<M: PhysicalMemory> Search<'_, M> {
    /// Gives every place at which a top-level table may lie, with its bytes. `probe` may spare the reading of a page.
    pub(super) fn places(
        &mut self,
        probe: impl Fn(&Self, u64) -> Option<bool>,
        mut visit: impl FnMut(&mut Self, u64, &[u8]),
    ) {
        let probes = self.memory.is_mapped() && self.top_bytes() == PAGE_SIZE;
        for (first, len) in self.ranges {
            let mut at = Gpa(first.0.next_multiple_of(PAGE_SIZE as u64));
            let end = Gpa(first.0.saturating_add(*len));
            while let Some((start, stop)) = self.memory.next_data(at, end) {
                let start = Gpa(start.0.max(at.0) & !(PAGE_SIZE as u64 - 1));
                let stop = Gpa(stop.0.next_multiple_of(PAGE_SIZE as u64).min(end.0));
                self.gone(start.0.saturating_sub(at.0));
                if probes {
                    self.by_page(start, stop, &probe, &mut visit);
                } else {
                    self.by_chunk(start, stop, &mut visit);
                }
                // Whatever it was that said so: on, always.
                at = Gpa(stop.0.max(at.0.saturating_add(PAGE_SIZE as u64)));
            }
            self.gone(end.0.saturating_sub(at.0));
        }
    }

    /// Memory that need not be copied.
    fn by_page(
        &mut self,
        start: Gpa,
        stop: Gpa,
        probe: &impl Fn(&Self, u64) -> Option<bool>,
        visit: &mut impl FnMut(&mut Self, u64, &[u8]),
    ) {
        let mut page = [0; PAGE_SIZE];
        let mut untold = 0;
        for at in (start.0..stop.0).step_by(PAGE_SIZE) {
            untold += PAGE_SIZE as u64;
            if untold == CHUNK as u64 {
                self.gone(std::mem::take(&mut untold));
            }
            let may_be = match probe(self, at) {
                Some(true) => self.memory.read(Gpa(at), &mut page).is_ok().then_some(true),
                other => other,
            };
            match may_be {
                Some(true) if self.mode.root(at).0 == at => visit(self, at, &page),
                Some(_) => {}
                None => self.found.unreadable_bytes += PAGE_SIZE as u64,
            }
            self.found.searched_bytes += if may_be.is_some() { PAGE_SIZE as u64 } else { 0 };
        }
        self.gone(untold);
    }

    fn by_chunk(&mut self, start: Gpa, stop: Gpa, visit: &mut impl FnMut(&mut Self, u64, &[u8])) {
        let size = self.top_bytes().max(1);
        let mut chunk = vec![0; CHUNK];
        let mut at = start.0;
        while at < stop.0 {
            // Page by page where not all can be read, not to lose the rest.
            let all = usize::try_from(stop.0 - at).unwrap_or(CHUNK).min(CHUNK);
            let read = [all, all.min(PAGE_SIZE)].into_iter().find(|len| {
                let bytes = chunk.get_mut(..*len);
                bytes.is_some_and(|bytes| self.memory.read(Gpa(at), bytes).is_ok())
            });
            let Some(read) = read else {
                let skipped = all.min(PAGE_SIZE) as u64;
                self.found.unreadable_bytes += skipped;
                self.gone(skipped);
                at += skipped;
                continue;
            };
            self.found.searched_bytes += read as u64;
            let tables = chunk.get(..read).unwrap_or_default().chunks_exact(size);
            for (place, table) in (at..).step_by(size).zip(tables) {
                // A root has to fit its register: 32 bits for PAE.
                if self.mode.root(place).0 == place {
                    visit(self, place, table);
                }
            }
            self.gone(read as u64);
            at += read as u64;
        }
    }

    fn gone(&mut self, bytes: u64) {
        self.gone_through += bytes;
        (self.told)(self.gone_through);
    }

    /// Whether the last entries of a page could be a table's: most pages that are none are known by them. `None`: it cannot be
    /// read.
    pub(super) fn ends_like_a_table(&self, at: u64) -> Option<bool> {
        let mut line = [0; LINE];
        let last = at.checked_add((PAGE_SIZE - LINE) as u64)?;
        self.memory.read(Gpa(last), &mut line).ok()?;
        let (level, _) = self.top()?;
        let mut entries = self.entries(&line);
        Some(entries.all(|(_, entry)| {
            entry == 0
                || !matches!(
                    step(self.mode, level, entry, Permissions::ALL),
                    Step::Absent | Step::Reserved
                )
        }))
    }

    /// Whether the entries of a page are the kernel's where it has some.
    pub(super) fn may_share(&self, at: u64, kernels: &Kernels) -> Option<bool> {
        let (level, _) = self.top()?;
        let size = usize::from(self.mode.facts().entry_bytes);
        let mut raw = [0; 8];
        let raw = raw.get_mut(..size)?;
        for (index, named) in &kernels.tops {
            self.memory
                .read(Gpa(at.checked_add(index * size as u64)?), raw)
                .ok()?;
            let entry = little_endian(raw);
            if entry != 0 && self.named(level, entry) == *named {
                return Some(true);
            }
        }
        Some(!kernels.copied.is_empty())
    }
}
