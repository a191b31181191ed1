//! The files of a file system while it is written to.
//!
//! ```text
//!  a write ─► to the log: what its complete transactions say is there from now on
//!          ─► to a block that says where something is: it is looked at
//!          ─► to anything else: nothing here changes
//! ```
//!
//! What a transaction says gets to its place much later: until then, reads of that place are answered with what it said.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use super::super::bytes::{index, u16_be, u16_le, u32_le, u64_be, u64_le};
use super::super::{Blocks, LayoutError};
use super::files::Files;
use super::log::{Item, Log, NewFork, Transaction};
use super::superblock::Superblock;
use super::tree::pointers_at;

/// Blocks that are committed and not in their place, and inodes that are: 128 MiB with blocks of 4 KiB.
const MAX_OVERLAY: usize = 1 << 15;

/// A file system that is kept current.
#[derive(Debug)]
pub struct Current {
    files: Files,
    log: Option<Log>,
    over: Over,
    missed: Missed,
}

/// What was not followed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Missed {
    /// Transactions.
    pub transactions: u64,
    /// Blocks and inodes for which there was no room.
    pub blocks: u64,
    /// The log is elsewhere: what is written is known when it gets to its place.
    pub log: bool,
}

/// An inode that is not in its place: where in its block, since when, and what it is.
#[derive(Debug)]
struct OverInode {
    lsn: u64,
    bytes: Vec<u8>,
}

/// What is committed and not in its place.
#[derive(Debug, Default)]
struct Over {
    blocks: HashMap<u64, Vec<u8>>,
    /// By block, and where in it.
    inodes: HashMap<u64, BTreeMap<usize, OverInode>>,
    /// Blocks of inodes that were made and are on the disk what they were before.
    fresh: HashSet<u64>,
}

impl Over {
    fn has_room(&self) -> bool {
        self.blocks.len() + self.inodes.len() + self.fresh.len() < MAX_OVERLAY
    }
}

/// The file system as the kernel sees it.
struct View<'a, D> {
    disk: &'a D,
    over: &'a Over,
    block_bytes: u64,
}

impl<D: Blocks> Blocks for View<'_, D> {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.read(at, into)?;
        let mut done = 0;
        while done < into.len() {
            let here = at.saturating_add(done as u64);
            let (block, offset) = (here / self.block_bytes, index(here % self.block_bytes));
            let len = (index(self.block_bytes) - offset).min(into.len() - done);
            if let Some(piece) = into.get_mut(done..done + len) {
                self.lay_over(block, offset, piece);
            }
            done += len;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.disk.len()
    }
}

impl<D> View<'_, D> {
    /// A piece of a block that was read gets what is not in its place.
    fn lay_over(&self, block: u64, offset: usize, piece: &mut [u8]) {
        if self.over.fresh.contains(&block) {
            piece.fill(0);
        }
        if let Some(bytes) = self.over.blocks.get(&block)
            && let Some(from) = bytes.get(offset..offset + piece.len())
        {
            piece.copy_from_slice(from);
        }
        for (at, inode) in self.over.inodes.get(&block).into_iter().flatten() {
            put(piece, offset, *at, &inode.bytes);
        }
    }
}

/// Puts bytes that are at a place of a block into a piece of it that begins elsewhere.
fn put(piece: &mut [u8], piece_at: usize, at: usize, bytes: &[u8]) {
    let from = at.max(piece_at);
    let to = (at + bytes.len()).min(piece_at + piece.len());
    if from < to
        && let Some(into) = piece.get_mut(from - piece_at..to - piece_at)
        && let Some(bytes) = bytes.get(from - at..to - at)
    {
        into.copy_from_slice(bytes);
    }
}

impl Current {
    /// Reads a file system. What its log has that is not in place is put there by whoever mounts it.
    ///
    /// # Errors
    /// If it is none that is understood.
    pub fn read(disk: &impl Blocks) -> Result<Self, LayoutError> {
        let files = Files::read(disk)?;
        let log = Log::open(files.superblock(), disk);
        Ok(Self {
            missed: Missed {
                log: log.is_none(),
                ..Missed::default()
            },
            over: Over::default(),
            log,
            files,
        })
    }

    /// Its files, as the last transaction left them.
    #[must_use]
    pub const fn files(&self) -> &Files {
        &self.files
    }

