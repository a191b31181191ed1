//! Files that interpreters read: what they are, and what is said of them.

use std::collections::HashSet;

use nephoscope_finding::Sink;
use nephoscope_guest::{Gpa, PageAccessed, Root};
use nephoscope_inventory::{Change, FileId, SpaceId};
use nephoscope_judge::FileRules;

use super::Session;

impl Session {
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
