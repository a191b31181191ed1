//! What can be vouched for, interval by interval.

use nephoscope_guest::{Attribution, CodeCoverage, Coverage, Gap, GapReason};
use serde::{Deserialize, Serialize};

/// An interval with one coverage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CoverageInterval {
    /// Start, in nanoseconds since the watch began.
    pub from_ns: u64,
    /// End; the next interval's start.
    pub to_ns: u64,
    /// Of code.
    pub code: CodeCoverage,
    /// Of attribution.
    pub attribution: Attribution,
    /// Why it is not complete; empty if it is.
    pub reason: String,
}

/// All gaps of a watch.
#[derive(Clone, Debug, Default)]
pub struct CoverageLog {
    gaps: Vec<Gap>,
}

/// Gaps kept one by one. Past it, the two nearest of the same reason become one that covers both: coverage is then
/// understated, never overstated.
const MAX_GAPS: usize = 4096;

impl CoverageLog {
    /// Takes a gap.
    pub fn add(&mut self, gap: Gap) {
        // One that goes on where the last one ended is the same.
        if let Some(last) = self.gaps.last_mut()
            && (last.reason, last.left) == (gap.reason, gap.left)
            && (last.from_ns..=last.to_ns).contains(&gap.from_ns)
        {
            last.to_ns = last.to_ns.max(gap.to_ns);
            last.lost = last.lost.saturating_add(gap.lost);
            return;
        }
        if self.gaps.len() >= MAX_GAPS {
            let nearest = self
                .gaps
                .iter_mut()
                .filter(|other| other.reason == gap.reason && other.left == gap.left)
                .min_by_key(|other| gap.from_ns.saturating_sub(other.to_ns));
            if let Some(other) = nearest {
                other.from_ns = other.from_ns.min(gap.from_ns);
                other.to_ns = other.to_ns.max(gap.to_ns);
                other.lost = other.lost.saturating_add(gap.lost);
                return;
            }
        }
        self.gaps.push(gap);
    }

    /// All gaps, in the order in which they came.
    #[must_use]
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// Everything that is missing, by reason.
    pub fn lost(&self) -> impl Iterator<Item = (GapReason, u64)> {
        self.gaps.iter().map(|gap| (gap.reason, gap.lost))
    }

    /// The whole watch, cut into intervals from 0 to `now_ns`. A gap without length is shown as one nanosecond.
    #[must_use]
    pub fn intervals(&self, now_ns: u64) -> Vec<CoverageInterval> {
        let mut cuts: Vec<u64> = vec![0, now_ns];
        for gap in &self.gaps {
            cuts.extend([gap.from_ns.min(now_ns), end(gap).min(now_ns)]);
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut intervals: Vec<CoverageInterval> = Vec::new();
        for (from, to) in cuts.iter().zip(cuts.iter().skip(1)) {
            let (coverage, reasons) = self.at(*from, *to);
            let reason = reasons.join(", ");
            match intervals.last_mut() {
                Some(last)
                    if last.code == coverage.code
                        && last.attribution == coverage.attribution
                        && last.reason == reason =>
                {
                    last.to_ns = *to;
                }
                _ => intervals.push(CoverageInterval {
                    from_ns: *from,
                    to_ns: *to,
                    code: coverage.code,
                    attribution: coverage.attribution,
                    reason,
                }),
            }
        }
        intervals
    }

    /// The coverage of the watch as a whole: that of its worst interval.
    #[must_use]
    pub fn overall(&self) -> Coverage {
        self.gaps.iter().fold(Coverage::COMPLETE, |worst, gap| Coverage {
            code: worst.code.max(gap.left.code),
            attribution: worst.attribution.max(gap.left.attribution),
        })
    }

    fn at(&self, from: u64, to: u64) -> (Coverage, Vec<String>) {
        let mut coverage = Coverage::COMPLETE;
        let mut reasons = Vec::new();
        for gap in self.gaps.iter().filter(|gap| gap.from_ns < to && end(gap) > from) {
            coverage.code = coverage.code.max(gap.left.code);
            coverage.attribution = coverage.attribution.max(gap.left.attribution);
            let word = word(gap.reason);
            if !reasons.contains(&word) {
                reasons.push(word);
            }
        }
        reasons.sort();
        (coverage, reasons)
    }
}

fn end(gap: &Gap) -> u64 {
    gap.to_ns.max(gap.from_ns.saturating_add(1))
}

/// A reason as reports write it.
fn word(reason: GapReason) -> String {
    let debug = format!("{reason:?}");
    let mut out = String::new();
    for (i, c) in debug.chars().enumerate() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(from_ns: u64, to_ns: u64, left: Coverage, reason: GapReason) -> Gap {
        Gap {
            from_ns,
            to_ns,
            left,
            reason,
            lost: 1,
        }
    }

    #[test]
    fn without_gaps_one_interval_is_complete() {
        let intervals = CoverageLog::default().intervals(10);
        assert_eq!(intervals.len(), 1);
        assert_eq!(
            (intervals[0].from_ns, intervals[0].to_ns, intervals[0].code),
            (0, 10, CodeCoverage::Complete)
        );
    }

    #[test]
    fn overlapping_gaps_take_the_worse_and_name_both_reasons() {
        let mut log = CoverageLog::default();
        let sampled = Coverage {
            code: CodeCoverage::Complete,
            attribution: Attribution::Sampled,
        };
        log.add(gap(10, 30, Coverage::BLIND, GapReason::RingFull));
        log.add(gap(20, 40, sampled, GapReason::RootChangedUnseen));
        let intervals = log.intervals(50);
        let shape: Vec<_> = intervals
            .iter()
            .map(|i| (i.from_ns, i.to_ns, i.code, i.attribution))
            .collect();
        use Attribution as A;
        use CodeCoverage as C;
        assert_eq!(
            shape,
            [
                (0, 10, C::Complete, A::Complete),
                (10, 20, C::Blind, A::Blind),
                (20, 30, C::Blind, A::Blind),
                (30, 40, C::Complete, A::Sampled),
                (40, 50, C::Complete, A::Complete),
            ]
        );
        assert_eq!(intervals[2].reason, "ring_full, root_changed_unseen");
    }

    #[test]
    fn max_gaps_joins_gaps_and_never_loses_one() {
        let mut log = CoverageLog::default();
        for i in 0..10_000 {
            log.add(gap(i * 10, i * 10 + 1, Coverage::BLIND, GapReason::RingFull));
        }
        assert!(log.gaps.len() <= MAX_GAPS);
        assert_eq!(log.lost().map(|(_, n)| n).sum::<u64>(), 10_000);
        let blind: u64 = log
            .intervals(100_000)
            .iter()
            .filter(|i| i.code == CodeCoverage::Blind)
            .map(|i| i.to_ns - i.from_ns)
            .sum();
        assert!(blind >= 10_000, "{blind}");
    }

    #[test]
    fn a_gap_that_goes_on_stays_one() {
        let mut log = CoverageLog::default();
        for (from, to) in [(10, 20), (20, 30), (25, 28), (40, 50)] {
            log.add(gap(from, to, Coverage::BLIND, GapReason::Migrated));
        }
        let kept: Vec<_> = log.gaps().iter().map(|g| (g.from_ns, g.to_ns, g.lost)).collect();
        assert_eq!(kept, [(10, 30, 3), (40, 50, 1)]);
    }

    #[test]
    fn a_gap_without_length_is_still_an_interval() {
        let mut log = CoverageLog::default();
        log.add(gap(5, 5, Coverage::BLIND, GapReason::PageUnreadable));
        assert_eq!(log.intervals(10).len(), 3);
    }
}
