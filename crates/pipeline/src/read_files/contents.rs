//! Bytes of pieces that no file in the catalog has: they are compared with those that are like them.

use std::collections::{BTreeMap, VecDeque};

use nephoscope_guest::PageBytes;
use nephoscope_inventory::FileId;

/// Pieces that are kept: 32 MiB. The oldest go; of their files is told then that they are known, or not, and no more.
const MAX_CONTENTS: usize = 8192;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pieces: BTreeMap<(FileId, u64), PageBytes>,
    order: VecDeque<(FileId, u64)>,
}

impl Contents {
    /// Keeps one, and says whether another one had to go.
    pub(super) fn keep(&mut self, file: FileId, at: u64, bytes: PageBytes) -> bool {
        if self.pieces.insert((file, at), bytes).is_some() {
            return false;
        }
        self.order.push_back((file, at));
        let goes = self.order.len() > MAX_CONTENTS;
        if goes && let Some(oldest) = self.order.pop_front() {
            self.pieces.remove(&oldest);
        }
        goes
    }

    pub(super) fn get(&self, file: FileId, at: u64) -> Option<&PageBytes> {
        self.pieces.get(&(file, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_contents_bounds_what_is_kept_and_the_oldest_go() {
        let mut contents = Contents::default();
        let piece = |number: u64| (FileId(1), number << 12, PageBytes::zeroed());
        for number in 0..MAX_CONTENTS as u64 {
            let (file, at, bytes) = piece(number);
            assert!(!contents.keep(file, at, bytes));
        }
        let (file, at, bytes) = piece(0);
        assert!(!contents.keep(file, at, bytes), "it is there");
        let (file, at, bytes) = piece(MAX_CONTENTS as u64);
        assert!(contents.keep(file, at, bytes));
        assert!(contents.get(FileId(1), 0).is_none() && contents.get(FileId(1), 4096).is_some());
        assert_eq!(contents.pieces.len(), MAX_CONTENTS);
    }
}
