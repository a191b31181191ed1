//! The files of a file system while it is written to.
//!
//! ```text
//!  a write ─► to the journal: its transaction is remembered, and counts when its commit block is written
//!          ─► to a block that says where something is: it is looked at
//!          ─► to anything else: nothing here changes
//! ```
//!
//! What a transaction has committed is what counts, although it gets to its place much later: until then, reads of that place are answered
//! with what the journal has (the *overlay*).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;

use super::super::{Blocks, LayoutError};
use super::files::Files;
use super::journal::{JournalBlock, JournalSuperblock, MAX_JOURNAL_BLOCKS, Tag, in_place};

/// Transactions of which the beginning is known and the end is not: the kernel writes one after the other.
const MAX_BEGUN: usize = 64;
/// Blocks that are committed and not in their place: 4 GiB with blocks of 4 KiB, which is more than journals have.
const MAX_OVERLAY: usize = 1 << 20;

/// A file system that is kept current.
#[derive(Debug)]
pub struct Current {
    files: Files,
    journal: Option<Journal>,
    overlay: Overlay,
    missed: Missed,
}

/// Which block of the journal's file stands for another one. It stays as it is until that is in its place.
#[derive(Debug, Default)]
struct Overlay(HashMap<u64, Over>);

impl Overlay {
    /// False if there is no room.
    fn put(&mut self, block: u64, over: Over) -> bool {
        let has_room = self.0.len() < MAX_OVERLAY || self.0.contains_key(&block);
        if has_room {
            self.0.insert(block, over);
        }
        has_room
    }
}

#[derive(Clone, Copy, Debug)]
struct Over {
    block: u64,
    tag: Tag,
}

/// What was not followed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Missed {
    /// Transactions.
    pub transactions: u64,
    /// Blocks for which there was no room.
    pub blocks: u64,
    /// The journal is of a kind that is not understood: what is written is known when it gets to its place.
    pub journal: bool,
}

#[derive(Debug)]
struct Journal {
    about: JournalSuperblock,
    /// Where each of its blocks is.
    map: Vec<u64>,
    /// Which of its blocks each is.
    index: HashMap<u64, u32>,
    /// Where transactions begin, by their numbers, in the order in which they began.
    begun: VecDeque<(u32, u32)>,
    /// The last that was committed.
    last: Option<u32>,
}

/// The file system as the kernel sees it.
struct View<'a, D> {
    disk: &'a D,
    overlay: &'a Overlay,
    block_bytes: u64,
}

impl<D: Blocks> View<'_, D> {
    /// What stands for a block, if something does.
    fn over(&self, block: u64) -> Option<io::Result<Vec<u8>>> {
        let over = self.overlay.0.get(&block)?;
        let mut bytes = vec![0; usize::try_from(self.block_bytes).unwrap_or(0)];
        let read = self
            .disk
            .read(over.block.saturating_mul(self.block_bytes), &mut bytes);
        Some(read.map(|()| in_place(over.tag, bytes)))
    }
}

impl<D: Blocks> Blocks for View<'_, D> {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.read(at, into)?;
        if self.overlay.0.is_empty() {
            return Ok(());
        }
        let mut done = 0;
        while done < into.len() {
            let here = at.saturating_add(done as u64);
            let (block, offset) = (here / self.block_bytes, here % self.block_bytes);
            let offset = usize::try_from(offset).unwrap_or(0);
            let whole = usize::try_from(self.block_bytes).unwrap_or(1);
            let len = (whole - offset).min(into.len() - done);
            if let Some(bytes) = self.over(block) {
                let bytes = bytes?;
                if let (Some(to), Some(from)) =
                    (into.get_mut(done..done + len), bytes.get(offset..offset + len))
                {
                    to.copy_from_slice(from);
                }
            }
            done += len;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.disk.len()
    }
}

impl Current {
    /// Reads a file system, with what its journal has that is not in place.
    ///
    /// # Errors
    /// If it is none that is understood.
    pub fn read(disk: &impl Blocks) -> Result<Self, LayoutError> {
        // The journal's own blocks are never in the journal.
        let files = Files::read(disk)?;
        let mut current = Self {
            journal: None,
            overlay: Overlay::default(),
            missed: Missed::default(),
            files,
        };
        match current.open_journal(disk) {
            Ok(journal) => current.journal = journal,
            Err(_) => current.missed.journal = true,
        }
        if current.replay(disk) {
            let view = View {
                disk,
                overlay: &current.overlay,
                block_bytes: current.files.superblock().block_bytes.into(),
            };
            current.files = Files::read(&view)?;
        }
        Ok(current)
    }

    /// Its files, as the last transaction left them.
    #[must_use]
    pub const fn files(&self) -> &Files {
        &self.files
    }

    /// What was not followed.
    #[must_use]
    pub const fn missed(&self) -> Missed {
        self.missed
    }

    /// [`Files::path`].
    ///
    /// # Errors
    /// If its directory cannot be read.
    pub fn path(&self, inode: u32, disk: &impl Blocks) -> Result<Option<Vec<u8>>, LayoutError> {
        self.files.path(inode, &self.view(disk))
    }

