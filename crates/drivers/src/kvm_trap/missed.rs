//! How many address spaces came and went between two looks.
//!
//! Those that were there for one look only and those that were there for two tell how many there must have been that were there
//! for none: at least `f₁(f₁ − 1) / 2(f₂ + 1)`, the lower bound of A. Chao for species that no sample has ("Nonparametric estimation
//! of the number of classes in a population", 1984; this form without bias, and without a division by zero, 1987). Address spaces that
//! were the first to run a page do not count: they are told of whether anybody looks or not.

use std::time::{Duration, Instant};

use nephoscope_guest::{Attribution, CodeCoverage, Coverage, Gap, GapReason};

/// Looks are taken together for so long: few say little.
const EVERY: Duration = Duration::from_secs(1);

/// Address spaces that ended, by how often they were seen.
#[derive(Debug)]
pub(super) struct Missed {
    once: u64,
    twice: u64,
    began: Instant,
}

impl Default for Missed {
    fn default() -> Self {
        Self {
            once: 0,
            twice: 0,
            began: Instant::now(),
        }
    }
}

impl Missed {
    /// One that was seen at so many looks has ended.
    pub(super) fn ended(&mut self, looks: u32) {
        match looks {
            1 => self.once += 1,
            2 => self.twice += 1,
            _ => {}
        }
    }

    /// What has to be said of the time since this was asked last, if it is time for that.
    pub(super) fn gap(&mut self, now_ns: u64, last: bool) -> Option<Gap> {
        let took = self.began.elapsed();
        if !last && took < EVERY {
            return None;
        }
        let lost = at_least(self.once, self.twice);
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let from_ns = now_ns.saturating_sub(took_ns);
        *self = Self::default();
        (lost > 0).then_some(Gap {
            from_ns,
            to_ns: now_ns,
            left: Coverage {
                code: CodeCoverage::Complete,
                attribution: Attribution::Sampled,
            },
            reason: GapReason::AddressSpacesMissed,
            lost,
        })
    }
}

/// As many were seen never, at least, if so many were seen once and twice.
fn at_least(once: u64, twice: u64) -> u64 {
    let pairs = once.saturating_mul(once.saturating_sub(1));
    pairs / twice.saturating_add(1).saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_never_seen_is_estimated_from_who_was_seen_once_and_twice() {
        assert_eq!(at_least(0, 0), 0);
        assert_eq!(at_least(1, 0), 0, "one says nothing");
        assert_eq!(at_least(3, 20), 0, "most were seen again");
        // A thousand that live for as long as it is between two looks, as chance will have it: e⁻¹ of them are seen never and once,
        // half as many twice.
        assert_eq!(at_least(368, 184), 365);
        assert_eq!(at_least(u64::MAX, 0), u64::MAX / 2);
    }

    #[test]
    fn what_was_missed_is_told_once() {
        let mut missed = Missed::default();
        for looks in [1, 1, 1, 2, 7, 0] {
            missed.ended(looks);
        }
        assert_eq!(missed.gap(9, false), None, "few looks say little");
        let gap = missed.gap(9, true).unwrap();
        assert_eq!((gap.from_ns, gap.to_ns, gap.lost), (0, 9, 1));
        assert_eq!(missed.gap(12, true), None);
    }
}
