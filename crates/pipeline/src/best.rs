//! The nearest part to a page that equals none, and when it is near enough to be named.
//!
//! Zeros are alike everywhere: an almost empty page is near any other. So nearness is counted over bytes that are not
//! zero in one of the two, and most of them must be equal.

use nephoscope_guest::{PAGE_SIZE, PageBytes};
use nephoscope_inventory::{Modified, Place, Verdict};
use nephoscope_recipe::{Comparison, Part};

use crate::nearest::{self, MAX_DIFFERENT};

/// The nearest part so far.
#[derive(Debug, Default)]
pub(crate) struct Best {
    modified: Option<(usize, Modified)>,
}

impl Best {
    /// Looks at one more.
    pub(crate) fn consider(
        &mut self,
        nearest: Place,
        part: &Part,
        at: i64,
        comparison: &Comparison,
        page: &PageBytes,
    ) {
        let count = comparison.differences.len() + comparison.undecided.len();
        let better = self.modified.as_ref().is_none_or(|(least, _)| count < *least);
        if comparison.differences.is_empty() || count > MAX_DIFFERENT || !better || !is_near(part, at, page) {
            return;
        }
        let differences = comparison.differences.iter();
        let differences = nearest::runs(differences.map(|d| (d.offset, d.before, d.after)));
        self.modified = Some((count, Modified { nearest, differences }));
    }

    /// The verdict, if one was near.
    pub(crate) fn verdict(self) -> Option<Verdict> {
        self.modified().map(Verdict::Modified)
    }

    /// What it is near to, if anything.
    pub(crate) fn modified(self) -> Option<Modified> {
        self.modified.map(|(_, modified)| modified)
    }
}

/// Whether three quarters of what the two say are the same. Fields that loading fills in count as different, of which
/// no page has that many.
fn is_near(part: &Part, at: i64, page: &PageBytes) -> bool {
    let (mut said, mut same) = (0_usize, 0_usize);
    for (offset, shown) in (0_i64..).zip(page.iter()) {
        let own = at
            .checked_add(offset)
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| part.bytes.get(offset));
        if let Some(own) = own.filter(|own| **own != 0 || *shown != 0) {
            said += 1;
            same += usize::from(own == shown);
        }
    }
    said >= PAGE_SIZE / 64 && same >= said / 4 * 3
}
