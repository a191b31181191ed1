//! Bytes of known pages that began to run, until they are told.
//!
//! A program that begins translates its pages block by block, and one block mostly begins where another one ended. Told
//! one by one, these were most of all frames; told every few milliseconds, they are few and longer.

/// As many are kept: a vCPU that translates faster tells them itself.
const MAX_PENDING: usize = 512;
/// How many of the youngest are looked at for one that goes on.
const NEAR: usize = 8;

/// A run of bytes of a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Run {
    /// The page's number on the wire.
    pub(crate) page: u64,
    /// First byte.
    pub(crate) start: u16,
    /// One past the last.
    pub(crate) end: u16,
}

/// Those of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    runs: Vec<Run>,
}

impl Pending {
    /// These bytes began to run. `false`: there is no room for more, they have to be told.
    pub(crate) fn add(&mut self, run: Run) -> bool {
        for known in self.runs.iter_mut().rev().take(NEAR) {
            if touch(*known, run) {
                *known = joined(*known, run);
                return true;
            }
        }
        self.runs.push(run);
        self.runs.len() < MAX_PENDING
    }

    /// Gives each run to `tell`, those of a page together and in order, and keeps those that it could not tell.
    pub(crate) fn tell(&mut self, mut tell: impl FnMut(Run) -> bool) {
        self.runs.sort_unstable();
        let mut runs = std::mem::take(&mut self.runs).into_iter();
        let mut next = runs.next();
        while let Some(mut run) = next {
            next = runs.next();
            while let Some(more) = next.filter(|more| touch(run, *more)) {
                run = joined(run, more);
                next = runs.next();
            }
            if !tell(run) {
                self.runs.push(run);
            }
        }
    }

    /// Nobody is there to be told.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

/// Whether two are one run.
fn touch(one: Run, other: Run) -> bool {
    one.page == other.page && one.start <= other.end && other.start <= one.end
}

fn joined(one: Run, other: Run) -> Run {
    Run {
        page: one.page,
        start: one.start.min(other.start),
        end: one.end.max(other.end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(page: u64, start: u16, end: u16) -> Run {
        Run { page, start, end }
    }

    fn told(pending: &mut Pending) -> Vec<Run> {
        let mut all = Vec::new();
        pending.tell(|run| {
            all.push(run);
            true
        });
        all
    }

    #[test]
    fn the_bytes_told_are_those_that_were_added_in_as_few_runs_as_there_can_be() {
        let mut pending = Pending::default();
        let mut naive = std::collections::BTreeSet::new();
        let mut state = 1_u32;
        for _ in 0..300 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (page, start) = (u64::from(state >> 30), u16::try_from(state >> 8 & 2047).unwrap());
            let end = start + 1 + u16::try_from(state >> 20 & 15).unwrap();
            assert!(pending.add(run(page, start, end)));
            naive.extend((start..end).map(|at| (page, at)));
        }
        let all = told(&mut pending);
        let bytes: Vec<_> = all
            .iter()
            .flat_map(|run| (run.start..run.end).map(|at| (run.page, at)))
            .collect();
        assert_eq!(bytes, naive.into_iter().collect::<Vec<_>>());
        assert!(all.windows(2).all(|pair| !touch(pair[0], pair[1])));
        assert!(pending.is_empty());
    }

    #[test]
    fn what_cannot_be_told_stays() {
        let mut pending = Pending::default();
        for page in 0..3 {
            pending.add(run(page, 0, 8));
        }
        pending.tell(|run| run.page == 1);
        assert_eq!(told(&mut pending), [run(0, 0, 8), run(2, 0, 8)]);
    }

    #[test]
    fn max_pending_bounds_what_waits_to_be_told() {
        let mut pending = Pending::default();
        let mut full = 0;
        for page in 0..MAX_PENDING as u64 + 5 {
            if !pending.add(run(page, 0, 8)) {
                full += 1;
                assert_eq!(told(&mut pending).len(), MAX_PENDING);
            }
        }
        assert_eq!(full, 1);
        assert_eq!(told(&mut pending).len(), 5);
    }
}
