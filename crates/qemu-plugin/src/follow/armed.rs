//! Which pages are armed, and which of them are open.

use foldhash::HashMap;

/// Pages that are followed: 8 GiB of files, at some 100 bytes each. What is beyond is not armed, and counted.
const MAX_ARMED: usize = 2 << 20;
/// Roots that are remembered for a page.
const MAX_SEEN: usize = 8;

/// Who has accessed it: root and incarnation, if a vCPU did and they are known.
pub(super) type By = Option<(u64, u32)>;

#[derive(Clone, Debug, Default)]
struct Page {
    is_open: bool,
    seen: Vec<By>,
}

/// By where QEMU has them.
#[derive(Debug, Default)]
pub(super) struct Armed {
    pages: HashMap<u64, Page>,
    open: Vec<u64>,
}

/// What an access is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// To a page that is not armed.
    Nothing,
    /// One that was said before.
    Again,
    /// News.
    News,
}

impl Armed {
    /// Follows a page anew: what it holds now is another piece of a file. `false`: there is no room.
    pub(super) fn arm(&mut self, page: u64) -> bool {
        if self.pages.len() >= MAX_ARMED && !self.pages.contains_key(&page) {
            return false;
        }
        self.pages.insert(page, Page::default());
        true
    }

    /// It holds something else.
    pub(super) fn disarm(&mut self, page: u64) {
        self.pages.remove(&page);
    }

    /// Somebody waits for a page, which is open from now on; unless it is about to be written, and then it is no file's any more.
    pub(super) fn access(&mut self, page: u64, by: By, write: bool) -> Access {
        let Some(known) = self.pages.get_mut(&page) else {
            return Access::Nothing;
        };
        if write {
            self.pages.remove(&page);
            return Access::News;
        }
        if !std::mem::replace(&mut known.is_open, true) {
            self.open.push(page);
        }
        if known.seen.contains(&by) {
            return Access::Again;
        }
        if known.seen.len() == MAX_SEEN {
            known.seen.clear();
        }
        known.seen.push(by);
        Access::News
    }

    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Closes all pages that are open, and gives them as runs: where each begins and how many bytes it has.
    pub(super) fn close(&mut self, page_bytes: u64) -> Vec<(u64, u64)> {
        let mut open = std::mem::take(&mut self.open);
        open.retain(|page| {
            let known = self.pages.get_mut(page);
            known.is_some_and(|known| std::mem::take(&mut known.is_open))
        });
        open.sort_unstable();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for page in open {
            match runs.last_mut() {
                Some((from, len)) if *from + *len == page => *len += page_bytes,
                _ => runs.push((page, page_bytes)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: By = Some((0x1000, 1));
    const OTHER: By = Some((0x2000, 1));

    #[test]
    fn a_page_is_open_until_it_is_closed_and_each_reader_is_news_once() {
        let mut armed = Armed::default();
        assert_eq!(armed.access(0x5000, ONE, false), Access::Nothing);
        for page in [0x5000, 0x6000, 0x9000] {
            assert!(armed.arm(page));
            assert_eq!(armed.access(page, ONE, false), Access::News);
        }
        assert_eq!(armed.open(), 3);
        assert_eq!(armed.close(0x1000), [(0x5000, 0x2000), (0x9000, 0x1000)]);
        assert_eq!(armed.close(0x1000), []);
        assert_eq!(armed.access(0x5000, ONE, false), Access::Again);
        assert_eq!(armed.access(0x5000, OTHER, false), Access::News);
        assert_eq!(armed.open(), 1);
        armed.arm(0x5000);
        assert_eq!(armed.access(0x5000, ONE, false), Access::News, "another piece");
    }

    #[test]
    fn what_is_written_or_disarmed_is_no_files_any_more() {
        let mut armed = Armed::default();
        armed.arm(0x5000);
        assert_eq!(armed.access(0x5000, ONE, false), Access::News);
        assert_eq!(armed.access(0x5000, OTHER, true), Access::News);
        assert_eq!(armed.access(0x5000, ONE, false), Access::Nothing);
        assert_eq!(armed.close(0x1000), []);
        armed.arm(0x6000);
        armed.disarm(0x6000);
        assert_eq!(armed.access(0x6000, ONE, false), Access::Nothing);
    }

    #[test]
    fn max_seen_bounds_the_readers_of_a_page_and_who_is_forgotten_is_news_again() {
        let mut armed = Armed::default();
        armed.arm(0);
        for root in 0..MAX_SEEN as u64 {
            assert_eq!(armed.access(0, Some((root, 0)), false), Access::News);
        }
        assert_eq!(armed.access(0, Some((0, 0)), false), Access::Again);
        assert_eq!(armed.access(0, Some((99, 0)), false), Access::News);
        assert_eq!(armed.access(0, Some((0, 0)), false), Access::News);
    }

    #[test]
    fn max_armed_bounds_what_is_followed() {
        let mut armed = Armed::default();
        assert!((0..MAX_ARMED as u64).all(|page| armed.arm(page << 12)));
        assert!(!armed.arm(u64::MAX) && armed.arm(0));
    }
}
