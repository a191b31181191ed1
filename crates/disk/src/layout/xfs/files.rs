//! All files of a file system as it is now: whose each block is, and what each inode is called.
//!
//! The trees of inode chunks are walked once, and each chunk read. Directories keep their names; the names of files are looked for in
//! their directory when somebody asks.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::super::bytes::index;
use super::super::contents::contents;
use super::super::{Blocks, InodeKind, LayoutError, Owner, Owners, paths};
use super::chunks::{CHUNK, Chunk, chunks, header_at};
use super::directory::{DirectoryBlock, HASHES_AT, Name, ShortForm};
use super::extents::Extents;
use super::inode::{Fork, Inode};
use super::superblock::{self, Superblock};

/// Inodes that are kept: some 100 bytes each. It stops a disk that is full of empty files; what is beyond has no name here.
const MAX_INODES: usize = 8 << 20;
/// Blocks of one directory that are read.
const MAX_DIRECTORY_BLOCKS: usize = 1 << 18;
/// Chunks of one group that are read: a group of 1 TiB with nothing but inodes has as many. What is beyond is counted.
const MAX_CHUNKS: usize = 1 << 23;

/// A run of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    block: u64,
    file_block: u32,
    len: u32,
}

/// What is known of an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its number.
    pub inode: u64,
    /// What has it.
    pub kind: InodeKind,
    /// Tells it from the one that had its number before.
    pub generation: u32,
    /// Bytes of its contents.
    pub bytes: u64,
    /// A directory in which it has a name; 0 if none is known.
    pub parent: u64,
    /// Of a directory, its name there.
    name: Box<[u8]>,
    /// It is a directory whose names are in its inode.
    is_short: bool,
    runs: Box<[Run]>,
    /// Blocks that lead to its own.
    nodes: Box<[u64]>,
    /// Of what was read of the inode, so that it is known when that changes.
    digest: u64,
}

/// What was not understood.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Skipped {
    /// Groups whose inodes cannot be read.
    pub groups: u64,
    /// Inodes whose blocks cannot be right, or are too many.
    pub inodes: u64,
    /// Inodes for which there was no room.
    pub left_out: u64,
    /// Blocks that more than one file has: of which it is read does not show.
    pub shared: u64,
}

/// The files of a file system.
#[derive(Debug)]
pub struct Files {
    superblock: Superblock,
    owners: Owners,
    /// What each owner is; of those that are gone, nothing.
    slots: Vec<Option<Node>>,
    free: Vec<u32>,
    by_inode: HashMap<u64, u32>,
    /// Which owner a block leads to blocks of.
    leads_to: HashMap<u64, u32>,
    /// Blocks in which inodes are, and the group.
    inode_blocks: HashMap<u64, u32>,
    /// Blocks of the trees that lead to them.
    chunk_nodes: HashMap<u64, u32>,
    room: usize,
    skipped: Skipped,
}

/// The owner of what many have.
const SHARED: Owner = Owner(u32::MAX);

impl Files {
    /// Reads them.
    ///
    /// # Errors
    /// If it is no file system that is understood. What is wrong with a part of it is counted.
    pub fn read(disk: &impl Blocks) -> Result<Self, LayoutError> {
        let mut bytes = [0; superblock::LEN];
        disk.read(0, &mut bytes)
            .map_err(|source| LayoutError::Read { at: 0, source })?;
        let superblock = Superblock::parse(&bytes, disk.len())?;
        let mut files = Self::none(superblock);
        for group in 0..files.superblock.groups {
            files.group(group, disk, &mut Vec::new());
        }
        let directories: Vec<u64> = files
            .nodes()
            .filter(|node| node.kind == InodeKind::Directory)
            .map(|node| node.inode)
            .collect();
        for directory in directories {
            if files.name_all_in(directory, disk, &mut Vec::new()).is_err() {
                files.skipped.inodes += 1;
            }
        }
        Ok(files)
    }

    fn none(superblock: Superblock) -> Self {
        Self {
            owners: Owners::new(superblock.blocks),
            slots: Vec::new(),
            free: Vec::new(),
            by_inode: HashMap::new(),
            leads_to: HashMap::new(),
            inode_blocks: HashMap::new(),
            chunk_nodes: HashMap::new(),
            room: MAX_INODES,
            skipped: Skipped::default(),
            superblock,
        }
    }

