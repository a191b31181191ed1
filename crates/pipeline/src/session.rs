//! One watch: *take an event, identify the page, record the change, judge it, emit findings*.

mod files;
mod looks;
mod pages;
mod speech;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use nephoscope_catalog::Catalog;
use nephoscope_finding::{Finding, Sink};
use nephoscope_guest::{
    Attribution, CodeCoverage, Coverage, Event, Gap, GapReason, Gpa, Gva, Lifecycle, PageBytes, PageId, Root,
    Stamped,
};
use nephoscope_inventory::{
    Change, CoverageLog, Inventory, KnownSpaces, Report, SpaceId, SpaceKind, VmReport, build,
};
use nephoscope_judge::{InterpretedFile, ModifiedCode, UnknownCode};

use crate::counters::Counters;
use crate::identify::Identifier;
use crate::journal::Written;
use crate::kernels::Kernels;
use crate::names::CatalogNames;
use crate::narrow::Narrow;
use crate::read_files::{self, ReadFiles};
use crate::sites;
use crate::told::Told;

/// Pages whose verdict may still change: their bytes are kept until then.
const MAX_OPEN: usize = 8192;

/// Pages within so many bytes are neighbours.
const NEIGHBOURHOOD: u64 = 64 << 20;

/// Neighbouring files that a page is compared with.
const MAX_NEIGHBOURS: usize = 64;

/// Modified and unknown pages whose bytes are kept as evidence: 16 MiB. The oldest go first.
const MAX_KEPT: usize = 4096;

/// One VM's watch.
#[derive(Debug)]
pub struct Session {
    vm: VmReport,
    pub(crate) catalog: Arc<Catalog>,
    identifier: Identifier,
    kernels: Kernels,
    pub(crate) inventory: Inventory,
    pub(crate) coverage: CoverageLog,
    pub(crate) judges: Judges,
    pub(crate) told: Told,
    names: CatalogNames,
    narrow: Narrow,
    pub(crate) counters: Counters,
    pub(crate) written: Written,
    open: BTreeMap<PageId, PageBytes>,
    touched: BTreeSet<PageId>,
    placements: u64,
    read_files: ReadFiles,
    /// Files are watched, on all disks but so many.
    files_but: Option<u64>,
    /// It goes on where another watch was ended.
    is_successor: bool,
    kept: BTreeMap<PageId, PageBytes>,
    lacking: Option<Root>,
    kernel_text: Option<(Gva, Gpa)>,
    reported: KnownSpaces,
    confinement: BTreeMap<String, String>,
    began: Option<Instant>,
    dropped_before: u64,
    bounded_ns: u64,
    now_ns: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Judges {
    pub(crate) modified: ModifiedCode,
    pub(crate) unknown: UnknownCode,
    pub(crate) files: InterpretedFile,
}

impl Session {
    /// A watch of `vm` with this catalog.
    #[must_use]
    pub fn new(vm: VmReport, catalog: Arc<Catalog>) -> Self {
        Self {
            vm,
            catalog: catalog.clone(),
            identifier: Identifier::new(catalog.clone()),
            kernels: Kernels::default(),
            inventory: Inventory::default(),
            coverage: CoverageLog::default(),
            judges: Judges::default(),
            told: Told::default(),
            names: CatalogNames::new(catalog),
            narrow: Narrow::default(),
            counters: Counters::default(),
            written: Written::default(),
            open: BTreeMap::new(),
            touched: BTreeSet::new(),
            placements: 0,
            read_files: ReadFiles::default(),
            files_but: None,
            is_successor: false,
            kept: BTreeMap::new(),
            lacking: None,
            kernel_text: None,
            reported: KnownSpaces::default(),
            confinement: BTreeMap::new(),
            began: None,
            dropped_before: 0,
            bounded_ns: 0,
            now_ns: 0,
        }
    }

