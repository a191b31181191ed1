//! All files of a file system as it is now: whose each block is, and what each inode is called.
//!
//! Every inode table is read once from its beginning to its end, then the nodes and directories that inodes lead to. Directories keep their
//! names; the names of files are looked for in their directory when somebody asks.

use std::collections::{HashMap, HashSet};

use super::super::contents::contents;
use super::super::{Blocks, InodeKind, LayoutError, Owner, Owners, paths};
use super::directory::Names;
use super::extents::Extents;
use super::group::Group;
use super::inode::{Contents, Inode};
use super::superblock::{self, Superblock};

/// The root directory.
const ROOT: u32 = 2;
/// Bytes of an inode table that are read at once.
const CHUNK: usize = 1 << 20;
/// Inodes that are kept: some 64 bytes each. It stops a disk that is full of empty files; what is beyond has no name here.
const MAX_INODES: usize = 8 << 20;
/// Blocks of one directory that are read: a quarter of a million names in each thousand of them.
const MAX_DIRECTORY_BLOCKS: usize = 1 << 18;

/// What is known of an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// What has it.
    pub kind: InodeKind,
    /// Tells it from the one that had its number before.
    pub generation: u32,
    /// Bytes of its contents.
    pub bytes: u64,
    /// A directory in which it has a name; 0 if none is known.
    pub parent: u32,
    /// Of a directory, its name there.
    name: Box<[u8]>,
    /// Its blocks: each run's first, and how many.
    runs: Box<[(u64, u32)]>,
    /// Blocks that lead to them.
    nodes: Box<[u64]>,
    /// Of what was read of the inode, so that it is known when that changes.
    digest: u64,
}

/// What was not understood.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Skipped {
    /// Groups whose descriptor cannot be right, or whose inodes cannot be read.
    pub groups: u64,
    /// Inodes whose blocks cannot be right, or are too many.
    pub inodes: u64,
    /// Inodes for which there was no room.
    pub left_out: u64,
}

/// The files of a file system.
#[derive(Debug)]
pub struct Files {
    superblock: Superblock,
    owners: Owners,
    nodes: HashMap<u32, Node>,
    /// Which inode a block leads to blocks of.
    leads_to: HashMap<u64, u32>,
    /// The first block of each group's inode table, in order, and the group.
    tables: Vec<(u64, u64)>,
    skipped: Skipped,
}

impl Files {
    /// Reads them.
    ///
    /// # Errors
    /// If it is no file system that is understood. What is wrong with a part of it is counted.
    pub fn read(disk: &impl Blocks) -> Result<Self, LayoutError> {
        let mut bytes = [0; superblock::LEN];
        disk.read(superblock::AT, &mut bytes)
            .map_err(|source| LayoutError::Read {
                at: superblock::AT,
                source,
            })?;
        let superblock = Superblock::parse(&bytes, disk.len())?;
        let mut reading = Reading {
            disk,
            files: Self {
                owners: Owners::new(superblock.blocks),
                superblock,
                nodes: HashMap::new(),
                leads_to: HashMap::new(),
                tables: Vec::new(),
                skipped: Skipped::default(),
            },
            room: MAX_INODES,
            directories: Vec::new(),
        };
        for number in 0..reading.files.superblock.groups() {
            if reading.group(number).is_none() {
                reading.files.skipped.groups += 1;
            }
        }
        reading.files.tables.sort_unstable();
        Ok(reading.named())
    }

    /// What the superblock says.
    #[must_use]
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The inode that has this block, and which block of its contents it is.
    #[must_use]
    pub fn owner(&self, block: u64) -> Option<(u32, u32)> {
        let (Owner(inode), file_block) = self.owners.get(block)?;
        Some((inode, file_block))
    }

    /// An inode in use.
    #[must_use]
    pub fn node(&self, inode: u32) -> Option<&Node> {
        self.nodes.get(&inode)
    }

