//! What is written down and read again is the same watch, whatever catalog the second one has.

use std::path::Path;

use nephoscope_catalog::Adder;
use nephoscope_guest::{
    CodeCaptured, Coverage, Event, Executed, GapReason, Gva, PAGE_SIZE, PageBytes, PageId, Privilege, Root,
    Stamped,
};
use nephoscope_inventory::{Report, VmReport};

use super::*;

/// Programs that every machine has.
const SHELL: &str = "/bin/sh";
const OTHER: &str = "/usr/bin/env";

fn catalog(folder: &Path, files: &[&str]) -> Arc<Catalog> {
    for file in files {
        let mut adder = Adder::new(folder).unwrap();
        adder.add(&[std::fs::canonicalize(file).unwrap()]).unwrap();
        adder.commit().unwrap();
    }
    Arc::new(Catalog::open(folder).unwrap())
}

/// The first page of a program's code.
fn code(file: &str) -> PageBytes {
    let bytes = std::fs::read(file).unwrap();
    // Debian's linker puts the code on its own pages, of which the second is full.
    PageBytes::from_slice(&bytes[2 * PAGE_SIZE..3 * PAGE_SIZE]).unwrap()
}

fn captured(page: u64, bytes: PageBytes, replay: bool) -> Event {
    Event::CodeCaptured(Box::new(CodeCaptured {
        page: PageId(page),
        gpa: None,
        frame: 0,
        generation: 0,
        vcpu: 0,
        root: Root(0x1000),
        va: Gva(0x40_0000 + page * PAGE_SIZE as u64),
        privilege: Privilege::User,
        paging: true,
        bits: 64,
        start: 0,
        end: 16,
        replay,
        bytes,
    }))
}

fn take(session: &mut Session, at_ns: u64, event: Event) {
    session.take(Stamped { at_ns, event }, &|_| None, &mut []);
}

fn ran(page: u64) -> Event {
    Event::Executed(Executed {
        page: PageId(page),
        root: Root(0x1000),
        vcpu: 0,
        incarnation: 1,
    })
}

fn gap(from_ns: u64, to_ns: u64) -> Gap {
    Gap {
        from_ns,
        to_ns,
        left: Coverage::BLIND,
        reason: GapReason::RingFull,
        lost: 3,
    }
}

/// A watch that saw a page of the shell, one of nobody and a gap, and had written all down before the last two pages.
fn watched(catalog: Arc<Catalog>) -> (Session, Vec<String>) {
    let mut session = Session::new(VmReport::default(), catalog);
    let mut lines = Vec::new();
    let mut write = |session: &mut Session| {
        let entries = session.journal();
        lines.extend(entries.iter().map(|entry| serde_json::to_string(entry).unwrap()));
    };
    take(&mut session, 10, captured(1, code(SHELL), false));
    take(&mut session, 11, ran(1));
    write(&mut session);
    take(&mut session, 20, captured(2, PageBytes::zeroed(), false));
    take(&mut session, 21, ran(2));
    take(&mut session, 30, Event::Gap(gap(25, 29)));
    write(&mut session);
    (session, lines)
}

fn restored(catalog: Arc<Catalog>, lines: &[String]) -> Session {
    let mut session = Session::new(VmReport::default(), catalog);
    session.restore(lines.iter().map(|line| serde_json::from_str(line).unwrap()));
    session.at(30);
    session
}

fn about(report: &Report) -> (String, String, String) {
    (
        format!("{:?}", report.address_spaces),
        format!("{:?} {:?}", report.coverage, report.pages),
        format!("{:?}", report.findings),
    )
}

#[test]
fn a_watch_that_goes_on_with_another_catalog_reports_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let (mut first, lines) = watched(catalog(&one, &[SHELL]));
    let report = first.report();
    assert_eq!(report.pages.user.identified, 1, "{:?}", report.pages);
    assert_eq!(report.findings.len(), 1);
    // The shell is the second file of this one.
    let mut second = restored(catalog(&two, &[OTHER, SHELL]), &lines);
    assert_eq!(about(&second.report()), about(&report));
    take(&mut second, 40, captured(2, PageBytes::zeroed(), true));
    take(&mut second, 41, ran(2));
    assert_eq!(second.findings().len(), 1, "what was said is not said again");
    assert!(second.kept_bytes(PageId(2)).is_some(), "its bytes are here again");
}

#[test]
fn a_file_that_the_catalog_no_longer_has_is_named_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let (_, lines) = watched(catalog(&one, &[SHELL]));
    let mut second = restored(catalog(&two, &[OTHER]), &lines);
    let report = second.report();
    assert_eq!(report.pages.user.unknown, 2, "{:?}", report.pages);
    let origin = &report.address_spaces[0].unknown[0].origin;
    assert!(origin.contains("no longer has"), "{origin}");
}

#[test]
fn what_is_written_anew_is_all_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = catalog(folder.path(), &[SHELL]);
    let (mut first, lines) = watched(catalog.clone());
    let anew: Vec<String> = first
        .journal_anew()
        .iter()
        .map(|entry| serde_json::to_string(entry).unwrap())
        .collect();
    assert!(first.journal().is_empty(), "all was written");
    let (mut a, mut b) = (restored(catalog.clone(), &lines), restored(catalog, &anew));
    assert_eq!(about(&a.report()), about(&b.report()));
}