    /// Takes one event, and gives what follows from it to the sinks. `place` tells where a host-side frame lies in guest
    /// memory.
    pub fn take(
        &mut self,
        stamped: Stamped,
        place: &dyn Fn(u64) -> Option<Gpa>,
        sinks: &mut [&mut dyn Sink],
    ) {
        self.now_ns = self.now_ns.max(stamped.at_ns);
        let mut changes = Vec::new();
        match stamped.event {
            Event::CodeCaptured(captured) => self.captured(stamped.at_ns, *captured, place, &mut changes),
            Event::Executed(executed) => {
                let dropped = self.inventory.dropped();
                self.inventory.executed(stamped.at_ns, executed, &mut changes);
                if self.inventory.dropped() > dropped {
                    self.never_came(stamped.at_ns);
                }
            }
            Event::Located { page, root, va } => self.inventory.located(root, page, va),
            Event::Extended { page, start, end } => {
                let known = self.inventory.extended(page, start, end);
                if known && self.open.contains_key(&page) {
                    self.touched.insert(page);
                }
            }
            Event::FileSeen(number, about) => self.inventory.files.seen(number, *about),
            Event::FilesUnseen(disk, counts) => self.inventory.files.unseen(disk, &counts),
            Event::PackageSaid(said) => self.inventory.files.installed.said(*said),
            Event::FileHeld(held) => self.inventory.files.held(&held),
            Event::PageAccessed(access) => self.accessed(stamped.at_ns, *access, &mut changes),
            Event::CodeMapped(mapped) => {
                let left_out = self.inventory.code_mapped(stamped.at_ns, mapped, &mut changes);
                self.counters.add("mapped_pages_left_out", left_out);
            }
            Event::Gap(gap) => self.add_gap(gap),
            Event::Lifecycle(Lifecycle::Reset) => {
                self.inventory.reset(stamped.at_ns, &mut changes);
                self.identifier.reset();
                self.kernels.clear();
                self.kernel_text = None;
            }
            Event::Counters(values) => {
                for (name, value) in values {
                    self.counters.set(name, value);
                }
            }
            _ => {}
        }
        self.judge(&changes, sinks);
    }

    /// Looks again at pages whose executed bytes grew, or that a newly placed image may explain. To be called every few
    /// milliseconds.
    pub fn settle(&mut self, sinks: &mut [&mut dyn Sink]) {
        let mut changes = Vec::new();
        // An image that is placed may explain pages that explain others: as long as there is news.
        for _ in 0..8 {
            let pages = std::mem::take(&mut self.touched);
            if pages.is_empty() {
                break;
            }
            for page in pages {
                self.look_again(page, &mut changes);
            }
        }
        self.bound(&mut changes);
        self.look_at_files(&mut changes);
        self.judge(&changes, sinks);
        self.speak_of_files(sinks);
    }

    /// Keeps what is remembered within its bounds, and says what was not seen because of them.
    fn bound(&mut self, changes: &mut Vec<Change>) {
        let crowded = self.inventory.summarise(self.now_ns, &self.names, changes);
        let dropped = self.inventory.dropped();
        let lost = crowded.saturating_add(dropped - self.dropped_before);
        self.dropped_before = dropped;
        if lost > 0 {
            let (from_ns, to_ns) = (self.bounded_ns, self.now_ns);
            self.add_gap(Gap {
                from_ns,
                to_ns,
                left: Coverage {
                    code: CodeCoverage::Complete,
                    attribution: Attribution::Sampled,
                },
                reason: GapReason::MonitorOverrun,
                lost,
            });
        }
        self.bounded_ns = self.now_ns;
    }

    /// An address space was seen to be gone.
    pub fn ended(&mut self, space: SpaceId, at_ns: u64, sinks: &mut [&mut dyn Sink]) {
        let mut changes = Vec::new();
        self.inventory.ended(space, at_ns, &mut changes);
        self.judge(&changes, sinks);
    }

    /// A gap that somebody else than the driver noticed.
    pub fn gap(&mut self, gap: Gap) {
        self.add_gap(gap);
    }

    /// The watch's times count from here: findings will say when they were made.
    pub fn began(&mut self, at: Instant) {
        self.began = Some(at);
    }

    /// How the monitor itself is confined, part by part: for the report.
    pub fn confined(&mut self, parts: BTreeMap<String, String>) {
        self.confinement = parts;
    }

