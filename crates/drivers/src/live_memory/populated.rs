//! Which parts of a guest's memory there are at all.
//!
//! A VMM's memory begins as nothing, and comes to be page by page as its guest touches it. Looking at what was never touched would
//! be slow, and where the memory is a file that is mapped here, looking makes it: a look at a guest of 4 GiB that uses one would
//! cost its host three.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};

/// The most parts that are remembered of one range. Memory in more pieces than that is looked through as if it were all there.
pub(super) const MAX_PARTS: usize = 1 << 16;
const PAGE: u64 = 4096;
/// Entries of `/proc/PID/pagemap` read at once.
const ENTRIES: usize = 1 << 15;
/// Bits 63 and 62: the page is in memory, or swapped out (Linux `Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT_OR_SWAPPED: u64 = 3 << 62;

/// Ascending parts of an address space, apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Populated {
    parts: Vec<(u64, u64)>,
}

impl Populated {
    /// Those that begin in this order or not; they do not overlap.
    pub(super) fn new(mut parts: Vec<(u64, u64)>) -> Self {
        parts.sort_unstable();
        Self { parts }
    }

    /// The first part at or after `from`, cut to begin there.
    pub(super) fn next(&self, from: u64) -> Option<(u64, u64)> {
        let at = self.parts.partition_point(|(_, end)| *end <= from);
        self.parts.get(at).map(|(start, end)| ((*start).max(from), *end))
    }

    /// Whether all of `[start, end)` is in one part.
    pub(super) fn has(&self, start: u64, end: u64) -> bool {
        self.next(start)
            .is_some_and(|(first, last)| first == start && end <= last)
    }
}

/// The parts of `[start, end)` of a file that are not holes. `None`: the file system does not say.
pub(super) fn of_file(file: &File, start: u64, end: u64) -> Option<Vec<(u64, u64)>> {
    let mut parts = Vec::new();
    let mut at = start;
    while at < end {
        let Some((data, hole)) = next_in_file(file, at)? else {
            break;
        };
        if data >= end {
            break;
        }
        if parts.len() == MAX_PARTS {
            parts.push((data, end));
            break;
        }
        parts.push((data, hole.min(end)));
        at = hole;
    }
    Some(parts)
}

/// The next part at or after `at` that is no hole: `Some(None)` if there is none, `None` if nobody says.
pub(super) fn next_in_file(file: &File, at: u64) -> Option<Option<(u64, u64)>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Some(Some((data, seek(file, SeekFrom::Hole(data)).ok()?.max(data + 1)))),
        Err(rustix::io::Errno::NXIO) => Some(None),
        Err(_) => None,
    }
}

/// The parts of `[start, end)` of a process's own memory that it has touched. `None`: it may not be asked.
pub(super) fn of_process(pagemap: &File, start: u64, end: u64) -> Option<Vec<(u64, u64)>> {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    let mut raw = vec![0; ENTRIES * 8];
    let mut at = start & !(PAGE - 1);
    while at < end {
        let count = usize::try_from((end - at).div_ceil(PAGE))
            .unwrap_or(ENTRIES)
            .min(ENTRIES);
        let raw = raw.get_mut(..count * 8)?;
        pagemap.read_exact_at(raw, at / PAGE * 8).ok()?;
        for entry in raw.chunks_exact(8) {
            let entry = entry.try_into().map_or(0, u64::from_le_bytes);
            if entry & PRESENT_OR_SWAPPED != 0 {
                let full = parts.len() >= MAX_PARTS;
                match parts.last_mut() {
                    Some((_, last)) if *last == at || full => *last = at + PAGE,
                    _ => parts.push((at, at + PAGE)),
                }
            }
            at += PAGE;
        }
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_of_a_file_are_no_parts() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(of_file(&file, 0, 1 << 20), Some(Vec::new()));
        file.write_all_at(b"x", 3 * PAGE).unwrap();
        file.write_all_at(b"x", 4 * PAGE).unwrap();
        file.write_all_at(b"x", 9 * PAGE).unwrap();
        let parts = [(3 * PAGE, 5 * PAGE), (9 * PAGE, 10 * PAGE)];
        assert_eq!(of_file(&file, 0, 1 << 20), Some(parts.to_vec()));
        assert_eq!(
            of_file(&file, 4 * PAGE, 9 * PAGE),
            Some(vec![(4 * PAGE, 5 * PAGE)])
        );
        let populated = Populated::new(parts.to_vec());
        assert_eq!(populated.next(0), Some(parts[0]));
        assert_eq!(populated.next(4 * PAGE), Some((4 * PAGE, 5 * PAGE)));
        assert_eq!(populated.next(5 * PAGE), Some(parts[1]));
        assert_eq!(populated.next(10 * PAGE), None);
        assert!(populated.has(3 * PAGE, 5 * PAGE) && populated.has(4 * PAGE + 8, 4 * PAGE + 16));
        assert!(!populated.has(4 * PAGE, 6 * PAGE) && !populated.has(5 * PAGE, 5 * PAGE + 8));
    }

    #[test]
    fn what_a_process_did_not_touch_is_no_part_of_its_memory() {
        let mut memory = memmap2::MmapOptions::new().len(64 * 4096).map_anon().unwrap();
        // Huge pages would be there as a whole.
        memory.advise(memmap2::Advice::NoHugePage).unwrap();
        memory[5 * 4096] = 1;
        memory[6 * 4096 + 7] = 1;
        let start = memory.as_ptr().addr() as u64;
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        assert_eq!(
            of_process(&pagemap, start, start + 64 * PAGE),
            Some(vec![(start + 5 * PAGE, start + 7 * PAGE)])
        );
    }

    #[test]
    fn max_parts_bounds_what_memory_in_crumbs_takes() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        let pages = 2 * (MAX_PARTS as u64 + 10);
        file.set_len(pages * PAGE).unwrap();
        for page in (0..pages).step_by(2) {
            file.write_all_at(b"x", page * PAGE).unwrap();
        }
        let parts = of_file(&file, 0, pages * PAGE).unwrap();
        assert_eq!(parts.len(), MAX_PARTS + 1);
        assert_eq!(parts.last(), Some(&(2 * MAX_PARTS as u64 * PAGE, pages * PAGE)));
    }
}
