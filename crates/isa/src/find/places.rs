//! Going through memory, for places that may be a top-level table.

use nephoscope_guest::{Gpa, PAGE_SIZE, PhysicalMemory, Pieces};

use super::kernels::Kernels;
use super::{Search, little_endian};
use crate::step::{Permissions, Step, step};

/// How much memory is read at a time where reads are dear, and how often it is said how far it is.
const CHUNK: usize = 64 << 10;
/// What is looked at first of a table that is as large as a page: lines of a CPU's cache, the last one for instance. Most pages that
/// are no tables are known by it.
const LINE: usize = 64;
const LAST_LINE: u64 = (PAGE_SIZE / LINE - 1) as u64;
/// As many pages at once.
const BATCH: usize = 512;

/// Where in what is read of each page lies what is looked at first.
struct Look {
    /// Lines of a page.
    offsets: Vec<u64>,
    /// The last line, if it is looked at.
    last: Option<usize>,
    /// The kernels' entries, and what they name.
    tops: Vec<(usize, u64)>,
}

impl Look {
    fn new(sought: &Sought<'_>, entry_bytes: u64) -> Self {
        let per_line = LINE as u64 / entry_bytes.max(1);
        let lines = sought.kernels.tops.iter().map(|(index, _)| index / per_line);
        let lines = lines.chain(sought.any.then_some(LAST_LINE));
        let mut offsets: Vec<u64> = lines.map(|line| line.saturating_mul(LINE as u64)).collect();
        offsets.sort_unstable();
        offsets.dedup();
        let place = |line: u64| {
            let offset = line.saturating_mul(LINE as u64);
            offsets
                .iter()
                .position(|of| *of == offset)
                .map(|number| number * LINE)
        };
        let tops = sought.kernels.tops.iter().filter_map(|(index, named)| {
            let within = usize::try_from(index % per_line * entry_bytes).ok()?;
            Some((place(index / per_line)? + within, *named))
        });
        Self {
            tops: tops.collect(),
            last: place(LAST_LINE).filter(|_| sought.any),
            offsets,
        }
    }

    fn pieces(&self, page_bytes: u64) -> Pieces<'_> {
        Pieces {
            stride: page_bytes,
            offsets: &self.offsets,
            len: LINE,
            // Half of what is in use is often zeros, and no table has nothing for its kernel.
            rest_from: self.last.map(|_| page_bytes / 2),
        }
    }
}

/// What a page is looked into for.
pub(super) struct Sought<'a> {
    /// It may be a table of any guest.
    pub(super) any: bool,
    /// It may be one of these kernels'.
    pub(super) kernels: &'a Kernels,
}

impl<M: PhysicalMemory> Search<'_, M> {
    /// Gives every place at which a top-level table may lie, with its bytes; where pieces of memory can be read, only of pages that
    /// may be what is sought.
    pub(super) fn places(&mut self, sought: &Sought<'_>, mut visit: impl FnMut(&mut Self, u64, &[u8])) {
        // With copies of the kernel's tables most of what is in memory may be one.
        let pieces =
            self.memory.reads_pieces() && self.top_bytes() == PAGE_SIZE && sought.kernels.copied.is_empty();
        for (first, len) in self.ranges {
            let mut at = Gpa(first.0.next_multiple_of(PAGE_SIZE as u64));
            let end = Gpa(first.0.saturating_add(*len));
            while let Some((start, stop)) = self.memory.next_data(at, end) {
                let start = Gpa(start.0.max(at.0) & !(PAGE_SIZE as u64 - 1));
                let stop = Gpa(stop.0.next_multiple_of(PAGE_SIZE as u64).min(end.0));
                self.gone(start.0.saturating_sub(at.0));
                if pieces {
                    self.by_lines(start, stop, sought, &mut visit);
                } else {
                    self.by_chunk(start, stop, &mut visit);
                }
                // Whatever it was that said so: on, always.
                at = Gpa(stop.0.max(at.0.saturating_add(PAGE_SIZE as u64)));
            }
            self.gone(end.0.saturating_sub(at.0));
        }
    }

    /// The whole of those pages whose lines are like what is sought.
    fn by_lines(
        &mut self,
        start: Gpa,
        stop: Gpa,
        sought: &Sought<'_>,
        visit: &mut impl FnMut(&mut Self, u64, &[u8]),
    ) {
        let look = Look::new(sought, self.mode.facts().entry_bytes.into());
        let pieces = look.pieces(PAGE_SIZE as u64);
        let mut bytes = vec![0; BATCH * pieces.bytes()];
        let mut at = start.0;
        while at < stop.0 {
            let pages = usize::try_from((stop.0 - at).div_ceil(PAGE_SIZE as u64)).unwrap_or(BATCH);
            let pages = pages.min(BATCH);
            let next = at.saturating_add((pages * PAGE_SIZE) as u64);
            let read = bytes.get_mut(..pages * pieces.bytes()).unwrap_or_default();
            if self.memory.read_each(Gpa(at), &pieces, read).is_ok() {
                self.found.searched_bytes += next - at;
                self.gone(next - at);
                let each = read.chunks_exact(pieces.bytes());
                for (place, page) in (at..next).step_by(PAGE_SIZE).zip(each) {
                    if self.is_like(&look, page) {
                        self.whole(place, visit);
                    }
                }
            } else {
                // Something here cannot be read: page by page, not to lose the rest.
                self.by_chunk(Gpa(at), Gpa(next.min(stop.0)), visit);
            }
            at = next;
        }
    }

    /// Whether what was read of a page is like what is sought.
    fn is_like(&self, look: &Look, page: &[u8]) -> bool {
        let Some((level, _)) = self.top() else {
            return false;
        };
        let means_something = |entry: u64| {
            let step = step(self.mode, level, entry, Permissions::ALL);
            !matches!(step, Step::Absent | Step::Reserved)
        };
        let line = look.last.and_then(|last| page.get(last..last + LINE));
        if line.is_some_and(|line| {
            let is_anything = page.last() != Some(&0);
            is_anything
                && self
                    .entries(line)
                    .all(|(_, entry)| entry == 0 || means_something(entry))
        }) {
            return true;
        }
        let size = usize::from(self.mode.facts().entry_bytes);
        look.tops.iter().any(|(at, named)| {
            let entry = page.get(*at..*at + size).map_or(0, little_endian);
            entry != 0 && self.named(level, entry) == *named
        })
    }

    fn whole(&mut self, place: u64, visit: &mut impl FnMut(&mut Self, u64, &[u8])) {
        let mut page = [0; PAGE_SIZE];
        if self.mode.root(place).0 != place {
            return;
        }
        if self.memory.read(Gpa(place), &mut page).is_ok() {
            visit(self, place, &page);
        } else {
            self.found.searched_bytes -= PAGE_SIZE as u64;
            self.found.unreadable_bytes += PAGE_SIZE as u64;
        }
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
}
