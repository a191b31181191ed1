//! What the watch can vouch for, said first and loudly.

use nephoscope_guest::{Attribution, CodeCoverage};
use nephoscope_inventory::{CoverageInterval, CoverageReport, Report};

use crate::text::{Tone, age, count, escape, seconds};

/// How long the watch has lasted.
#[must_use]
pub(crate) fn watched_ns(report: &Report) -> u64 {
    let spaces = report.address_spaces.iter().map(|space| space.last_ns);
    let intervals = report.coverage.intervals.iter().map(|interval| interval.to_ns);
    intervals.chain(spaces).max().unwrap_or(0)
}

/// One line.
#[must_use]
pub(crate) fn headline(coverage: &CoverageReport) -> (Tone, String) {
    if is_complete(coverage.code, coverage.attribution) {
        let line = "coverage complete: every executed page was seen, and who executed it";
        return (Tone::Good, line.to_owned());
    }
    let missing: u64 = incomplete(coverage).map(length).fold(0, u64::saturating_add);
    let tone = if coverage.code == CodeCoverage::Complete {
        Tone::Warn
    } else {
        Tone::Bad
    };
    let line = format!(
        "COVERAGE NOT COMPLETE: {}, for {} in all",
        words(coverage.code, coverage.attribution),
        span(missing)
    );
    (tone, line)
}

/// The longest intervals that are not complete, at most so many, in their order; and a word on the rest.
#[must_use]
pub(crate) fn gaps(coverage: &CoverageReport, most: usize) -> Vec<String> {
    let mut longest: Vec<&CoverageInterval> = incomplete(coverage).collect();
    let all = longest.len();
    longest.sort_by_key(|interval| std::cmp::Reverse(length(interval)));
    longest.truncate(most);
    longest.sort_by_key(|interval| interval.from_ns);
    let mut lines: Vec<String> = longest.into_iter().map(gap).collect();
    if all > lines.len() {
        let rest = u64::try_from(all - lines.len()).unwrap_or(u64::MAX);
        lines.push(format!("and {} shorter: --json has all of them", count(rest)));
    }
    lines
}

fn gap(interval: &CoverageInterval) -> String {
    format!(
        "from {} for {}: {}: {}",
        seconds(interval.from_ns),
        span(length(interval)),
        words(interval.code, interval.attribution),
        reasons(&interval.reason)
    )
}

fn incomplete(coverage: &CoverageReport) -> impl Iterator<Item = &CoverageInterval> {
    let all = coverage.intervals.iter();
    all.filter(|interval| !is_complete(interval.code, interval.attribution))
}

fn length(interval: &CoverageInterval) -> u64 {
    interval.to_ns.saturating_sub(interval.from_ns)
}

fn is_complete(code: CodeCoverage, attribution: Attribution) -> bool {
    code == CodeCoverage::Complete && attribution == Attribution::Complete
}

fn span(ns: u64) -> String {
    match ns {
        0..1_000_000 => "less than 1 ms".to_owned(),
        1_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => age(ns),
    }
}

fn words(code: CodeCoverage, attribution: Attribution) -> String {
    let code = match code {
        CodeCoverage::Complete => "code complete",
        CodeCoverage::Sampled => "code sampled",
        CodeCoverage::Blind => "code blind",
    };
    let attribution = match attribution {
        Attribution::Complete => "attribution complete",
        Attribution::Sampled => "attribution sampled",
        Attribution::Blind => "attribution blind",
    };
    format!("{code}, {attribution}")
}

/// Reasons as reports write them, explained.
fn reasons(words: &str) -> String {
    let explained: Vec<String> = words.split(", ").map(|word| explain(word).into()).collect();
    explained.join("; ")
}

