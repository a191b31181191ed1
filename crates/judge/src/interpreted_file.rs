//! Files that interpreters read and nobody vouches for.
//!
//! *Sees*: files whose verdict is `unknown` or `modified`, or which are known and older than their package
//! ([`PackageVersions`]), and which a program has read that is identified as an interpreter. *Cannot see*: what an interpreter does with
//! a file, and code that it gets in another way; that a file is older, if the disk's own package manager says nothing of its package and
//! nothing else of that was read. *Config*: [`FileRules`]: which programs are
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
use crate::package_versions::{Found, Outdated, PackageVersions, Than};

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
        if self.concern(id, file, inventory, names).is_none() {
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
    fn concern<'a>(
        &self,
        id: FileId,
        file: &'a FollowedFile,
        inventory: &Inventory,
        names: &dyn Names,
    ) -> Option<Concern<'a>> {
        let outdated = |found: &Found<'_>| self.versions.outdated(found, &inventory.files.installed);
        let concern = match file.verdict.as_deref()? {
            FileVerdict::Unknown => Concern::Unknown,
            FileVerdict::Modified(modified) => Concern::Modified(modified),
            FileVerdict::Known(_) => Concern::Outdated(found(id, file, names, outdated).flatten()?),
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
        let concern = self.concern(id, file, inventory, names);
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
        than,
    } = outdated;
    let (there, evidence) = match than {
        Than::Installed(installed) => (
            format!("{installed} is installed"),
            serde_json::json!({ "package": package, "version": version, "installed": installed }),
        ),
        Than::Others(others, files) => (
            format!("{files} file(s) of that package are of {others}"),
            serde_json::json!({ "package": package, "version": version, "others": others, "files": files }),
        ),
    };
    let said = format!("as {package} {version} has it, and {there}");
    (said, serde_json::json!({ "outdated": evidence }))
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
mod tests;
