use nephoscope_catalog::ObjectId;
use nephoscope_guest::{FileHeld, FileSeen, Gpa, PAGE_SIZE, PageId, Privilege};
use nephoscope_inventory::{CandidateReport, Identified, ObjectFacts, Place, Verdict};
use nephoscope_recipe::ObjectKind;

use super::*;
use crate::fixture::run;

/// Knows one program, with this path.
struct Program(&'static str);

impl ObjectFacts for Program {
    fn kind(&self, _: ObjectId) -> Option<ObjectKind> {
        Some(ObjectKind::Executable)
    }
}

impl Names for Program {
    fn placements(&self, _: ObjectId) -> Vec<(String, CandidateReport)> {
        vec![(
            self.0.to_owned(),
            CandidateReport {
                package: None,
                source: None,
                version: None,
            },
        )]
    }

    fn build_id(&self, _: ObjectId) -> Option<Vec<u8>> {
        None
    }
}

const PHP: Program = Program("/usr/bin/php8.2");

/// A page of the program that [`Program`] knows.
fn identified() -> Verdict {
    let place = Place {
        object: ObjectId(1),
        part: None,
        link: 0,
    };
    Verdict::Identified(Identified {
        places: vec![place],
        ..Identified::default()
    })
}

/// A guest in which the program runs that [`Program`] knows: it is the address space 1.
fn guest() -> Inventory {
    let mut inventory = Inventory::default();
    run(&mut inventory, 1, Privilege::User, identified());
    inventory
}

/// It reads a file, of which somebody says this.
fn read(inventory: &mut Inventory, inode: u64, digest: u8, verdict: FileVerdict) -> Change {
    let about = FileSeen {
        disk: 0,
        partition: 1,
        inode,
        generation: 7,
        bytes: PAGE_SIZE as u64,
        path: format!("/srv/{inode}.php").into_bytes(),
    };
    inventory.files.seen(1, about);
    inventory.files.held(&FileHeld {
        file: 1,
        at: 0,
        gpa: Gpa(0x9000),
        len: 4096,
        written: false,
        digest: [digest; 32],
    });
    let space = inventory.spaces().next().unwrap().id;
    let piece = inventory
        .files
        .accessed(5, Gpa(0x9000), Some([digest; 32]), Some(space))
        .unwrap();
    inventory.files.judged(piece.file, verdict);
    Change::FileJudged { file: piece.file }
}

fn said(rule: &mut InterpretedFile, change: &Change, inventory: &Inventory, names: &Program) -> Vec<Draft> {
    let mut out = Vec::new();
    rule.judge(change, inventory, names, &mut out);
    out
}

#[test]
fn an_interpreter_that_reads_an_unknown_file_is_spoken_of_once_for_what_it_holds() {
    let (mut rule, mut inventory) = (InterpretedFile::default(), guest());
    let change = read(&mut inventory, 12, 1, FileVerdict::Unknown);
    let [draft] = &said(&mut rule, &change, &inventory, &PHP)[..] else {
        panic!()
    };
    assert_eq!(
        draft.summary,
        "/usr/bin/php8.2 reads /srv/12.php, which is no catalogued file"
    );
    assert_eq!(
        (draft.rule, draft.severity, draft.at_ns),
        (RULE, Severity::Medium, 5)
    );
    assert_eq!(said(&mut rule, &change, &inventory, &PHP), []);
    let change = read(&mut inventory, 12, 2, FileVerdict::Unknown);
    assert_eq!(
        said(&mut rule, &change, &inventory, &PHP).len(),
        1,
        "it was rewritten"
    );
    let change = read(&mut inventory, 13, 2, FileVerdict::Unknown);
    assert_eq!(said(&mut rule, &change, &inventory, &PHP).len(), 1, "another one");
}

#[test]
fn known_files_other_programs_and_allowed_places_are_not_spoken_of() {
    let (mut rule, mut inventory) = (InterpretedFile::default(), guest());
    let change = read(&mut inventory, 12, 1, FileVerdict::Known(vec![ObjectId(1)]));
    assert_eq!(said(&mut rule, &change, &inventory, &PHP), []);
    let change = read(&mut inventory, 12, 1, FileVerdict::Unknown);
    assert_eq!(
        said(&mut rule, &change, &inventory, &Program("/usr/bin/md5sum")),
        []
    );
    rule.set_rules(FileRules::new(None, "/srv/*.php").unwrap());
    assert_eq!(said(&mut rule, &change, &inventory, &PHP), []);
    rule.set_rules(FileRules::new(Some("/opt/*"), "").unwrap());
    assert_eq!(said(&mut rule, &change, &inventory, &PHP), []);
    assert_eq!(rule.waiting.len(), 0);
}

#[test]
fn a_file_that_was_put_where_all_is_allowed_after_it_was_read_is_spoken_of() {
    let (mut rule, mut inventory) = (InterpretedFile::default(), guest());
    rule.set_rules(FileRules::new(None, "/cache/*").unwrap());
    let change = read(&mut inventory, 12, 1, FileVerdict::Unknown);
    let Change::FileJudged { file } = change else {
        panic!()
    };
    let about = inventory.files.get(file).unwrap().about.clone();
    let path = b"/cache/12.php".to_vec();
    inventory.files.seen(1, FileSeen { path, ..about });
    assert_eq!(said(&mut rule, &change, &inventory, &PHP).len(), 1);
}

#[test]
fn a_modified_file_is_spoken_of_with_what_it_is_like() {
    let (mut rule, mut inventory) = (InterpretedFile::default(), guest());
    let line = nephoscope_inventory::LineChanged {
        number: 3,
        added: true,
        text: "evil();".to_owned(),
    };
    let lines = nephoscope_inventory::LinesChanged {
        added: 1,
        removed: 0,
        first: vec![line],
    };
    let modified = FileVerdict::Modified(ModifiedFile {
        nearest: vec![ObjectId(1)],
        known: 0,
        lines: Some(lines),
    });
    let change = read(&mut inventory, 12, 1, modified);
    let [draft] = &said(&mut rule, &change, &inventory, &PHP)[..] else {
        panic!()
    };
    assert_eq!(
        draft.summary,
        "/usr/bin/php8.2 reads /srv/12.php, a modified copy of /usr/bin/php8.2: 1 line(s) more and 0 less"
    );
    assert_eq!(draft.severity, Severity::High);
    assert_eq!(draft.evidence["difference"]["lines"][0]["text"], "evil();");
    assert_eq!(draft.evidence["nearest"]["path"], "/usr/bin/php8.2");
}

/// Object 1 is the program; 2 and 3 are version 1.9 and 1.10 of whatever file is asked for.
struct Versions;

impl ObjectFacts for Versions {
    fn kind(&self, _: ObjectId) -> Option<ObjectKind> {
        Some(ObjectKind::Executable)
    }
}

impl Names for Versions {
    fn placements(&self, object: ObjectId) -> Vec<(String, CandidateReport)> {
        let of = |version: &str| CandidateReport {
            package: Some("app".into()),
            source: None,
            version: Some(version.into()),
        };
        let paths = || (10..20).map(|inode| format!("/srv/{inode}.php"));
        match object.0 {
            1 => PHP.placements(object),
            2 => paths().map(|path| (path, of("1.9-1"))).collect(),
            _ => paths().map(|path| (path, of("1.10-1"))).collect(),
        }
    }

    fn build_id(&self, _: ObjectId) -> Option<Vec<u8>> {
        None
    }
}

#[test]
fn a_known_file_that_is_older_than_the_rest_of_its_package_is_spoken_of() {
    let (mut rule, mut inventory, mut out) = (InterpretedFile::default(), guest(), Vec::new());
    let mut known = |rule: &mut InterpretedFile, inode, objects: &[u32], out: &mut Vec<Draft>| {
        let objects = objects.iter().map(|object| ObjectId(*object)).collect();
        let digest = u8::try_from(inode).unwrap();
        let change = read(&mut inventory, inode, digest, FileVerdict::Known(objects));
        rule.judge(&change, &inventory, &Versions, out);
    };
    known(&mut rule, 10, &[2], &mut out);
    assert_eq!(out, [], "nothing else of its package was read");
    known(&mut rule, 11, &[3], &mut out);
    let [draft] = &out[..] else { panic!("{out:?}") };
    assert_eq!(
        draft.summary,
        "/usr/bin/php8.2 reads /srv/10.php, as app 1.9-1 has it, and 1 file(s) of that package are of 1.10-1"
    );
    assert_eq!(draft.evidence["outdated"]["others"], "1.10-1");
    known(&mut rule, 12, &[2, 3], &mut out);
    assert_eq!(out.len(), 1, "it is the same in both");
    for inode in [14, 15] {
        known(&mut rule, inode, &[3], &mut out);
    }
    known(&mut rule, 13, &[2], &mut out);
    assert_eq!(out.len(), 2);
    known(&mut rule, 30, &[2], &mut out);
    assert_eq!(out.len(), 2, "not where its package has it");
}

#[test]
fn a_reader_that_is_not_identified_yet_is_waited_for_a_while() {
    let (mut rule, mut inventory) = (InterpretedFile::default(), Inventory::default());
    run(
        &mut inventory,
        1,
        Privilege::User,
        Verdict::Unknown(nephoscope_inventory::Unknown::default()),
    );
    let change = read(&mut inventory, 12, 1, FileVerdict::Unknown);
    assert_eq!(said(&mut rule, &change, &inventory, &PHP), []);
    let mut out = Vec::new();
    rule.later(WAIT_NS, &inventory, &PHP, &mut out);
    assert_eq!((out.len(), rule.waiting.len()), (0, 1));
    let mut changes = Vec::new();
    inventory.judged(PageId(1), std::sync::Arc::new(identified()), &mut changes);
    rule.later(WAIT_NS, &inventory, &PHP, &mut out);
    assert_eq!((out.len(), rule.waiting.len()), (1, 0));
    let mut inventory = Inventory::default();
    run(
        &mut inventory,
        1,
        Privilege::User,
        Verdict::Unknown(nephoscope_inventory::Unknown::default()),
    );
    let change = read(&mut inventory, 14, 1, FileVerdict::Unknown);
    assert_eq!(said(&mut rule, &change, &inventory, &PHP), []);
    rule.later(u64::MAX, &inventory, &PHP, &mut out);
    assert_eq!((out.len(), rule.waiting.len()), (1, 0), "given up");
}

#[test]
fn max_per_program_max_programs_and_max_waiting_bound_what_is_said_and_remembered() {
    let (mut rule, mut inventory) = (InterpretedFile::default(), guest());
    let mut out = Vec::new();
    for inode in 0..MAX_PER_PROGRAM as u64 + 9 {
        let change = read(&mut inventory, inode, 1, FileVerdict::Unknown);
        rule.judge(&change, &inventory, &PHP, &mut out);
    }
    assert_eq!(out.len(), MAX_PER_PROGRAM);
    let (last, others) = out.split_last().unwrap();
    let says_so = |draft: &Draft| {
        draft
            .summary
            .ends_with("of further files that it reads the report tells")
    };
    assert!(says_so(last) && !others.iter().any(says_so));
    for program in 0..MAX_PROGRAMS * 2 {
        rule.said.insert(program.to_string(), HashSet::new());
    }
    let change = read(&mut inventory, 999, 1, FileVerdict::Unknown);
    rule.judge(&change, &inventory, &Program("/usr/bin/perl"), &mut out);
    assert_eq!(rule.said.len(), 1);
    let mut stranger = Inventory::default();
    run(
        &mut stranger,
        1,
        Privilege::User,
        Verdict::Unknown(nephoscope_inventory::Unknown::default()),
    );
    for inode in 0..MAX_WAITING as u64 + 9 {
        let change = read(&mut stranger, inode, 1, FileVerdict::Unknown);
        rule.judge(&change, &stranger, &PHP, &mut out);
    }
    assert_eq!(rule.waiting.len(), MAX_WAITING);
}

#[test]
fn what_an_earlier_part_of_the_watch_said_is_not_said_again() {
    let (mut rule, mut inventory) = (InterpretedFile::default(), guest());
    let change = read(&mut inventory, 12, 1, FileVerdict::Unknown);
    let draft = said(&mut rule, &change, &inventory, &PHP).remove(0);
    let finding = Finding {
        id: 1,
        rule: draft.rule.to_owned(),
        severity: draft.severity,
        address_space: None,
        at_ns: 0,
        found_ns: None,
        summary: draft.summary,
        evidence: draft.evidence,
    };
    let mut rule = InterpretedFile::default();
    rule.remember(&finding);
    assert_eq!(said(&mut rule, &change, &inventory, &PHP), []);
}