fn explain(word: &str) -> std::borrow::Cow<'_, str> {
    let known = match word {
        "detached" => "no monitor was attached",
        "ring_full" => "the monitor was too slow, and the plugin dropped events",
        "marks_exhausted" => "too many address spaces for the plugin's marks",
        "root_changed_unseen" => "a page-table root changed without an event",
        "page_unreadable" => "a code page could not be read",
        "frame_unknown" => "a code page's place in memory is not known",
        "driver_fault" => "the plugin failed and went on",
        "driver_lost" => "QEMU ended without a word",
        "monitor_overrun" => "the monitor did not keep up",
        "memory_unreadable" => "guest memory cannot be read",
        "looked_at_times" => "memory was looked at from time to time",
        "attribution_sampled" => "who runs a page is sampled",
        "address_spaces_missed" => "some that ran briefly were seen by nobody",
        "device_writes_unseen" => "devices may write to code unseen",
        "nested_guest_unseen" => "guests inside the guest are not seen",
        "" => "no reason given",
        other => return escape(other),
    };
    known.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(from_ns: u64, to_ns: u64, code: CodeCoverage, reason: &str) -> CoverageInterval {
        CoverageInterval {
            from_ns,
            to_ns,
            code,
            attribution: Attribution::Complete,
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn what_is_missing_is_said_with_its_reason_and_nothing_is_left_out_silently() {
        let second = 1_000_000_000;
        let coverage = CoverageReport {
            code: CodeCoverage::Blind,
            attribution: Attribution::Complete,
            intervals: vec![
                interval(0, 12 * second, CodeCoverage::Blind, "detached"),
                interval(12 * second, 20 * second, CodeCoverage::Complete, ""),
                interval(
                    20 * second,
                    20 * second + 1,
                    CodeCoverage::Blind,
                    "ring_full, x\x07",
                ),
            ],
            files: None,
        };
        let (tone, line) = headline(&coverage);
        assert_eq!(tone, Tone::Bad);
        assert_eq!(
            line,
            "COVERAGE NOT COMPLETE: code blind, attribution complete, for 12s in all"
        );
        let lines = gaps(&coverage, 1);
        assert_eq!(
            lines,
            [
                "from 0.000 s for 12s: code blind, attribution complete: no monitor was attached",
                "and 1 shorter: --json has all of them"
            ]
        );
        assert!(gaps(&coverage, 2)[1].ends_with("dropped events; x\\u{7}"));
    }

    #[test]
    fn a_complete_watch_is_said_to_be_one() {
        let coverage = CoverageReport {
            code: CodeCoverage::Complete,
            attribution: Attribution::Complete,
            intervals: vec![interval(0, 5, CodeCoverage::Complete, "")],
            files: None,
        };
        let (tone, line) = headline(&coverage);
        assert!(
            tone == Tone::Good && line.starts_with("coverage complete"),
            "{line}"
        );
        assert_eq!(gaps(&coverage, 4), Vec::<String>::new());
    }

    #[test]
    fn every_reason_of_a_gap_is_explained() {
        // The words of `nephoscope_guest::GapReason`, as reports write them.
        let mut log = nephoscope_inventory::CoverageLog::default();
        use nephoscope_guest::{Coverage, Gap, GapReason as R};
        let all = [
            R::Detached,
            R::RingFull,
            R::MarksExhausted,
            R::RootChangedUnseen,
            R::PageUnreadable,
            R::FrameUnknown,
            R::DriverFault,
            R::DriverLost,
            R::MonitorOverrun,
            R::MemoryUnreadable,
            R::AttributionSampled,
            R::AddressSpacesMissed,
            R::DeviceWritesUnseen,
            R::NestedGuestUnseen,
        ];
        for reason in all {
            log.add(Gap {
                from_ns: 0,
                to_ns: 1,
                left: Coverage::BLIND,
                reason,
                lost: 0,
            });
        }
        let reason = &log.intervals(1)[0].reason;
        assert_eq!(reason.split(", ").count(), all.len());
        assert!(!reasons(reason).contains('_'), "{}", reasons(reason));
    }
}
