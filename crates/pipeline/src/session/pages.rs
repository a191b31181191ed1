//! Pages: what each is asked about, and what is kept of it.

use std::sync::Arc;

use nephoscope_catalog::ObjectId;
use nephoscope_guest::{CodeCaptured, Gpa, PageBytes, PageId, Privilege};
use nephoscope_inventory::{Change, ObjectFacts, PageRecord, Unknown, Verdict};
use nephoscope_recipe::ObjectKind;

use super::{MAX_KEPT, MAX_NEIGHBOURS, MAX_OPEN, NEIGHBOURHOOD, Session};
use crate::identify::{Answer, Question};
use crate::kernels::Kernel;
use crate::origin;

impl Session {
    /// The bytes of a modified or unknown page, if they are still kept.
    #[must_use]
    pub fn kept_bytes(&self, page: PageId) -> Option<&PageBytes> {
        self.kept.get(&page).or_else(|| self.open.get(&page))
    }

    pub(super) fn captured(
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
            executed: if captured.start < captured.end {
                vec![(captured.start, captured.end)]
            } else {
                Vec::new()
            },
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
            self.placed();
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
        let record = self.inventory.page(page);
        self.kernel_text = record
            .and_then(|record| Some((record.va, record.gpa?)))
            .or(self.kernel_text);
        if let Some(pages) = self.kernels.ran((object, slide), page) {
            self.inventory.another_kernel(at_ns, &pages, changes);
            self.identifier.images.only_kernel(object);
        }
    }

    /// The kernel that a page is of, if it surely is of one.
    pub(super) fn kernel_of(&self, page: PageId) -> Option<Kernel> {
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

    pub(super) fn look_again(&mut self, page: PageId, changes: &mut Vec<Change>) {
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
            self.placed();
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
            self.placed();
        }
    }

    fn ask(&mut self, record: &PageRecord, bytes: &PageBytes) -> Answer {
        let (neighbours, more) = self.neighbours(record);
        self.counters.add("neighbours_left_out", u64::from(more));
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

    /// Files that pages near this one are of, in the address space that has the same root now, and their bias; and whether
    /// there are more than a page is compared with.
    pub(super) fn neighbours(&self, record: &PageRecord) -> (Vec<(ObjectId, u64)>, bool) {
        if record.privilege != Privilege::User {
            return (Vec::new(), false);
        }
        let space = self.inventory.living_at(record.root);
        space.map_or_else(Default::default, |space| {
            let mut near = space.files_near(record.va, NEIGHBOURHOOD, usize::MAX);
            (
                near.by_ref().take(MAX_NEIGHBOURS).collect(),
                near.next().is_some(),
            )
        })
    }
}
