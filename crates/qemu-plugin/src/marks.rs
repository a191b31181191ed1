//! Marks: which user pages ran on which vCPU since it was last looked at.
//!
//! Every block of user code stores a 1 into its page generation's word, inline, before it runs. A word belongs to one
//! vCPU (a QEMU scoreboard entry), so the store needs no lock and no atomic operation, and the entries of page
//! generations that run together lie together. Kernel code has no marks: it belongs to the kernel, whichever root is
//! loaded.
//!
//! Boards are made one by one, each with words for [`BOARD`] page generations; words are never used for a second one,
//! since blocks of an old generation may still run. When all boards are full, further pages run a callback per block
//! instead: slower, as exact.
#![allow(
    unsafe_code,
    reason = "reads and clears words that translated code stores into"
)]

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::api::{Api, ScoreboardU64};

/// Page generations per board; a board is 512 KiB per vCPU.
const BOARD: u32 = 1 << 16;
/// The most boards: a million page generations with marks.
const MAX_BOARDS: usize = 16;

/// One scoreboard and the pages that its words stand for.
#[derive(Debug)]
struct Board {
    score: usize,
    pages: Box<[AtomicU64]>,
}

/// All marks.
#[derive(Debug)]
pub(crate) struct Marks {
    boards: [OnceLock<Board>; MAX_BOARDS],
    used: AtomicU32,
    making: Mutex<()>,
    ready: AtomicUsize,
}

impl Marks {
    pub(crate) fn new() -> Self {
        Self {
            boards: [const { OnceLock::new() }; MAX_BOARDS],
            used: AtomicU32::new(0),
            making: Mutex::new(()),
            ready: AtomicUsize::new(0),
        }
    }

    /// A mark for a page generation; `None` when all are used. `scoreboard_new` is QEMU's.
    pub(crate) fn allocate(
        &self,
        scoreboard_new: extern "C" fn(usize) -> *mut c_void,
        page: u64,
    ) -> Option<u32> {
        let mark = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < BOARD * u32::try_from(MAX_BOARDS).unwrap_or(0)).then_some(used + 1)
            })
            .ok()?;
        let number = usize::try_from(mark / BOARD).ok()?;
        let slot = self.boards.get(number)?;
        if slot.get().is_none() {
            let _making = self
                .making
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            slot.get_or_init(|| Board {
                score: scoreboard_new(BOARD as usize * 8) as usize,
                pages: (0..BOARD).map(|_| AtomicU64::new(0)).collect(),
            });
            self.ready.fetch_max(number + 1, Ordering::Release);
        }
        slot.get()?
            .pages
            .get((mark % BOARD) as usize)?
            .store(page, Ordering::Release);
        Some(mark)
    }

    /// Where the inline store of this mark goes.
    pub(crate) fn place(&self, mark: u32) -> Option<ScoreboardU64> {
        let board = self.boards.get((mark / BOARD) as usize)?.get()?;
        Some(ScoreboardU64 {
            score: board.score as *mut _,
            offset: (mark % BOARD) as usize * 8,
        })
    }

    /// The page generation of a mark.
    pub(crate) fn page(&self, mark: u32) -> Option<u64> {
        let board = self.boards.get((mark / BOARD) as usize)?.get()?;
        Some(board.pages.get((mark % BOARD) as usize)?.load(Ordering::Acquire))
    }

    /// How many marks are used: those that come will be from this one on.
    pub(crate) fn used(&self) -> u32 {
        self.used.load(Ordering::Acquire)
    }

    /// Visits every mark from `from` on (or from a few before it) that is set for a vCPU, and clears those for which `visit`
    /// says true.
    ///
    /// May run beside the vCPU: a store that it makes meanwhile is either seen now or stays for the next time.
    pub(crate) fn collect(&self, api: &Api, vcpu: u32, from: u32, mut visit: impl FnMut(u32) -> bool) {
        let used = self.used();
        let first = (from / BOARD) as usize;
        for number in first..self.ready.load(Ordering::Acquire) {
            let Some(board) = self.boards.get(number).and_then(OnceLock::get) else {
                continue;
            };
            let base = u32::try_from(number).unwrap_or(0) * BOARD;
            let count = used.saturating_sub(base).min(BOARD) as usize;
            let words = (api.scoreboard_find)(board.score as *mut _, vcpu);
            if words.is_null() {
                continue;
            }
            // SAFETY: a scoreboard entry is `BOARD * 8` bytes, zeroed, aligned for u64, and lives as long as QEMU; it
            // moves only when QEMU adds a vCPU past the sixteenth, for which `install` refuses hot-plugging. Translated
            // code stores whole aligned words, so words are only ever 0 or 1.
            let words = unsafe { std::slice::from_raw_parts(words.cast::<AtomicU64>(), count) };
            // Eight words are a line of the cache.
            let skipped = from.saturating_sub(base) / 8 * 8;
            if let Some(words) = words.get(skipped as usize..) {
                collect_words(words, base + skipped, &mut visit);
            }
        }
    }
}

fn collect_words(words: &[AtomicU64], base: u32, visit: &mut impl FnMut(u32) -> bool) {
    for (group, eight) in words.chunks(8).enumerate() {
        if eight
            .iter()
            .fold(0, |any, word| any | word.load(Ordering::Relaxed))
            == 0
        {
            continue;
        }
        for (i, word) in eight.iter().enumerate() {
            let mark = base + u32::try_from(group * 8 + i).unwrap_or(0);
            if word.load(Ordering::Relaxed) != 0 && visit(mark) {
                // A block that ran between the load and this store belongs to the same root: the caller holds the
                // vCPU's lock, which a root change takes.
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_words_are_visited_in_order_and_cleared_when_taken() {
        let words: Vec<AtomicU64> = (0..100).map(|i| AtomicU64::new(u64::from(i % 7 == 3))).collect();
        let mut seen = Vec::new();
        collect_words(&words, 1000, &mut |mark| {
            seen.push(mark);
            mark != 1010
        });
        let expected: Vec<u32> = (0..100).filter(|i| i % 7 == 3).map(|i| 1000 + i).collect();
        assert_eq!(seen, expected);
        let left: Vec<usize> = (0..100)
            .filter(|i| words[*i].load(Ordering::Relaxed) != 0)
            .collect();
        assert_eq!(left, [10], "the one that was not taken stays");
    }

    /// Boards made by [`count_board`].
    static MADE: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn count_board(bytes: usize) -> *mut c_void {
        assert_eq!(bytes, BOARD as usize * 8);
        std::ptr::without_provenance_mut(MADE.fetch_add(1, Ordering::Relaxed) + 1)
    }

    #[test]
    fn max_boards_stops_a_guest_that_makes_generations_without_end_and_those_before_keep_their_marks() {
        let marks = Marks::new();
        let most = u64::from(BOARD) * MAX_BOARDS as u64;
        for page in 0..most {
            assert!(marks.allocate(count_board, page + 7).is_some());
        }
        for page in [most, most + 1] {
            assert_eq!(marks.allocate(count_board, page + 7), None);
        }
        assert_eq!(MADE.load(Ordering::Relaxed), MAX_BOARDS);
        let used = u64::from(marks.used.load(Ordering::Relaxed));
        assert_eq!(used, most, "it does not come round to marks that are used");
        let last = u32::try_from(most - 1).unwrap();
        assert_eq!((marks.page(0), marks.page(last)), (Some(7), Some(most + 6)));
        assert_eq!(marks.page(last + 1), None);
        assert!(marks.place(last).is_some() && marks.place(last + 1).is_none());
    }
}
