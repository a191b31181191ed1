//! Reports to lay out: a realistic one, and any.

use nephoscope_finding::{Finding, Severity};
use nephoscope_guest::{Attribution, CodeCoverage, PageId};
use nephoscope_inventory::{
    CandidateReport, CoverageInterval, ModifiedReport, ModuleReport, PageCounts, ProgramReport, Report,
    SpaceId, SpaceKind, SpaceReport, SummaryReport, UnknownReport,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// A web server with a patched worker and a stranger, watched with a gap.
pub(crate) fn canned() -> Report {
    serde_json::from_str(include_str!("../../tests/canned/report.json")).unwrap()
}

/// Text as a guest might choose it.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z/.-]{0,120}",
        "[\u{1b}\u{202e}\u{0}\u{7f}\u{9b}\n\r\u{4e00}a ]{0,40}",
    ]
}

fn candidates() -> impl Strategy<Value = Vec<CandidateReport>> {
    let one = (option::of(text()), option::of(text()), option::of(text()));
    let one = one.prop_map(|(package, source, version)| CandidateReport {
        package,
        source,
        version,
    });
    vec(one, 0..4)
}

fn module() -> impl Strategy<Value = ModuleReport> {
    let parts = (text(), candidates(), option::of(text()), any::<u64>(), text());
    parts.prop_map(
        |(path, candidates, build_id, pages_executed, verdict)| ModuleReport {
            path,
            candidates,
            left_out: 0,
            build_id,
            pages_executed,
            pages_mapped: 0,
            verdict,
        },
    )
}

fn pages() -> impl Strategy<Value = (Vec<ModifiedReport>, Vec<UnknownReport>)> {
    let modified = text().prop_map(|path| ModifiedReport {
        page: PageId(1),
        path,
        va: None,
        gpa: None,
        generation: 0,
        differences: Vec::new(),
    });
    let unknown = text().prop_map(|origin| UnknownReport {
        page: PageId(1),
        va: None,
        gpa: None,
        generation: 0,
        digest: origin.clone(),
        origin,
    });
    (vec(modified, 0..3), vec(unknown, 0..3))
}

fn space() -> impl Strategy<Value = SpaceReport> {
    let kind = prop_oneof![
        Just(SpaceKind::User),
        Just(SpaceKind::Kernel),
        Just(SpaceKind::Firmware)
    ];
    let times = (any::<u64>(), any::<u64>(), option::of(any::<u64>()));
    let program = option::of((text(), candidates()));
    let parts = (any::<u32>(), kind, times, program, vec(module(), 0..3), pages());
    parts.prop_map(
        |(id, kind, (first_ns, last_ns, ended), program, modules, (modified, unknown))| SpaceReport {
            id: SpaceId(id),
            root: None,
            kind,
            first_ns,
            last_ns,
            ended,
            program: program.map(|(path, candidates)| ProgramReport {
                path,
                candidates,
                left_out: 0,
            }),
            modules,
            modified,
            unknown,
            unlisted: None,
        },
    )
}

fn interval() -> impl Strategy<Value = CoverageInterval> {
    let code = prop_oneof![
        Just(CodeCoverage::Complete),
        Just(CodeCoverage::Sampled),
        Just(CodeCoverage::Blind)
    ];
    (any::<u64>(), any::<u64>(), code, text()).prop_map(|(from_ns, to_ns, code, reason)| CoverageInterval {
        from_ns,
        to_ns,
        code,
        attribution: Attribution::Sampled,
        reason,
    })
}

fn finding() -> impl Strategy<Value = Finding> {
    (any::<u64>(), any::<u64>(), text(), option::of(any::<u32>())).prop_map(
        |(id, at_ns, summary, address_space)| Finding {
            found_ns: None,
            id,
            rule: summary.clone(),
            severity: Severity::High,
            address_space,
            at_ns,
            summary,
            evidence: serde_json::Value::Null,
        },
    )
}

/// What is left of an address space that ended long ago.
fn summarised(space: &SpaceReport) -> SummaryReport {
    SummaryReport {
        kind: space.kind,
        program: space.program.clone(),
        count: space.first_ns,
        first_ns: space.first_ns,
        last_ns: space.last_ns,
        pages: PageCounts {
            captured: space.last_ns,
            identified: space.last_ns,
            ..PageCounts::default()
        },
        modules: Vec::new(),
    }
}

/// Any report: numbers and texts as a hostile guest, package or peer might have them.
pub(crate) fn any_report() -> impl Strategy<Value = Report> {
    let parts = (
        text(),
        vec(space(), 0..6),
        vec(interval(), 0..8),
        vec(finding(), 0..4),
    );
    parts.prop_map(|(name, address_spaces, intervals, findings)| {
        let mut report = canned();
        report.vm.vmm.clone_from(&name);
        report.vm.name = name;
        report.coverage.intervals = intervals;
        report.address_spaces = address_spaces;
        report.findings = findings;
        report.ended_summary = report.address_spaces.iter().map(summarised).collect();
        report
    })
}