    /// A counter that somebody else keeps.
    pub fn count(&mut self, name: &'static str, value: u64) {
        self.counters.set(name, value);
    }

    /// The monitor has much of the catalog in its memory: it is let go of.
    pub fn let_go_of_catalog(&mut self) {
        self.counters.count(if self.catalog.let_go().is_ok() {
            "catalog_let_go"
        } else {
            "catalog_errors"
        });
    }

    /// An earlier part of the watch was restored, and this one begins now.
    pub fn goes_on(&mut self, at_ns: u64) {
        self.now_ns = self.now_ns.max(at_ns);
        self.bounded_ns = self.now_ns;
    }

    /// Everything that was written down is here again.
    pub(crate) fn restored(&mut self) {
        self.inventory.restored();
        self.is_successor = true;
        self.dropped_before = self.inventory.dropped();
        // Findings that were not kept had numbers too.
        let not_kept = self.counters.counted().get("findings_not_kept").copied();
        self.told.go_on(not_kept.unwrap_or(0));
        self.judges.unknown.restored(&self.inventory);
        let kernels = self.inventory.spaces();
        let kernels = kernels.filter(|space| space.kind == SpaceKind::Kernel && space.is_living());
        let pages: Vec<PageId> = kernels.flat_map(|space| space.pages.keys().copied()).collect();
        for page in pages {
            if let Some(kernel) = self.kernel_of(page) {
                self.kernels.ran(kernel, page);
            }
        }
    }

    /// Time goes on without events.
    pub fn at(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        for at_ns in self.inventory.overdue(self.now_ns) {
            self.never_came(at_ns);
        }
    }

    /// An execution was dropped because the page that was executed never came.
    fn never_came(&mut self, at_ns: u64) {
        self.add_gap(Gap {
            from_ns: at_ns,
            to_ns: at_ns,
            left: Coverage::BLIND,
            reason: GapReason::PageMissing,
            lost: 1,
        });
    }

    /// The inventory.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// What was concluded so far.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        self.told.findings()
    }

    /// What the catalog says of files.
    #[must_use]
    pub fn names(&self) -> &CatalogNames {
        &self.names
    }

    /// The report as of now.
    #[must_use]
    pub fn report(&mut self) -> Report {
        self.look_at_all_files();
        let mut counters = self.counters.all();
        counters.insert("executions_dropped".into(), self.inventory.dropped());
        counters.insert("executions_late".into(), self.inventory.late());
        counters.insert("anchors_left_out".into(), self.inventory.anchors_left_out());
        counters.insert("pages_forgotten".into(), self.inventory.pages_forgotten());
        counters.extend(read_files::counters(self.inventory.files.left_out()));
        counters.extend(sites::counters(&self.inventory));
        counters.insert("catalog_records_unreadable".into(), self.names.unreadable());
        for (reason, lost) in self.coverage.lost() {
            let counter = counters
                .entry(format!("lost_{}", format!("{reason:?}").to_ascii_lowercase()))
                .or_default();
            // A driver may say any number.
            *counter = counter.saturating_add(lost);
        }
        let mut report = build(
            self.vm.clone(),
            &self.inventory,
            &self.coverage,
            self.now_ns,
            counters,
            self.told.findings(),
            &self.names,
            &mut self.reported,
        );
        report.confinement.clone_from(&self.confinement);
        report.coverage.files = self.file_coverage(&report.counters);
        report.files = read_files::report(&self.inventory, &self.names, &report.address_spaces);
        report
    }

