//! The report: the inventory as one JSON document (`docs/report.schema.json`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nephoscope_catalog::ObjectId;
use nephoscope_finding::Finding;
use nephoscope_guest::{Attribution, CodeCoverage, Gva, PageId, Privilege};
use nephoscope_recipe::ObjectKind;
use serde::{Deserialize, Serialize};

use crate::coverage::{CoverageInterval, CoverageLog};
use crate::file_report::{FileCoverage, FileReport};
use crate::inventory::Inventory;
use crate::modules::{Module, ObjectFacts, Use, by_file, resolve};
use crate::page::PageRecord;
use crate::space::{AddressSpace, MappedCode, SpaceId, SpaceKind};
use crate::verdict::Verdict;

/// The schema's name; the number goes up when a reader must change.
pub const SCHEMA: &str = "nephoscope.report/1";

/// The whole report.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The VM.
    pub vm: VmReport,
    /// What can be vouched for.
    pub coverage: CoverageReport,
    /// Everything counted, by name.
    pub counters: BTreeMap<String, u64>,
    /// How the monitor was confined: each part, and how it stood.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub confinement: BTreeMap<String, String>,
    /// Pages by class and verdict.
    pub pages: PagesReport,
    /// Everyone who executed: the living, and those that ended last.
    pub address_spaces: Vec<SpaceReport>,
    /// Those that ended before, by program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended_summary: Vec<SummaryReport>,
    /// Files that interpreters read, where they are watched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileReport>,
    /// What was concluded.
    pub findings: Vec<Finding>,
}

/// The VM.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct VmReport {
    /// Its name for people.
    pub name: String,
    /// The VMM and its version.
    pub vmm: String,
    /// `tcg`, `kvm`.
    pub accelerator: String,
    /// `x86-64`.
    pub isa: String,
    /// Virtual CPUs.
    pub vcpus: u32,
}

/// Coverage of the watch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CoverageReport {
    /// The worst of any interval.
    pub code: CodeCoverage,
    /// The worst of any interval.
    pub attribution: Attribution,
    /// Interval by interval.
    pub intervals: Vec<CoverageInterval>,
    /// Of files that interpreters read; absent if they are not watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FileCoverage>,
}

/// Captured pages of one class by verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PageCounts {
    /// All.
    pub captured: u64,
    /// Known.
    pub identified: u64,
    /// Near a known one.
    pub modified: u64,
    /// Neither.
    pub unknown: u64,
}

impl PageCounts {
    /// Counts one page of this verdict.
    pub(crate) fn count(&mut self, verdict: &Verdict) {
        self.captured += 1;
        match verdict {
            Verdict::Identified(_) => self.identified += 1,
            Verdict::Modified(_) => self.modified += 1,
            Verdict::Unknown(_) => self.unknown += 1,
        }
    }

    /// Adds others to these.
    pub(crate) fn add(&mut self, others: Self) {
        self.captured = self.captured.saturating_add(others.captured);
        self.identified = self.identified.saturating_add(others.identified);
        self.modified = self.modified.saturating_add(others.modified);
        self.unknown = self.unknown.saturating_add(others.unknown);
    }
}

/// Captured pages by class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PagesReport {
    /// Executed by user code.
    pub user: PageCounts,
    /// Executed by the kernel at its own addresses.
    pub kernel: PageCounts,
    /// Executed by firmware, boot loaders and boot code.
    pub firmware: PageCounts,
}

/// One address space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SpaceReport {
    /// Its number in this watch.
    pub id: SpaceId,
    /// Its page-table root, in hexadecimal; `null` for kernel and firmware.
    pub root: Option<String>,
    /// What it is of.
    pub kind: SpaceKind,
    /// First execution, in nanoseconds since the watch began.
    pub first_ns: u64,
    /// Last time a page was new to it.
    pub last_ns: u64,
    /// When it was seen to have ended.
    pub ended: Option<u64>,
    /// The program it runs; `null` if none was identified.
    pub program: Option<ProgramReport>,
    /// The files it executes.
    pub modules: Vec<ModuleReport>,
    /// Pages that are near known ones.
    pub modified: Vec<ModifiedReport>,
    /// Pages that are not known.
    pub unknown: Vec<UnknownReport>,
    /// Pages that it executed beyond those that are told one by one, if there were so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlisted: Option<PageCounts>,
}