    /// [`Files::find`].
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn find(&self, path: &[&[u8]], disk: &impl Blocks) -> Result<Option<u32>, LayoutError> {
        self.files.find(path, &self.view(disk))
    }

    /// [`Files::contents`].
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn contents(
        &self,
        inode: u32,
        most: u64,
        disk: &impl Blocks,
    ) -> Result<Option<Vec<u8>>, LayoutError> {
        self.files.contents(inode, most, &self.view(disk))
    }

    fn view<'a, D: Blocks>(&'a self, disk: &'a D) -> View<'a, D> {
        View {
            disk,
            overlay: &self.overlay,
            block_bytes: self.files.superblock().block_bytes.max(1).into(),
        }
    }

    fn open_journal(&self, disk: &impl Blocks) -> Result<Option<Journal>, LayoutError> {
        let of = self.files.superblock();
        if of.journal_inode == 0 {
            return Ok(None);
        }
        let mut map: BTreeMap<u32, u64> = BTreeMap::new();
        for (block, file_block) in self
            .files
            .blocks_of(of.journal_inode)
            .take(MAX_JOURNAL_BLOCKS as usize)
        {
            map.insert(file_block, block);
        }
        let map: Vec<u64> = (0..MAX_JOURNAL_BLOCKS)
            .map_while(|index| map.get(&index).copied())
            .collect();
        let first = map
            .first()
            .copied()
            .ok_or(LayoutError::Unsupported("a journal elsewhere"))?;
        let about = JournalSuperblock::parse(&block_at(disk, of.at(first), of.block_len())?, of.block_bytes)?;
        if usize::try_from(about.blocks).unwrap_or(usize::MAX) > map.len() {
            return Err(LayoutError::Unsupported("a journal that is longer than its file"));
        }
        Ok(Some(Journal {
            about,
            index: map.iter().copied().zip(0..).collect(),
            map,
            begun: VecDeque::new(),
            last: None,
        }))
    }

    /// Takes what the journal has into the overlay. Whether it has something.
    fn replay(&mut self, disk: &impl Blocks) -> bool {
        let Some(mut journal) = self.journal.take() else {
            return false;
        };
        let (mut at, mut sequence) = (journal.about.start, journal.about.sequence);
        if at != 0 {
            let mut left = journal.about.log_blocks();
            while let Some(found) = self
                .transaction(&journal, at, sequence, disk)
                .filter(|found| found.blocks <= left)
            {
                left -= found.blocks;
                self.lay_over(&found, &journal);
                journal.last = Some(sequence);
                (at, sequence) = (found.next, sequence.wrapping_add(1));
            }
        }
        self.journal = Some(journal);
        !self.overlay.0.is_empty()
    }

