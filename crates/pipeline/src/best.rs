//! The nearest part to a page that equals none, and when it is near enough to be named.
//!
//! Zeros are alike everywhere: an almost empty page is near any other. So nearness is counted over bytes that are not
//! zero in one of the two, and most of them must be equal. Small functions are a third fields that loading fills in; so a
//! page is near as well if nearly all that lies between such fields is equal, and that is not little.

use nephoscope_guest::{PAGE_SIZE, PageBytes};
use nephoscope_inventory::{Modified, Place, Verdict};
use nephoscope_recipe::{Comparison, Part, Site};

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

/// Bytes between fields that say something by themselves.
const FIXED: usize = 256;

/// Whether three quarters of what the two say are the same, where fields that loading fills in count as different; or all
/// but a thirty-second of what is between these fields.
pub(crate) fn is_near(part: &Part, at: i64, page: &PageBytes) -> bool {
    let (mut said, mut same) = (0_usize, 0_usize);
    let (mut fixed, mut fixed_same) = (0_usize, 0_usize);
    let end = |site: &Site| i64::from(site.at).saturating_add(i64::from(site.len));
    let from = part.sites.partition_point(|site| end(site) <= at);
    let mut sites = part.sites.iter().skip(from).peekable();
    for (offset, shown) in (0_i64..).zip(page.iter()) {
        let here = at.saturating_add(offset);
        while sites.next_if(|site: &&Site| end(site) <= here).is_some() {}
        let in_field = sites.peek().is_some_and(|site| i64::from(site.at) <= here);
        let own = at
            .checked_add(offset)
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| part.bytes.get(offset));
        if let Some(own) = own.filter(|own| **own != 0 || *shown != 0) {
            said += 1;
            same += usize::from(own == shown);
            if !in_field {
                fixed += 1;
                fixed_same += usize::from(own == shown);
            }
        }
    }
    (said >= PAGE_SIZE / 64 && same >= said / 4 * 3) || (fixed >= FIXED && fixed_same >= fixed / 32 * 31)
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test data is small")]
mod tests {
    use nephoscope_recipe::{PartKind, Placement, SiteKind, Values};

    use super::*;

    /// A part of `len` bytes that are not zero, with a field of four bytes in every ten.
    fn part(len: u32) -> Part {
        let site = |at| Site {
            at,
            len: 4,
            kind: SiteKind::Relocation,
            set: 0,
        };
        Part {
            kind: PartKind::ModuleText,
            name: ".text".into(),
            link: 0,
            bytes: (0..len)
                .map(|at| if at % 10 < 4 { 0 } else { 0x41 + (at % 7) as u8 })
                .collect(),
            sites: (0..len / 10).map(|n| site(n * 10)).collect(),
            placement: Placement::Aligned(4096),
            values: Values::default(),
        }
    }

    /// The same with all fields filled in, and `changed` bytes that are not in fields changed.
    fn page(part: &Part, changed: usize) -> PageBytes {
        let mut page = PageBytes::zeroed();
        let mut left = changed;
        for (at, (byte, own)) in page.iter_mut().zip(&part.bytes).enumerate() {
            *byte = if at % 10 < 4 { 0x99 } else { *own };
            if at % 10 == 9 && left > 0 {
                *byte ^= 0xff;
                left -= 1;
            }
        }
        page
    }

    #[test]
    fn small_functions_are_near_by_what_is_between_their_fields() {
        let part = part(700);
        assert!(is_near(&part, 0, &page(&part, 0)) && is_near(&part, 0, &page(&part, 10)));
        assert!(
            !is_near(&part, 0, &page(&part, 40)),
            "other code of the same shape"
        );
    }

    #[test]
    fn max_different_leaves_out_a_page_whose_fields_hold_too_much_that_no_loader_puts_there() {
        let part = part(4000);
        let considered = |count: usize| {
            let wrong = |n: usize| nephoscope_recipe::Difference {
                offset: (n / 4 * 10 + n % 4) as u16,
                before: 0,
                after: 0x99,
            };
            let comparison = Comparison {
                differences: (0..count).map(wrong).collect(),
                ..Comparison::default()
            };
            let mut best = Best::default();
            let place = Place {
                object: nephoscope_catalog::ObjectId(1),
                part: Some(0),
                link: 0,
            };
            best.consider(place, &part, 0, &comparison, &page(&part, 0));
            best.modified()
        };
        let differences = considered(MAX_DIFFERENT).unwrap().differences;
        assert_eq!(differences.len(), MAX_DIFFERENT / 4, "one run per field");
        assert_eq!(considered(MAX_DIFFERENT + 1), None);
    }

    #[test]
    fn little_between_fields_makes_nothing_near() {
        let part = part(300);
        assert!(!is_near(&part, 0, &page(&part, 0)));
    }
}