/// Address spaces of one program that ended long ago.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SummaryReport {
    /// What they were of.
    pub kind: SpaceKind,
    /// The program; `null` if none was identified in them.
    pub program: Option<ProgramReport>,
    /// How many.
    pub count: u64,
    /// When the first of them began, in nanoseconds since the watch did.
    pub first_ns: u64,
    /// When the last of them ended.
    pub last_ns: u64,
    /// Their pages by verdict; a page that several executed is counted for each.
    pub pages: PageCounts,
    /// The files that they executed.
    pub modules: Vec<UsedReport>,
}

/// A file that address spaces of a summary executed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UsedReport {
    /// Where the package has it.
    pub path: String,
    /// What it may be of.
    pub candidates: Vec<CandidateReport>,
    /// The build ID, in hexadecimal, if the candidates agree.
    pub build_id: Option<String>,
    /// How many of them.
    pub address_spaces: u64,
}

/// A package version that a file may be of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct CandidateReport {
    /// Binary package; `null` for a file outside any.
    pub package: Option<String>,
    /// Source package.
    pub source: Option<String>,
    /// The package's version.
    pub version: Option<String>,
}

/// The program of an address space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProgramReport {
    /// Where the package has it.
    pub path: String,
    /// What it may be of.
    pub candidates: Vec<CandidateReport>,
    /// More files than the candidates are of may be meant, at least so many: the code stands in more than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

/// A file that an address space executes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModuleReport {
    /// Where the package has it.
    pub path: String,
    /// What it may be of.
    pub candidates: Vec<CandidateReport>,
    /// More files than the candidates are of may be meant, at least so many: the code stands in more than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// The build ID, in hexadecimal, if the candidates agree.
    pub build_id: Option<String>,
    /// Its pages that this address space executed.
    pub pages_executed: u64,
    /// Its further pages that this address space has mapped executable, where a driver looks at that; whether they executed
    /// is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pages_mapped: u64,
    /// `identified`, or `modified` if any of its pages is.
    pub verdict: String,
}

/// A modified page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModifiedReport {
    /// The page's number, for `nephoscope why`.
    pub page: PageId,
    /// The nearest file.
    pub path: String,
    /// Where the address space sees it.
    pub va: Option<String>,
    /// Where it lies.
    pub gpa: Option<String>,
    /// How often its frame had been captured before.
    pub generation: u32,
    /// What differs.
    pub differences: Vec<DifferenceReport>,
}

/// One run of different bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DifferenceReport {
    /// From the start of the page.
    pub offset: u16,
    /// The file's bytes, in hexadecimal.
    pub before: String,
    /// The bytes found.
    pub after: String,
}

/// An unknown page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnknownReport {
    /// The page's number.
    pub page: PageId,
    /// Where the address space sees it.
    pub va: Option<String>,
    /// Where it lies.
    pub gpa: Option<String>,
    /// How often its frame had been captured before.
    pub generation: u32,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub digest: String,
    /// What is known of where it came from.
    pub origin: String,
}

/// What the catalog says of a file, as a report needs it.
pub trait Names: ObjectFacts {
    /// Its places: path, and package, source and version if it is of a package.
    fn placements(&self, object: ObjectId) -> Vec<(String, CandidateReport)>;
    /// Its build ID.
    fn build_id(&self, object: ObjectId) -> Option<Vec<u8>>;
}

/// Address spaces as they were reported last: most have not changed since, and to find their modules is work.
#[derive(Debug, Default)]
pub struct KnownSpaces(HashMap<SpaceId, (u32, SpaceReport)>);

impl KnownSpaces {
    /// Forgets what is not told one by one any more.
    fn keep(&mut self, inventory: &Inventory) {
        self.0.retain(|space, _| inventory.space(*space).is_some());
    }

    fn report(&mut self, space: &AddressSpace, inventory: &Inventory, names: &dyn Names) -> SpaceReport {
        let known = self
            .0
            .get(&space.id)
            .filter(|(version, _)| *version == space.version);
        let mut report = known.map_or_else(
            || space_report(space, inventory, names),
            |(_, report)| report.clone(),
        );
        if known.is_none() {
            self.0.insert(space.id, (space.version, report.clone()));
        }
        report.last_ns = space.last_ns;
        report.ended = space.ended_ns;
        report
    }
}