    /// All inodes in use.
    pub fn nodes(&self) -> impl Iterator<Item = (u32, &Node)> {
        self.nodes.iter().map(|(inode, node)| (*inode, node))
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
    pub fn path(&self, inode: u32, disk: &impl Blocks) -> Result<Option<Vec<u8>>, LayoutError> {
        if inode == ROOT {
            return Ok(Some(b"/".to_vec()));
        }
        let Some(node) = self.nodes.get(&inode) else {
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
        let above = |at| self.nodes.get(&at).map(|node| (&*node.name, node.parent));
        Ok(name.and_then(|name| paths::path(name, node.parent, ROOT, above)))
    }

    /// The inode at a path, from the root of the file system; links are not followed.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn find(&self, path: &[&[u8]], disk: &impl Blocks) -> Result<Option<u32>, LayoutError> {
        paths::find(ROOT, path, |directory, name| {
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
        inode: u32,
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
        let blocks = runs
            .flat_map(|(block, len)| *block..block.saturating_add((*len).into()))
            .map(|block| {
                let (owner, file_block) = self.owners.get(block)?;
                (owner == Owner(inode)).then_some((block, file_block))
            });
        contents(node.bytes, self.superblock.block_bytes, blocks, disk).map(Some)
    }

    /// Gives all names in a directory.
    fn names_in(
        &self,
        directory: u32,
        disk: &impl Blocks,
        mut give: impl FnMut(super::Name<'_>),
    ) -> Result<(), LayoutError> {
        let Some(inode) = self.inode(directory, disk)? else {
            return Ok(());
        };
        // Whose nodes they are was asked when all was read.
        let extents = extents(&inode, &self.superblock, disk, &mut |_| true)?;
        each_block(&extents, &self.superblock, disk, |block| {
            Names::new(block).for_each(&mut give)
        })
    }

    fn inode(&self, number: u32, disk: &impl Blocks) -> Result<Option<Inode>, LayoutError> {
        Ok(self
            .inode_bytes(number, disk)?
            .and_then(|bytes| Inode::parse(&bytes)))
    }

    fn inode_bytes(&self, number: u32, disk: &impl Blocks) -> Result<Option<[u8; 128]>, LayoutError> {
        let of = &self.superblock;
        let Some(index) = number.checked_sub(1) else {
            return Ok(None);
        };
        let group = u64::from(index / of.inodes_per_group.max(1));
        let within = u64::from(index % of.inodes_per_group.max(1));
        let Some(group) = descriptor(group, of, disk)? else {
            return Ok(None);
        };
        let at = of
            .at(group.inode_table)
            .saturating_add(within.saturating_mul(of.inode_bytes.into()));
        let mut bytes = [0; 128];
        disk.read(at, &mut bytes)
            .map_err(|source| LayoutError::Read { at, source })?;
        Ok(Some(bytes))
    }
}

impl Files {
    /// An inode is this now. What it is and what it has, if it is in use; nothing if it is as it was.
    fn take(
        &mut self,
        number: u32,
        bytes: &[u8],
        of: &Superblock,
        disk: &impl Blocks,
    ) -> Option<(InodeKind, Extents)> {
        // What is kept for growth, and bad blocks, are nobody's contents.
        if number < of.first_inode && number != ROOT && number != of.journal_inode {
            return None;
        }
        let Some(inode) = Inode::parse(bytes) else {
            self.forget(number);
            return None;
        };
        let digest = digest(&inode);
        let before = self.nodes.get(&number);
        // Where blocks lead to others, those change without the inode.
        if before.is_some_and(|before| before.digest == digest && before.nodes.is_empty()) {
            return None;
        }
        let same = before.filter(|before| before.generation == inode.generation && before.kind == inode.kind);
        let (parent, name) =
            same.map_or_else(Default::default, |before| (before.parent, before.name.clone()));
        self.forget(number);
        let leads_to = &self.leads_to;
        // A node that many inodes had would be read for each of them.
        let mut claimed = HashSet::new();
        let found = extents(&inode, of, disk, &mut |node| {
            !leads_to.contains_key(&node) && claimed.insert(node)
        });
        let found = found.unwrap_or_else(|_| {
            self.skipped.inodes += 1;
            Extents::default()
        });
        self.skipped.inodes += u64::from(found.is_cut);
        for extent in &found.extents {
            self.owners
                .set(extent.block, extent.len, Owner(number), extent.file_block);
        }
        self.leads_to
            .extend(found.nodes.iter().map(|node| (*node, number)));
        let node = Node {
            kind: inode.kind,
            generation: inode.generation,
            bytes: inode.bytes,
            parent,
            name,
            runs: found
                .extents
                .iter()
                .map(|extent| (extent.block, extent.len))
                .collect(),
            nodes: found.nodes.iter().copied().collect(),
            digest,
        };
        self.nodes.insert(number, node);
        Some((inode.kind, found))
    }

    /// An inode is not in use any more, or is about to be another one.
    fn forget(&mut self, number: u32) {
        let Some(node) = self.nodes.remove(&number) else {
            return;
        };
        for (block, len) in node.runs {
            self.owners.clear(block, len, Owner(number));
        }
        for node in node.nodes {
            self.leads_to.remove(&node);
        }
    }

    /// A block of the file system holds this from now on. What `disk` reads has it already. Inodes that are others now, or have another
    /// name, are added to `touched`.
    pub(super) fn changed(&mut self, block: u64, bytes: &[u8], disk: &impl Blocks, touched: &mut Vec<u32>) {
        let of = self.superblock.clone();
        if let Some((first, each)) = self.inodes_in(block, &of) {
            for (number, inode) in (first..).zip(bytes.chunks_exact(each)) {
                let was = self.nodes.contains_key(&number);
                let is_news = match self.take(number, inode, &of, disk) {
                    Some(_) => true,
                    None => was && !self.nodes.contains_key(&number),
                };
                if is_news {
                    touched.push(number);
                }
            }
        } else if let Some(number) = self.leads_to.get(&block).copied() {
            if let Ok(Some(inode)) = self.inode_bytes(number, disk) {
                self.take(number, &inode, &of, disk);
                touched.push(number);
            }
        } else if let Some((Owner(directory), _)) = self.owners.get(block)
            && self
                .nodes
                .get(&directory)
                .is_some_and(|node| node.kind == InodeKind::Directory)
        {
            for name in Names::new(bytes) {
                if self.is_named(directory, &name) {
                    touched.push(name.inode);
                }
            }
        }
    }

    /// Blocks of an inode that is in use, each with which one of its contents it is.
    pub(super) fn blocks_of(&self, inode: u32) -> impl Iterator<Item = (u64, u32)> {
        let runs = self.nodes.get(&inode).map(|node| node.runs.iter());
        let blocks = runs
            .into_iter()
            .flatten()
            .flat_map(|(block, len)| *block..block.saturating_add((*len).into()));
        blocks.filter_map(move |block| {
            let (owner, file_block) = self.owners.get(block)?;
            (owner == Owner(inode)).then_some((block, file_block))
        })
    }

    /// Whether names are in this block, and no inodes.
    pub(super) fn is_named_there(&self, block: u64) -> bool {
        self.inodes_in(block, &self.superblock).is_none() && !self.leads_to.contains_key(&block)
    }

    /// Whether this kind of block is looked at when it changes.
    pub(super) fn is_metadata(&self, block: u64) -> bool {
        let is_directory = || {
            let owner = self
                .owners
                .get(block)
                .and_then(|(Owner(inode), _)| self.nodes.get(&inode));
            owner.is_some_and(|node| node.kind == InodeKind::Directory)
        };
        self.inodes_in(block, &self.superblock).is_some()
            || self.leads_to.contains_key(&block)
            || is_directory()
    }

    /// The first inode that is in this block, and how many bytes each has; `None` if none are.
    fn inodes_in(&self, block: u64, of: &Superblock) -> Option<(u32, usize)> {
        let after = self.tables.partition_point(|(table, _)| *table <= block);
        let (table, group) = self.tables.get(after.checked_sub(1)?)?;
        let each = usize::try_from(of.inode_bytes).ok()?;
        let before = (block - table).checked_mul(of.block_len().checked_div(each)? as u64)?;
        if before >= u64::from(of.inodes_per_group) {
            return None;
        }
        let first = group
            .checked_mul(of.inodes_per_group.into())?
            .checked_add(before)?
            .checked_add(1)?;
        Some((u32::try_from(first).ok()?, each))
    }

    /// Something has this name in a directory. Whether that is news.
    fn is_named(&mut self, directory: u32, name: &super::Name<'_>) -> bool {
        if name.name == b"." || name.name == b".." {
            return false;
        }
        let Some(node) = self.nodes.get_mut(&name.inode) else {
            return false;
        };
        let is_directory = node.kind == InodeKind::Directory;
        let is_news = node.parent != directory || is_directory && *node.name != *name.name;
        node.parent = directory;
        if is_directory && is_news {
            node.name = name.name.into();
        }
        // A file may have another name in the same directory.
        is_news || !is_directory
    }
}

/// Of what says which blocks an inode has, and what it is.
fn digest(inode: &Inode) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (
        inode.kind,
        inode.bytes,
        inode.generation,
        inode.links,
        inode.contents,
    )
        .hash(&mut hasher);
    hasher.finish()
}

/// Files that are being read.
struct Reading<'a, D> {
    disk: &'a D,
    files: Files,
    /// Inodes that are kept.
    room: usize,
    /// Directories, and where their names are.
    directories: Vec<(u32, Extents)>,
}

impl<D: Blocks> Reading<'_, D> {
    /// Reads the inodes of a group; `None` if that cannot be.
    fn group(&mut self, number: u64) -> Option<()> {
        let of = self.files.superblock.clone();
        let group = descriptor(number, &of, self.disk).ok()??;
        self.files.tables.push((group.inode_table, number));
        let each = usize::try_from(of.inode_bytes).ok()?;
        let first = u32::try_from(number.checked_mul(of.inodes_per_group.into())?.checked_add(1)?).ok()?;
        let mut done = 0_u32;
        while done < group.inodes_used {
            let now = (group.inodes_used - done).min(u32::try_from(CHUNK / each).ok()?);
            let mut bytes = vec![0; usize::try_from(now).ok()?.checked_mul(each)?];
            let offset = u64::from(done).checked_mul(of.inode_bytes.into())?;
            self.disk
                .read(of.at(group.inode_table).checked_add(offset)?, &mut bytes)
                .ok()?;
            for (inode, bytes) in (first.checked_add(done)?..).zip(bytes.chunks_exact(each)) {
                self.one(inode, bytes, &of);
            }
            done += now;
        }
        Some(())
    }

    fn one(&mut self, number: u32, bytes: &[u8], of: &Superblock) {
        if self.files.nodes.len() >= self.room && Inode::parse(bytes).is_some() {
            self.files.skipped.left_out += 1;
            return;
        }
        if let Some((InodeKind::Directory, extents)) = self.files.take(number, bytes, of, self.disk) {
            self.directories.push((number, extents));
        }
    }

    /// Gives everything its directory, and directories their names.
    fn named(mut self) -> Files {
        for (directory, extents) in std::mem::take(&mut self.directories) {
            let nodes = &mut self.files.nodes;
            let read = each_block(&extents, &self.files.superblock, self.disk, |block| {
                for name in Names::new(block) {
                    if name.name == b"." || name.name == b".." {
                        continue;
                    }
                    let Some(node) = nodes.get_mut(&name.inode) else {
                        continue;
                    };
                    if node.parent == 0 {
                        node.parent = directory;
                        if node.kind == InodeKind::Directory {
                            node.name = name.name.into();
                        }
                    }
                }
            });
            if read.is_err() {
                self.files.skipped.inodes += 1;
            }
        }
        self.files
    }
}

fn descriptor(group: u64, of: &Superblock, disk: &impl Blocks) -> Result<Option<Group>, LayoutError> {
    if group >= of.groups() {
        return Ok(None);
    }
    let (block, offset) = of.descriptor(group);
    let at = of.at(block).saturating_add(offset as u64);
    let mut bytes = [0; 64];
    let len = bytes
        .len()
        .min(usize::try_from(of.descriptor_bytes).unwrap_or(64));
    let bytes = &mut bytes[..len];
    disk.read(at, bytes)
        .map_err(|source| LayoutError::Read { at, source })?;
    Ok(Group::parse(bytes, of))
}

fn extents(
    inode: &Inode,
    of: &Superblock,
    disk: &impl Blocks,
    claim: &mut impl FnMut(u64) -> bool,
) -> Result<Extents, LayoutError> {
    match &inode.contents {
        Contents::Inline => Ok(Extents::default()),
        Contents::Extents(root) => Extents::of_tree(root, of, disk, claim),
        Contents::Indirect(map) => {
            let blocks = inode.bytes.div_ceil(of.block_bytes.into());
            Extents::of_blocks(map, blocks, of, disk, claim)
        }
    }
}

/// Gives each block of a directory.
fn each_block(
    extents: &Extents,
    of: &Superblock,
    disk: &impl Blocks,
    mut give: impl FnMut(&[u8]),
) -> Result<(), LayoutError> {
    let mut bytes = vec![0; of.block_len()];
    let blocks = extents
        .extents
        .iter()
        .filter(|extent| !extent.is_unwritten)
        .flat_map(|extent| extent.block..extent.block.saturating_add(extent.len.into()));
    for block in blocks.take(MAX_DIRECTORY_BLOCKS) {
        let at = of.at(block);
        disk.read(at, &mut bytes)
            .map_err(|source| LayoutError::Read { at, source })?;
        give(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::super::paths::MAX_PATH;
    use super::super::superblock::tests::bytes;
    use super::*;

    /// All zeros.
    struct Zeros;

    impl Blocks for Zeros {
        fn read(&self, _: u64, into: &mut [u8]) -> io::Result<()> {
            into.fill(0);
            Ok(())
        }

        fn len(&self) -> u64 {
            1 << 30
        }
    }

    fn nothing() -> Files {
        let superblock = Superblock::parse(&bytes(|_| ()), 1 << 30).unwrap();
        Files {
            owners: Owners::new(superblock.blocks),
            superblock,
            nodes: HashMap::new(),
            leads_to: HashMap::new(),
            tables: Vec::new(),
            skipped: Skipped::default(),
        }
    }

    fn directory(parent: u32, name: &[u8]) -> Node {
        Node {
            kind: InodeKind::Directory,
            generation: 0,
            bytes: 4096,
            parent,
            name: name.into(),
            runs: Box::default(),
            nodes: Box::default(),
            digest: 0,
        }
    }

    #[test]
    fn max_path_bounds_directories_in_directories_and_a_circle_ends() {
        let mut files = nothing();
        let name = [b'x'; 255];
        for number in 0..20 {
            let parent = if number == 0 { ROOT } else { 99 + number };
            files.nodes.insert(100 + number, directory(parent, &name));
        }
        let path = |inode| files.path(inode, &Zeros).unwrap().map(|path| path.len());
        assert_eq!(path(100), Some(256));
        assert_eq!(path(115), Some(16 * 256));
        assert!(16 * 256 <= MAX_PATH && path(117).is_none());
        files.nodes.insert(100, directory(119, &name));
        assert_eq!(files.path(110, &Zeros).unwrap(), None);
    }

    #[test]
    fn max_inodes_bounds_what_is_kept_and_the_rest_is_counted() {
        let mut reading = Reading {
            disk: &Zeros,
            files: nothing(),
            room: 2,
            directories: Vec::new(),
        };
        assert_eq!(MAX_INODES, 8 << 20);
        let of = reading.files.superblock.clone();
        let mut inode = [0; 256];
        inode[..2].copy_from_slice(&0x1000_u16.to_le_bytes());
        inode[0x1a] = 1;
        for number in 20..25 {
            reading.one(number, &inode, &of);
        }
        assert_eq!(
            (reading.files.nodes.len(), reading.files.skipped.left_out),
            (2, 3)
        );
    }

    #[test]
    fn max_directory_blocks_bounds_what_is_read_of_one_directory() {
        let of = Superblock::parse(&bytes(|_| ()), 1 << 30).unwrap();
        let extents = Extents {
            extents: vec![super::super::Extent {
                file_block: 0,
                block: 1,
                len: u32::try_from(MAX_DIRECTORY_BLOCKS).unwrap() + 9,
                is_unwritten: false,
            }],
            ..Extents::default()
        };
        let mut given = 0;
        each_block(&extents, &of, &Zeros, |_| given += 1).unwrap();
        assert_eq!(given, MAX_DIRECTORY_BLOCKS);
    }
}
