//! Files that interpreters read: what they are, and what is said of them.

use std::collections::{BTreeMap, HashSet};

use nephoscope_finding::Sink;
use nephoscope_guest::{Gpa, PageAccessed, Root};
use nephoscope_inventory::{Change, FileCoverage, FileId, SpaceId};
use nephoscope_judge::FileRules;

use super::Session;

/// Counters that say that something of files was not seen.
const MISSING: [&str; 5] = [
    "file_accesses_blind",
    "file_frames_lost",
    "file_pieces_in_part",
    "file_pieces_of_no_file",
    "files_left_out",
];

impl Session {
    /// Files are watched, on all disks but so many.
    pub fn watches_files(&mut self, but: u64) {
        self.files_but = Some(but);
    }

    /// What can be vouched for of files, by what was counted.
    pub(super) fn file_coverage(&self, counters: &BTreeMap<String, u64>) -> Option<FileCoverage> {
        let but = self.files_but?;
        let counted = MISSING
            .iter()
            .map(|name| ((*name).to_owned(), counters.get(*name).copied().unwrap_or(0)));
        let unseen = self.inventory.files.unseen_by_reason().into_iter();
        let missing: BTreeMap<String, u64> = unseen
            .map(|(why, count)| (why.to_owned(), count))
            .chain(counted)
            .chain([
                ("disks_left_alone".to_owned(), but),
                // The journal has no files: what was read before is not known.
                ("watches_before".to_owned(), self.is_successor.into()),
            ])
            .filter(|(_, count)| *count > 0)
            .collect();
        Some(FileCoverage {
            complete: missing.is_empty(),
            missing,
        })
    }

    /// Which files are spoken of.
    pub fn set_file_rules(&mut self, rules: FileRules) {
        self.judges.files.set_rules(rules);
    }

    /// Memory that held a piece of a file was accessed.
    pub(super) fn accessed(&mut self, at_ns: u64, access: PageAccessed, changes: &mut Vec<Change>) {
        let digest = access
            .held
            .as_ref()
            .map(|bytes| *blake3::hash(&bytes[..]).as_bytes());
        let piece = self.inventory.accessed(at_ns, &access, digest, changes);
        if let (Some(piece), Some(digest), Some(bytes)) = (piece, digest, access.held) {
            match self.read_files.read(at_ns, piece, &digest, bytes, &self.catalog) {
                Ok(true) => self.counters.count("file_contents_dropped"),
                Ok(false) => {}
                Err(_) => self.counters.count("catalog_errors"),
            }
        }
    }

    /// Address spaces that have read pieces of files, and their roots: it is to be looked whether they have them mapped.
    #[must_use]
    pub fn readers_to_look_at(&mut self) -> Vec<(SpaceId, Root)> {
        let readers: Vec<SpaceId> = self.inventory.files.unsettled().collect();
        let mut living = Vec::new();
        for space in readers {
            match self.inventory.space(space).filter(|space| space.is_living()) {
                Some(about) => living.push((space, about.root)),
                None => self.inventory.files.settle(space, None),
            }
        }
        living
    }

    /// `look` gives those of the frames that an address space has mapped; `None` if its page tables were not seen whole.
    pub fn look_at_reader(
        &mut self,
        space: SpaceId,
        look: impl FnOnce(&HashSet<Gpa>) -> Option<HashSet<Gpa>>,
    ) {
        let mapped = look(&self.inventory.files.unsettled_in(space));
        self.inventory.files.settle(space, mapped.as_ref());
    }

    /// Looks what the files are of which something was read, and nothing more for a moment.
    pub(super) fn look_at_files(&mut self, changes: &mut Vec<Change>) {
        for file in self.read_files.due(self.now_ns) {
            self.look_at_file(file);
            changes.push(Change::FileJudged { file });
        }
    }

    /// What is known by now of all files that were read, also of those that somebody reads at this moment.
    pub(super) fn look_at_all_files(&mut self) {
        for file in self.read_files.touched() {
            self.look_at_file(file);
        }
    }

    fn look_at_file(&mut self, file: FileId) {
        match self.read_files.verdict(file, &self.inventory, &self.catalog) {
            Some(Ok(verdict)) => self.inventory.files.judged(file, verdict),
            Some(Err(_)) => self.counters.count("catalog_errors"),
            None => {}
        }
    }

    /// Speaks of files whose readers were not identified when they read.
    pub(super) fn speak_of_files(&mut self, sinks: &mut [&mut dyn Sink]) {
        let mut drafts = Vec::new();
        self.judges
            .files
            .later(self.now_ns, &self.inventory, &self.names, &mut drafts);
        for draft in drafts {
            self.emit(draft, sinks);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nephoscope_catalog::{Adder, Catalog};
    use nephoscope_guest::{Event, FileHeld, Stamped};
    use nephoscope_inventory::VmReport;

    use super::*;

    #[test]
    fn what_is_missing_of_files_is_coverage_of_those_that_are_watched() {
        let folder = tempfile::tempdir().unwrap();
        Adder::new(folder.path()).unwrap().commit().unwrap();
        let catalog = Arc::new(Catalog::open(folder.path()).unwrap());
        let mut session = Session::new(VmReport::default(), catalog);
        assert_eq!(session.report().coverage.files, None);
        session.watches_files(0);
        let coverage = session.report().coverage.files.unwrap();
        assert!(coverage.complete && coverage.missing.is_empty());
        let held = FileHeld {
            file: 7,
            at: 0,
            gpa: Gpa(0x1000),
            len: 4096,
            written: false,
            digest: [0; 32],
        };
        session.watches_files(2);
        session.restored();
        for event in [
            Event::FilesUnseen(0, vec![("volumes_not_understood", 1), ("transfers_unheard", 0)]),
            Event::FileHeld(Box::new(held)),
            Event::Counters(vec![("file_frames_lost", 3)]),
        ] {
            session.take(Stamped { at_ns: 1, event }, &|_| None, &mut []);
        }
        let coverage = session.report().coverage.files.unwrap();
        let expected = [
            ("disks_left_alone", 2),
            ("file_frames_lost", 3),
            ("file_pieces_of_no_file", 1),
            ("volumes_not_understood", 1),
            ("watches_before", 1),
        ];
        assert_eq!(
            coverage.missing,
            expected.map(|(name, count)| (name.to_owned(), count)).into()
        );
        assert!(!coverage.complete);
    }
}
