//! Files that interpreters read and nobody vouches for.
//!
//! *Sees*: files whose verdict is `unknown` or `modified`, or which are known and older than the rest of their package
//! ([`PackageVersions`]), and which a program has read that is identified as an interpreter. *Cannot see*: what an interpreter does with
//! a file, and code that it gets in another way; that a file is older, if nothing else of its package was read. *Config*: [`FileRules`]: which programs are
//! interpreters, and where files may be what they like. *State*: what was said, and readers that are not identified yet. *Tests*: below
//! and in `tests/e2e`.
//!
//! A reader may be read for before it is identified: a program reads its script when it has run for some milliseconds. So one that is
//! not is asked for again for a while. One that nobody knows at all is no interpreter that this rule knows; other rules speak of it.

use std::collections::{HashMap, HashSet, VecDeque};

use nephoscope_finding::{Finding, Severity};
use nephoscope_inventory::{
    Change, FileId, FileVerdict, FollowedFile, Inventory, ModifiedFile, Names, SpaceId, program_path,
};

use crate::draft::{Draft, Judge};
use crate::file_rules::FileRules;
use crate::package_versions::{Found, Outdated, PackageVersions};

/// How long a reader may take to be identified.
const WAIT_NS: u64 = 5_000_000_000;
/// Readers that are asked for again. It stops a guest that reads ever new files by ever new programs; what is beyond is in the report.
const MAX_WAITING: usize = 4096;
/// Findings about one program. It stops one that writes and reads files without end; the report has all.
const MAX_PER_PROGRAM: usize = 256;
/// Programs of which it is remembered what was said.
const MAX_PROGRAMS: usize = 1024;

/// A file and what it held: disk, partition, inode, generation and how often it was rewritten.
type Said = (u16, u16, u64, u32, u32);

/// The rule.
#[derive(Debug, Default)]
pub struct InterpretedFile {
    rules: FileRules,
    versions: PackageVersions,
    /// By program.
    said: HashMap<String, HashSet<Said>>,
    waiting: VecDeque<Waiting>,
}

/// A reader that is not identified.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    until_ns: u64,
    file: FileId,
    space: SpaceId,
}

const RULE: &str = "interpreted-file";

/// Why a file is spoken of.
#[derive(Debug)]
enum Concern<'a> {
    Unknown,
    Modified(&'a ModifiedFile),
    Outdated(Outdated),
}

