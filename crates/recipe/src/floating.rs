//! Code that was copied to odd addresses: matched by the bytes that executed, not by the page they lie in.
//!
//! ```text
//!  page   │ data │▓▓▓▓▓▓ executed │ data │▓▓▓ executed │ data │
//!                 └──── = part, at one displacement ────┘
//! ```
//!
//! Firmware keeps variables beside its code and copies pieces of several files into one page. So what counts is that
//! every byte that executed is a part's byte at one displacement, or in a field of the part that moving rewrites and
//! that holds what this displacement makes of it. That a part explains few bytes proves little: some part explains
//! any three. [`Supposed::is_anchored`] says whether the page shows at that displacement a window's worth of the part.

use nephoscope_guest::PAGE_SIZE;

use crate::compare::{Comparison, Nothing, Solver, compare_ranges};
use crate::object::Part;
use crate::windows;

/// Executed bytes of a page, at a supposed displacement of one part.
#[derive(Clone, Copy, Debug)]
pub struct Supposed<'a> {
    /// The part.
    pub part: &'a Part,
    /// The page's first byte in the part; negative if the page begins before it.
    pub at: i64,
    /// Where the page runs.
    pub va: u64,
    /// What is known of the part's unknowns at this displacement.
    pub solver: &'a Solver,
}

impl Supposed<'_> {
    /// Compares these bytes of the page with the part: `Some` only if every one of them is explained.
    #[must_use]
    pub fn explains(&self, page: &[u8; PAGE_SIZE], ranges: &[(u16, u16)]) -> Option<Comparison> {
        // Most parts that are asked about are others.
        if !ranges.iter().all(|range| self.may_explain(page, *range)) {
            return None;
        }
        let comparison = self.compare(page, ranges);
        let all = comparison.differences.is_empty()
            && comparison.undecided.is_empty()
            && comparison.outside == 0
            && ranges.iter().any(|(start, end)| start < end)
            && ranges.iter().all(|(_, end)| usize::from(*end) <= PAGE_SIZE);
        all.then_some(comparison)
    }

    /// Whether a range's bytes are the part's where no site is, whatever sites may hold.
    fn may_explain(&self, page: &[u8; PAGE_SIZE], (start, end): (u16, u16)) -> bool {
        let (start, end) = (usize::from(start), usize::from(end));
        let shown = page.get(start..end);
        let from = usize::try_from(self.at.saturating_add_unsigned(start as u64)).ok();
        let own = from.and_then(|from| self.part.bytes.get(from..from.checked_add(shown?.len())?));
        let (Some(shown), Some(own), Some(from)) = (shown, own, from) else {
            return false;
        };
        if shown == own {
            return true;
        }
        let in_site = |at: usize| {
            let before = self
                .part
                .sites
                .partition_point(|site| usize::try_from(site.at).is_ok_and(|site| site <= at));
            let site = before
                .checked_sub(1)
                .and_then(|before| self.part.sites.get(before));
            site.is_some_and(|site| {
                at.saturating_sub(usize::try_from(site.at).unwrap_or(usize::MAX)) < usize::from(site.len)
            })
        };
        let different = (from..)
            .zip(shown.iter().zip(own))
            .filter(|(_, (shown, own))| shown != own);
        different.into_iter().all(|(at, _)| in_site(at))
    }

    /// The same, whatever comes out.
    #[must_use]
    pub fn compare(&self, page: &[u8; PAGE_SIZE], ranges: &[(u16, u16)]) -> Comparison {
        compare_ranges(
            self.part,
            self.at,
            Some(self.va),
            page,
            ranges,
            self.solver,
            &Nothing,
        )
    }

    /// Whether a run of the page's bytes equals the part's and is at least an informative window long.
    #[must_use]
    pub fn is_anchored(&self, page: &[u8; PAGE_SIZE]) -> bool {
        let mut from = 0;
        while from < PAGE_SIZE {
            let run = self.run(page, from);
            if is_telling(run) {
                return true;
            }
            from = from.saturating_add(run.len()).saturating_add(1);
        }
        false
    }

    /// Whether the bytes around an executed range, itself included, equal the part's for at least an informative window.
    #[must_use]
    pub fn is_anchored_around(&self, page: &[u8; PAGE_SIZE], range: (u16, u16)) -> bool {
        let (mut from, mut to) = (usize::from(range.0), usize::from(range.1));
        while let Some(before) = from.checked_sub(1).filter(|at| self.equal(page, *at)) {
            from = before;
        }
        while self.equal(page, to) {
            to = to.saturating_add(1);
        }
        page.get(from..to).is_some_and(is_telling)
    }

    fn equal(&self, page: &[u8; PAGE_SIZE], at: usize) -> bool {
        let offset = i64::try_from(at)
            .ok()
            .and_then(|at| self.at.checked_add(at))
            .and_then(|offset| usize::try_from(offset).ok());
        let own = offset.and_then(|offset| self.part.bytes.get(offset));
        own.is_some() && own == page.get(at)
    }

    /// The equal bytes from `from` on.
    fn run<'p>(&self, page: &'p [u8; PAGE_SIZE], from: usize) -> &'p [u8] {
        let mut to = from;
        while self.equal(page, to) {
            to = to.saturating_add(1);
        }
        page.get(from..to).unwrap_or(&[])
    }
}