    /// What was not followed.
    #[must_use]
    pub fn missed(&self) -> Missed {
        let in_log = self.log.as_ref().map_or(0, Log::missed);
        Missed {
            transactions: self.missed.transactions + in_log,
            ..self.missed
        }
    }

    /// [`Files::path`].
    ///
    /// # Errors
    /// If its directory cannot be read.
    pub fn path(&self, inode: u64, disk: &impl Blocks) -> Result<Option<Vec<u8>>, LayoutError> {
        self.files.path(inode, &self.view(disk))
    }

    /// [`Files::find`].
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn find(&self, path: &[&[u8]], disk: &impl Blocks) -> Result<Option<u64>, LayoutError> {
        self.files.find(path, &self.view(disk))
    }

    /// [`Files::contents`].
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn contents(
        &self,
        inode: u64,
        most: u64,
        disk: &impl Blocks,
    ) -> Result<Option<Vec<u8>>, LayoutError> {
        self.files.contents(inode, most, &self.view(disk))
    }

    fn view<'a, D: Blocks>(&'a self, disk: &'a D) -> View<'a, D> {
        View {
            disk,
            over: &self.over,
            block_bytes: self.files.superblock().block_bytes.max(1).into(),
        }
    }

    /// Bytes were written from this one on, which `disk` reads already. The inodes are given that are others now, or have another name.
    ///
    /// The log is written in pieces of 512 bytes, the headers of groups in sectors: that need not be whole blocks.
    pub fn written(&mut self, at: u64, bytes: &[u8], disk: &impl Blocks) -> Vec<u64> {
        let of = self.files.superblock().clone();
        let each = u64::from(of.block_bytes);
        let end = at.saturating_add(bytes.len() as u64);
        let (mut touched, mut whole) = (Vec::new(), vec![0; of.block_len()]);
        for block in at / each..end.div_ceil(each) {
            if self.log.as_ref().is_some_and(|log| log.has(of.at(block))) || block >= of.blocks {
                continue;
            }
            let is_whole = of.at(block) >= at && of.at(block + 1) <= end;
            let is_other = if is_whole {
                let from = index(of.at(block) - at);
                let Some(piece) = bytes.get(from..from + of.block_len()) else {
                    continue;
                };
                let before = self.over.blocks.remove(&block);
                let was_fresh = self.over.fresh.remove(&block);
                self.settle_inodes(block, piece, &of);
                was_fresh || before.is_none_or(|before| before != piece)
            } else {
                // The rest of the block may be something else that is not in its place.
                if let Some(over) = self.over.blocks.get_mut(&block) {
                    let (from, to) = (at.max(of.at(block)), end.min(of.at(block + 1)));
                    if let Some(piece) = bytes.get(index(from - at)..index(to - at)) {
                        put(over, 0, index(from - of.at(block)), piece);
                    }
                }
                if disk.read(of.at(block), &mut whole).is_ok() {
                    self.settle_inodes(block, &whole, &of);
                }
                true
            };
            // What gets to its place at last was looked at already.
            if is_other && self.files.is_metadata(block) {
                self.look(block, disk, &mut touched);
            }
        }
        self.name(disk, &mut touched);
        if let Some(mut log) = self.log.take() {
            if log.has(at) {
                for transaction in log.written(at, bytes, &of, disk) {
                    self.commit(&transaction, disk, &mut touched);
                }
            }
            self.log = Some(log);
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// A block with inodes was written: those of them that say they are as new as what is not in its place are there now.
    fn settle_inodes(&mut self, block: u64, bytes: &[u8], of: &Superblock) {
        let Some(inodes) = self.over.inodes.get_mut(&block) else {
            return;
        };
        // Version 4 does not say it.
        inodes.retain(|at, inode| {
            let said = bytes.get(at + 112..).and_then(|said| u64_be(said, 0));
            of.has_checksums && said.is_none_or(|said| said < inode.lsn)
        });
        if inodes.is_empty() {
            self.over.inodes.remove(&block);
        }
    }

    /// A block is what the view says it is.
    fn look(&mut self, block: u64, disk: &impl Blocks, touched: &mut Vec<u64>) {
        let of = self.files.superblock();
        let (at, mut bytes) = (of.at(block), vec![0; of.block_len()]);
        let view = View {
            disk,
            over: &self.over,
            block_bytes: of.block_bytes.max(1).into(),
        };
        if view.read(at, &mut bytes).is_ok() {
            self.files.changed(block, &bytes, &view, touched);
        }
    }

    /// What a transaction says is there from now on. All of it is put there before any of it is looked at.
    fn commit(&mut self, transaction: &Transaction, disk: &impl Blocks, touched: &mut Vec<u64>) {
        let of = self.files.superblock().clone();
        let (mut inodes, mut others) = (Vec::new(), Vec::new());
        for item in &transaction.items {
            match item {
                Item::Created(first, len) => {
                    for block in *first..first.saturating_add((*len).into()) {
                        self.over.inodes.remove(&block);
                        if self.over.has_room() {
                            self.over.fresh.insert(block);
                        } else {
                            self.missed.blocks += 1;
                        }
                    }
                }
                Item::Written(patches) => {
                    for patch in patches {
                        self.patch(patch.at, &patch.bytes, &of, disk, &mut others);
                    }
                }
                Item::Cancelled(at, len) => {
                    let each = u64::from(of.block_bytes);
                    for block in at / each..at.saturating_add(*len).div_ceil(each) {
                        self.over.blocks.remove(&block);
                        self.over.fresh.remove(&block);
                        self.over.inodes.remove(&block);
                    }
                }
                Item::Inode(..) => {}
            }
        }
        for item in &transaction.items {
            if let Item::Inode(number, core, fork) = item
                && let Some(block) = self.inode(*number, core, fork.as_ref(), transaction.lsn, &of, disk)
            {
                inodes.push(block);
            }
        }
        inodes.sort_unstable();
        inodes.dedup();
        others.sort_unstable();
        others.dedup();
        // Where inodes are comes before inodes, and those before their names.
        let (leads, names): (Vec<u64>, Vec<u64>) = others
            .into_iter()
            .partition(|block| self.files.is_named_nowhere(*block));
        for block in leads.into_iter().chain(inodes).chain(names) {
            if self.files.is_metadata(block) {
                self.look(block, disk, touched);
            }
        }
        self.name(disk, touched);
    }

    fn name(&mut self, disk: &impl Blocks, touched: &mut Vec<u64>) {
        let view = View {
            disk,
            over: &self.over,
            block_bytes: self.files.superblock().block_bytes.max(1).into(),
        };
        self.files.name_in_short(&view, touched);
    }

    /// Metadata is this now.
    fn patch(&mut self, at: u64, bytes: &[u8], of: &Superblock, disk: &impl Blocks, others: &mut Vec<u64>) {
        let each = u64::from(of.block_bytes);
        let mut done = 0;
        while done < bytes.len() {
            let here = at.saturating_add(done as u64);
            let (block, offset) = (here / each, index(here % each));
            let len = (index(each) - offset).min(bytes.len() - done);
            if !self.over.blocks.contains_key(&block) {
                let mut whole = vec![0; index(each)];
                let is_there = self.over.has_room() && disk.read(of.at(block), &mut whole).is_ok();
                if is_there {
                    self.over.blocks.insert(block, whole);
                } else {
                    self.missed.blocks += 1;
                }
            }
            if let Some(whole) = self.over.blocks.get_mut(&block)
                && let Some(from) = bytes.get(done..done + len)
            {
                put(whole, 0, offset, from);
                others.push(block);
            }
            done += len;
        }
    }

    /// An inode is this now: the block that it is in.
    fn inode(
        &mut self,
        number: u64,
        core: &[u8],
        fork: Option<&NewFork>,
        lsn: u64,
        of: &Superblock,
        disk: &impl Blocks,
    ) -> Option<u64> {
        let (block, offset) = of.inode(number)?;
        if !self.over.inodes.contains_key(&block) && !self.over.has_room() {
            self.missed.blocks += 1;
            return None;
        }
        let mut bytes = vec![0; index(of.inode_bytes.into())];
        let at = of.at(block).saturating_add(offset as u64);
        self.view(disk).read(at, &mut bytes).ok()?;
        on_disk(core, &mut bytes)?;
        if let Some(fork) = fork {
            let begin = if bytes.get(4) == Some(&3) { 176 } else { 100 };
            let len = match bytes.get(82) {
                Some(0) | None => bytes.len().checked_sub(begin)?,
                Some(eights) => usize::from(*eights) * 8,
            };
            let into = bytes.get_mut(begin..begin + len)?;
            into.fill(0);
            match fork {
                NewFork::Same(fork) => put(into, 0, 0, fork),
                NewFork::Root(fork) => root_on_disk(fork, of, into)?,
            }
        }
        let inode = OverInode { lsn, bytes };
        self.over.inodes.entry(block).or_default().insert(offset, inode);
        Some(block)
    }
}

/// An inode's core as it is in memory (`struct xfs_log_dinode`), put as the disk has it: the fields are at the same places.
fn on_disk(core: &[u8], into: &mut [u8]) -> Option<()> {
    /// Fields that are looked at: where, and how many bytes.
    const FIELDS: [(usize, usize); 13] = [
        (0, 2),
        (2, 2),
        (6, 2),
        (16, 4),
        (24, 8),
        (56, 8),
        (76, 4),
        (80, 2),
        (90, 2),
        (92, 4),
        (112, 8),
        (120, 8),
        (152, 8),
    ];
    let version = *core.get(4)?;
    for at in [4, 5, 82, 83] {
        *into.get_mut(at)? = *core.get(at)?;
    }
    for (at, len) in FIELDS {
        if version < 3 && at >= 100 {
            break;
        }
        let into = into.get_mut(at..at + len)?;
        match len {
            2 => into.copy_from_slice(&u16_le(core, at)?.to_be_bytes()),
            4 => into.copy_from_slice(&u32_le(core, at)?.to_be_bytes()),
            _ => into.copy_from_slice(&u64_le(core, at)?.to_be_bytes()),
        }
    }
    Some(())
}

/// The root of a tree of extents as it is in memory, put as an inode has it (`xfs_bmbt_to_bmdr`).
fn root_on_disk(root: &[u8], of: &Superblock, into: &mut [u8]) -> Option<()> {
    let header = if of.has_checksums { 72 } else { 24 };
    let count = usize::from(u16_be(root, 6)?);
    let entries = root.get(header..)?;
    let pointers = entries.get(pointers_at(entries.len(), 8, 8)..)?;
    let (begin, room) = into.split_at_mut_checked(4)?;
    begin.copy_from_slice(root.get(4..8)?);
    let to = pointers_at(room.len(), 8, 8);
    put(room, 0, 0, entries.get(..count * 8)?);
    put(room, 0, to, pointers.get(..count * 8)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::superblock::tests::bytes;
    use super::*;

    #[test]
    fn max_overlay_bounds_what_is_committed_and_not_in_its_place() {
        let mut over = Over::default();
        over.blocks
            .extend((0..MAX_OVERLAY as u64 - 2).map(|block| (block, Vec::new())));
        over.fresh.insert(0);
        assert!(over.has_room());
        over.inodes.insert(0, BTreeMap::new());
        assert!(!over.has_room());
    }

    #[test]
    fn a_piece_gets_the_bytes_that_are_within_it() {
        let all = |piece_at: usize, len: usize, at: usize| {
            let mut piece = vec![0; len];
            put(&mut piece, piece_at, at, &[1, 2, 3, 4]);
            piece
        };
        assert_eq!(all(0, 6, 1), [0, 1, 2, 3, 4, 0]);
        assert_eq!(all(3, 4, 1), [3, 4, 0, 0]);
        assert_eq!(all(0, 3, 1), [0, 1, 2]);
        assert_eq!(all(2, 2, 1), [2, 3]);
        assert_eq!((all(5, 3, 1), all(0, 1, 1)), (vec![0; 3], vec![0]));
    }

    #[test]
    fn a_root_in_memory_has_its_pointers_elsewhere_than_in_an_inode() {
        let of = Superblock::parse(&bytes(|_| ()), 1 << 30).unwrap();
        // One level, two children: keys 0 and 9, blocks 20 and 30.
        let mut root = vec![0; 72 + 3 * 16];
        (root[5], root[7]) = (1, 2);
        root[72 + 15] = 9;
        (root[72 + 24 + 7], root[72 + 24 + 15]) = (20, 30);
        let mut inode = vec![0; 336];
        root_on_disk(&root, &of, &mut inode).unwrap();
        let (level, children) = super::super::tree::root_in_inode(&inode, &of).unwrap();
        assert_eq!((level, children), (1, vec![20, 30]));
        assert_eq!(
            root_on_disk(&root, &of, &mut [0; 30]),
            Some(()),
            "cut, and within"
        );
    }
}