    /// What the superblock says.
    #[must_use]
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The inode that has this block, and which block of its contents it is. Nobody, if many have it.
    #[must_use]
    pub fn owner(&self, block: u64) -> Option<(u64, u32)> {
        let (Owner(slot), file_block) = self.owners.get(block)?;
        let node = self.slots.get(index(slot.into()))?.as_ref()?;
        Some((node.inode, file_block))
    }

    /// An inode in use.
    #[must_use]
    pub fn node(&self, inode: u64) -> Option<&Node> {
        let slot = self.by_inode.get(&inode)?;
        self.slots.get(index(u64::from(*slot)))?.as_ref()
    }

    /// All inodes in use.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.slots.iter().flatten()
    }

    /// What was not understood.
    #[must_use]
    pub const fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// A path of an inode, from the root of the file system; `None` if it has no name that is known.
    ///
    /// # Errors
    /// If its directory cannot be read.
    pub fn path(&self, inode: u64, disk: &impl Blocks) -> Result<Option<Vec<u8>>, LayoutError> {
        if inode == self.superblock.root {
            return Ok(Some(b"/".to_vec()));
        }
        let Some(node) = self.node(inode) else {
            return Ok(None);
        };
        let mut name = None;
        if node.kind == InodeKind::Directory {
            name = Some(node.name.to_vec());
        } else {
            self.names_in(node.parent, disk, |found| {
                if found.inode == inode && name.is_none() {
                    name = Some(found.name.to_vec());
                }
            })?;
        }
        let above = |at| self.node(at).map(|node| (&*node.name, node.parent));
        Ok(name.and_then(|name| paths::path(name, node.parent, self.superblock.root, above)))
    }

    /// The inode at a path, from the root of the file system; links are not followed.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn find(&self, path: &[&[u8]], disk: &impl Blocks) -> Result<Option<u64>, LayoutError> {
        paths::find(self.superblock.root, path, |directory, name| {
            let mut inode = None;
            self.names_in(directory, disk, |found| {
                if found.name == name && inode.is_none() {
                    inode = Some(found.inode);
                }
            })?;
            Ok(inode)
        })
    }

    /// What a file holds; `None` if this is none, or has more than `most` bytes.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn contents(
        &self,
        inode: u64,
        most: u64,
        disk: &impl Blocks,
    ) -> Result<Option<Vec<u8>>, LayoutError> {
        let Some(node) = self
            .node(inode)
            .filter(|node| node.kind == InodeKind::File && node.bytes <= most)
        else {
            return Ok(None);
        };
        let runs = node.runs.iter();
        let blocks = runs.flat_map(|run| (run.block..).zip((run.file_block..).take(index(run.len.into()))));
        let blocks = blocks.map(Some);
        contents(node.bytes, self.superblock.block_bytes, blocks, disk).map(Some)
    }

    /// Gives all names in a directory, but itself and the one above.
    fn names_in(
        &self,
        directory: u64,
        disk: &impl Blocks,
        mut give: impl FnMut(Name<'_>),
    ) -> Result<(), LayoutError> {
        if self
            .node(directory)
            .is_none_or(|node| node.kind != InodeKind::Directory)
        {
            return Ok(());
        }
        let mut named = |name: Name<'_>| {
            if name.name != b"." && name.name != b".." {
                give(name);
            }
        };
        if let Some(Inode {
            fork: Fork::Local(contents),
            ..
        }) = self.inode(directory, disk)?
        {
            ShortForm::new(&contents, &self.superblock)
                .into_iter()
                .flatten()
                .for_each(named);
            return Ok(());
        }
        self.each_directory_block(directory, disk, |block| {
            DirectoryBlock::new(block, directory, &self.superblock)
                .into_iter()
                .flat_map(DirectoryBlock::names)
                .for_each(&mut named);
        })
    }

    /// Gives the blocks of a directory in which names are.
    fn each_directory_block(
        &self,
        directory: u64,
        disk: &impl Blocks,
        mut give: impl FnMut(&[u8]),
    ) -> Result<(), LayoutError> {
        let Some(node) = self.node(directory) else {
            return Ok(());
        };
        let of = &self.superblock;
        let each = of.directory_blocks;
        let names = node.runs.iter().flat_map(|run| {
            let first = run.file_block.checked_next_multiple_of(each).unwrap_or(u32::MAX);
            let end = run.file_block.saturating_add(run.len);
            (first..end).step_by(index(each.into()))
        });
        let is_name = |file_block: &u32| u64::from(*file_block) * u64::from(of.block_bytes) < HASHES_AT;
        for file_block in names.take_while(is_name).take(MAX_DIRECTORY_BLOCKS) {
            if let Some(block) = self.directory_block(node, file_block, disk)? {
                give(&block);
            }
        }
        Ok(())
    }

    /// A block of a directory, which may be more than one of the disk.
    fn directory_block(
        &self,
        node: &Node,
        first: u32,
        disk: &impl Blocks,
    ) -> Result<Option<Vec<u8>>, LayoutError> {
        let of = &self.superblock;
        let mut bytes = vec![0; of.block_len() * index(of.directory_blocks.into())];
        for (piece, file_block) in bytes.chunks_exact_mut(of.block_len()).zip(first..) {
            let after = node.runs.partition_point(|run| run.file_block <= file_block);
            let run = after.checked_sub(1).and_then(|before| node.runs.get(before));
            let Some(run) = run.filter(|run| file_block - run.file_block < run.len) else {
                return Ok(None);
            };
            let at = of.at(run.block + u64::from(file_block - run.file_block));
            disk.read(at, piece)
                .map_err(|source| LayoutError::Read { at, source })?;
        }
        Ok(Some(bytes))
    }

    fn inode(&self, number: u64, disk: &impl Blocks) -> Result<Option<Inode>, LayoutError> {
        let Some((block, offset)) = self.superblock.inode(number) else {
            return Ok(None);
        };
        let at = self.superblock.at(block).saturating_add(offset as u64);
        let mut bytes = vec![0; index(self.superblock.inode_bytes.into())];
        disk.read(at, &mut bytes)
            .map_err(|source| LayoutError::Read { at, source })?;
        Ok(Inode::parse(&bytes, number, &self.superblock))
    }

    /// Reads where a group has its inodes, and those that are in blocks which had none. Inodes that are others are added to `touched`.
    fn group(&mut self, group: u32, disk: &impl Blocks, touched: &mut Vec<u64>) {
        let of = self.superblock.clone();
        let mut found = Kept::default();
        let read = chunks(group, &of, disk, |chunk| found.add(chunk));
        let Ok(nodes) = read else {
            self.skipped.groups += 1;
            return;
        };
        self.skipped.groups += u64::from(found.beyond > 0);
        self.chunk_nodes.retain(|_, of| *of != group);
        self.chunk_nodes
            .extend(nodes.into_iter().map(|node| (node, group)));
        let blocks: HashSet<u64> = found
            .chunks
            .into_iter()
            .flat_map(|chunk| blocks_of(group, chunk, &of))
            .collect();
        let mut gone = Vec::new();
        self.inode_blocks.retain(|block, has| {
            let is_there = *has != group || blocks.contains(block);
            if !is_there {
                gone.push(*block);
            }
            is_there
        });
        for block in gone {
            for inode in of.first_inode(block)..of.first_inode(block) + (1 << of.inode_bits) {
                if self.forget(inode).is_some() {
                    touched.push(inode);
                }
            }
        }
        let mut bytes = vec![0; of.block_len()];
        for block in blocks {
            if self.inode_blocks.insert(block, group).is_some() {
                continue;
            }
            if disk.read(of.at(block), &mut bytes).is_err() {
                self.skipped.inodes += 1;
                continue;
            }
            self.inodes_in(block, &bytes, disk, touched);
        }
    }

    /// A block holds these inodes.
    fn inodes_in(&mut self, block: u64, bytes: &[u8], disk: &impl Blocks, touched: &mut Vec<u64>) {
        let (first, each) = (self.superblock.first_inode(block), self.superblock.inode_bytes);
        for (number, inode) in (first..).zip(bytes.chunks_exact(index(each.into()))) {
            if self.take(number, inode, disk) {
                touched.push(number);
            }
        }
    }

    /// An inode is this now. Whether that is news.
    fn take(&mut self, number: u64, bytes: &[u8], disk: &impl Blocks) -> bool {
        let of = self.superblock.clone();
        let Some(inode) = Inode::parse(bytes, number, &of) else {
            return self.forget(number).is_some();
        };
        let mut hasher = DefaultHasher::new();
        inode.hash(&mut hasher);
        let digest = hasher.finish();
        let before = self.node(number);
        // Where blocks lead to others, those change without the inode.
        if before.is_some_and(|before| before.digest == digest && before.nodes.is_empty()) {
            return false;
        }
        if before.is_none() && self.by_inode.len() >= self.room {
            self.skipped.left_out += 1;
            return false;
        }
        let same = before.filter(|before| before.generation == inode.generation && before.kind == inode.kind);
        let (parent, name) =
            same.map_or_else(Default::default, |before| (before.parent, before.name.clone()));
        self.forget(number);
        let leads_to = &self.leads_to;
        let mut claimed = HashSet::new();
        let found = Extents::of(&inode, number, &of, disk, &mut |node| {
            !leads_to.contains_key(&node) && claimed.insert(node)
        });
        let found = found.unwrap_or_else(|_| {
            self.skipped.inodes += 1;
            Extents::default()
        });
        self.skipped.inodes += u64::from(found.is_cut);
        let slot = self.slot();
        let runs = found.extents.iter().filter_map(|extent| {
            Some(Run {
                block: extent.block,
                file_block: u32::try_from(extent.file_block).ok()?,
                len: extent.len,
            })
        });
        let runs: Box<[Run]> = runs.collect();
        self.skipped.inodes += u64::from(runs.len() < found.extents.len());
        for run in &runs {
            self.own(slot, *run);
        }
        self.leads_to.extend(found.nodes.iter().map(|node| (*node, slot)));
        let node = Node {
            inode: number,
            kind: inode.kind,
            generation: inode.generation,
            bytes: inode.bytes,
            parent,
            name,
            is_short: inode.kind == InodeKind::Directory && matches!(inode.fork, Fork::Local(_)),
            runs,
            nodes: found.nodes.into(),
            digest,
        };
        if let Some(place) = self.slots.get_mut(index(slot.into())) {
            *place = Some(node);
        }
        self.by_inode.insert(number, slot);
        true
    }

    /// These blocks are this owner's, and nobody's any more if they are another's too.
    fn own(&mut self, slot: u32, run: Run) {
        let (mut from, end) = (0, run.len);
        while from < end {
            let owner = |at: u32| self.owners.get(run.block + u64::from(at)).map(|(owner, _)| owner);
            let first = owner(from);
            let mut to = from + 1;
            while to < end && owner(to).is_some() == first.is_some() {
                to += 1;
            }
            let owner = if first.is_some() {
                self.skipped.shared += u64::from(to - from);
                SHARED
            } else {
                Owner(slot)
            };
            let file_block = run.file_block.wrapping_add(from);
            self.owners
                .set(run.block + u64::from(from), to - from, owner, file_block);
            from = to;
        }
    }

    fn slot(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX - 1)
        })
    }

    /// An inode is not in use any more, or is about to be another one.
    fn forget(&mut self, number: u64) -> Option<()> {
        let slot = self.by_inode.remove(&number)?;
        let node = self.slots.get_mut(index(slot.into()))?.take()?;
        self.free.push(slot);
        for run in node.runs {
            self.owners.clear(run.block, run.len, Owner(slot));
        }
        for node in node.nodes {
            self.leads_to.remove(&node);
        }
        Some(())
    }

    /// Gives what is in a directory its directory, and directories their names. Those that have another one now are added to `touched`.
    fn name_all_in(
        &mut self,
        directory: u64,
        disk: &impl Blocks,
        touched: &mut Vec<u64>,
    ) -> Result<(), LayoutError> {
        let mut names: Vec<(u64, Vec<u8>)> = Vec::new();
        self.names_in(directory, disk, |name| {
            names.push((name.inode, name.name.to_vec()))
        })?;
        for (inode, name) in names {
            if self.is_named(directory, inode, &name) {
                touched.push(inode);
            }
        }
        Ok(())
    }

    /// Something has this name in a directory. Whether that may be news.
    fn is_named(&mut self, directory: u64, inode: u64, name: &[u8]) -> bool {
        let slot = self.by_inode.get(&inode).copied().unwrap_or(u32::MAX);
        let Some(Some(node)) = self.slots.get_mut(index(slot.into())) else {
            return false;
        };
        let is_directory = node.kind == InodeKind::Directory;
        let is_news = node.parent != directory || is_directory && *node.name != *name;
        node.parent = directory;
        if is_directory && is_news {
            node.name = name.into();
        }
        // A file may have another name in the same directory.
        is_news || !is_directory
    }

    /// A block of the file system holds this from now on. What `disk` reads has it already. Inodes that are others now, or have another
    /// name, are added to `touched`.
    pub(super) fn changed(&mut self, block: u64, bytes: &[u8], disk: &impl Blocks, touched: &mut Vec<u64>) {
        let of = self.superblock.clone();
        if self.has_inodes(block) {
            self.inodes_in(block, bytes, disk, touched);
        } else if let Some(slot) = self.leads_to.get(&block).copied() {
            let node = self.slots.get(index(slot.into())).and_then(Option::as_ref);
            let Some(number) = node.map(|node| node.inode) else {
                return;
            };
            let place = of
                .inode(number)
                .map(|(block, offset)| of.at(block).saturating_add(offset as u64));
            let mut inode = vec![0; index(of.inode_bytes.into())];
            if place.is_some_and(|at| disk.read(at, &mut inode).is_ok()) {
                self.take(number, &inode, disk);
                touched.push(number);
            }
        } else if let Some((directory, file_block)) = self.owner(block)
            && let Some(node) = self
                .node(directory)
                .filter(|node| node.kind == InodeKind::Directory)
        {
            let first = file_block - file_block % of.directory_blocks;
            let Ok(Some(bytes)) = self.directory_block(node, first, disk) else {
                return;
            };
            let names = DirectoryBlock::new(&bytes, directory, &of).into_iter();
            for name in names.flat_map(DirectoryBlock::names) {
                let is_other = name.name != b"." && name.name != b"..";
                if is_other && self.is_named(directory, name.inode, name.name) {
                    touched.push(name.inode);
                }
            }
        } else if let Some(group) = self.leads_to_inodes(block) {
            self.group(group, disk, touched);
        }
    }

    /// Short directories among those that are others now: what they name is in their inodes, and was not known before those all were.
    pub(super) fn name_in_short(&mut self, disk: &impl Blocks, touched: &mut Vec<u64>) {
        for inode in touched.clone() {
            if self.node(inode).is_some_and(|node| node.is_short) {
                // What cannot be read has no names.
                let _ = self.name_all_in(inode, disk, touched);
            }
        }
    }

    /// Whether inodes are in this block. What a file has is none, whoever had it before.
    fn has_inodes(&self, block: u64) -> bool {
        self.inode_blocks.contains_key(&block) && self.owners.get(block).is_none()
    }

    /// The group whose inodes are found by this block.
    fn leads_to_inodes(&self, block: u64) -> Option<u32> {
        if let Some(group) = self.chunk_nodes.get(&block) {
            return Some(*group);
        }
        let of = &self.superblock;
        let group = block / u64::from(of.group_blocks.max(1));
        let within = block % u64::from(of.group_blocks.max(1));
        let header = header_at(of) / u64::from(of.block_bytes.max(1));
        (within == header).then_some(u32::try_from(group).ok()?)
    }

    /// Whether this block leads to inodes or to blocks of one, and no names are in it.
    pub(super) fn is_named_nowhere(&self, block: u64) -> bool {
        self.leads_to_inodes(block).is_some() || self.leads_to.contains_key(&block)
    }

    /// Whether this kind of block is looked at when it changes.
    pub(super) fn is_metadata(&self, block: u64) -> bool {
        let is_directory = || {
            let owner = self.owner(block).and_then(|(inode, _)| self.node(inode));
            owner.is_some_and(|node| node.kind == InodeKind::Directory)
        };
        self.has_inodes(block)
            || self.leads_to.contains_key(&block)
            || self.leads_to_inodes(block).is_some()
            || is_directory()
    }
}

/// Chunks of a group.
#[derive(Debug, Default)]
struct Kept {
    chunks: Vec<Chunk>,
    beyond: u64,
}

impl Kept {
    fn add(&mut self, chunk: Chunk) {
        if self.chunks.len() < MAX_CHUNKS {
            self.chunks.push(chunk);
        } else {
            self.beyond += 1;
        }
    }
}

/// The blocks of a chunk in which inodes are in use.
fn blocks_of(group: u32, chunk: Chunk, of: &Superblock) -> impl Iterator<Item = u64> {
    let used = (0..CHUNK).filter(move |number| chunk.used >> number & 1 != 0);
    used.filter_map(move |number| {
        let inode = of.number(group, chunk.first.saturating_add(number));
        of.inode(inode).map(|(block, _)| block)
    })
}

#[cfg(test)]
mod tests;