/// Whether bytes tell where they are from: at least one window of them is not just padding.
fn is_telling(bytes: &[u8]) -> bool {
    windows::sample(bytes, 1, &[]).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{PartKind, Placement};
    use crate::site::{Fix, Form, Site, SiteKind, Target, Unknown, Value, Values};
    use proptest::prelude::*;

    const LINK: u64 = 0xe_0000;

    fn noise(len: usize) -> Vec<u8> {
        let mut seed = 7_u64;
        let next = |_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed.to_le_bytes()[6]
        };
        (0..len).map(next).collect()
    }

    /// 8 KiB with an absolute field at 5000, a relative one at 5100, and two that follow another piece at 5200 and 5300.
    fn part() -> Part {
        let value = |form, to| {
            vec![Value {
                fixes: vec![Fix {
                    at: 0,
                    form,
                    to,
                    addend: 0,
                }],
                ..Value::own()
            }]
        };
        let site = |at, set| Site {
            at,
            len: 4,
            kind: SiteKind::Relocation,
            set,
        };
        Part {
            kind: PartKind::Firmware,
            name: "made".into(),
            link: LINK,
            placement: Placement::Anywhere,
            bytes: noise(8192),
            sites: vec![site(5000, 0), site(5100, 1), site(5200, 2), site(5300, 2)],
            values: Values {
                sets: vec![
                    value(Form::Abs32, Target::Own),
                    value(Form::Negative32, Target::Own),
                    value(Form::Abs32, Target::Unknown(0)),
                ],
                unknowns: vec![Unknown::Distance("other".into())],
                ..Values::default()
            },
        }
    }

    /// The page that shows the part from 4003 on, moved by `by`, with its fields as they must be then.
    fn page(part: &Part, by: u32, other: u32) -> Box<[u8; PAGE_SIZE]> {
        let mut page: Box<[u8; PAGE_SIZE]> = Box::new([0x55; PAGE_SIZE]);
        page.copy_from_slice(&part.bytes[4003..4003 + PAGE_SIZE]);
        let mut add = |at: usize, what: u32| {
            let at = at - 4003;
            let field = u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
            page[at..at + 4].copy_from_slice(&field.wrapping_add(what).to_le_bytes());
        };
        add(5000, by);
        add(5100, by.wrapping_neg());
        add(5200, other);
        add(5300, other);
        page
    }

    const BY: u32 = 0x12_3450;
    const ALL: [(u16, u16); 1] = [(0, 4096)];

    fn supposed<'a>(part: &'a Part, solver: &'a Solver) -> Supposed<'a> {
        Supposed {
            part,
            at: 4003,
            va: LINK + 4003 + u64::from(BY),
            solver,
        }
    }

    #[test]
    fn a_moved_part_with_its_fields_moved_is_explained() {
        let (part, solver) = (part(), Solver::default());
        let explained = supposed(&part, &solver)
            .explains(&page(&part, BY, 0x40), &ALL)
            .unwrap();
        assert_eq!(explained.learnt, [(0, 0x40)]);
        assert_eq!(explained.uses.len(), 4);
    }

    #[test]
    fn a_field_that_disagrees_with_the_displacement_is_not() {
        let (part, solver) = (part(), Solver::default());
        assert!(
            supposed(&part, &solver)
                .explains(&page(&part, BY + 16, 0x40), &ALL)
                .is_none()
        );
        assert!(
            supposed(&part, &solver)
                .explains(&page(&part, 0, 0x40), &ALL)
                .is_none()
        );
    }

    #[test]
    fn fields_that_disagree_with_each_other_are_not() {
        let (part, solver) = (part(), Solver::default());
        let mut page = page(&part, BY, 0x40);
        page[5300 - 4003] ^= 0x20;
        assert!(supposed(&part, &solver).explains(&page, &ALL).is_none());
        let without = [(0, 1210), (1400, 4096)];
        assert!(supposed(&part, &solver).explains(&page, &without).is_some());
    }

    #[test]
    fn a_field_that_disagrees_with_what_another_page_told_is_not() {
        let (part, mut solver) = (part(), Solver::default());
        assert!(solver.set(0, 0x80));
        assert!(
            supposed(&part, &solver)
                .explains(&page(&part, BY, 0x40), &ALL)
                .is_none()
        );
        assert!(
            supposed(&part, &solver)
                .explains(&page(&part, BY, 0x80), &ALL)
                .is_some()
        );
    }

    #[test]
    fn data_that_did_not_execute_does_not_count() {
        let (part, solver) = (part(), Solver::default());
        let mut page = page(&part, BY, 0);
        page[100..200].fill(0xee);
        assert!(
            supposed(&part, &solver)
                .explains(&page, &[(0, 100), (200, 4096)])
                .is_some()
        );
        assert!(supposed(&part, &solver).explains(&page, &[(0, 101)]).is_none());
    }

    #[test]
    fn bytes_outside_the_part_are_not_explained() {
        let (mut part, solver) = (part(), Solver::default());
        let page = page(&part, BY, 0);
        part.bytes.truncate(4003 + 600);
        assert!(supposed(&part, &solver).explains(&page, &[(0, 600)]).is_some());
        assert!(supposed(&part, &solver).explains(&page, &[(0, 601)]).is_none());
        let before = Supposed {
            at: -8,
            ..supposed(&part, &solver)
        };
        assert!(before.explains(&page, &[(0, 9)]).is_none());
    }

    #[test]
    fn no_executed_bytes_and_impossible_ranges_are_not_explained() {
        let (part, solver) = (part(), Solver::default());
        let page = page(&part, BY, 0);
        for ranges in [
            &[][..],
            &[(5, 5)],
            &[(9, 4)],
            &[(0, 4097)],
            &[(u16::MAX, u16::MAX)],
        ] {
            assert!(
                supposed(&part, &solver).explains(&page, ranges).is_none(),
                "{ranges:?}"
            );
        }
    }

    #[test]
    fn an_anchor_is_a_window_of_bytes_that_say_something() {
        let (mut part, solver) = (part(), Solver::default());
        let mut shown: Box<[u8; PAGE_SIZE]> = Box::new([0; PAGE_SIZE]);
        assert!(!supposed(&part, &solver).is_anchored(&shown));
        shown[1000..1023].copy_from_slice(&part.bytes[5003..5026]);
        assert!(!supposed(&part, &solver).is_anchored(&shown), "23 bytes");
        shown[1023] = part.bytes[5026];
        assert!(supposed(&part, &solver).is_anchored(&shown));
        assert!(supposed(&part, &solver).is_anchored_around(&shown, (1010, 1012)));
        assert!(!supposed(&part, &solver).is_anchored_around(&shown, (0, 3)));
        part.bytes[4003..4103].fill(0);
        assert!(
            !supposed(&part, &solver).is_anchored_around(&shown, (10, 20)),
            "padding"
        );
    }

    proptest! {
        #[test]
        fn one_changed_executed_byte_is_never_explained(at in 0_usize..4096, flip in 1_u8..) {
            let (part, solver) = (part(), Solver::default());
            let mut page = page(&part, BY, 0x40);
            page[at] ^= flip;
            let explained = supposed(&part, &solver).explains(&page, &ALL);
            // Not even in a field: the two that follow another piece hold each other.
            prop_assert!(explained.is_none());
        }
    }
}