    /// The driver is gone without a word.
    pub fn lost_driver(&mut self, at_ns: u64) {
        self.add_gap(Gap {
            from_ns: at_ns,
            to_ns: at_ns,
            left: Coverage {
                code: CodeCoverage::Blind,
                attribution: Attribution::Blind,
            },
            reason: GapReason::DriverLost,
            lost: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, noise, program};
    use nephoscope_catalog::Adder;
    use nephoscope_guest::{CodeCaptured, Executed, PAGE_SIZE, Privilege};

    /// A page in a frame of its own.
    fn captured(number: u64, root: Root, privilege: Privilege, bytes: PageBytes) -> CodeCaptured {
        CodeCaptured {
            page: PageId(number),
            gpa: None,
            frame: 0,
            generation: 0,
            vcpu: 0,
            root,
            va: Gva(0x40_0000),
            privilege,
            paging: true,
            bits: 64,
            start: 0,
            end: 8,
            replay: false,
            bytes,
        }
    }

    /// A watch with an empty catalog that took so many pages, no two alike.
    fn fed(pages: usize, privilege: Privilege) -> Session {
        let folder = tempfile::tempdir().unwrap();
        Adder::new(folder.path()).unwrap().commit().unwrap();
        let catalog = Catalog::open(folder.path()).unwrap();
        let mut session = Session::new(VmReport::default(), Arc::new(catalog));
        for number in 0..pages as u64 {
            let mut bytes = PageBytes::zeroed();
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            let captured = captured(number, Root(number << 12), privilege, bytes);
            let event = Event::CodeCaptured(Box::new(captured));
            session.take(Stamped { at_ns: number, event }, &|_| None, &mut []);
        }
        session
    }

    #[test]
    fn max_kept_bounds_the_bytes_of_unknown_pages_and_the_oldest_go() {
        let mut session = fed(MAX_KEPT + 3, Privilege::User);
        assert!(session.kept_bytes(PageId(2)).is_none() && session.kept_bytes(PageId(3)).is_some());
        assert_eq!(session.report().counters["evidence_dropped"], 3);
    }

    #[test]
    fn max_neighbours_bounds_the_files_that_a_page_is_compared_with() {
        for (files, expected) in [
            (3, (3, false)),
            (MAX_NEIGHBOURS, (MAX_NEIGHBOURS, false)),
            (MAX_NEIGHBOURS + 6, (MAX_NEIGHBOURS, true)),
        ] {
            let texts: Vec<Vec<u8>> = (0..).take(files).map(|seed| noise(PAGE_SIZE, seed)).collect();
            let programs = texts.iter().map(|text| program(text));
            let names = (0..files).map(|number| number.to_string());
            let (catalog, _) = fixture::catalog(&names.zip(programs).collect::<Vec<_>>());
            let mut session = Session::new(VmReport::default(), catalog);
            for (number, text) in (0..).zip(&texts) {
                let bytes = fixture::page(text);
                let captured = captured(number, Root(0x1000), Privilege::User, bytes);
                let va = Gva(0x40_0000 + (number << 12));
                let event = Event::CodeCaptured(Box::new(CodeCaptured { va, ..captured }));
                session.take(Stamped { at_ns: 1, event }, &|_| None, &mut []);
                let event = Event::Executed(Executed {
                    page: PageId(number),
                    root: Root(0x1000),
                    vcpu: 0,
                    incarnation: 1,
                });
                session.take(Stamped { at_ns: 1, event }, &|_| None, &mut []);
            }
            let record = session.inventory.page(PageId(0)).unwrap();
            let (neighbours, more) = session.neighbours(record);
            assert_eq!((neighbours.len(), more), expected);
            let counted = session.report().counters.get("neighbours_left_out").copied();
            assert_eq!(counted.is_some(), more);
        }
    }

    #[test]
    fn losses_that_no_number_holds_are_the_largest_there_is() {
        let mut session = fed(0, Privilege::User);
        for reason in [GapReason::RingFull, GapReason::RingFull, GapReason::Detached] {
            session.gap(Gap {
                from_ns: 0,
                to_ns: 1,
                left: Coverage::BLIND,
                reason,
                lost: u64::MAX,
            });
        }
        assert_eq!(session.report().counters["lost_ringfull"], u64::MAX);
    }

    #[test]
    fn max_open_bounds_the_pages_that_may_yet_be_known() {
        let mut session = fed(MAX_OPEN + 3, Privilege::Supervisor);
        assert!(session.kept_bytes(PageId(2)).is_none() && session.kept_bytes(PageId(3)).is_some());
        assert_eq!(session.report().counters["open_pages_dropped"], 3);
    }
}
