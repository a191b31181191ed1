//! Does a captured page hold what a part may hold there?
//!
//! ```text
//!  for each site of the part that the page shows:  find a value that fits what is shown
//!      fixed fields: computed and compared;  unknown fields: solved once, then compared everywhere else
//!  every byte outside sites: as in the part
//!  whatever is left is a difference
//! ```
//!
//! No value fits by likeness: a byte is equal, or explained by a listed value, or a difference. What a page needs
//! to be explained is learnt into the [`Solver`] by the caller, and only from a page that was found equal.

mod check;
mod field;

use nephoscope_guest::PAGE_SIZE;

use crate::object::Part;
use crate::site::SiteKind;

/// What the comparison may ask of the world.
pub trait Env {
    /// Where a symbol of the kernel or of another module is in this guest.
    fn symbol(&self, name: &str) -> Option<u64>;
    /// Whether a function of an identified kernel or module begins at this address.
    fn is_function(&self, va: u64) -> bool;

    /// Whether it is one that a paravirt slot can hold ([`crate::PARAVIRT`]).
    fn is_paravirt(&self, va: u64) -> bool;

    /// Whether an identified module exports this symbol as data, without its place being known: then all fields of the
    /// instance must agree on one. Never true of code.
    fn is_data(&self, name: &str) -> bool {
        let _ = name;
        false
    }
}

/// An environment that knows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl Env for Nothing {
    fn symbol(&self, _name: &str) -> Option<u64> {
        None
    }

    fn is_function(&self, _va: u64) -> bool {
        false
    }

    fn is_paravirt(&self, _va: u64) -> bool {
        false
    }
}

/// The unknowns of one instance of an object (one boot's kernel, one loaded module), as far as its pages have told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Solver {
    /// Sorted by unknown.
    known: Vec<(u16, u64)>,
}

/// More unknowns than any real module has sections and symbols: stops a hostile one.
pub const MAX_UNKNOWNS: usize = 16_384;

impl Solver {
    /// What an unknown was found to be.
    #[must_use]
    pub fn get(&self, unknown: u16) -> Option<u64> {
        let at = self.known.binary_search_by_key(&unknown, |(u, _)| *u).ok()?;
        self.known.get(at).map(|(_, value)| *value)
    }

    /// Sets an unknown that is known from elsewhere (a part's own address, the kernel's slide). False if it is
    /// already known to be something else, or there are too many.
    pub fn set(&mut self, unknown: u16, value: u64) -> bool {
        match self.known.binary_search_by_key(&unknown, |(u, _)| *u) {
            Ok(at) => self.known.get(at).is_some_and(|(_, known)| *known == value),
            Err(_) if self.known.len() >= MAX_UNKNOWNS => false,
            Err(at) => {
                self.known.insert(at, (unknown, value));
                true
            }
        }
    }
}

/// A site whose bytes differ from the part's, legally.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SiteUse {
    /// Who rewrites it.
    pub kind: SiteKind,
    /// Where in the page the shown part of it begins.
    pub offset: u16,
    /// How many of its bytes the page shows.
    pub len: u16,
}

/// A byte that nothing explains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Where in the page.
    pub offset: u16,
    /// In the part, as linked.
    pub before: u8,
    /// In the page.
    pub after: u8,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Comparison {
    /// Bytes that are as in the part, in sites or not.
    pub equal_bytes: usize,
    /// Sites that differ legally.
    pub uses: Vec<SiteUse>,
    /// Everything else that differs.
    pub differences: Vec<Difference>,
    /// Sites that would be legal if an address were known that nobody has told yet. Not equal, but worth another try
    /// when the solver or the environment knows more.
    pub undecided: Vec<SiteUse>,
    /// Bytes of the page that the part does not reach.
    pub outside: usize,
    /// Fields that agree with where other pages said that a section is: chance puts a strange page's there hardly ever.
    pub confirmed: usize,
    /// What the page says of unknowns, to be kept if it is equal: see [`Comparison::learn`].
    pub learnt: Vec<(u16, u64)>,
}

impl Comparison {
    /// Whether every byte that the part reaches is explained.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty() && self.undecided.is_empty() && self.outside < PAGE_SIZE
    }

    /// Keeps what an equal page told; does nothing for any other.
    pub fn learn(&self, solver: &mut Solver) {
        if self.is_equal() {
            for (unknown, value) in &self.learnt {
                solver.set(*unknown, *value);
            }
        }
    }
}

/// Compares a page with the part's bytes from `at` on. `va`: where the page is mapped, if that is where the part runs
/// (not for a kernel that still runs identity-mapped). A negative `at`: the page begins before the part.
#[must_use]
pub fn compare(
    part: &Part,
    at: i64,
    va: Option<u64>,
    page: &[u8; PAGE_SIZE],
    solver: &Solver,
    env: &dyn Env,
) -> Comparison {
    let mut check = check::Check::new(part, at, va, page, solver, env);
    check.sites();
    check.finish()
}

/// The same for the given bytes of the page alone: nothing else of it is looked at, or learnt from.
#[must_use]
pub fn compare_ranges(
    part: &Part,
    at: i64,
    va: Option<u64>,
    page: &[u8; PAGE_SIZE],
    ranges: &[(u16, u16)],
    solver: &Solver,
    env: &dyn Env,
) -> Comparison {
    let mut check = check::Check::new(part, at, va, page, solver, env).only(ranges);
    check.sites();
    check.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_unknowns_stops_a_module_with_more_than_any_has() {
        let mut solver = Solver::default();
        let numbers = 0..u16::try_from(MAX_UNKNOWNS).unwrap();
        assert!(numbers.clone().all(|number| solver.set(number, 7)));
        assert!(!solver.set(numbers.end, 7) && solver.get(numbers.end).is_none());
        assert!(solver.set(0, 7) && !solver.set(0, 8), "what is known stays");
    }
}