    /// Blocks were written, one after the other from this one on. The inodes are given that are others now, or have another name.
    pub fn written(&mut self, first: u64, bytes: &[u8], disk: &impl Blocks) -> Vec<u32> {
        let each = self.files.superblock().block_len();
        let (mut touched, mut committed) = (Vec::new(), Vec::new());
        for (block, bytes) in (first..).zip(bytes.chunks_exact(each)) {
            let index = self
                .journal
                .as_ref()
                .and_then(|journal| journal.index.get(&block).copied());
            if let Some((journal, at)) = self.journal.as_mut().zip(index) {
                committed.extend(journal.wrote(at, bytes));
                continue;
            }
            let was_over = self.view(disk).over(block);
            self.overlay.0.remove(&block);
            // What gets to its place at last was looked at already.
            if was_over.is_some_and(|over| over.is_ok_and(|over| over == bytes))
                || !self.files.is_metadata(block)
            {
                continue;
            }
            let view = View {
                disk,
                overlay: &self.overlay,
                block_bytes: each.max(1) as u64,
            };
            self.files.changed(block, bytes, &view, &mut touched);
        }
        for sequence in committed {
            self.commit(sequence, disk, &mut touched);
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    fn commit(&mut self, sequence: u32, disk: &impl Blocks, touched: &mut Vec<u32>) {
        let Some(mut journal) = self.journal.take() else {
            return;
        };
        let begun = journal
            .begun
            .iter()
            .find(|(begun, _)| *begun == sequence)
            .map(|(_, at)| *at);
        journal.begun.retain(|(begun, _)| *begun != sequence);
        let skipped = journal
            .last
            .map_or(0, |last| sequence.wrapping_sub(last).wrapping_sub(1));
        let found = begun.and_then(|at| self.transaction(&journal, at, sequence, disk));
        match found {
            Some(found) => {
                // Numbers go up; one that is less is of before.
                self.missed.transactions += u64::from(if skipped < u32::MAX / 2 { skipped } else { 0 });
                journal.last = Some(sequence);
                let mut changed = self.lay_over(&found, &journal);
                // What is in an inode comes before what it is called.
                changed.sort_by_key(|block| (self.files.is_named_there(*block), *block));
                for block in changed {
                    let Some(Ok(bytes)) = self.view(disk).over(block) else {
                        continue;
                    };
                    let view = View {
                        disk,
                        overlay: &self.overlay,
                        block_bytes: self.files.superblock().block_bytes.max(1).into(),
                    };
                    self.files.changed(block, &bytes, &view, touched);
                }
            }
            None => self.missed.transactions += 1,
        }
        self.journal = Some(journal);
    }

    /// A transaction that is complete.
    fn transaction(
        &self,
        journal: &Journal,
        at: u32,
        sequence: u32,
        disk: &impl Blocks,
    ) -> Option<Transaction> {
        let of = self.files.superblock();
        let (mut at, mut found) = (at, Transaction::default());
        while found.blocks < journal.about.log_blocks() {
            let block = *journal.map.get(usize::try_from(at).ok()?)?;
            let bytes = block_at(disk, of.at(block), of.block_len()).ok()?;
            let own = journal.about.block(&bytes)?;
            found.blocks += 1;
            at = journal.about.after(at);
            match own {
                JournalBlock::Descriptor(of, tags) if of == sequence => {
                    for tag in tags {
                        found.tags.push((tag, at));
                        found.blocks += 1;
                        at = journal.about.after(at);
                    }
                }
                JournalBlock::Revoked(of, blocks) if of == sequence => found.revoked.extend(blocks),
                JournalBlock::Commit(of) if of == sequence => {
                    found.next = at;
                    return Some(found);
                }
                _ => return None,
            }
        }
        None
    }

    /// What a transaction has is what is there from now on. Which blocks that are.
    fn lay_over(&mut self, found: &Transaction, journal: &Journal) -> Vec<u64> {
        for block in &found.revoked {
            self.overlay.0.remove(block);
        }
        let mut changed = Vec::new();
        for (tag, at) in &found.tags {
            let block = usize::try_from(*at)
                .ok()
                .and_then(|at| journal.map.get(at))
                .copied();
            if !block.is_some_and(|block| self.overlay.put(tag.block, Over { block, tag: *tag })) {
                self.missed.blocks += 1;
                continue;
            }
            changed.push(tag.block);
        }
        changed
    }
}

/// What is between a beginning and a commit block.
#[derive(Debug, Default)]
struct Transaction {
    /// Where each block belongs, and which of the journal's has it.
    tags: Vec<(Tag, u32)>,
    revoked: Vec<u64>,
    /// Blocks of the journal that it has.
    blocks: u32,
    /// The block behind it.
    next: u32,
}

impl Journal {
    /// One of its blocks was written. The transaction, if that is complete now.
    fn wrote(&mut self, at: u32, bytes: &[u8]) -> Option<u32> {
        if at == 0 {
            // Whoever mounts it says with which features it is written from then on.
            if let Ok(about) = JournalSuperblock::parse(bytes, self.about.block_bytes)
                && usize::try_from(about.blocks).is_ok_and(|blocks| blocks <= self.map.len())
            {
                self.about = about;
            }
            return None;
        }
        let (sequence, is_complete) = match self.about.block(bytes)? {
            JournalBlock::Descriptor(sequence, _) | JournalBlock::Revoked(sequence, _) => (sequence, false),
            JournalBlock::Commit(sequence) => (sequence, true),
        };
        if !self.begun.iter().any(|(begun, _)| *begun == sequence) {
            if self.begun.len() == MAX_BEGUN {
                self.begun.pop_front();
            }
            self.begun.push_back((sequence, at));
        }
        is_complete.then_some(sequence)
    }
}

fn block_at(disk: &impl Blocks, at: u64, len: usize) -> Result<Vec<u8>, LayoutError> {
    let mut bytes = vec![0; len];
    disk.read(at, &mut bytes)
        .map_err(|source| LayoutError::Read { at, source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_overlay_bounds_what_is_committed_and_not_in_its_place() {
        let mut overlay = Overlay::default();
        let over = Over {
            block: 1,
            tag: Tag {
                block: 0,
                is_escaped: false,
            },
        };
        assert!((0..MAX_OVERLAY as u64).all(|block| overlay.put(block, over)));
        assert!(!overlay.put(MAX_OVERLAY as u64, over) && overlay.put(0, over));
    }

    #[test]
    fn max_begun_transactions_are_remembered_and_the_oldest_go() {
        let superblock = [0xc03b_3998, 4, 0, 1024, 100, 1, 1, 0]
            .map(u32::to_be_bytes)
            .concat();
        let superblock = [superblock, vec![0; 1024]].concat();
        let mut journal = Journal {
            about: JournalSuperblock::parse(&superblock, 1024).unwrap(),
            map: vec![0; 100],
            index: HashMap::new(),
            begun: VecDeque::new(),
            last: None,
        };
        let of = |kind: u32, sequence: u32| {
            [
                [0xc03b_3998, kind, sequence].map(u32::to_be_bytes).concat(),
                vec![0; 1012],
            ]
            .concat()
        };
        for sequence in 0..=u32::try_from(MAX_BEGUN).unwrap() {
            assert_eq!(journal.wrote(7, &of(1, sequence)), None);
        }
        let begun: Vec<u32> = journal.begun.iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!((begun.len(), begun[0]), (MAX_BEGUN, 1));
        assert_eq!(journal.wrote(8, &of(2, 5)), Some(5));
    }
}
