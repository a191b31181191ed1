//! One watch: *take an event, identify the page, record the change, judge it, emit findings*.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use nephoscope_catalog::{Catalog, ObjectId};
use nephoscope_finding::{Finding, Sink};
use nephoscope_guest::{Attribution, CodeCoverage, Coverage};
use nephoscope_guest::{
    CodeCaptured, Event, Gap, GapReason, Gpa, Gva, Lifecycle, PageBytes, PageId, Privilege, Root, Stamped,
};
use nephoscope_inventory::{
    Change, CoverageLog, Inventory, KnownSpaces, ObjectFacts, PageRecord, Report, SpaceId, SpaceKind,
    Unknown, Verdict, VmReport, build,
};
use nephoscope_judge::{Draft, Judge, ModifiedCode, UnknownCode};
use nephoscope_recipe::ObjectKind;

use crate::counters::Counters;
use crate::identify::{Answer, Identifier, Question};
use crate::journal::Written;
use crate::kernels::{Kernel, Kernels};
use crate::names::CatalogNames;
use crate::narrow::{Ambiguous, Narrow};
use crate::origin;
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
    kept: BTreeMap<PageId, PageBytes>,
    lacking: Option<Root>,
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
            kept: BTreeMap::new(),
            lacking: None,
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
            Event::Gap(gap) => self.add_gap(gap),
            Event::Lifecycle(Lifecycle::Reset) => {
                self.inventory.reset(stamped.at_ns, &mut changes);
                self.identifier.reset();
                self.kernels.clear();
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
        self.judge(&changes, sinks);
    }

    /// Everything that the kernel had mapped executable at this time was given to [`Session::mapped_by_kernel`].
    pub fn looked_in_kernel(&mut self, at_ns: u64, sinks: &mut [&mut dyn Sink]) {
        self.settle(sinks);
        self.judges.unknown.looked(at_ns);
    }

    /// Whether there is something to [`Session::speak`] of.
    #[must_use]
    pub fn has_to_speak(&self) -> bool {
        self.judges.unknown.is_due(self.now_ns)
    }

    /// Speaks of a kernel's unknown code, and of what is still undecided after it was waited for; of all that waits, at the end. `there` tells what is mapped
    /// executable at an address in the address space of a root: where it lies, and the BLAKE3 of its bytes.
    pub fn speak(
        &mut self,
        at_the_end: bool,
        there: &dyn Fn(Root, Gva) -> Option<(Gpa, [u8; 32])>,
        sinks: &mut [&mut dyn Sink],
    ) {
        let until_ns = if at_the_end { u64::MAX } else { self.now_ns };
        let mut drafts = Vec::new();
        self.judges
            .unknown
            .later(until_ns, &self.inventory, &self.names, there, &mut drafts);
        for draft in drafts {
            self.emit(draft, sinks);
        }
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

    /// The root to look in for what else the kernel has mapped executable, if a page ran since the last time that this
    /// may explain.
    pub fn lacking(&mut self) -> Option<Root> {
        self.lacking.take()
    }

    /// The kernel has this page mapped executable.
    pub fn mapped_by_kernel(&mut self, va: Gva, bytes: &PageBytes) {
        self.counters.count("mapped_pages_read");
        match self.identifier.mapped_by_kernel(va, bytes) {
            Ok(true) => self.touched.extend(self.open.keys().copied()),
            Ok(false) => {}
            Err(_) => self.counters.count("catalog_errors"),
        }
    }

    /// Page tables of the guest were walked; whether not all of what they map was seen.
    pub fn walked(&mut self, cut_short: bool) {
        self.counters.add("walks_cut_short", u64::from(cut_short));
    }

    /// Living address spaces with pages whose address in them is not known: a translation that serves several address
    /// spaces tells the address of the first. With each, its root, and how often it changed.
    pub fn unplaced(&self) -> impl Iterator<Item = (SpaceId, Root, u32)> {
        self.inventory
            .spaces()
            .filter(|s| s.is_living() && s.kind == SpaceKind::User && s.pages.values().any(Option::is_none))
            .map(|s| (s.id, s.root, s.version))
    }

    /// Says where an address space sees pages that it executed: `at` gives it for pages by where they lie.
    pub fn place(&mut self, space: SpaceId, at: impl FnOnce(&HashMap<Gpa, PageId>) -> Vec<(PageId, Gva)>) {
        let unplaced = self.inventory.unplaced(space);
        for (page, va) in at(&unplaced) {
            self.inventory.place(space, page, va);
        }
    }

    /// Where pages that are mapped and did not execute would tell which of several files a module is.
    pub fn ambiguous(&mut self) -> Vec<Ambiguous> {
        self.narrow.look(&self.inventory, &self.names)
    }

    /// An address space maps this page, which nobody may write to.
    pub fn mapped(&mut self, space: SpaceId, va: Gva, bytes: &PageBytes) {
        self.counters.count("mapped_pages_read");
        match self.identifier.mapped(bytes) {
            Ok(Some(verdict)) => {
                self.inventory.mapped(space, va, verdict);
            }
            Ok(None) => {}
            Err(_) => self.counters.count("catalog_errors"),
        }
    }

    /// Living user address spaces with their roots.
    pub fn living(&self) -> impl Iterator<Item = (SpaceId, Root)> {
        self.inventory
            .spaces()
            .filter(|s| s.is_living() && s.root.0 != 0)
            .map(|s| (s.id, s.root))
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

    /// An earlier part of the watch was restored, and this one begins now.
    pub fn goes_on(&mut self, at_ns: u64) {
        self.now_ns = self.now_ns.max(at_ns);
        self.bounded_ns = self.now_ns;
    }

    /// Everything that was written down is here again.
    pub(crate) fn restored(&mut self) {
        self.inventory.restored();
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

    /// The bytes of a modified or unknown page, if they are still kept.
    #[must_use]
    pub fn kept_bytes(&self, page: PageId) -> Option<&PageBytes> {
        self.kept.get(&page).or_else(|| self.open.get(&page))
    }

    /// The report as of now.
    #[must_use]
    pub fn report(&mut self) -> Report {
        let mut counters = self.counters.all();
        counters.insert("executions_dropped".into(), self.inventory.dropped());
        counters.insert("executions_late".into(), self.inventory.late());
        counters.insert("pages_forgotten".into(), self.inventory.pages_forgotten());
        counters.extend(sites::counters(&self.inventory));
        counters.insert("catalog_records_unreadable".into(), self.names.unreadable());
        for (reason, lost) in self.coverage.lost() {
            *counters
                .entry(format!("lost_{}", format!("{reason:?}").to_ascii_lowercase()))
                .or_default() += lost;
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
        report
    }

    fn captured(
        &mut self,
        at_ns: u64,
        captured: CodeCaptured,
        place: &dyn Fn(u64) -> Option<Gpa>,
        changes: &mut Vec<Change>,
    ) {
        if captured.replay && self.inventory.page(captured.page).is_some() {
            return self.captured_again(captured.page, captured.bytes, changes);
        }
        if captured.replay && self.inventory.is_forgotten(captured.page) {
            return;
        }
        let gpa = captured
            .gpa
            .or_else(|| place(captured.frame).filter(|_| captured.frame != 0));
        let record = PageRecord {
            id: captured.page,
            at_ns,
            gpa,
            frame: captured.frame,
            generation: captured.generation,
            root: captured.root,
            va: captured.va,
            privilege: captured.privilege,
            paging: captured.paging,
            bits: captured.bits,
            first: captured.start,
            digest: *blake3::hash(&captured.bytes[..]).as_bytes(),
            verdict: Arc::new(Verdict::Unknown(Unknown::default())),
            executed: vec![(captured.start, captured.end)],
        };
        let answer = self.ask(&record, &captured.bytes);
        let (page, root, open) = (record.id, record.root, answer.open);
        let identified = matches!(*answer.verdict, Verdict::Identified(_));
        self.inventory.captured(
            PageRecord {
                verdict: answer.verdict,
                ..record
            },
            changes,
        );
        self.kernel_ran(page, at_ns, changes);
        if open {
            self.keep_open(page, captured.bytes);
        } else if !identified {
            self.keep(page, captured.bytes);
        }
        if answer.placed {
            self.touched.extend(self.open.keys().copied());
        }
        if answer.lacking {
            self.lacking = Some(root);
        }
    }

    /// If the page is a kernel's, and that kernel took the guest over with it, all of before has ended.
    fn kernel_ran(&mut self, page: PageId, at_ns: u64, changes: &mut Vec<Change>) {
        let Some((object, slide)) = self.kernel_of(page) else {
            return;
        };
        if let Some(pages) = self.kernels.ran((object, slide), page) {
            self.inventory.another_kernel(at_ns, &pages, changes);
            self.identifier.images.only_kernel(object);
        }
    }

    /// The kernel that a page is of, if it surely is of one.
    fn kernel_of(&self, page: PageId) -> Option<Kernel> {
        let record = self.inventory.page(page)?;
        let Verdict::Identified(identified) = &*record.verdict else {
            return None;
        };
        let [place] = identified.places.as_slice() else {
            return None;
        };
        let kernel = record.privilege == Privilege::Supervisor && record.paging && record.va.is_high_half();
        let is_one =
            kernel && !identified.executed_only && self.names.kind(place.object) == Some(ObjectKind::Kernel);
        is_one.then(|| (place.object, record.va.0.wrapping_sub(place.link)))
    }

    /// Keeps bytes as evidence.
    fn keep(&mut self, page: PageId, bytes: PageBytes) {
        if self.kept.len() >= MAX_KEPT {
            self.kept.pop_first();
            self.counters.count("evidence_dropped");
        }
        self.kept.insert(page, bytes);
    }

    fn keep_open(&mut self, page: PageId, bytes: PageBytes) {
        if self.open.len() >= MAX_OPEN && !self.open.contains_key(&page) {
            self.open.pop_first();
            self.counters.count("open_pages_dropped");
        }
        self.open.insert(page, bytes);
    }

    fn look_again(&mut self, page: PageId, changes: &mut Vec<Change>) {
        if let Some(bytes) = self.open.get(&page).cloned() {
            self.look_at(page, bytes, changes);
        }
    }

    /// An earlier part of this watch has written the page down, and its bytes are here again. They tell where images lie, and
    /// the page may be known by now; as long as images are not found again, less than before may be known of it, so that
    /// what was known of the same bytes stays.
    fn captured_again(&mut self, page: PageId, bytes: PageBytes, changes: &mut Vec<Change>) {
        let Some(record) = self.inventory.page(page).cloned() else {
            return;
        };
        let may_change = match &*record.verdict {
            Verdict::Identified(known) if known.executed_only => true,
            Verdict::Identified(_) => false,
            _ => true,
        };
        let answer = self.ask(&record, &bytes);
        if matches!(*answer.verdict, Verdict::Identified(_)) {
            self.inventory.judged(page, answer.verdict, changes);
        }
        // What was only judged by what ran of it is judged again when more does.
        if may_change && answer.open {
            self.keep_open(page, bytes);
        } else if !matches!(*record.verdict, Verdict::Identified(_)) {
            self.keep(page, bytes);
        }
        if answer.placed {
            self.touched.extend(self.open.keys().copied());
        }
        if answer.lacking {
            self.lacking = Some(record.root);
        }
    }

    fn look_at(&mut self, page: PageId, bytes: PageBytes, changes: &mut Vec<Change>) {
        let Some(record) = self.inventory.page(page).cloned() else {
            return;
        };
        let answer = self.ask(&record, &bytes);
        let identified = matches!(*answer.verdict, Verdict::Identified(_));
        self.inventory.judged(page, answer.verdict, changes);
        self.kernel_ran(page, self.now_ns, changes);
        if answer.open {
            self.keep_open(page, bytes);
        } else {
            self.open.remove(&page);
            if !identified {
                self.keep(page, bytes);
            }
        }
        if answer.placed {
            self.touched.extend(self.open.keys().copied());
        }
    }

    fn ask(&mut self, record: &PageRecord, bytes: &PageBytes) -> Answer {
        let neighbours = self.neighbours(record);
        let question = Question {
            bytes,
            digest: record.digest,
            va: record.va,
            paging: record.paging,
            privilege: record.privilege,
            executed: &record.executed,
            neighbours: &neighbours,
            unknown: origin::of(record, bytes, !neighbours.is_empty()),
        };
        self.counters.count("identifications");
        match self.identifier.ask(&question) {
            Ok(answer) => answer,
            Err(error) => {
                self.counters.count("catalog_errors");
                let unknown = Unknown {
                    origin: format!("not looked up: {error}"),
                    jit: false,
                    undecided: false,
                };
                Answer {
                    verdict: Arc::new(Verdict::Unknown(unknown)),
                    placed: false,
                    open: false,
                    lacking: false,
                }
            }
        }
    }

    /// Files that pages near this one are of, in the address space that has the same root now, and their bias.
    fn neighbours(&self, record: &PageRecord) -> Vec<(ObjectId, u64)> {
        if record.privilege != Privilege::User {
            return Vec::new();
        }
        let space = self.inventory.living_at(record.root);
        space.map_or_else(Vec::new, |space| {
            space
                .files_near(record.va, NEIGHBOURHOOD, MAX_NEIGHBOURS)
                .collect()
        })
    }

    fn judge(&mut self, changes: &[Change], sinks: &mut [&mut dyn Sink]) {
        let mut drafts = Vec::new();
        for change in changes {
            self.judges
                .modified
                .judge(change, &self.inventory, &self.names, &mut drafts);
            self.judges
                .unknown
                .judge(change, &self.inventory, &self.names, &mut drafts);
        }
        for draft in drafts {
            self.emit(draft, sinks);
        }
    }

    fn emit(&mut self, draft: Draft, sinks: &mut [&mut dyn Sink]) {
        let page = draft.evidence.get("page").and_then(serde_json::Value::as_u64);
        if page.is_some_and(|page| self.told.is_repeated(draft.rule, PageId(page))) {
            self.counters.count("findings_repeated");
            return;
        }
        let finding = Finding {
            id: self.told.number(),
            rule: draft.rule.to_owned(),
            severity: draft.severity,
            address_space: draft.space.map(|space| space.0),
            at_ns: draft.at_ns,
            found_ns: self
                .began
                .and_then(|began| began.elapsed().as_nanos().try_into().ok()),
            summary: draft.summary,
            evidence: draft.evidence,
        };
        for sink in sinks {
            if sink.emit(&finding).is_err() {
                self.counters.count("findings_not_delivered");
            }
        }
        let gone = self.told.keep(finding);
        self.counters.add("findings_not_kept", gone);
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
    use nephoscope_guest::{Executed, PAGE_SIZE};

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
        for (files, neighbours) in [(3, 3), (MAX_NEIGHBOURS + 6, MAX_NEIGHBOURS)] {
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
            assert_eq!(session.neighbours(record).len(), neighbours);
        }
    }

    #[test]
    fn max_open_bounds_the_pages_that_may_yet_be_known() {
        let mut session = fed(MAX_OPEN + 3, Privilege::Supervisor);
        assert!(session.kept_bytes(PageId(2)).is_none() && session.kept_bytes(PageId(3)).is_some());
        assert_eq!(session.report().counters["open_pages_dropped"], 3);
    }
}