/// Puts a report together.
#[must_use]
#[expect(clippy::too_many_arguments, reason = "a report is about these things")]
pub fn build(
    vm: VmReport,
    inventory: &Inventory,
    coverage: &CoverageLog,
    now_ns: u64,
    counters: BTreeMap<String, u64>,
    findings: &[Finding],
    names: &dyn Names,
    known: &mut KnownSpaces,
) -> Report {
    let overall = coverage.overall();
    known.keep(inventory);
    Report {
        schema: SCHEMA.to_owned(),
        vm,
        coverage: CoverageReport {
            code: overall.code,
            attribution: overall.attribution,
            intervals: coverage.intervals(now_ns),
            files: None,
        },
        counters,
        confinement: BTreeMap::new(),
        pages: inventory.counts(),
        address_spaces: inventory
            .spaces()
            .map(|space| known.report(space, inventory, names))
            .collect(),
        ended_summary: inventory.summaries().report(),
        files: Vec::new(),
        findings: findings.to_vec(),
    }
}

impl PagesReport {
    /// Counts one page under its class.
    pub(crate) fn count(&mut self, page: &PageRecord) {
        let class = match (page.privilege, page.paging && page.va.is_high_half()) {
            (Privilege::User, _) => &mut self.user,
            (Privilege::Supervisor, true) => &mut self.kernel,
            (Privilege::Supervisor, false) => &mut self.firmware,
        };
        class.count(&page.verdict);
    }
}

/// The modules of an address space.
#[must_use]
pub fn modules_of(
    space: &AddressSpace,
    inventory: &Inventory,
    facts: &(impl ObjectFacts + ?Sized),
) -> Vec<Module> {
    let mut uses: Vec<Use<'_>> = space
        .pages
        .iter()
        .filter_map(|(id, va)| {
            let page = inventory.page(*id)?;
            Some(Use {
                page: Some(*id),
                mapped: false,
                va: *va,
                verdict: &page.verdict,
            })
        })
        .collect();
    uses.extend(only_mapped(space).filter_map(|(va, code)| {
        let page = inventory.page(code.page)?;
        Some(Use {
            page: Some(code.page),
            mapped: true,
            va: Some(va),
            verdict: &page.verdict,
        })
    }));
    uses.extend(space.mapped.iter().map(|(va, verdict)| Use {
        page: None,
        mapped: true,
        va: Some(*va),
        verdict,
    }));
    let modules = resolve(&uses, facts);
    // Kernel, modules and firmware are in several parts at unrelated addresses: there a file is one module.
    if space.kind == SpaceKind::User {
        modules
    } else {
        by_file(modules)
    }
}

/// What is mapped executable and is not known to have executed, at the place where it is. A page that was captured again when it
/// executed has another number, and the same place.
fn only_mapped(space: &AddressSpace) -> impl Iterator<Item = (Gva, MappedCode)> {
    let executed: BTreeSet<Gva> = if space.code_mapped.is_empty() {
        BTreeSet::new()
    } else {
        space.pages.values().copied().flatten().collect()
    };
    let mapped = space.code_mapped.iter().map(|(va, code)| (*va, *code));
    mapped.filter(move |(va, _)| !executed.contains(va))
}

/// The path of the program that an address space runs, if one is identified.
#[must_use]
pub fn program_path(space: &AddressSpace, inventory: &Inventory, names: &dyn Names) -> Option<String> {
    let module = program_of(&modules_of(space, inventory, names), space.kind)?.clone();
    Some(
        name(
            &module.candidates,
            module.left_out,
            space.kind,
            module.kind,
            names,
        )
        .0,
    )
}

/// The module that is the program.
fn program_of(modules: &[Module], kind: SpaceKind) -> Option<&Module> {
    let program = modules
        .iter()
        .find(|module| module.kind == Some(ObjectKind::Executable) && module.program);
    program.filter(|_| kind == SpaceKind::User)
}

/// One address space as it is reported.
pub(crate) fn space_report(space: &AddressSpace, inventory: &Inventory, names: &dyn Names) -> SpaceReport {
    let modules = modules_of(space, inventory, names);
    let program = program_of(&modules, space.kind).map(|module| {
        let left_out = module.left_out;
        let (path, candidates) = name(&module.candidates, left_out, space.kind, module.kind, names);
        ProgramReport {
            path,
            candidates,
            left_out,
        }
    });
    let user = space.kind == SpaceKind::User;
    SpaceReport {
        id: space.id,
        root: user.then(|| format!("{:#x}", space.root.0)),
        kind: space.kind,
        first_ns: space.first_ns,
        last_ns: space.last_ns,
        ended: space.ended_ns,
        program,
        modules: modules
            .iter()
            .map(|module| module_report(module, space, names))
            .collect(),
        modified: pages(space, inventory)
            .filter_map(|(page, va)| modified_report(page, va, names))
            .collect(),
        unknown: pages(space, inventory)
            .filter_map(|(page, va)| unknown_report(page, va))
            .collect(),
        unlisted: (space.unlisted != PageCounts::default()).then_some(space.unlisted),
    }
}