/// Looks at a file that is known, where it is; `None` if it is not, or has no name.
fn found<T>(
    id: FileId,
    file: &FollowedFile,
    names: &dyn Names,
    look: impl FnOnce(&Found<'_>) -> T,
) -> Option<T> {
    let Some(FileVerdict::Known(objects)) = file.verdict.as_deref() else {
        return None;
    };
    let path = std::str::from_utf8(&file.about.path)
        .ok()
        .filter(|path| !path.is_empty())?;
    let placements: Vec<_> = objects
        .iter()
        .flat_map(|object| names.placements(*object))
        .collect();
    Some(look(&Found {
        file: id,
        at_ns: file
            .readers
            .iter()
            .map(|reader| reader.first_ns)
            .max()
            .unwrap_or(0),
        disk: file.about.disk,
        partition: file.about.partition,
        path,
        placements: &placements,
    }))
}

impl Judge for InterpretedFile {
    fn remember(&mut self, finding: &Finding) {
        let number = |name: &str| finding.evidence.get(name).and_then(serde_json::Value::as_u64);
        let program = finding
            .evidence
            .get("program")
            .and_then(serde_json::Value::as_str);
        let (Some(program), true) = (program, finding.rule == RULE) else {
            return;
        };
        let small = |name: &str| number(name).and_then(|number| u16::try_from(number).ok());
        let wide = |name: &str| number(name).and_then(|number| u32::try_from(number).ok());
        if let (Some(disk), Some(partition), Some(inode), Some(generation)) = (
            small("disk"),
            small("partition"),
            number("inode"),
            wide("generation"),
        ) {
            let said = self.said.entry(program.to_owned()).or_default();
            said.insert((disk, partition, inode, generation, 0));
        }
    }

    fn judge(&mut self, change: &Change, inventory: &Inventory, names: &dyn Names, out: &mut Vec<Draft>) {
        let Change::FileJudged { file: id } = change else {
            return;
        };
        let Some(file) = inventory.files.get(*id) else {
            return;
        };
        let again = found(*id, file, names, |found| self.versions.seen(found)).unwrap_or_default();
        for id in again.into_iter().chain([*id]) {
            self.all_readers(id, inventory, names, out);
        }
    }
}

impl InterpretedFile {
    /// Which programs are interpreters, and which files are not spoken of.
    pub fn set_rules(&mut self, rules: FileRules) {
        self.rules = rules;
    }

    /// Asks again who those readers are that were not identified.
    pub fn later(&mut self, now_ns: u64, inventory: &Inventory, names: &dyn Names, out: &mut Vec<Draft>) {
        for waiting in std::mem::take(&mut self.waiting) {
            let done = self.one(waiting.file, waiting.space, inventory, names, out);
            if !done && now_ns < waiting.until_ns {
                self.waiting.push_back(waiting);
            }
        }
    }

    fn all_readers(&mut self, id: FileId, inventory: &Inventory, names: &dyn Names, out: &mut Vec<Draft>) {
        let Some(file) = inventory.files.get(id) else {
            return;
        };
        if self.concern(id, file, names).is_none() {
            return;
        }
        for reader in &file.readers {
            let waits = !self.one(id, reader.space, inventory, names, out);
            let is_new = !self
                .waiting
                .iter()
                .any(|one| (one.file, one.space) == (id, reader.space));
            if waits && is_new && self.waiting.len() < MAX_WAITING {
                self.waiting.push_back(Waiting {
                    until_ns: reader.first_ns.saturating_add(WAIT_NS),
                    file: id,
                    space: reader.space,
                });
            }
        }
    }

    /// What there is to say of a file, whoever reads it.
    fn concern<'a>(&self, id: FileId, file: &'a FollowedFile, names: &dyn Names) -> Option<Concern<'a>> {
        let concern = match file.verdict.as_deref()? {
            FileVerdict::Unknown => Concern::Unknown,
            FileVerdict::Modified(modified) => Concern::Modified(modified),
            FileVerdict::Known(_) => {
                Concern::Outdated(found(id, file, names, |found| self.versions.outdated(found)).flatten()?)
            }
        };
        // One that was read elsewhere is not excused by where it was put afterwards.
        let is_allowed = file
            .paths()
            .all(|path| self.rules.allows(&String::from_utf8_lossy(path)));
        (!is_allowed).then_some(concern)
    }

    /// Speaks of a file and one who read it, if there is something to say. `false`: who that is is not known.
    fn one(
        &mut self,
        id: FileId,
        space: SpaceId,
        inventory: &Inventory,
        names: &dyn Names,
        out: &mut Vec<Draft>,
    ) -> bool {
        let (Some(file), Some(about)) = (inventory.files.get(id), inventory.space(space)) else {
            return true;
        };
        let Some(program) = program_path(about, inventory, names) else {
            return false;
        };
        let concern = self.concern(id, file, names);
        let Some(concern) = concern.filter(|_| self.rules.is_interpreter(&program)) else {
            return true;
        };
        if self.said.len() >= MAX_PROGRAMS && !self.said.contains_key(&program) {
            self.said.clear();
        }
        let said = self.said.entry(program.clone()).or_default();
        let id = &file.about;
        let key = (id.disk, id.partition, id.inode, id.generation, file.rewritten);
        if said.len() >= MAX_PER_PROGRAM || !said.insert(key) {
            return true;
        }
        let more = if said.len() == MAX_PER_PROGRAM {
            "; of further files that it reads the report tells"
        } else {
            ""
        };
        let first = file.readers.iter().find(|reader| reader.space == space);
        let at_ns = first.map_or(0, |reader| reader.first_ns);
        let mut draft = draft(file, &program, space, at_ns, &concern, names);
        draft.summary.push_str(more);
        out.push(draft);
        true
    }
}

