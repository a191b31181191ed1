//! A captured page.

use std::sync::Arc;

use nephoscope_guest::{Gpa, Gva, PageId, Privilege, Root};
use serde::{Deserialize, Serialize};

use crate::verdict::Verdict;

/// A code page in one generation, as recorded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PageRecord {
    /// Its number in this watch.
    pub id: PageId,
    /// When it first ran, in nanoseconds since the watch began.
    pub at_ns: u64,
    /// Where it lies, if that is known.
    pub gpa: Option<Gpa>,
    /// The host-side name of its frame, 0 if there is none.
    pub frame: u64,
    /// How often the frame had been captured before.
    pub generation: u32,
    /// The root loaded then.
    pub root: Root,
    /// Where that root saw it.
    pub va: Gva,
    /// Who ran it first.
    pub privilege: Privilege,
    /// Whether paging was on.
    pub paging: bool,
    /// Width of the code segment that ran it first, in bits: 16, 32 or 64.
    pub bits: u8,
    /// The first byte that ran, from the start of the page.
    pub first: u16,
    /// BLAKE3 of its bytes.
    pub digest: [u8; 32],
    /// What it is.
    #[serde(with = "crate::kept::shared")]
    pub verdict: Arc<Verdict>,
    /// Executed bytes, as far as reported: sorted ranges from the start of the page.
    pub executed: Vec<(u16, u16)>,
}

/// Ranges kept per page; more are merged into their hull. It bounds what a page of tiny blocks costs.
const MAX_RANGES: usize = 64;

impl PageRecord {
    /// Adds an executed range.
    pub fn extend(&mut self, start: u16, end: u16) {
        let at = self.executed.partition_point(|(s, _)| *s < start);
        self.executed.insert(at, (start, end));
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(self.executed.len());
        for (start, end) in self.executed.drain(..) {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        if merged.len() > MAX_RANGES
            && let (Some(first), Some(last)) = (merged.first().copied(), merged.last().copied())
        {
            merged = vec![(first.0, last.1)];
        }
        self.executed = merged;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::verdict::Unknown;

    pub(crate) fn page(id: u64) -> PageRecord {
        PageRecord {
            id: PageId(id),
            at_ns: 0,
            gpa: None,
            frame: 0,
            generation: 0,
            root: Root(0),
            va: Gva(0),
            privilege: Privilege::User,
            paging: true,
            bits: 64,
            first: 0,
            digest: [0; 32],
            verdict: Arc::new(Verdict::Unknown(Unknown::default())),
            executed: Vec::new(),
        }
    }

    #[test]
    fn executed_ranges_join_where_they_touch() {
        let mut page = page(1);
        for (start, end) in [(10, 20), (30, 40), (20, 25), (0, 5), (24, 30)] {
            page.extend(start, end);
        }
        assert_eq!(page.executed, [(0, 5), (10, 40)]);
    }

    #[test]
    fn max_ranges_bounds_what_a_page_of_tiny_blocks_costs() {
        let mut page = page(1);
        for i in 0..1000 {
            page.extend(i * 4, i * 4 + 1);
        }
        assert!(page.executed.len() <= MAX_RANGES);
        assert_eq!(
            (page.executed[0].0, page.executed[page.executed.len() - 1].1),
            (0, 3997)
        );
    }
}
