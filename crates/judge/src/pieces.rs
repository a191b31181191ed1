//! Which pages of a kernel's unknown code are one piece of it.
//!
//! A module's pages run one after the other, some of them hours later, and one finding speaks of all. A module that is loaded
//! where another was, or next to it, is another piece. So a page goes on with one that is known if that one is still what it
//! was, and all between the two is mapped: Linux leaves a page free behind each module and each trampoline
//! (`__get_vm_area_node` in `mm/vmalloc.c`).

use std::collections::BTreeMap;

use nephoscope_guest::{Gpa, Gva, PAGE_SIZE};

/// What is mapped executable at an address now: where it lies, and the BLAKE3 of its bytes.
pub(crate) type There<'a> = &'a dyn Fn(Gva) -> Option<(Gpa, [u8; 32])>;

/// How far a page is looked for that this one goes on with.
const NEAR_PAGES: u64 = 16;

/// Pages that change within this time of each other change together.
const AT_ONCE_NS: u64 = 1_000_000_000;

/// Pieces of unknown code that are spoken of per kernel. It stops a guest that makes its kernel run new code without end;
/// the pages are in the report.
const MAX_PIECES: usize = 1024;

/// Where a kernel's unknown code is.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// By the number of the virtual page.
    pages: BTreeMap<u64, Known>,
    said: usize,
}

/// A page that ran.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// When its bytes were last new.
    at_ns: u64,
    digest: [u8; 32],
}

/// The address of a page by its number.
fn address(page: u64) -> Gva {
    Gva(page.wrapping_mul(PAGE_SIZE as u64))
}

impl Pieces {
    /// Takes a page that first ran at this time, and says whether it begins another piece.
    pub(crate) fn is_new(&mut self, page: u64, at_ns: u64, digest: [u8; 32], there: There<'_>) -> bool {
        if self.said >= MAX_PIECES {
            return false;
        }
        let known = self.goes_on(page, at_ns, there);
        self.remember(page, at_ns, digest);
        self.said += usize::from(!known);
        !known
    }

    /// Takes a page that was spoken of, or need not be.
    pub(crate) fn remember(&mut self, page: u64, at_ns: u64, digest: [u8; 32]) {
        self.pages.insert(page, Known { at_ns, digest });
    }

    fn goes_on(&self, page: u64, at_ns: u64, there: There<'_>) -> bool {
        let recent = |known: &Known| at_ns.abs_diff(known.at_ns) < AT_ONCE_NS;
        let beside = page.saturating_sub(1)..=page.saturating_add(1);
        // What is rewritten all the time, and what may be gone when it is spoken of.
        if self.pages.range(beside).any(|(_, known)| recent(known)) {
            return true;
        }
        // Other code where some ran before.
        if self.pages.contains_key(&page) {
            return false;
        }
        let near = page.saturating_sub(NEAR_PAGES)..=page.saturating_add(NEAR_PAGES);
        if self.pages.range(near).next().is_none() {
            return false;
        }
        let leads_here = |known: u64, now: [u8; 32]| {
            let known = self.pages.get(&known);
            known.is_some_and(|known| known.digest == now || recent(known))
        };
        let before = (1..=NEAR_PAGES).map(|n| page.checked_sub(n));
        let after = (1..=NEAR_PAGES).map(|n| page.checked_add(n));
        mapped(before, there).any(|(page, now)| leads_here(page, now))
            || mapped(after, there).any(|(page, now)| leads_here(page, now))
    }
}

/// The pages up to the first that is not mapped, and what each holds.
fn mapped(
    pages: impl Iterator<Item = Option<u64>>,
    there: There<'_>,
) -> impl Iterator<Item = (u64, [u8; 32])> {
    pages.map_while(move |page| {
        let page = page?;
        let (_, digest) = there(address(page))?;
        Some((page, digest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: u64 = 10 * AT_ONCE_NS;

    /// A kernel that has these pages mapped, each with its number as its digest.
    fn with(pages: std::ops::RangeInclusive<u64>) -> impl Fn(Gva) -> Option<(Gpa, [u8; 32])> {
        move |va| {
            let page = va.0 / PAGE_SIZE as u64;
            pages.contains(&page).then(|| (Gpa(va.0), digest(page)))
        }
    }

    fn digest(page: u64) -> [u8; 32] {
        [u8::try_from(page).unwrap(); 32]
    }

    fn new<const N: usize>(pieces: &mut Pieces, pages: [(u64, u64); N], there: There<'_>) -> [bool; N] {
        pages.map(|(page, at)| pieces.is_new(page, at, digest(page), there))
    }

    #[test]
    fn pages_of_what_is_mapped_without_a_hole_are_one_piece_whenever_they_run() {
        let mut pieces = Pieces::default();
        let there = with(100..=110);
        let run = [(100, 0), (101, 0), (105, LATER), (120, LATER)];
        assert_eq!(new(&mut pieces, run, &there), [true, false, false, true]);
    }

    #[test]
    fn code_that_is_loaded_near_where_some_was_is_another_piece() {
        let mut pieces = Pieces::default();
        assert_eq!(new(&mut pieces, [(100, 0)], &with(100..=100)), [true]);
        // Beside it, and it is gone; with a hole between; where it was, with other bytes.
        assert_eq!(new(&mut pieces, [(101, LATER)], &with(101..=101)), [true]);
        let hole = |va: Gva| (va != address(102)).then(|| (Gpa(va.0), digest(va.0 >> 12)));
        assert_eq!(new(&mut pieces, [(103, 2 * LATER)], &hole), [true]);
        let other = |va: Gva| Some((Gpa(va.0), [0xff; 32]));
        assert_eq!(new(&mut pieces, [(104, 4 * LATER)], &other), [true]);
    }

    #[test]
    fn what_is_gone_when_it_is_spoken_of_is_one_piece_if_it_ran_at_once() {
        let mut pieces = Pieces::default();
        let run = [(100, 0), (101, 5), (103, 9)];
        assert_eq!(new(&mut pieces, run, &|_| None), [true, false, true]);
    }

    #[test]
    fn other_code_at_the_same_place_is_another_piece_unless_all_is_rewritten_at_once() {
        let mut pieces = Pieces::default();
        let there = with(100..=110);
        let run = [(100, 0), (101, 0), (100, LATER), (101, LATER), (100, LATER + 1)];
        assert_eq!(new(&mut pieces, run, &there), [true, false, true, false, false]);
    }

    #[test]
    fn near_pages_is_how_far_a_page_is_looked_for() {
        for (distance, is_new) in [(NEAR_PAGES, false), (NEAR_PAGES + 1, true)] {
            let mut pieces = Pieces::default();
            let run = [(100, 0), (100 + distance, LATER)];
            assert_eq!(new(&mut pieces, run, &with(90..=130)), [true, is_new]);
        }
    }

    #[test]
    fn max_pieces_bounds_what_one_kernel_makes_us_say() {
        let mut pieces = Pieces::default();
        let said = (0..MAX_PIECES as u64 + 10)
            .filter(|n| pieces.is_new(n * 100, 0, [0; 32], &|_| None))
            .count();
        assert_eq!((said, pieces.pages.len()), (MAX_PIECES, MAX_PIECES));
    }
}