fn draft(
    file: &FollowedFile,
    program: &str,
    space: SpaceId,
    at_ns: u64,
    concern: &Concern<'_>,
    names: &dyn Names,
) -> Draft {
    let about = &file.about;
    let path = match about.path.as_slice() {
        [] => format!(
            "a file without a name (inode {} of disk {})",
            about.inode, about.disk
        ),
        path => String::from_utf8_lossy(path).into_owned(),
    };
    let mut evidence = serde_json::json!({
        "path": path,
        "disk": about.disk,
        "partition": about.partition,
        "inode": about.inode,
        "generation": about.generation,
        "bytes": about.bytes,
        "program": program,
        "pieces_read": file.pieces.len(),
    });
    let (severity, what, about) = match concern {
        Concern::Modified(modified) => {
            let (said, nearest) = likeness(modified, names);
            (Severity::High, said, nearest)
        }
        Concern::Outdated(outdated) => {
            let (said, versions) = age(outdated);
            (Severity::High, said, versions)
        }
        Concern::Unknown => (
            Severity::Medium,
            "which is no catalogued file".to_owned(),
            serde_json::Value::Null,
        ),
    };
    if let (Some(evidence), serde_json::Value::Object(about)) = (evidence.as_object_mut(), about) {
        evidence.extend(about);
    }
    Draft {
        rule: RULE,
        severity,
        space: Some(space),
        at_ns,
        summary: format!("{program} reads {path}, {what}"),
        evidence,
    }
}

/// How a file is older than the rest, in words and in numbers.
fn age(outdated: &Outdated) -> (String, serde_json::Value) {
    let Outdated {
        package,
        version,
        others,
        files,
    } = outdated;
    let evidence = serde_json::json!({
        "outdated": { "package": package, "version": version, "others": others, "files": files },
    });
    let said = format!("as {package} {version} has it, and {files} file(s) of that package are of {others}");
    (said, evidence)
}

/// What a file is like, in words and in numbers.
fn likeness(modified: &ModifiedFile, names: &dyn Names) -> (String, serde_json::Value) {
    let nearest = modified
        .nearest
        .first()
        .and_then(|object| names.placements(*object).into_iter().next());
    let (path, package) = nearest.map_or_else(
        || ("a known file".to_owned(), None),
        |(path, package)| (path, Some(package)),
    );
    let of = package
        .as_ref()
        .and_then(|package| {
            Some(format!(
                " ({} {})",
                package.package.as_ref()?,
                package.version.as_ref()?
            ))
        })
        .unwrap_or_default();
    let lines = modified.lines.as_ref();
    let by = lines.map_or(String::new(), |lines| {
        format!(": {} line(s) more and {} less", lines.added, lines.removed)
    });
    let evidence = serde_json::json!({
        "pieces_known": modified.known,
        "nearest": package.map(|package| serde_json::json!({
            "path": path, "package": package.package, "source": package.source, "version": package.version,
        })),
        "difference": lines.map(|lines| serde_json::json!({
            "lines_added": lines.added,
            "lines_removed": lines.removed,
            "lines": lines.first.iter().map(|line| serde_json::json!({
                "number": line.number, "added": line.added, "text": line.text,
            })).collect::<Vec<_>>(),
        })),
    });
    (format!("a modified copy of {path}{of}{by}"), evidence)
}

#[cfg(test)]
mod tests {
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

    fn said(
        rule: &mut InterpretedFile,
        change: &Change,
        inventory: &Inventory,
        names: &Program,
    ) -> Vec<Draft> {
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
}