fn pages<'a>(
    space: &'a AddressSpace,
    inventory: &'a Inventory,
) -> impl Iterator<Item = (&'a PageRecord, Option<String>)> {
    let executed = space.pages.iter().map(|(id, va)| (*id, *va));
    let mapped = only_mapped(space).map(|(va, code)| (code.page, Some(va)));
    executed
        .chain(mapped)
        .filter_map(|(id, va)| Some((inventory.page(id)?, va.map(|va| format!("{:#x}", va.0)))))
}

fn module_report(module: &Module, space: &AddressSpace, names: &dyn Names) -> ModuleReport {
    let kind = space.kind;
    let modified_executed = module
        .modified
        .iter()
        .filter(|page| space.pages.contains_key(page))
        .count();
    let (path, candidates) = name(&module.candidates, module.left_out, kind, module.kind, names);
    let ids: BTreeSet<Option<Vec<u8>>> = module
        .candidates
        .iter()
        .map(|object| names.build_id(*object))
        .collect();
    let build_id = match ids.into_iter().collect::<Vec<_>>().as_slice() {
        [Some(id)] if module.left_out == 0 => Some(hex(id)),
        _ => None,
    };
    let verdict = if module.modified.is_empty() {
        "identified"
    } else {
        "modified"
    };
    ModuleReport {
        path,
        candidates,
        left_out: module.left_out,
        build_id,
        pages_executed: (module.pages.len() + modified_executed) as u64,
        pages_mapped: (module.mapped.len() + module.modified.len() - modified_executed) as u64,
        verdict: verdict.to_owned(),
    }
}

/// The path and the package versions of a set of files that cannot be told apart, `left_out` more of which are not listed.
pub(crate) fn name(
    objects: &[ObjectId],
    left_out: u64,
    space: SpaceKind,
    kind: Option<ObjectKind>,
    names: &dyn Names,
) -> (String, Vec<CandidateReport>) {
    // By path, the files that stand there.
    let mut paths: BTreeMap<String, BTreeSet<ObjectId>> = BTreeMap::new();
    let mut candidates = BTreeSet::new();
    for object in objects {
        for (path, candidate) in names.placements(*object) {
            paths.entry(path).or_default().insert(*object);
            candidates.insert(candidate);
        }
    }
    // The path most files agree on; of equals, the shortest.
    let best = paths
        .iter()
        .min_by_key(|(path, files)| (std::cmp::Reverse(files.len()), path.len(), (*path).clone()));
    let path = match (space, kind, best) {
        (SpaceKind::User, Some(ObjectKind::Kernel), _) => "[vdso]".to_owned(),
        (_, _, Some((path, files))) => {
            let elsewhere = objects.iter().filter(|object| !files.contains(*object)).count() as u64;
            match elsewhere.saturating_add(left_out) {
                0 => path.clone(),
                // A name alone would say more than is known.
                others => format!("{path} (or {others} others)"),
            }
        }
        (_, _, None) => String::new(),
    };
    (path, candidates.into_iter().collect())
}

fn modified_report(page: &PageRecord, va: Option<String>, names: &dyn Names) -> Option<ModifiedReport> {
    let Verdict::Modified(modified) = &*page.verdict else {
        return None;
    };
    let kind = names.kind(modified.nearest.object);
    let (path, _) = name(&[modified.nearest.object], 0, SpaceKind::Kernel, kind, names);
    let differences = modified
        .differences
        .iter()
        .map(|d| DifferenceReport {
            offset: d.offset,
            before: hex(&d.before),
            after: hex(&d.after),
        })
        .collect();
    Some(ModifiedReport {
        page: page.id,
        path,
        va,
        gpa: page.gpa.map(|gpa| format!("{:#x}", gpa.0)),
        generation: page.generation,
        differences,
    })
}

fn unknown_report(page: &PageRecord, va: Option<String>) -> Option<UnknownReport> {
    let Verdict::Unknown(unknown) = &*page.verdict else {
        return None;
    };
    Some(UnknownReport {
        page: page.id,
        va,
        gpa: page.gpa.map(|gpa| format!("{:#x}", gpa.0)),
        generation: page.generation,
        digest: hex(&page.digest),
        origin: unknown.origin.clone(),
    })
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Bytes in hexadecimal.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
