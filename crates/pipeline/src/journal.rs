//! What a watch concluded, as it is written down: a watch that was killed has a successor that goes on from there.
//!
//! ```text
//!  Session ──journal()──► entries since the last call ──► a file ──restore()──► Session of the successor
//! ```
//!
//! Verdicts name files by the number that a catalog gave them. The successor may have opened another catalog, so each file
//! is written down by its digest before a verdict names it, and found again by that. A file that the new catalog does not have
//! is left out of the verdict, and counted there; if it was the only one, the page is unknown, and says why.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use nephoscope_catalog::{Catalog, ObjectId};
use nephoscope_finding::Finding;
use nephoscope_guest::Gap;
use nephoscope_inventory::{Place, Record, Unknown, Verdict};
use nephoscope_judge::Judge;
use serde::{Deserialize, Serialize};

use crate::session::Session;

/// One thing that was concluded.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A file that verdicts from here on may name.
    Object {
        /// By this number.
        id: ObjectId,
        /// BLAKE3 of the file.
        digest: [u8; 32],
    },
    /// Of the inventory.
    Record(Record),
    /// Of coverage.
    Gap(Gap),
    /// A finding.
    Finding(Finding),
    /// What the pipeline has counted up to here.
    Counted(BTreeMap<String, u64>),
}

/// How much was written down already.
#[derive(Debug, Default)]
pub(crate) struct Written {
    keeping: bool,
    objects: HashSet<ObjectId>,
    /// Gaps since the last call. What `CoverageLog` joins is written as it came.
    gaps: Vec<Gap>,
    /// Number of the last finding.
    last_finding: u64,
    counted: BTreeMap<String, u64>,
}

impl Session {
    /// What is new since the last call, in an order in which it can be restored; at the first call everything there is.
    /// From the first call on what changes is kept until the next.
    pub fn journal(&mut self) -> Vec<Entry> {
        self.written.keeping = true;
        let records = self.inventory.changes();
        self.entries(records)
    }

    /// Everything, as if nothing had been written down before.
    pub fn journal_anew(&mut self) -> Vec<Entry> {
        self.written = Written {
            gaps: self.coverage.gaps().to_vec(),
            keeping: true,
            ..Written::default()
        };
        self.inventory.changes();
        let records = self.inventory.everything();
        self.entries(records)
    }

    /// Nothing more will be written down.
    pub fn journal_ends(&mut self) {
        self.inventory.changes_end();
        self.written = Written::default();
    }

    /// Takes a gap.
    pub(crate) fn add_gap(&mut self, gap: Gap) {
        self.coverage.add(gap);
        if self.written.keeping {
            self.written.gaps.push(gap);
        }
    }

    fn entries(&mut self, records: Vec<Record>) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(records.len());
        for record in records {
            if let Record::Page(nephoscope_inventory::PageRecord { verdict, .. })
            | Record::Mapped { verdict, .. } = &record
            {
                for place in verdict.places() {
                    self.name(place.object, &mut entries);
                }
            }
            entries.push(Entry::Record(record));
        }
        entries.extend(self.written.gaps.drain(..).map(Entry::Gap));
        let last = self.written.last_finding;
        let findings = self.told.findings().iter().filter(|finding| finding.id > last);
        entries.extend(findings.cloned().map(Entry::Finding));
        self.written.last_finding = self.told.last();
        if !entries.is_empty() && self.written.counted != *self.counters.counted() {
            self.written.counted = self.counters.counted().clone();
            entries.push(Entry::Counted(self.written.counted.clone()));
        }
        entries
    }

    fn name(&mut self, id: ObjectId, entries: &mut Vec<Entry>) {
        if self.written.objects.contains(&id) {
            return;
        }
        // What cannot be read now is left out by the successor, as every file that it does not find.
        if let Ok(object) = self.catalog.object(id) {
            self.written.objects.insert(id);
            entries.push(Entry::Object {
                id,
                digest: object.digest,
            });
        }
    }

    /// Goes on from what an earlier watch of the same VM wrote down.
    pub fn restore(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let mut objects = Objects {
            catalog: self.catalog.clone(),
            known: HashMap::new(),
        };
        for entry in entries {
            match entry {
                Entry::Object { id, digest } => objects.add(id, &digest),
                Entry::Record(record) => self.inventory.restore(objects.renamed(record)),
                Entry::Gap(gap) => self.coverage.add(gap),
                Entry::Finding(finding) => {
                    self.judges.modified.remember(&finding);
                    self.judges.unknown.remember(&finding);
                    self.judges.files.remember(&finding);
                    // Those that had to go then go again now; they are in what was counted.
                    self.told.restore(finding);
                }
                Entry::Counted(counted) => self.counters.go_on(counted),
            }
        }
        self.restored();
    }
}

/// The files of an earlier catalog in this one.
struct Objects {
    catalog: Arc<Catalog>,
    known: HashMap<ObjectId, ObjectId>,
}

impl Objects {
    fn add(&mut self, id: ObjectId, digest: &[u8; 32]) {
        // A record that cannot be read is a file that is not there.
        if let Ok(Some(now)) = self.catalog.by_digest(digest) {
            self.known.insert(id, now);
        }
    }

    fn renamed(&self, record: Record) -> Record {
        match record {
            Record::Page(mut page) => {
                page.verdict = self.verdict(page.verdict);
                Record::Page(page)
            }
            Record::Mapped { space, va, verdict } => Record::Mapped {
                space,
                va,
                verdict: self.verdict(verdict),
            },
            other => other,
        }
    }

    fn verdict(&self, verdict: Arc<Verdict>) -> Arc<Verdict> {
        let same = |place: &Place| self.known.get(&place.object) == Some(&place.object);
        if verdict.places().iter().all(same) {
            return verdict;
        }
        let place = |place: &Place| {
            let object = *self.known.get(&place.object)?;
            Some(Place { object, ..*place })
        };
        let gone = || {
            Verdict::Unknown(Unknown {
                origin: format!(
                    "{} by a file that the catalog no longer has, before the watch began again",
                    verdict.word()
                ),
                jit: false,
                undecided: false,
            })
        };
        Arc::new(match &*verdict {
            Verdict::Identified(found) => {
                let places: Vec<Place> = found.places.iter().filter_map(place).collect();
                let left_out = found.left_out + (found.places.len() - places.len()) as u64;
                if places.is_empty() {
                    gone()
                } else {
                    let mut found = found.clone();
                    (found.places, found.left_out) = (places, left_out);
                    Verdict::Identified(found)
                }
            }
            Verdict::Modified(found) => match place(&found.nearest) {
                Some(nearest) => {
                    let mut found = found.clone();
                    found.nearest = nearest;
                    Verdict::Modified(found)
                }
                None => gone(),
            },
            Verdict::Unknown(_) => return verdict,
        })
    }
}

#[cfg(test)]
mod tests;
